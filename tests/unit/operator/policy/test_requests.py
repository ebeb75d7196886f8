"""What people ask for is done, or found to be so already."""

from __future__ import annotations

import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.findings import Finding, Severity
from midwatch.operator.policy.decide import decide
from midwatch.operator.policy.nodes import drained_nodes
from midwatch.tests.support.builders import decided, fold, make_spec, started

SPEC = make_spec()
SICK = Finding(
    detector="nvml",
    kind="row-remap-pending",
    severity=Severity.OBSERVE,
    step=0,
    onset_step=0,
    value=0.0,
    reference=0.0,
    message="",
    node="n1",
    action="drain",
)
HUNG = d.IncidentDraft("inc-0001", "hang", "", 0, 0.0, 0, "n1")


@pytest.mark.parametrize(
    "held_against_it",
    [
        [decided(started(), d.QuarantineNode("n1"))],
        [ev.NodeIdentified("n1", "1", "uuid-1", (), "3 failures within 30 d")],
        [ev.FindingSeen("f-000001", 1, SICK)],
        [decided(started(), d.Observe(), opens=HUNG)],
        [],
    ],
)
def test_a_release_forgives_whatever_is_held_against_a_node(
    held_against_it: list[ev.Event],
) -> None:
    state = fold(held_against_it, started())
    assert state.nodes["n1"].is_blamed is bool(held_against_it)
    state = fold(
        [ev.InterventionRequested("rel", "release", "ann", "new board", target="n1")], state
    )
    made: list[d.Action] = []
    while decisions := decide(state, SPEC, state.time_s):
        (decision,) = decisions
        state = fold([ev.DecisionMade(decision), ev.ActionDone(decision.id)], state)
        made.append(decision.action)
    release = [d.ReleaseNode("n1")] if held_against_it else []
    assert made == [*release, d.CompleteIntervention("rel")]
    assert not drained_nodes(state)
    assert not state.nodes["n1"].is_blamed
