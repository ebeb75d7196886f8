"""Four real ranks measure held-out text between steps, and training does not notice."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from midwatch.health.nodes.liveness import (
    HangLimits,
    Overdue,
    ProgressDeadline,
    RankProgress,
    blame,
)
from midwatch.logbook.wire import (
    Finished,
    Mesh,
    Phase,
    Resumed,
    StepSample,
    Validated,
    Validating,
    WorkerStart,
)
from midwatch.tests.support.crew import Crew, Nursery, starts_for
from midwatch.tests.support.memory_nodes import Nodes
from midwatch.trainer.data import corpus
from midwatch.trainer.data.build import BuildConfig, build
from msgspec.structs import replace

MESH = Mesh(dp_shard=2, tp=2)
STEPS = 12
ALL = 1_000_000
"""Sequences asked for where the whole split is to be measured, which takes hundreds of rounds."""


@pytest.fixture(scope="module")
def with_text(trainer: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The section of the other tests, with more text held out than trained on."""
    out = tmp_path_factory.mktemp("held-out") / "stdlib"
    build([corpus.stdlib_dir()], out, BuildConfig(512, max_bytes=1_200_000, valid_frac=0.7))
    return {**trainer, "data": {"dir": str(out)}}


def validated(trainer: dict[str, Any], **validation: int) -> dict[str, Any]:
    # Dropout would show a measurement that drew from the random numbers of the training.
    section = {**trainer, "model": {**trainer["model"], "dropout": 0.1}}
    return {**section, "validation": validation} if validation else section


def train(
    nursery: Nursery, folder: Path, section: dict[str, Any], **start: Any
) -> dict[int, StepSample]:
    crew = Crew(nursery, starts_for(folder, section, MESH, until_step=STEPS, **start))
    crew.watch()
    assert crew.exit_codes() == [0, 0, 0, 0]
    return {sample.step: sample for sample in crew.steps()}


def losses(samples: dict[int, StepSample]) -> dict[int, tuple[float, float, float]]:
    return {step: (s.loss, s.grad_norm, s.activation_norm) for step, s in samples.items()}


@pytest.fixture(scope="module")
def undisturbed(
    nursery: Nursery, tmp_path_factory: pytest.TempPathFactory, with_text: dict[str, Any]
) -> dict[int, StepSample]:
    return train(nursery, tmp_path_factory.mktemp("undisturbed"), validated(with_text))


@pytest.fixture(scope="module")
def measured(
    nursery: Nursery, tmp_path_factory: pytest.TempPathFactory, with_text: dict[str, Any]
) -> Crew:
    """The same training, measured every five steps."""
    section = validated(with_text, interval_steps=5, sequences=10)
    folder = tmp_path_factory.mktemp("measured")
    crew = Crew(nursery, starts_for(folder, section, MESH, until_step=STEPS))
    crew.watch()
    assert crew.exit_codes() == [0, 0, 0, 0]
    return crew


def test_losses_are_the_same_bit_for_bit_with_and_without(
    undisturbed: dict[int, StepSample], measured: Crew
) -> None:
    assert losses({s.step: s for s in measured.steps()}) == losses(undisturbed)


def test_rank_0_reports_every_measurement_once(measured: Crew, with_text: dict[str, Any]) -> None:
    found = measured.said(Validated)
    assert [(m.rank, m.step) for m in found] == [(0, 5), (0, 10)]
    for each in found:
        assert each.sequences == 10
        assert each.tokens == 10 * 32
        # Better than chance over 512 tokens, worse than perfect, and it took some time.
        assert 0.0 < each.loss < math.log(512) + 0.5
        assert each.spent_s > 0.0
    assert found[1].loss < found[0].loss
    # Ten sequences are two rounds of micro_batch_size on each of two data-parallel ranks.
    assert [(m.step, m.done, m.total) for m in measured.said(Validating)] == [(5, 0, 2), (10, 0, 2)]


def test_a_measurement_is_no_part_of_a_step(measured: Crew) -> None:
    """What straggler detection, productive time and checkpoint cadence go by stays what it was."""
    for worker in measured.workers:
        samples = measured.rank_samples(worker.rank)
        assert [sample.step for sample in samples] == list(range(1, STEPS + 1))
    for before, after in zip(measured.steps(), measured.steps()[1:], strict=False):
        if before.step not in (5, 10):
            continue
        spent_s = next(m.spent_s for m in measured.said(Validated) if m.step == before.step)
        # The step after it began when it was over.
        assert after.time_s - before.time_s >= after.step_s + 0.9 * spent_s


def test_the_end_of_a_run_is_measured_and_a_stop_is_not_held_up(
    nursery: Nursery, tmp_path: Path, with_text: dict[str, Any]
) -> None:
    section = {**validated(with_text, interval_steps=1000, sequences=2), "steps": 6}
    crew = Crew(nursery, starts_for(tmp_path, section, MESH))
    crew.watch()
    assert crew.exit_codes() == [0, 0, 0, 0]
    assert [m.step for m in crew.said(Validated)] == [6]
    assert crew.said(Finished, 0) == [Finished(0, 6)]


def killed_while_measuring(
    nursery: Nursery, starts: list[WorkerStart], step: int, rank: int
) -> Crew:
    """Run until the measurement after a step is under way, kill a rank, wait for the others."""
    crew = Crew(nursery, starts)
    crew.watch(lambda crew: any(m.step == step for m in crew.said(Validating)))
    os.kill(crew.workers[rank].pid, signal.SIGKILL)
    crew.watch()
    crew.exit_codes()
    assert all(m.step < step for m in crew.said(Validated))
    return crew


