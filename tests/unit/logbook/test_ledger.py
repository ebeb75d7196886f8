"""The ledger of small runs, counted by hand: what every second of every GPU went to."""

from __future__ import annotations

import itertools

import pytest
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.ledger import CAUSES, Cause, Ledger, build_ledger
from midwatch.logbook.plan import AttemptPlan, Placement
from midwatch.logbook.record import Record
from midwatch.logbook.wire import Hyper, Mesh
from midwatch.tests.support.builders import START_S, make_sample, make_tags

SPEC = {"mesh": {"dp_shard": 2, "tp": 2}, "nodes": {"ranks_per_node": 2, "spares": 1}}
RANKS, GPUS = 4, 6


def plan(attempt: int, step: int = 0) -> AttemptPlan:
    placements = (Placement("n0", 0, 2), Placement("n1", 2, 2))
    checkpoints = (checkpoint_id(step, 1),) if step else ()
    return AttemptPlan(attempt, Mesh(2, 2), placements, checkpoints, step, Hyper())


def resolved(number: int, action: d.Action) -> ev.DecisionMade:
    return ev.DecisionMade(d.Decision(f"1/{number}", action, "because"))


def ledger_of(*story: tuple[float, ev.Event]) -> Ledger:
    """The ledger of events at seconds after submission."""
    return build_ledger(
        Record(seq, START_S + at_s, 1, 1, event) for seq, (at_s, event) in enumerate(story, 1)
    )


def begun(at_s: float = 10.0) -> list[tuple[float, ev.Event]]:
    """Submitted, ten seconds of waiting, five of starting, of which two of loading."""
    return [
        (0.0, ev.RunSubmitted("night", SPEC, "", 1, "", "ann")),
        (at_s, resolved(1, d.StartAttempt(plan(1)))),
        (at_s + 5.0, ev.AttemptResumed(1, 0, "", 2.0)),
    ]


def steps(first: int, last: int, at_s: float, attempt: int = 1) -> list[tuple[float, ev.Event]]:
    """One step a second, the first one second after at_s."""
    return [
        (at_s + 1.0 + index, ev.StepDone(attempt, make_sample(step)))
        for index, step in enumerate(range(first, last + 1))
    ]


def rank_seconds(ledger: Ledger, end_s: float) -> dict[Cause, float]:
    """Seconds of the ranks alone, by cause; the spare left out."""
    totals = ledger.totals(START_S + end_s)
    totals[Cause.IDLE] -= (GPUS - RANKS) * end_s
    return {cause: s / RANKS for cause, s in totals.items() if abs(s) > 1e-6}


def restart(at_s: float, died_s: float, step: int) -> list[tuple[float, ev.Event]]:
    """A worker dies, a second later the answer, three more until the state of a step is loaded."""
    return [
        (died_s, ev.WorkerExited(1, 0, "n0", signal=9)),
        (at_s, resolved(2, d.StartAttempt(plan(2, step)))),
        (at_s + 3.0, ev.AttemptResumed(2, step, checkpoint_id(step, 1), 1.0)),
    ]


def commit(step: int, blocked_s: float) -> ev.Event:
    return ev.CheckpointCommitted(1, checkpoint_id(step, 1), step, 1, blocked_s, 1.0, make_tags())


def test_a_start_is_waiting_then_starting_then_loading() -> None:
    ledger = ledger_of(*begun())
    assert rank_seconds(ledger, 15.0) == pytest.approx({Cause.PROVISION: 13.0, Cause.LOAD: 2.0})


def test_a_failure_costs_what_was_lost_and_the_time_until_the_first_new_step() -> None:
    story = [*begun(), *steps(1, 10, 15.0), *restart(at_s=27.5, died_s=26.5, step=6)]
    story += steps(7, 12, 30.5, attempt=2)
    assert rank_seconds(ledger_of(*story), 36.5) == pytest.approx(
        {
            Cause.PROVISION: 13.0 + 2.0,
            Cause.LOAD: 2.0 + 1.0,
            Cause.PRODUCTIVE: 6.0 + 6.0,
            Cause.RECOMPUTE: 4.0,
            Cause.DETECT: 1.5,
            Cause.DIAGNOSE: 1.0,
        }
    )


def test_the_loop_standing_still_for_a_save_is_no_step() -> None:
    story = [*begun(), *steps(1, 4, 15.0), (19.2, commit(4, 0.25)), *steps(5, 6, 19.0)]
    story = sorted(story, key=lambda entry: entry[0])
    found = rank_seconds(ledger_of(*story), 21.0)
    assert found[Cause.CHECKPOINT] == pytest.approx(0.25)
    assert found[Cause.PRODUCTIVE] == pytest.approx(5.75)


