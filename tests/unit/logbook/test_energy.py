"""The energy account: measured and declared apart, by attempt and by node, bounded."""

from __future__ import annotations

import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.energy import (
    MAX_ATTEMPTS_KEPT,
    AttemptEnergy,
    Energy,
    energy_text,
    summarize_energy,
)
from midwatch.logbook.plan import AttemptPlan, Placement
from midwatch.logbook.state import RunState
from midwatch.logbook.summary import summarize
from midwatch.logbook.wire import Hyper, Mesh
from midwatch.tests.support.builders import START_S, decided, fold, started


def used(node: str, joules: float, attempt: int = 1) -> ev.EnergyUsed:
    return ev.EnergyUsed(attempt, node, joules, span_s=60.0, num_gpus=2)


def test_what_gpus_used_is_added_up_by_node_and_by_attempt() -> None:
    state = fold([used("n0", 100.0), used("n1", 50.0), used("n0", 25.0, attempt=7)], started())
    energy = summarize(state, state.time_s).energy
    assert energy.measured_j == 175.0
    assert energy.by_node == {"n0": 125.0, "n1": 50.0}
    assert {number: measured for number, measured, _ in energy.by_attempt} == {1: 150.0, 7: 25.0}
    assert energy.declared_j is None


def test_declared_power_is_reckoned_from_the_time_ranks_were_at_work() -> None:
    submitted = ev.RunSubmitted("night", {"nodes": {"gpu_watts": 400.0}}, "", 1, "", "ann")
    state = fold([submitted], started())
    began_s = state.attempt.started_s if state.attempt is not None else 0.0
    energy = summarize(state, began_s + 10.0).energy
    assert energy.declared_j == pytest.approx(4 * 10.0 * 400.0)
    assert energy.measured_j is None
    second = AttemptPlan(2, Mesh(1, 2), (Placement("n0", 0, 2),), (), 0, Hyper())
    state = fold([decided(state, d.StartAttempt(second))], state)
    first_s = state.time_s - began_s
    energy = summarize(state, state.time_s + 5.0).energy
    rows = {number: declared for number, _, declared in energy.by_attempt}
    assert rows == {
        1: pytest.approx(4 * first_s * 400.0),
        2: pytest.approx(2 * 5.0 * 400.0),
    }


def test_a_run_that_says_nothing_has_no_figures() -> None:
    energy = summarize(started(), START_S + 100.0).energy
    assert (energy.measured_j, energy.declared_j, energy.by_attempt) == (None, None, ())
    assert summarize(RunState(), START_S).energy.measured_j is None


def test_the_oldest_attempts_are_added_up_and_nothing_is_lost() -> None:
    energy = Energy()
    for attempt in range(1, 1000):
        energy = energy.add(attempt, AttemptEnergy(1.0, 2.0), "n0")
    assert len(energy.attempts) == MAX_ATTEMPTS_KEPT
    total = summarize_energy(energy, 3.0)
    assert total.measured_j == 2.0 * 999
    assert total.declared_j == pytest.approx(3.0 * 999)


@pytest.mark.parametrize(
    ("joules", "text"),
    [(None, "-"), (1234.0, "1,234 J"), (3.6e6, "1 kWh"), (1.1664e12, "324 MWh")],
)
def test_an_amount_is_said_in_a_persons_unit(joules: float | None, text: str) -> None:
    assert energy_text(joules) == text
