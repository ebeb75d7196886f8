"""A run tries its nodes out before it trains, on real agents, and leaves out the one that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.decisions import RunPreflight
from midwatch.logbook.state import RunState, Status
from midwatch.operator.runtime.session import Session
from midwatch.tests.support.sick_preflight import SICK_NODE

from tests.support.live_run import LiveRun, nano_spec, strike_controller

pytestmark = pytest.mark.chaos
NODES = {"ranks_per_node": 2, "spares": 1, "preflight": "quick"}
SICK = "midwatch.tests.support.sick_preflight"


def spec_of(name: str, folder: Path, corpus: Path, entry: str) -> Any:
    return nano_spec(name, folder / "run", corpus, nodes=NODES, entry_points={"preflight": entry})


def preflights(run: LiveRun) -> list[RunPreflight]:
    made = [e.decision.action for e in run.events() if isinstance(e, ev.DecisionMade)]
    return [action for action in made if isinstance(action, RunPreflight)]


def test_a_node_whose_memory_leaks_is_left_out_though_the_controller_dies_meanwhile(
    session: Session, tmp_path: Path, corpus: Path
) -> None:
    spec = spec_of("leaky", tmp_path, corpus, f"{SICK}:main")

    def is_under_way(state: RunState) -> bool:
        return state.preflight is not None

    with LiveRun(spec, session) as run:
        state = run.finish(strike_controller(is_under_way))
        first = preflights(run)[0].plan
        judged = [e for e in run.events() if isinstance(e, ev.PreflightJudged)]
        findings = [e.finding for e in run.events() if isinstance(e, ev.FindingSeen)]
    assert state.epoch == 2
    assert (state.status, state.num_attempts) == (Status.COMPLETED, 1)
    assert first.is_gate
    assert set(first.nodes) == {"node-0", "node-1", "node-2"}
    assert [j.bad_nodes for j in judged if not j.error] == [(SICK_NODE,)]
    assert [(f.kind, f.node, f.action) for f in findings] == [
        ("preflight-memory", SICK_NODE, "evict")
    ]
    assert state.nodes[SICK_NODE].quarantined


def test_a_preflight_that_cannot_run_costs_a_warning(
    session: Session, tmp_path: Path, corpus: Path
) -> None:
    spec = spec_of("broken", tmp_path, corpus, f"{SICK}:broken")
    with LiveRun(spec, session) as run:
        state = run.finish()
        findings = [e.finding for e in run.events() if isinstance(e, ev.FindingSeen)]
    assert (state.status, state.num_attempts) == (Status.COMPLETED, 1)
    assert [f.kind for f in findings] == ["preflight-not-run"]
    assert not any(node.quarantined for node in state.nodes.values())