def test_a_save_told_longer_than_its_step_takes_no_more_than_the_step() -> None:
    story = [*begun(), *steps(1, 4, 15.0), (19.2, commit(4, 60.0)), *steps(5, 6, 19.0)]
    story = sorted(story, key=lambda entry: entry[0])
    assert rank_seconds(ledger_of(*story), 21.0)[Cause.CHECKPOINT] == pytest.approx(1.0)


def copied(step: int, made_s: float, memory_step: int | None) -> tuple[float, ev.Event]:
    """A step of 0.8 s, told half a second after its end."""
    fields = {"time_s": START_S + made_s, "step_s": 0.8, "memory_step": memory_step}
    return made_s + 0.5, ev.StepDone(1, make_sample(step, **fields))


def test_the_loop_standing_still_for_a_copy_to_memory_is_no_step() -> None:
    # A copy after every second step takes 0.3 s; that after step 4 is told with step 6.
    story = [*begun(), copied(1, 15.8, None), copied(2, 16.6, None), copied(3, 17.7, 2),
             copied(4, 18.5, 2), copied(5, 19.6, 2), copied(6, 20.4, 4)]  # fmt: skip
    found = rank_seconds(ledger_of(*story), 20.4)
    assert found[Cause.CHECKPOINT] == pytest.approx(0.6)
    assert found[Cause.PRODUCTIVE] == pytest.approx(6 * 0.8)


def test_time_between_steps_without_a_copy_is_not_booked_as_one() -> None:
    story = [*begun(), copied(1, 15.8, None), copied(2, 18.6, None), copied(3, 19.4, None)]
    found = rank_seconds(ledger_of(*story), 19.4)
    assert Cause.CHECKPOINT not in found
    # A worker whose clock is wrong says nothing of how long a copy took.
    wrong = [ev.StepDone(1, make_sample(n, time_s=n, step_s=0.1, memory_step=n - 1))
             for n in (1, 2, 3)]  # fmt: skip
    told = [*begun(), *((15.0 + n, event) for n, event in enumerate(wrong, 1))]
    assert Cause.CHECKPOINT not in rank_seconds(ledger_of(*told), 18.0)


def test_a_save_with_a_copy_counts_once() -> None:
    story = [*begun(), copied(1, 15.8, None), copied(2, 17.0, 1), (17.6, commit(1, 0.3))]
    found = rank_seconds(ledger_of(*story), 17.6)
    assert found[Cause.CHECKPOINT] == pytest.approx(0.4)


def test_steps_that_memory_recalls_were_no_time_of_detection() -> None:
    told = [*begun(), *steps(1, 10, 15.0), *restart(at_s=31.0, died_s=30.0, step=12)]
    recalled = tuple(make_sample(step, step_s=0.5) for step in (11, 12))
    story = [*told, (34.0, ev.StepsRecalled(2, recalled)), *steps(13, 13, 34.0, attempt=2)]
    found = rank_seconds(ledger_of(*story), 35.0)
    assert found[Cause.DETECT] == pytest.approx(5.0 - 1.0)
    assert found[Cause.PRODUCTIVE] == pytest.approx(10.0 + 1.0 + 1.0)
    assert Cause.RECOMPUTE not in found


def told_at(at_s: float, step: int, made_s: float) -> tuple[float, ev.Event]:
    return at_s, ev.StepDone(1, make_sample(step, time_s=START_S + made_s))


def test_steps_told_in_a_batch_end_where_their_workers_say() -> None:
    batch = [told_at(18.0, step, made_s=14.5 + step) for step in (1, 2, 3)]
    story = [*begun(), *batch, *restart(at_s=18.5, died_s=18.0, step=2)]
    found = rank_seconds(ledger_of(*story), 21.5)
    assert found[Cause.PRODUCTIVE] == pytest.approx(1.5)
    assert found[Cause.RECOMPUTE] == pytest.approx(1.0)
    assert found[Cause.DETECT] == pytest.approx(0.5)


@pytest.mark.parametrize("skew_s", [-3600.0, -11.0, 0.001, 3600.0])
def test_a_worker_whose_clock_is_wrong_is_not_believed(skew_s: float) -> None:
    story = [*begun(), *(told_at(15.0 + step, step, 15.0 + step + skew_s) for step in (1, 2, 3))]
    assert rank_seconds(ledger_of(*story), 18.0)[Cause.PRODUCTIVE] == pytest.approx(3.0)


def test_recalled_steps_can_be_lost_like_any_others() -> None:
    told = [*begun(), *steps(1, 10, 15.0), *restart(at_s=31.0, died_s=30.0, step=12)]
    recalled = tuple(make_sample(step, step_s=0.5) for step in (11, 12))
    story = [*told, (34.0, ev.StepsRecalled(2, recalled))]
    story += [
        (36.0, resolved(3, d.StartAttempt(plan(3, 6)))),
        (36.0, ev.AttemptResumed(3, 6, checkpoint_id(6, 1), 0.0)),
    ]
    assert rank_seconds(ledger_of(*story), 36.0)[Cause.RECOMPUTE] == pytest.approx(4.0 + 1.0)


