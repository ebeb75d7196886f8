"""How fast the journal takes events, and how fast a run's history folds again.

    python tests/bench/journal.py [--events N] [--dir DIR]

The events are those of a long run on 124 nodes: a step each, where its time went on one node every
tenth step, a checkpoint with its verification every 250, a crash and a new attempt every 20,000;
one loss in a hundred is NaN. appends_per_s: batches of 100, every tenth synced, rotation included.
fold_events_per_s: reading, checking, decoding and evolve() together, from the first record.
The last line is one JSON object {"appends_per_s", "fold_events_per_s"}.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from midwatch.logbook import events as ev
from midwatch.logbook.decisions import Decision, StartAttempt, VerifyCheckpoint
from midwatch.logbook.fold import evolve
from midwatch.logbook.journal import Journal, JournalOptions
from midwatch.logbook.plan import AttemptPlan, Placement
from midwatch.logbook.reader import Follower, read, read_last
from midwatch.logbook.segment import list_segments, segment_path
from midwatch.logbook.state import RunState
from midwatch.logbook.wire import CheckpointTags, Hyper, Mesh, StepSample

NODES = 124
STEPS_PER_ATTEMPT = 20_000
CHECKPOINT_STEPS = 250
BATCH = 100
SYNC_EVERY = 10
Triple = tuple[float, int, ev.Event]


def history() -> Iterator[ev.Event]:
    """The events of a run that never ends."""
    yield ev.RunSubmitted("bench", {"preset": "175B"}, "0" * 64, 1, "0.1.0", "bench")
    yield ev.ControllerStarted(1, "head", 1, 0)
    for node in range(NODES):
        yield ev.NodeJoined(f"node-{node}", f"inc-{node}", f"10.0.0.{node}", 8)
    ids = itertools.count(1)
    for attempt in itertools.count(1):
        resumed = (attempt - 1) * STEPS_PER_ATTEMPT
        last = resumed + STEPS_PER_ATTEMPT
        yield from new_attempt(attempt, resumed, ids)
        for step in range(resumed + 1, last + 1):
            yield ev.StepDone(attempt, sample(step))
            if step % 10 == 0:
                row = (step % 992, 43.1, 0.2, 12.5, 25.1, 4.9, 0.4)
                yield ev.RankTimes(attempt, step, f"node-{step % NODES}", (row,) * 8)
            if step % CHECKPOINT_STEPS == 0:
                yield from checkpoint(attempt, step, ids)
        yield ev.WorkerExited(attempt, 7, "node-0", signal=9, step=last, phase="BACKWARD")


def new_attempt(attempt: int, step: int, ids: Iterator[int]) -> Iterator[ev.Event]:
    placements = tuple(Placement(f"node-{n}", 8 * n, 8) for n in range(NODES))
    source = f"step-{step:08d}" if step else ""
    candidates = (source,) if source else ()
    plan = AttemptPlan(attempt, Mesh(NODES, 8), placements, candidates, step, Hyper())
    decision = Decision(f"{attempt}/{next(ids)}", StartAttempt(plan), "the bench says so")
    yield ev.DecisionMade(decision)
    yield ev.ActionDone(decision.id)
    for node in range(NODES):
        yield ev.WorkersStarted(attempt, f"node-{node}", tuple(range(8 * node, 8 * node + 8)))
    yield ev.AttemptResumed(attempt, step, source, 12.5)


def checkpoint(attempt: int, step: int, ids: Iterator[int]) -> Iterator[ev.Event]:
    name, tags = f"step-{step:08d}", CheckpointTags(2.1, 0.2, 110.0, 65536.0, 1.2e-4)
    yield ev.CheckpointCommitted(attempt, name, step, 10**12, 0.8, 95.0, tags)
    action = VerifyCheckpoint(name)
    decision = Decision(f"{attempt}/{next(ids)}", action, "every checkpoint is read back")
    yield ev.DecisionMade(decision)
    yield ev.ActionDone(decision.id)
    yield ev.CheckpointVerified(name)
    if step > 4 * CHECKPOINT_STEPS:
        old = f"step-{step - 4 * CHECKPOINT_STEPS:08d}"
        yield ev.CheckpointsPruned((old,))


def sample(step: int) -> StepSample:
    """A step's figures, with as many digits as real ones have."""
    ripple = (step * 2654435761 % 1000003) / 1000003
    return StepSample(
        step=step,
        time_s=1764000000.123456 + 43.1 * step,
        loss=float("nan") if step % 100 == 0 else 2.0 + ripple / 7,
        grad_norm=0.2 + ripple / 13,
        lr=1.2e-4 * (1 - step / 2e6),
        activation_norm=110.0 + ripple,
        found_inf=False,
        skipped=False,
        loss_scale=65536.0,
        tokens=2_000_000,
        data_step=step,
        step_s=43.1 + ripple / 3,
        tokens_per_s=46_000.0 + 1000 * ripple,
        model_tflops_per_device=147.0 + ripple,
    )


def timed(name: str, count: int, work: Callable[[], object]) -> float:
    """Run work, print and return how many of count it did per second."""
    begun_s = time.perf_counter()
    work()
    rate = count / (time.perf_counter() - begun_s)
    print(f"{name:46} {rate:12,.0f} /s  {1e6 / rate:9.2f} us each")
    return rate


def append_all(directory: Path, triples: list[Triple]) -> None:
    with Journal[ev.Event](directory, ev.Event) as journal:
        for number, start in enumerate(range(0, len(triples), BATCH)):
            journal.append(triples[start : start + BATCH], sync=number % SYNC_EVERY == 0)


def append_synced(journal: Journal[ev.Event], count: int) -> None:
    for _ in range(count):
        journal.append([(0.0, 1, ev.ActionDone("1/1"))], sync=True)


def fold_all(directory: Path) -> None:
    state = RunState()
    for record in read(directory, ev.Event):
        state = evolve(state, record.event, seq=record.seq, time_s=record.time_s)
    print(f"folded to step {state.step} of attempt {state.num_attempts}")


def poll_idle(directory: Path, count: int) -> None:
    follower: Follower[ev.Event] = Follower(directory, ev.Event, from_seq=2**40)
    follower.poll()
    for _ in range(count):
        follower.poll()
    follower.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--dir", type=Path, help="measure on this file system")
    options = parser.parse_args()
    count = options.events
    triples = [
        (1764000000.5 + n, 1, event) for n, event in enumerate(itertools.islice(history(), count))
    ]
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        directory = Path(name)
        appends = timed("append, batches of 100", count, lambda: append_all(directory, triples))
        triples.clear()
        size = sum(segment_path(directory, n).stat().st_size for n in list_segments(directory))
        print(f"{len(list_segments(directory))} segments, {size / count:.0f} bytes a record")
        timed("read, check and decode", count, lambda: sum(1 for _ in read(directory, ev.Event)))
        fold = timed("the same, and fold", count, lambda: fold_all(directory))
        timed("last 100 records", 1, lambda: read_last(directory, ev.Event, 100))
        timed("open for writing", 1, lambda: Journal(directory, ev.Event).close())
        with Journal[ev.Event](directory, ev.Event, JournalOptions()) as journal:
            timed("append one decision, synced", 500, lambda: append_synced(journal, 500))
        timed("idle poll", 10_000, lambda: poll_idle(directory, 10_000))
    print(json.dumps({"appends_per_s": round(appends), "fold_events_per_s": round(fold)}))


if __name__ == "__main__":
    main()