def test_a_crash_in_the_middle_of_one_costs_nothing_and_it_is_made_up_for(
    nursery: Nursery, tmp_path: Path, with_text: dict[str, Any], undisturbed: dict[int, StepSample]
) -> None:
    """The state was saved before, so the next attempt has no step to make again."""
    section = validated(with_text, interval_steps=5, sequences=ALL)
    section["checkpoint"] = {"interval_steps": 5, "async_save": False}
    starts = starts_for(tmp_path, section, MESH)
    first = killed_while_measuring(nursery, starts, 5, rank=3)
    assert first.committed() == ["step-00000005.a0001"]
    section["validation"] = {"interval_steps": 5, "sequences": 10}
    second = Crew(
        nursery,
        starts_for(
            tmp_path,
            section,
            MESH,
            attempt=2,
            until_step=STEPS,
            checkpoints=tuple(first.committed()),
        ),
    )
    second.watch()
    assert second.exit_codes() == [0, 0, 0, 0]
    assert second.said(Resumed, 0)[0].step == 5
    assert [m.step for m in second.said(Validated)] == [5, 10]
    before_first = second.workers[0].messages.index(second.said(Validated)[0])
    assert before_first < second.workers[0].messages.index(second.steps()[0])
    whole = {s.step: s for s in (*first.steps(), *second.steps())}
    assert losses(whole) == losses(undisturbed)


@pytest.mark.parametrize("known_step", [5, 10])
def test_what_is_known_is_not_measured_again_unless_it_was_left_behind(
    nursery: Nursery, tmp_path: Path, with_text: dict[str, Any], known_step: int
) -> None:
    section = {**validated(with_text, interval_steps=5, sequences=4), "steps": 10}
    section["checkpoint"] = {"interval_steps": 5}
    first = Crew(nursery, starts_for(tmp_path, section, MESH, until_step=5))
    first.watch()
    assert [m.step for m in first.said(Validated)] == [5]
    starts = starts_for(tmp_path, section, MESH, attempt=2, checkpoints=tuple(first.committed()))
    second = Crew(nursery, [replace(start, validated_step=known_step) for start in starts])
    second.watch()
    assert second.exit_codes() == [0, 0, 0, 0]
    assert [m.step for m in second.said(Validated)] == [10]


def test_a_crash_is_made_up_for_from_memory_too(
    nursery: Nursery, tmp_path: Path, with_text: dict[str, Any], undisturbed: dict[int, StepSample]
) -> None:
    nodes = Nodes(tmp_path / "memory", 2)
    orders = {rank: nodes.order(f"node-{rank // 2}", every_steps=1) for rank in range(4)}

    def placed(section: dict[str, Any], **start: Any) -> list[WorkerStart]:
        return [
            replace(start, local_rank=start.rank % 2, memory=orders[start.rank])
            for start in starts_for(tmp_path, section, MESH, **start)
        ]

    section = validated(with_text, interval_steps=5, sequences=ALL)
    first = killed_while_measuring(nursery, placed(section), 5, rank=0)
    section["validation"] = {"interval_steps": 5, "sequences": 4}
    second = Crew(nursery, placed(section, attempt=2, until_step=STEPS))
    second.watch()
    assert second.exit_codes() == [0, 0, 0, 0]
    (resumed,) = second.said(Resumed, 0)
    assert resumed.tier == "memory"
    assert [m.step for m in second.said(Validated)] == [5, 10]
    whole = {s.step: s for s in (*first.steps(), *resumed.recalled, *second.steps())}
    assert losses(whole) == losses(undisturbed)


def rows_of(crew: Crew) -> list[RankProgress]:
    found = []
    for worker in crew.workers:
        step, phase, noted_s, rounds = worker.page.read()
        age_s = time.monotonic() - noted_s
        found.append(RankProgress(worker.rank, step, phase, age_s, rounds=rounds))
    return found


def test_a_long_measurement_is_no_hang_but_a_rank_that_stops_in_it_is(
    nursery: Nursery, tmp_path: Path, with_text: dict[str, Any]
) -> None:
    """The watch of an agent, on the pages of real workers.

    Its time passes with what they get done, and with each look at those that wait for a stopped
    one: on a machine that stands still for a second nothing would be late.
    """
    limits = HangLimits(multiple=4.0, min_s=0.5, max_s=900.0)
    deadline = ProgressDeadline(limits)
    section = validated(with_text, interval_steps=8, sequences=ALL)
    crew = Crew(nursery, starts_for(tmp_path, section, MESH))
    clock = crew.deadline()
    alarms: list[Overdue | None] = []
    now_s = 0.0
    seen: list[tuple[int, int, int]] = []

    def look(*, is_waiting: bool = False) -> list[RankProgress]:
        nonlocal now_s
        clock.check()
        rows = rows_of(crew)
        done = [(row.rank, row.step, row.rounds) for row in rows]
        if done != seen or is_waiting:
            now_s += 0.05
            seen[:] = done
        alarms.append(deadline.observe(rows, now_s))
        return rows

    rows = look()
    while min(row.step for row in rows) < 8:
        rows = look()
    assert deadline.is_armed
    began_s = now_s
    # Longer than the deadline, and in the middle of many rounds.
    while (
        now_s - began_s < 2 * deadline.deadline_s
        or {row.phase for row in rows} != {Phase.VALIDATING}
        or not all(20 < row.rounds < 200 for row in rows)
    ):
        rows = look()
    assert not any(alarms)
    os.kill(crew.workers[2].pid, signal.SIGSTOP)
    while not any(alarms):
        rows = look(is_waiting=True)
    os.kill(crew.workers[2].pid, signal.SIGCONT)
    (alarm,) = [alarm for alarm in alarms if alarm is not None]
    assert alarm.step == 8
    stopped = [replace(row, state="T" if row.rank == 2 else "S") for row in rows]
    rank, why = blame(stopped)
    assert rank == 2
    assert "VALIDATING" in why
