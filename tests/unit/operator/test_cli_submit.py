"""`midwatch submit` refuses what cannot work before it speaks to any cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from midwatch.operator.cli import main as cli_main

Cli = Callable[..., tuple[int, str]]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    def call(*words: str) -> tuple[int, str]:
        # Nobody listens there: reaching it would be another error.
        address = () if "--address" in words else ("--address", "http://127.0.0.1:9")
        monkeypatch.setattr("sys.argv", ["midwatch", "submit", *words, *address])
        with pytest.raises(SystemExit) as end:
            cli_main.main()
        return int(end.value.code or 0), capfd.readouterr().err

    return call


def _spec(folder: Path, **changes: Any) -> str:
    spec = {
        "name": "far-away",
        "run_dir": "/shared/far-away",
        "mesh": {"dp_shard": 2, "tp": 1},
        "nodes": {"ranks_per_node": 2},
        "trainer": {"preset": "tiny", "data": {"dir": "/shared/corpus"}},
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec | changes))
    return str(path)


@pytest.mark.parametrize(
    "changes",
    [{"run_dir": ""}, {"run_dir": "runs/x"}, {"trainer": {"preset": "tiny", "data": {"dir": "d"}}}],
)
def test_a_path_in_the_jobs_own_folder(cli: Cli, tmp_path: Path, changes: dict[str, Any]) -> None:
    status, told = cli(_spec(tmp_path, **changes))
    assert (status, "path-not-absolute" in told) == (2, True), told


@pytest.mark.parametrize("text", ["working_dir: .", "- a", "a: [", None])
def test_a_runtime_env_that_cannot_work(cli: Cli, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "env.yaml"
    if text is not None:
        path.write_text(text)
    status, told = cli(_spec(tmp_path), "--runtime-env", str(path))
    assert (status, "runtime-env-invalid" in told) == (2, True), told


@pytest.mark.parametrize(
    ("address", "code"),
    [("ray://127.0.0.1:10001", "address-invalid"), ("127.0.0.1:9", "at http://127.0.0.1:9:")],
)
def test_an_address_that_is_no_url(cli: Cli, tmp_path: Path, address: str, code: str) -> None:
    _, told = cli(_spec(tmp_path), "--address", address)
    assert code in told, told


def test_a_token_file_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    status, told = cli(_spec(tmp_path), "--token-file", str(tmp_path / "none"))
    assert (status, "token-unreadable" in told) == (2, True), told


def test_a_spec_that_is_wrong_is_told_with_its_line(cli: Cli, tmp_path: Path) -> None:
    status, told = cli(_spec(tmp_path, meshes={}))
    assert (status, "spec.yaml:" in told, "spec-invalid" in told) == (2, True, True), told
