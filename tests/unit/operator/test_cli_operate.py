"""midwatch operator: what it needs before it begins, said in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MIDWATCH = Path(sys.executable).with_name("midwatch")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--all-namespaces", "--namespace", "ml"], "usage"),
        (["--evidence", "/nowhere.yaml"], "evidence-file-invalid"),
        ([], "no-cluster"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_begun(
    arguments: list[str], code: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [MIDWATCH, "operator", *arguments],
        env={"KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert f"[{code}]" in done.stderr
    assert "Traceback" not in done.stderr
