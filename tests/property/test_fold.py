"""The fold, whatever comes: total, deterministic, fenced by attempt, and deaf to repetition."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.findings import Finding, Severity
from midwatch.logbook.plan import AttemptPlan, Placement
from midwatch.logbook.record import Codec
from midwatch.logbook.state import RunState
from midwatch.logbook.wire import Hyper, LrChange, Mesh
from midwatch.tests.sim.checkers import canonical
from midwatch.tests.support.builders import fold, make_sample, make_tags
from msgspec.structs import replace

CURRENT = 3
quick = settings(max_examples=150, deadline=None)

nodes = st.sampled_from(["n0", "n1", "n2"])
ranks = st.integers(0, 3)
steps = st.integers(0, 40)
attempts = st.integers(1, CURRENT)
# One NaN is enough: its payload bits mean nothing, and a journal does not keep them.
floats = st.floats(allow_nan=False) | st.just(math.nan)
names = st.builds(checkpoint_id, st.sampled_from([5, 10, 15, 20, 40]), attempts)
codes = st.sampled_from(["", "collective-failed", "worker-raised", "no-usable-checkpoint"])


def sample_at(step: int, loss: float, norm: float) -> ev.StepSample:
    return make_sample(step, loss=loss, grad_norm=norm, activation_norm=norm)


def finding_at(severity: Severity, step: int, node: str | None) -> Finding:
    return Finding("creep", "creep", severity, step, max(step - 3, 0), 1.0, 1.0, "up", node=node)


rows = st.builds(ev.HangRow, ranks, steps, st.just("VOTE"), st.floats(0, 9), st.sampled_from("ST"))
passed_over = st.lists(st.tuples(names, st.just("shard-checksum")), max_size=2).map(tuple)


def of_attempts(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[ev.Event]:
    """Everything that an attempt with one of these numbers may cause to be reported."""
    committed = st.integers(1, 8).flatmap(
        lambda fives: st.builds(
            lambda number: ev.CheckpointCommitted(
                number, checkpoint_id(5 * fives, number), 5 * fives, 1, 0.0, 0.0, make_tags()
            ),
            numbers,
        )
    )
    return st.one_of(
        st.builds(ev.WorkersStarted, numbers, nodes, st.just((1, 2))),
        st.builds(ev.AttemptResumed, numbers, steps, names | st.just(""), floats, passed_over),
        st.builds(
            ev.WorkerExited, numbers, ranks, nodes, st.sampled_from([0, 1, None]), code=codes
        ),
        st.builds(ev.StartFailed, numbers, nodes, st.just("fork-failed"), st.just("")),
        st.builds(
            ev.HangSuspected, numbers, nodes, st.just(5.0), st.lists(rows, max_size=2).map(tuple)
        ),
        st.builds(ev.RankFinished, numbers, ranks, steps, st.booleans()),
        st.builds(ev.StepDone, numbers, st.builds(sample_at, steps, floats, floats)),
        st.builds(ev.CheckpointFailed, numbers, names, steps, st.just("disk-full")),
        st.builds(
            ev.CommandApplied,
            numbers,
            st.integers(1, 3),
            nodes,
            st.lists(ranks, min_size=1, max_size=4).map(tuple),
            steps,
            st.just({}),
            st.just({}),
            st.sampled_from(["", "value-out-of-range"]),
            st.sampled_from([None, Hyper((LrChange(9, 0.5, "ask-1"),))]),
        ),
        committed,
    )


of_store_and_people = st.one_of(
    st.builds(ev.CheckpointVerified, names, st.sampled_from(["", "shard-checksum"])),
    st.builds(ev.CheckpointsPruned, st.lists(names, max_size=2).map(tuple)),
    st.builds(
        ev.InterventionRequested,
        st.sampled_from(["a", "b"]),
        st.sampled_from(["lr", "stop", "resume", "pin", "no-such"]),
        st.just("ann"),
        st.just(""),
    ),
    st.builds(ev.FaultInjected, st.just("kill-worker"), nodes, st.just(1.0)),
    st.builds(ev.NoteAdded, st.just("ann"), st.just("looks fine")),
)
of_controllers = st.one_of(
    st.builds(ev.NodeJoined, nodes, st.sampled_from("123"), st.just("host"), st.just(2)),
    st.builds(ev.NodeLost, nodes, st.sampled_from("123"), st.just("died")),
    st.builds(ev.ControllerStarted, st.just(2), st.just("host"), st.just(1), st.just(0)),
    st.builds(
        ev.FindingSeen,
        st.sampled_from(["f-000001", "f-000002"]),
        attempts,
        st.builds(finding_at, st.sampled_from(Severity), steps, st.none() | nodes),
    ),
)
external = st.one_of(of_attempts(attempts), of_store_and_people)
anything = st.one_of(external, of_controllers)


def decided(number: int, action: d.Action) -> ev.DecisionMade:
    return ev.DecisionMade(d.Decision(f"{number}/{number + 1}", action, "because"))


def running() -> RunState:
    """A run in its third attempt, with three commands under way."""
    events: list[ev.Event] = [
        ev.RunSubmitted("run", {}, "", 1, "", "ann"),
        *(ev.NodeJoined(node, "1", "host", 2) for node in ("n0", "n1", "n2")),
    ]
    for number in range(1, CURRENT + 1):
        plan = AttemptPlan(
            number,
            Mesh(2, 2),
            (Placement("n0", 0, 2), Placement("n1", 2, 2)),
            (checkpoint_id(10, 1), checkpoint_id(5, 1)) if number > 1 else (),
            10 if number > 1 else 0,
            Hyper(),
        )
        events.append(decided(number - 1, d.StartAttempt(plan)))
    events += [
        ev.CheckpointCommitted(1, checkpoint_id(step, 1), step, 1, 0.0, 0.0, make_tags())
        for step in (5, 10, 15)
    ]
    state = fold(events)
    for seq in (1, 2, 3):
        request = ev.InterventionRequested(f"ask-{seq}", "lr-factor", "ann", "", 0.5)
        command = d.Command(seq, "lr-factor", 0.5, request.id)
        send = d.Decision(f"{CURRENT}/{CURRENT + seq}", d.SendCommand(command, request.id), "asked")
        state = fold([request, ev.DecisionMade(send), ev.ActionDone(send.id)], state)
    return state


def training() -> RunState:
    """The same run a few steps later."""
    resumed = ev.AttemptResumed(CURRENT, 10, checkpoint_id(10, 1), 0.1)
    return fold([resumed, *(ev.StepDone(CURRENT, make_sample(s)) for s in (11, 12, 13))], running())


BASES = st.sampled_from([running(), training()])


def told(state: RunState) -> bytes:
    """A state without what only counts how often something was said."""
    return canonical(replace(state, seq=0, time_s=0.0, num_stale=0, failed_saves=0))


@quick
@given(st.lists(anything, max_size=25), BASES)
def test_any_events_in_any_order_fold_and_always_to_the_same_state(
    events: Sequence[ev.Event], base: RunState
) -> None:
    once = fold(events, base)
    assert canonical(once) == canonical(fold(events, base))
    codec: Codec[ev.Event] = Codec(ev.Event)
    lines = [codec.encode(1, 1.0, 1, 1, event) for event in events]
    read_back = [codec.decode(line[:-1]).event for line in lines]
    assert canonical(once) == canonical(fold(read_back, base)), "the journal changed an event"


@quick
@given(st.lists(of_attempts(st.integers(1, CURRENT - 1)), max_size=10), BASES)
def test_what_older_attempts_say_changes_nothing_but_the_record(
    events: Sequence[ev.Event], base: RunState
) -> None:
    after = fold(events, base)
    # Late commits are news of the disk, whoever made them; what was known stays as it was.
    assert all(after.checkpoints[name] == known for name, known in base.checkpoints.items())
    unchanged = replace(after, checkpoints=base.checkpoints, trending=base.trending)
    assert told(unchanged) == told(base)


def _causal_rank(event: ev.Event) -> int:
    order = (ev.AttemptResumed, ev.CheckpointCommitted)
    return order.index(type(event)) if type(event) in order else len(order)


@quick
@given(st.lists(external, max_size=15), BASES)
def test_events_that_are_told_again_change_nothing(
    events: Sequence[ev.Event], base: RunState
) -> None:
    # Causes come before their effects: an attempt resumes before all else it does, and only a
    # checkpoint that is known is read back or deleted.
    ordered = sorted(events, key=_causal_rank)
    once = fold(ordered, base, every_s=0.0)
    again = fold(ordered, once, every_s=0.0)
    assert told(again) == told(once)


@quick
@given(st.lists(anything, max_size=15), st.integers(0, CURRENT + 3), BASES)
def test_a_decision_written_twice_is_one_decision(
    events: Sequence[ev.Event], which: int, base: RunState
) -> None:
    state = fold(events, base)
    repeated = d.Decision(f"{CURRENT}/{which}", d.PauseRun("restart-budget"), "again")
    after = fold([ev.DecisionMade(repeated)], state)
    assert told(after) == told(state)


@quick
@given(st.lists(anything, max_size=20), BASES)
def test_folding_never_touches_the_state_before(events: Sequence[ev.Event], base: RunState) -> None:
    before = canonical(base)
    fold(events, base)
    assert canonical(base) == before
