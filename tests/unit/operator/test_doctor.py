"""midwatch doctor: a real agent, real workers, a verdict, and a status that scripts can trust."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from midwatch.health.nodes.preflight_judge import PreflightVerdict
from midwatch.logbook.preflight import PreflightLimits
from midwatch.operator.doctor import ENTRY_POINT, Examination, examine

DYING = "midwatch.tests.support.dying_ranks"
COMMAND = [sys.executable, "-m", "midwatch.operator.cli.main", "doctor", "--device", "cpu"]
LIMITS = PreflightLimits(
    burn_in_s=0.0,
    matmul_size=64,
    device_matmul_size=64,
    memory_bytes=1 << 20,
    device_memory_bytes=1 << 20,
    walking_stride_bits=16,
    disk_bytes=1 << 16,
    message_bytes=1 << 14,
    repeats=2,
    disk_bytes_per_s_min=0.0,
    disk_free_bytes_min=0,
    # Ranks outnumber cores here, and how fast they are is another test's matter.
    bandwidth_frac_min=0.0,
    group_timeout_s=6.0,
)


def examined(folder: Path, entry_point: str) -> PreflightVerdict:
    return examine(
        Examination(
            num_nodes=4,
            ranks_per_node=1,
            limits=LIMITS,
            deadline_s=90.0,
            work_dir=str(folder),
            scratch_dir=str(folder / "scratch"),
            store_dir=str(folder / "store"),
            device="cpu",
            entry_point=entry_point,
        )
    )


def failed(verdict: PreflightVerdict) -> list[tuple[str, str]]:
    return [(result.name, result.node) for result in verdict.results if not result.ok]


def test_healthy_workers_of_a_real_agent_pass(tmp_path: Path) -> None:
    verdict = examined(tmp_path, ENTRY_POINT)
    assert failed(verdict) == []
    assert {result.node for result in verdict.results} == {f"node-{i}" for i in range(4)}


def test_a_worker_that_is_killed_is_blamed_and_its_partners_are_not(tmp_path: Path) -> None:
    verdict = examined(tmp_path, f"{DYING}:rank_2")
    assert failed(verdict) == [("answer", "node-2")]
    assert verdict.bad_nodes == ("node-2",)
    assert verdict.suspect_nodes == ()
    assert "signal 9" in next(r.message for r in verdict.results if r.name == "answer")


def test_the_death_of_the_rank_that_serves_the_store_blames_nobody_else(tmp_path: Path) -> None:
    verdict = examined(tmp_path, f"{DYING}:rank_0")
    assert verdict.bad_nodes == ("node-0",)


def run_doctor(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=120)


def test_the_command_says_what_to_do_about_a_failed_check_and_exits_1(tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file where a folder should be")
    ended = run_doctor("--ranks-per-node", "1", "--scratch", str(occupied), "-o", "json")
    assert ended.returncode == 1, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    assert answer["ok"] is False
    # It is the argument that is wrong, not the machine.
    assert answer["verdict"]["bad_nodes"] == answer["verdict"]["suspect_nodes"] == []
    wrong = {r["name"]: r for r in answer["verdict"]["results"] if not r["ok"]}
    assert set(wrong) == {"scratch-path"}
    assert all(result["remedy"] for result in wrong.values())


def test_the_command_prints_a_table_and_exits_0_on_a_sound_machine() -> None:
    ended = run_doctor("--ranks-per-node", "1", "--all")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0].split() == ["check", "where", "value", "limit", "verdict", "what", "to", "do"]
    assert {line.split()[0] for line in lines[1:-1]} == {
        "matmul-repeat",
        "matmul-exact",
        "memory",
        "disk-free",
        "disk-write",
    }
    assert lines[-1] == "All 5 checks passed."


def test_an_impossible_count_is_a_usage_error() -> None:
    assert run_doctor("--nodes", "0").returncode == 2


@pytest.mark.parametrize("device", ["gpu", ""])
def test_an_unknown_device_is_a_usage_error(device: str) -> None:
    assert run_doctor("--device", device).returncode == 2
