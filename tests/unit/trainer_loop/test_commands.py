"""Orders reach every rank at one agreed step, are read back from all, and survive a resume."""

from pathlib import Path
from typing import Any

import pytest
from midwatch.checkpoints.manifest import checkpoint_dir, read_manifest
from midwatch.logbook.wire import (
    Applied,
    CheckpointStage,
    Command,
    Finished,
    Hyper,
    LrChange,
    Mesh,
    StepSample,
)
from midwatch.tests.support.crew import Crew, Nursery, starts_for
from midwatch.trainer.config import TrainConfig
from midwatch.trainer.schedule import lr_at

MESH = Mesh(dp_shard=2, tp=2)
RANKS = [0, 1, 2, 3]


def scheduled_lr(trainer: dict[str, Any], step: int, hyper: Hyper | None = None) -> float:
    config = TrainConfig.model_validate(trainer)
    changes = hyper.lr_changes if hyper else ()
    return lr_at(step, config.optimizer, config.schedule, changes)


def everyone_applied(seq: int) -> Any:
    return lambda crew: len([a for a in crew.applied() if a.seq == seq]) == len(crew.workers)


def stepped_past(step: int) -> Any:
    return lambda crew: bool(crew.steps()) and crew.steps()[-1].step > step


def stop(crew: Crew, seq: int) -> None:
    crew.order(Command(seq, "stop"))
    crew.watch()
    assert crew.failures() == []
    assert crew.exit_codes() == [0] * len(crew.workers)


