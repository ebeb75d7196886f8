"""A straggler is replaced at once only where that pays: a spare is ready and a restart is cheap."""

from __future__ import annotations

from typing import Any

import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.findings import Finding, Severity
from midwatch.logbook.state import RunState, Status
from midwatch.tests.support.builders import make_spec
from msgspec.structs import replace

from .night import Night


def straggler(cost_s: float) -> Finding:
    return Finding(
        detector="straggler",
        kind="straggler",
        severity=Severity.WARN,
        step=0,
        onset_step=0,
        value=1.5,
        reference=1.0,
        message="rank 2 computes 1.50 times as long as the median rank",
        rank=2,
        action="drain",
        cost_s=cost_s,
    )


def night_of(seed: int, payback_s: float = 3600.0, **nodes: Any) -> Night:
    spec = make_spec(restart={"straggler_payback_s": payback_s}, nodes=nodes)
    return Night(spec, seed=seed)


def placed(state: RunState) -> tuple[str, ...]:
    assert state.attempt is not None
    return state.attempt.plan.nodes


def starts(night: Night) -> list[d.Decision]:
    records = night.journal.records()
    made = [r.event.decision for r in records if isinstance(r.event, ev.DecisionMade)]
    return [decision for decision in made if isinstance(decision.action, d.StartAttempt)]


def see(night: Night, finding: Finding, at_step: int = 40) -> str:
    victim = placed(night.run_to_step(at_step))[1]
    night.world.agents[victim].find(finding)
    return victim


def test_a_costly_straggler_is_replaced_at_once_with_the_sum_in_the_record() -> None:
    night = night_of(1)
    victim = see(night, straggler(0.25))
    state = night.run(lambda s: s.num_attempts == 2 and s.step > 60)
    assert victim not in placed(state)
    assert not state.nodes[victim].quarantined
    evidence = dict(starts(night)[1].evidence)
    assert evidence["costs every step"] == "0.25 s of 0.5 s"
    assert {"a restart costs", "pays for itself after", "spare", "finding"} <= set(evidence)
    (incident,) = state.incidents.values()
    assert (incident.draft.fault, incident.draft.node) == ("straggler", victim)
    assert incident.recovered_s is not None
    state = night.run_to_end()
    assert (state.status, state.num_attempts) == (Status.COMPLETED, 2)
    assert all(i.outcome for i in state.incidents.values())


@pytest.mark.parametrize(
    ("cost_s", "payback_s", "spares"),
    [(0.001, 60.0, 1), (0.25, 0.0, 1), (0.25, 3600.0, 0), (0.0, 3600.0, 1)],
    ids=["cheap", "switched off", "no spare", "unknown cost"],
)
def test_otherwise_it_stays_until_the_next_restart(
    cost_s: float, payback_s: float, spares: int
) -> None:
    night = night_of(2, payback_s, spares=spares)
    see(night, straggler(cost_s))
    state = night.run_to_end()
    assert (state.status, state.num_attempts) == (Status.COMPLETED, 1)


def test_without_a_spare_left_the_second_straggler_is_kept() -> None:
    night = night_of(4)
    see(night, straggler(0.25))
    night.run(lambda s: s.num_attempts == 2 and s.step > 70)
    see(night, straggler(0.25), at_step=80)
    state = night.run_to_end()
    assert (state.status, state.num_attempts) == (Status.COMPLETED, 2)


@pytest.mark.parametrize("calls", range(1, 24, 3))
def test_a_controller_lost_meanwhile_restarts_once(calls: int) -> None:
    night = night_of(5)
    victim = see(night, straggler(0.25))
    night.crash_after(calls)
    state = night.run_to_end()
    assert (state.status, state.num_attempts) == (Status.COMPLETED, 2)
    assert victim not in starts(night)[1].action.plan.nodes  # type: ignore[union-attr]


def test_a_spare_on_the_same_machine_is_no_remedy() -> None:
    night = night_of(6)
    night.run(lambda s: len(night.world.agents) == 3)
    for agent in night.world.agents.values():
        agent.identity = replace(agent.identity, host="one-machine")
    see(night, straggler(0.25))
    state = night.run_to_end()
    assert {node.host for node in state.nodes.values()} == {"one-machine"}
    assert (state.status, state.num_attempts) == (Status.COMPLETED, 1)
