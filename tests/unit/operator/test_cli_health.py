"""midwatch xid, classify and replay: what they print, and what they refuse."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from midwatch.health.numerics.point import Point
from midwatch.operator.cli.main import main
from midwatch.operator.hindsight import Hindsight, default_spec
from midwatch.tests.support.curves import healthy, raised, shift

MIDWATCH = [sys.executable, "-m", "midwatch.operator.cli.main"]
ROW_FIELDS = [
    "step",
    "kind",
    "severity",
    "detector",
    "onset_step",
    "value",
    "reference",
    "decision",
    "lr_factor",
]
ECC = "NVRM: Xid (PCI:0000:b3:00): 48, pid=1234, An uncorrectable double bit error (DBE)"

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["midwatch", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return int(end.value.code or 0), out, err

    return run


def write_csv(path: Path, points: list[Point], loss: str = "loss") -> Path:
    rows = [f"{p.step},{p.loss},{p.grad_norm},{p.activation_norm}" for p in points]
    path.write_text("\n".join([f"step,{loss},grad_norm,activation_norm", *rows]) + "\n")
    return path


def twice_raised() -> list[Point]:
    """A loss that jumps and is taken back by hand, then jumps again."""
    points = raised(healthy(1000, seed=3), 900, shift(0.5)) + healthy(1500, seed=3)[1000:]
    return raised(points, 1200, shift(0.4))


def findings(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# --- xid -----------------------------------------------------------------------------------------


def test_an_xid_in_json_has_exactly_the_promised_fields() -> None:
    done = subprocess.run([*MIDWATCH, "xid", "79", "-o", "json"], capture_output=True, check=True)
    fact = json.loads(done.stdout)
    assert list(fact) == ["code", "name", "action", "source"]
    assert (fact["code"], fact["action"]) == (79, "evict")
    assert fact["source"]
    assert done.stderr == b""


def test_an_xid_in_words(cli: Cli) -> None:
    status, out, _ = cli("xid", "79")
    assert status == 0
    assert "fell off the bus" in out
    assert "evict" in out


def test_an_unlisted_xid_is_watched_not_refused(cli: Cli) -> None:
    status, out, _ = cli("xid", "9999", "-o", "json")
    assert status == 0
    assert json.loads(out)["action"] == "watch"


def test_no_number_is_a_usage_error(cli: Cli) -> None:
    assert cli("xid", "seventy-nine")[0] == 2


# --- classify ------------------------------------------------------------------------------------


def test_a_text_from_standard_input_is_classified() -> None:
    done = subprocess.run(
        [*MIDWATCH, "classify", "-", "-o", "json"],
        input=f"step 5 ok\n{ECC}\n".encode(),
        capture_output=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert list(found) == ["label", "confidence", "lines", "blame", "action"]
    assert (found["label"], found["blame"], found["action"]) == ("gpu_ecc", "node", "evict")
    assert found["lines"] == [{"number": 2, "text": ECC}]
    assert 0.5 < found["confidence"] <= 1.0


def test_unknown_text_and_bytes_that_are_no_text_say_unknown(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "noise.log"
    path.write_bytes(b"\xff\xfe\x00 all is quiet \x80\n")
    status, out, _ = cli("classify", str(path), "-o", "json")
    assert status == 0
    assert json.loads(out)["label"] == "unknown"
    assert json.loads(out)["confidence"] == 0.0


def test_user_code_never_costs_a_node(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "trace.log"
    path.write_text('Traceback (most recent call last):\n  File "a.py", line 3\nKeyError: 7\n')
    _, out, _ = cli("classify", str(path), "-o", "json")
    found = json.loads(out)
    assert found["blame"] == "code"
    assert found["action"] not in ("drain", "evict")
    status, out, _ = cli("classify", str(path))
    assert status == 0
    assert "KeyError" in out


def test_a_missing_file_is_not_found(cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli("classify", str(tmp_path / "nothing"))
    assert status == 3
    assert "no-such-file" in err


# --- replay --------------------------------------------------------------------------------------


def test_a_recurrence_climbs_the_ladder(cli: Cli, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "run.csv", twice_raised())
    status, out, _ = cli("replay", str(path), "-o", "json")
    rows = findings(out)
    assert status == 0
    assert all(list(row) == ROW_FIELDS for row in rows)
    rollbacks = [row for row in rows if row["severity"] == "rollback"]
    assert [(row["decision"], row["lr_factor"]) for row in rollbacks] == [
        ("rollback", 0.9),
        ("rollback", 0.84),
    ]
    assert [row["onset_step"] for row in rollbacks] == [901, 1201]
    assert {(r["decision"], r["lr_factor"]) for r in rows if r["severity"] == "observe"} == {
        ("none", 1.0)
    }
    assert [row["decision"] for row in rows if row["severity"] == "warn"] == ["note", "note"]


def test_the_ladder_is_the_specs(cli: Cli, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "run.csv", twice_raised())
    spec = tmp_path / "run.yaml"
    spec.write_text(
        "name: recorded\nmesh: {dp_shard: 1}\nnodes: {ranks_per_node: 1}\n"
        "numeric: {lr_ladder: [0.75]}\n"
        'detectors: {spike: {mode: "off"}}\n'
        "trainer: {preset: nano, steps: 10, data: {dir: nowhere}}\n"
    )
    _, out, err = cli("replay", str(path), "--spec", str(spec), "-o", "json")
    assert not err
    rollbacks = [row for row in findings(out) if row["severity"] == "rollback"]
    assert [(row["decision"], row["lr_factor"]) for row in rollbacks] == [
        ("rollback", 0.75),
        ("pause", 1.0),
    ]
    assert "spike" not in {row["detector"] for row in findings(out)}


def test_far_apart_the_ladder_starts_anew() -> None:
    points = raised(healthy(1000, seed=3), 900, shift(0.5))
    points += healthy(3500, seed=3)[1000:]
    hindsight = Hindsight(default_spec())
    decided = []
    for point in hindsight.follow(raised(points, 3300, shift(0.4))):
        if point.step in (910, 3310):
            decided.append(hindsight.decide(_divergence(point.step)))
    assert decided == [("rollback", 0.9), ("rollback", 0.9)]


def test_a_run_without_a_sound_checkpoint_pauses() -> None:
    hindsight = Hindsight(default_spec(), checkpoint_every_steps=10**9)
    answers = [
        hindsight.decide(_divergence(point.step))
        for point in hindsight.follow(healthy(2501))
        if point.step in (100, 2501)
    ]
    assert answers == [("rollback", 0.9), ("pause", 1.0)]


def test_a_map_names_columns_and_wrong_ones_are_refused(cli: Cli, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "run.csv", twice_raised(), loss="my_own")
    status, out, _ = cli("replay", str(path), "--map", "loss=my_own", "-o", "json")
    assert status == 0
    assert "rollback" in {row["severity"] for row in findings(out)}
    status, _, err = cli("replay", str(path), "--map", "loss=theirs")
    assert status == 2
    assert "line 1" in err
    assert cli("replay", str(path), "--map", "lozz=my_own")[0] == 2


def test_a_value_that_is_not_finite_is_a_word(cli: Cli, tmp_path: Path) -> None:
    points = healthy(300)
    for index in range(200, 212):
        points[index].loss = float("nan")
    status, out, _ = cli("replay", str(write_csv(tmp_path / "a.csv", points)), "-o", "json")
    assert status == 0
    assert {row["value"] for row in findings(out) if row["kind"] == "non-finite"} == {"NaN"}


def test_unreadable_input_names_the_line_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("step,loss\n1,2.0\n2,abc\n")
    done = subprocess.run([*MIDWATCH, "replay", str(path)], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"line 3" in done.stderr
    assert b"'abc'" in done.stderr
    assert done.stdout == b""


def test_a_picture_and_a_sum_for_people(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = write_csv(tmp_path / "run.csv", twice_raised())
    picture = tmp_path / "out.png"
    status, out, _ = cli("replay", str(path), "--plot", str(picture))
    assert status == 0
    assert "1500 points" in out
    assert "2 rollbacks decided" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_said(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    path = write_csv(tmp_path / "run.csv", healthy(50))
    status, _, err = cli("replay", str(path), "--plot", str(tmp_path / "out.png"))
    assert status == 2
    assert "plot-needs-matplotlib" in err


def _divergence(step: int) -> Any:
    from midwatch.logbook.findings import Finding, Severity

    return Finding(
        detector="level-shift",
        kind="level-shift",
        severity=Severity.ROLLBACK,
        step=step,
        onset_step=step - 10,
        value=4.0,
        reference=2.0,
        message="the loss jumped",
    )