def test_a_rate_is_changed_at_one_step_on_every_rank_once_all_have_heard(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    crew = Crew(nursery, starts_for(tmp_path, trainer, MESH))
    order = Command(1, "lr-factor", 0.5, "iv-1")
    crew.watch(stepped_past(2))
    crew.order(order, ranks=[0, 1, 2])
    crew.watch(stepped_past(8))
    assert crew.applied() == []
    crew.order(order, ranks=[3])
    crew.watch(everyone_applied(1))
    stop(crew, 2)

    changed = [applied for applied in crew.applied() if applied.seq == 1]
    at_step = changed[0].at_step
    assert [applied.rank for applied in changed] == RANKS
    assert {applied.at_step for applied in changed} == {at_step}
    for applied in changed:
        assert applied.error == ""
        assert applied.previous["lr"] == scheduled_lr(trainer, at_step)
        assert applied.readback["lr"] == 0.5 * scheduled_lr(trainer, at_step)
        assert applied.readback["grad_clip"] == applied.previous["grad_clip"]
        assert applied.hyper == Hyper(lr_changes=(LrChange(at_step, 0.5, "iv-1"),))
    for sample in crew.steps():
        factor = 0.5 if sample.step >= at_step else 1.0
        assert sample.lr == factor * scheduled_lr(trainer, sample.step)

    saved = read_manifest(checkpoint_dir(tmp_path, crew.committed()[-1])).header
    assert saved.hyper == Hyper(lr_changes=(LrChange(at_step, 0.5, "iv-1"),))


def test_changes_go_on_after_a_resume(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    first = Crew(nursery, starts_for(tmp_path, trainer, MESH))
    first.watch(stepped_past(1))
    first.order(Command(1, "lr", 5e-4, "iv-1"))
    first.order(Command(2, "grad-clip", 0.3, "iv-2"))
    first.watch(everyone_applied(2))
    stop(first, 3)
    at_step = first.applied()[0].at_step
    hyper = read_manifest(checkpoint_dir(tmp_path, first.committed()[-1])).header.hyper
    assert hyper.lr_changes[0].from_step == at_step
    assert hyper.value_at("grad-clip", at_step) == 0.3

    checkpoints = tuple(first.committed())
    second = Crew(
        nursery,
        starts_for(
            tmp_path,
            trainer,
            MESH,
            attempt=2,
            checkpoints=checkpoints,
            hyper=hyper,
            first_command=4,
        ),
    )
    # Orders that are part of hyper already may come again; they must not count twice.
    second.order(Command(1, "lr", 9e-9, "iv-1"))
    second.watch(stepped_past(first.steps()[-1].step))
    second.order(Command(4, "grad-clip", 0.2, "iv-3"))
    second.watch(everyone_applied(4))
    stop(second, 5)
    assert {a.previous["grad_clip"] for a in second.applied() if a.seq == 4} == {0.3}
    assert [a.seq for a in second.applied() if a.rank == 0] == [4, 5]
    for sample in [s for s in first.steps() if s.step >= at_step] + second.steps():
        assert sample.lr == scheduled_lr(trainer, sample.step, hyper)
    assert scheduled_lr(trainer, at_step, hyper) == pytest.approx(5e-4)


def test_impossible_orders_change_nothing_and_say_so_on_every_rank(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    crew = Crew(nursery, starts_for(tmp_path, trainer, MESH))
    crew.order(Command(1, "lr", float("nan")))
    crew.order(Command(2, "lr-factor", -1.0))
    crew.order(Command(3, "set-sail", 1.0))
    crew.order(Command(4, "save-interval", 2.5))
    crew.watch(everyone_applied(4))
    stop(crew, 5)
    out_of_range = "value-out-of-range"
    codes = {1: out_of_range, 2: out_of_range, 3: "unknown-command", 4: out_of_range}
    for seq, code in codes.items():
        answers: list[Applied] = [a for a in crew.applied() if a.seq == seq]
        assert [a.rank for a in answers] == RANKS
        assert len({(a.at_step, a.error) for a in answers}) == 1
        assert answers[0].error.startswith(code + ":")
        assert all(a.readback == a.previous and a.hyper is None for a in answers)
    assert all(sample.lr == scheduled_lr(trainer, sample.step) for sample in crew.steps())
    header = read_manifest(checkpoint_dir(tmp_path, crew.committed()[-1])).header
    assert header.hyper == Hyper()


def test_a_checkpoint_order_saves_at_the_agreed_boundary(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    crew = Crew(nursery, starts_for(tmp_path, trainer, MESH))
    crew.watch(stepped_past(1))
    crew.order(Command(1, "checkpoint"))
    crew.watch(lambda crew: bool(crew.committed()))
    stop(crew, 2)
    at_step = crew.applied()[0].at_step
    assert crew.committed()[0] == f"step-{at_step - 1:08d}.a0001"
    assert crew.steps()[-1].step >= at_step


def test_another_save_interval_holds_from_one_step_on_all_ranks_and_after_a_resume(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    crew = Crew(nursery, starts_for(tmp_path, trainer, MESH))
    crew.watch(stepped_past(2))
    # One rank hears of it later: until then nobody may save.
    crew.order(Command(1, "save-interval", 5.0), ranks=[0, 1, 2])
    crew.watch(stepped_past(8))
    assert crew.applied() == []
    crew.order(Command(1, "save-interval", 5.0), ranks=[3])
    crew.watch(lambda crew: len(crew.committed()) >= 2)
    stop(crew, 2)
    changed = [a for a in crew.applied() if a.seq == 1]
    assert [a.rank for a in changed] == RANKS
    assert len({(a.at_step, a.error) for a in changed}) == 1
    at_step = changed[0].at_step
    assert {a.previous["save_interval_steps"] for a in changed} == {1000.0}
    assert {a.readback["save_interval_steps"] for a in changed} == {5.0}
    last = crew.steps()[-1].step
    first = -(-(at_step - 1) // 5) * 5
    due = [f"step-{step:08d}.a0001" for step in range(first, last, 5)]
    assert crew.committed() == [*due, f"step-{last:08d}.a0001"]

    hyper = read_manifest(checkpoint_dir(tmp_path, crew.committed()[-1])).header.hyper
    assert hyper == Hyper(save_interval_steps=5)
    resumed = starts_for(
        tmp_path,
        trainer,
        MESH,
        attempt=2,
        until_step=last + 7,
        checkpoints=(crew.committed()[-1],),
        hyper=hyper,
    )
    second = Crew(nursery, resumed)
    second.watch()
    steps = [int(name[5:13]) for name in second.committed()]
    assert steps == [*(s for s in range(last + 1, last + 7) if s % 5 == 0), last + 7]


def test_stop_commits_the_state_before_the_exit(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    crew = Crew(nursery, starts_for(tmp_path, trainer, MESH))
    crew.watch(stepped_past(1))
    stop(crew, 1)
    last = crew.steps()[-1].step
    assert crew.committed() == [f"step-{last:08d}.a0001"]
    assert [(f.rank, f.step, f.stopped) for f in crew.said(Finished)] == [
        (rank, last, True) for rank in RANKS
    ]
    said = [type(message) for message in crew.workers[0].messages]
    assert said[-1] is Finished
    assert said.index(Finished) > max(i for i, kind in enumerate(said) if kind is CheckpointStage)
    assert said.count(StepSample) == last
