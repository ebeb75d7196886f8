"""What the answers of a preflight amount to: findings about nodes, or about what they were told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from midwatch.logbook import events as ev
from midwatch.logbook.findings import Finding
from midwatch.logbook.plan import PreflightPlan
from midwatch.logbook.preflight import LIMITS, PreflightDone, Thoroughness
from midwatch.logbook.state import NodeAnswers, PreflightState, RunState
from midwatch.operator.preflight import judge_when_over
from midwatch.trainer.preflight_checks import LocalChecks

NODE = "node-7"


def judged_with_scratch(folder: Path) -> tuple[list[Finding], ev.PreflightJudged]:
    """Return what the check of one replacement node's disk leads to."""
    limits = LIMITS[Thoroughness.QUICK]
    results = tuple(LocalChecks(0, NODE, torch.device("cpu"), limits).disk(str(folder)))
    done = PreflightDone(rank=0, node=NODE, kind="cpu", checksum="c", results=results)
    plan = PreflightPlan(1, (NODE,), 1, Thoroughness.QUICK, is_gate=False)
    answers = {NODE: NodeAnswers((done,), ())}
    current = PreflightState(plan, heard_s=0.0, answers=answers, num_answered=1)
    verdict = judge_when_over(RunState(preflight=current), 1.0)
    assert verdict is not None
    return verdict


def test_a_folder_that_can_be_written_to_leads_to_nothing(tmp_path: Path) -> None:
    findings, judged = judged_with_scratch(tmp_path / "scratch")
    assert (findings, judged.failed) == ([], ())


@pytest.mark.parametrize("place", ["file", "file/below", "gone"])
def test_a_scratch_folder_that_cannot_be_one_condemns_no_replacement(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere" / "else")
    findings, judged = judged_with_scratch(tmp_path / place)
    assert (judged.bad_nodes, judged.suspect_nodes) == ((), ())
    assert [result.name for result in judged.failed] == ["scratch-path"]
    (finding,) = findings
    assert (finding.kind, finding.node, finding.action) == ("preflight-scratch-unusable", None, "")
    assert "nodes.preflight_scratch" in finding.message
