"""What the answers of a preflight amount to: findings about nodes, or about what they were told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from midwatch.logbook import events as ev
from midwatch.logbook.findings import Finding
from midwatch.logbook.plan import PreflightPlan
from midwatch.logbook.preflight import LIMITS, CheckResult, PreflightDone, SilentRank, Thoroughness
from midwatch.logbook.state import NodeAnswers, PreflightState, RunState
from midwatch.operator.preflight import judge_when_over, order_of
from midwatch.trainer.preflight_checks import LocalChecks

from tests.support.builders import make_spec

NODE = "node-7"


def judged_with_scratch(folder: Path) -> tuple[list[Finding], ev.PreflightJudged]:
    """Return what the check of one replacement node's disk leads to."""
    limits = LIMITS[Thoroughness.QUICK]
    results = tuple(LocalChecks(0, NODE, torch.device("cpu"), limits).disk(str(folder)))
    done = PreflightDone(rank=0, node=NODE, kind="cpu", checksum="c", results=results)
    plan = PreflightPlan(1, (NODE,), 1, Thoroughness.QUICK, is_gate=False)
    answers = {NODE: NodeAnswers((done,), ())}
    return judged_of(plan, answers)


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


# --- a checkpoint store that all share -----------------------------------------------------------


def stored(rank: int, node: str, ok: bool) -> CheckResult:
    return CheckResult(
        name="store-write",
        node=node,
        rank=rank,
        ok=ok,
        quantity="written_bytes_per_s",
        value=1e9 if ok else 0.0,
        limit=1e6,
        message="" if ok else "cannot be written to: No space left on device",
    )


def answered(rank: int, node: str, *results: CheckResult) -> NodeAnswers:
    done = PreflightDone(rank=rank, node=node, kind="cpu", checksum="c", results=results)
    return NodeAnswers((done,), ())


def judged_with_store(*can_write: bool | None) -> tuple[list[Finding], ev.PreflightJudged]:
    """Return what the store leads to, by node; None is a node that was cut off from the others."""
    nodes = tuple(f"node-{rank}" for rank in range(len(can_write)))
    plan = PreflightPlan(1, nodes, 1, Thoroughness.QUICK, is_gate=True)
    cut_off = "could not reach rank 0"
    answers = {
        node: NodeAnswers((), (SilentRank(rank, cut_off, is_own=False),))
        if ok is None
        else answered(rank, node, stored(rank, node, ok))
        for rank, (node, ok) in enumerate(zip(nodes, can_write, strict=True))
    }
    return judged_of(plan, answers)


def judged_of(
    plan: PreflightPlan, answers: dict[str, NodeAnswers]
) -> tuple[list[Finding], ev.PreflightJudged]:
    current = PreflightState(plan, heard_s=0.0, answers=answers, num_answered=len(plan.nodes))
    verdict = judge_when_over(RunState(preflight=current), 1.0)
    assert verdict is not None
    return verdict


@pytest.mark.parametrize(
    "can_write",
    [
        (False,),
        (False, False),
        (False, True),
        (False, False, False, True),
        (False, False, False, None),
        (False, False, True, True),
    ],
)
def test_a_store_that_may_have_failed_for_all_condemns_nobody(
    can_write: tuple[bool | None, ...],
) -> None:
    findings, judged = judged_with_store(*can_write)
    assert judged.bad_nodes == ()
    assert "node-0" in judged.suspect_nodes
    (finding,) = findings
    assert (finding.kind, finding.node, finding.action) == ("preflight-in-doubt", None, "")


@pytest.mark.parametrize("can_write", [(False, True, True), (False, True, False, True, True)])
def test_a_node_that_alone_cannot_write_to_the_store_is_left_out(
    can_write: tuple[bool, ...],
) -> None:
    findings, judged = judged_with_store(*can_write)
    bad = tuple(f"node-{rank}" for rank, ok in enumerate(can_write) if not ok)
    assert judged.bad_nodes == bad
    assert [(f.kind, f.action) for f in findings] == [("preflight-store-write", "evict")] * len(bad)


def reached(rank: int, node: str, ok: bool) -> CheckResult:
    return CheckResult(
        name="store-reach",
        node=node,
        rank=None,
        ok=ok,
        quantity="usable_stores_total",
        value=float(ok),
        limit=1.0,
        message="" if ok else "[store-denied] it may not write there.",
    )


@pytest.mark.parametrize("can_reach", [(False, True, True), (False, False), (False, True)])
def test_a_node_is_left_out_where_it_alone_cannot_reach_the_durable_store(
    can_reach: tuple[bool, ...],
) -> None:
    nodes = tuple(f"node-{rank}" for rank in range(len(can_reach)))
    plan = PreflightPlan(1, nodes, 1, Thoroughness.QUICK, is_gate=True)
    answers = {
        node: answered(rank, node, reached(rank, node, ok))
        for rank, (node, ok) in enumerate(zip(nodes, can_reach, strict=True))
    }
    (finding,), judged = judged_of(plan, answers)
    if len(nodes) > 2:
        assert judged.bad_nodes == ("node-0",)
        assert (finding.kind, finding.action) == ("preflight-store-reach", "drain")
    else:
        assert judged.bad_nodes == ()
        assert (finding.kind, finding.node, finding.action) == ("preflight-in-doubt", None, "")
    assert "[store-denied]" in finding.message


def test_the_store_of_the_spec_is_what_a_preflight_tries(tmp_path: Path) -> None:
    plan = PreflightPlan(1, ("node-0",), 2, Thoroughness.QUICK, is_gate=True)
    bare = make_spec()
    assert order_of(plan, bare, str(tmp_path)).storage is None
    store = {"url": "s3://bucket/runs", "endpoint_url": "http://127.0.0.1:9000"}
    storage = order_of(plan, make_spec(checkpoints={"store": store}), str(tmp_path)).storage
    assert storage is not None
    assert (storage.url, storage.endpoint_url) == ("s3://bucket/runs", "http://127.0.0.1:9000")


def test_a_node_is_answered_for_its_own_fault_and_not_for_the_stores() -> None:
    full = CheckResult(
        name="disk-free",
        node=NODE,
        rank=None,
        ok=False,
        quantity="free_bytes",
        value=0.0,
        limit=1.0,
        message="it is nearly full",
    )
    plan = PreflightPlan(1, (NODE,), 1, Thoroughness.QUICK, is_gate=False)
    findings, judged = judged_of(plan, {NODE: answered(0, NODE, full, stored(0, NODE, ok=False))})
    assert judged.bad_nodes == (NODE,)
    assert [result.name for result in judged.failed] == ["disk-free", "store-write"]
    (finding,) = findings
    assert (finding.kind, finding.node, finding.action) == ("preflight-disk-free", NODE, "drain")