def test_a_paused_run_and_the_end_are_idle() -> None:
    story = [*begun(), *steps(1, 2, 15.0), (17.0, resolved(2, d.PauseRun("budget")))]
    story += [(37.0, resolved(3, d.ResumeRun())), (40.0, resolved(4, d.StartAttempt(plan(2))))]
    story += [(41.0, ev.AttemptResumed(2, 2, "", 0.0)), *steps(3, 3, 41.0, attempt=2)]
    story += [(45.0, resolved(5, d.EndRun(stopped=False, step=3)))]
    found = rank_seconds(ledger_of(*story), 45.0)
    assert found[Cause.IDLE] == pytest.approx(20.0 + 3.0)
    assert found[Cause.PROVISION] == pytest.approx(13.0 + 3.0 + 1.0)
    assert sum(found.values()) == pytest.approx(45.0)


def test_after_the_end_no_time_counts() -> None:
    story = [*begun(), *steps(1, 2, 15.0), (18.0, resolved(2, d.EndRun(stopped=True, step=2)))]
    ledger = ledger_of(*story)
    assert ledger.totals(START_S + 1e6) == ledger.totals(START_S + 18.0)
    assert sum(ledger.totals(START_S + 1e6).values()) == pytest.approx(18.0 * GPUS)


def test_a_spare_is_idle_all_the_time() -> None:
    totals = ledger_of(*begun(), *steps(1, 10, 15.0)).totals(START_S + 25.0)
    assert totals[Cause.IDLE] == pytest.approx(25.0 * (GPUS - RANKS))


def test_time_in_which_nothing_was_heard_is_not_productive() -> None:
    ledger = ledger_of(*begun(), *steps(1, 10, 15.0))
    found = rank_seconds(ledger, 25.0 + 3600.0)
    assert found[Cause.PRODUCTIVE] == pytest.approx(10.0 + 30.0)
    assert found[Cause.UNHEARD] == pytest.approx(3570.0)


def test_a_run_of_long_steps_is_waited_for_as_long_as_three_of_them() -> None:
    story = [
        (15.0 + 40.0 * step, ev.StepDone(1, make_sample(step, step_s=40.0))) for step in range(1, 6)
    ]
    ledger = ledger_of(*begun(), *story)
    assert Cause.UNHEARD not in rank_seconds(ledger, 215.0 + 120.0)
    assert rank_seconds(ledger, 215.0 + 121.0)[Cause.UNHEARD] == pytest.approx(1.0)


def test_a_controller_that_turns_while_it_waits_is_heard_of() -> None:
    ledger = ledger_of((0.0, ev.RunSubmitted("night", SPEC, "", 1, "", "ann")))
    now_s, alive_s = START_S + 3600.0, START_S + 3000.0
    totals = ledger.totals(now_s, alive_s)
    assert totals[Cause.PROVISION] == pytest.approx(3030.0 * RANKS)
    assert totals[Cause.UNHEARD] == pytest.approx(570.0 * RANKS)
    assert ledger.totals(now_s)[Cause.PROVISION] == pytest.approx(30.0 * RANKS)


def test_a_paused_run_has_nothing_to_say() -> None:
    story = [*begun(), *steps(1, 2, 15.0), (17.0, resolved(2, d.PauseRun("budget")))]
    found = rank_seconds(ledger_of(*story), 1e6)
    assert found[Cause.IDLE] == pytest.approx(1e6 - 17.0)


def test_stretches_follow_one_another_without_a_gap() -> None:
    story = [*begun(), *steps(1, 10, 15.0), (20.5, commit(5, 0.25))]
    story = sorted(story, key=lambda entry: entry[0])
    story += [*restart(at_s=27.5, died_s=26.5, step=6), *steps(7, 12, 30.5, attempt=2)]
    found = list(ledger_of(*story).stretches(START_S + 40.0))
    assert found[0].start_s == START_S
    assert found[-1].end_s == START_S + 40.0
    assert all(one.end_s == two.start_s for one, two in itertools.pairwise(found))
    causes = [stretch.cause for stretch in found]
    assert causes == [
        Cause.PROVISION, Cause.PROVISION, Cause.LOAD,
        Cause.PRODUCTIVE, Cause.CHECKPOINT, Cause.PRODUCTIVE, Cause.RECOMPUTE,
        Cause.DETECT, Cause.DIAGNOSE, Cause.PROVISION, Cause.LOAD, Cause.PRODUCTIVE,
    ]  # fmt: skip


def test_an_empty_record_costs_nothing() -> None:
    assert build_ledger([]).totals(START_S) == dict.fromkeys(CAUSES, 0.0)
