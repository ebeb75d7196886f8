"""The ledger, whatever comes: every GPU-second of the run under one cause, none twice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.ledger import Cause, build_ledger
from midwatch.logbook.plan import AttemptPlan, Placement
from midwatch.logbook.record import Record
from midwatch.logbook.wire import Hyper, Mesh
from midwatch.operator.simulation.edges import MemoryJournal
from midwatch.tests.sim.faults import plan_of, play
from midwatch.tests.support.builders import START_S, make_sample

SPEC = {"mesh": {"dp_shard": 2, "tp": 2}, "nodes": {"ranks_per_node": 2, "spares": 1}}
GPUS = 6

attempts = st.integers(1, 4)
steps = st.integers(0, 30)


def start(attempt: int, step: int) -> d.Action:
    # Shrunk attempts leave GPUs without a rank.
    mesh = Mesh(2, 2) if attempt % 2 else Mesh(1, 2)
    placements = (Placement("n0", 0, mesh.world_size),)
    return d.StartAttempt(AttemptPlan(attempt, mesh, placements, (), step, Hyper()))


actions = st.one_of(
    st.builds(start, attempts, steps),
    st.sampled_from([d.AwaitNodes(), d.PauseRun("budget"), d.ResumeRun(), d.Observe()]),
    st.builds(d.EndRun, st.booleans(), steps),
)
events = st.one_of(
    st.builds(lambda n, step: ev.StepDone(n, make_sample(step)), attempts, steps),
    st.builds(lambda n, step, load_s: ev.AttemptResumed(n, step, "", load_s), attempts, steps,
              st.floats(0, 100)),
    st.builds(lambda n, steps: ev.StepsRecalled(n, tuple(map(make_sample, sorted(steps)))),
              attempts, st.sets(steps, max_size=3)),
    st.builds(lambda n: ev.WorkerExited(n, 0, "n0", signal=9), attempts),
    st.builds(lambda n, step, s: ev.CheckpointCommitted(n, f"c{n}-{step}", step, 1, s, s),
              attempts, steps, st.floats(0, 50)),
    st.just(ev.RunSubmitted("night", SPEC, "other", 1, "", "ann")),
    actions,
)  # fmt: skip
gaps = st.floats(-5, 50)
"""Seconds between two records; a clock may even go back when another controller takes over."""


def journal(story: Sequence[tuple[float, object]]) -> Iterator[Record[ev.Event]]:
    time_s = START_S
    yield Record(1, time_s, 0, 1, ev.RunSubmitted("night", SPEC, "", 1, "", "ann"))
    for seq, (gap_s, event) in enumerate(story, 2):
        time_s += gap_s
        if not isinstance(event, ev.Event):
            event = ev.DecisionMade(d.Decision(f"1/{seq}", event, "because"))  # type: ignore[arg-type]
        yield Record(seq, time_s, 1, 1, event)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(gaps, events), max_size=40), st.floats(0, 100))
def test_causes_sum_to_wall_time_times_gpus(
    story: list[tuple[float, object]], tail_s: float
) -> None:
    records = list(journal(story))
    ledger = build_ledger(records)
    now_s = max(record.time_s for record in records) + tail_s
    stretches = list(ledger.stretches(now_s))
    totals = ledger.totals(now_s)
    wall_s = stretches[-1].end_s - START_S if stretches else 0.0
    assert all(seconds >= 0.0 for seconds in totals.values())
    assert math.isclose(sum(totals.values()), wall_s * GPUS, rel_tol=1e-9, abs_tol=1e-6)
    assert all(one.end_s == two.start_s for one, two in itertools.pairwise(stretches))
    assert all(s.span_s > 0.0 and 0 <= s.ranks <= s.gpus == GPUS for s in stretches)


@pytest.mark.parametrize("seed", range(12))
def test_a_night_of_faults_adds_up(seed: int) -> None:
    plan = plan_of(seed)
    night = play(plan)
    assert isinstance(night.journal, MemoryJournal)
    ledger = build_ledger(night.journal.records())
    state = night.state
    end_s = state.ended_s if state.ended_s is not None else state.time_s
    gpus = plan.spec.world_size + plan.spec.nodes.spares * plan.spec.nodes.ranks_per_node
    totals = ledger.totals(end_s)
    wall_s = end_s - state.submitted_s
    assert math.isclose(sum(totals.values()), wall_s * gpus, rel_tol=1e-9)
    assert totals[Cause.PRODUCTIVE] > 0.0 or state.step == 0
