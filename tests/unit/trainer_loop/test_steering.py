"""The live optimizer, clip and loss scaler of every rank hold a change: at its step, up to its last
step, and after a kill right behind it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from midwatch.checkpoints.manifest import checkpoint_dir, read_manifest
from midwatch.logbook.wire import Applied, Command, Hyper, Mesh, Resumed
from midwatch.tests.support.crew import Crew, Nursery, starts_for
from midwatch.trainer.config import TrainConfig
from midwatch.trainer.schedule import lr_at

MESH = Mesh(dp_shard=2, tp=2)
RANKS = [0, 1, 2, 3]
ADAM = {"beta1": 0.8, "beta2": 0.98, "eps": 1e-6, "weight-decay": 0.05}
SCALER = {"loss-scale": 2.0, "loss-scale-floor": 0.5}
HELD = {
    "beta1": 0.8,
    "beta2": 0.98,
    "eps": 1e-6,
    "weight_decay": 0.05,
    "loss_scale": 2.0,
    "loss_scale_floor": 0.5,
    "grad_clip": 0.3,
}


def stepped_past(step: int) -> Any:
    return lambda crew: bool(crew.steps()) and crew.steps()[-1].step > step


def told(crew: Crew, cause: str, phase: str) -> list[Applied]:
    return [a for a in crew.applied() if (a.cause, a.phase) == (cause, phase)]


def everyone(cause: str, phase: str) -> Any:
    return lambda crew: len(told(crew, cause, phase)) == len(crew.workers)


def change_everything(crew: Crew, first_seq: int = 1) -> int:
    """Order a change of each kind; return the first step that runs under all of them."""
    crew.order(Command(first_seq, "optimizer", cause="adam", values=ADAM))
    crew.order(Command(first_seq + 1, "scaler", cause="scaler", values=SCALER))
    crew.order(Command(first_seq + 2, "lr-factor", 0.5, "rate"))
    crew.order(Command(first_seq + 3, "grad-clip", 0.3, "clip"))
    crew.watch(everyone("clip", "applied"))
    return told(crew, "clip", "applied")[0].at_step


def last_hyper(crew: Crew) -> Hyper:
    """What the journal would hold: the changes in force as the ranks told them last."""
    return [a.hyper for a in crew.applied() if a.hyper is not None and a.rank == 0][-1]


@pytest.mark.parametrize("mesh", [Mesh(2, 2), Mesh(4, 1)], ids=["tp", "dp"])
def test_every_rank_holds_every_change_and_still_does_after_a_kill_right_behind(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any], mesh: Mesh
) -> None:
    section = {**trainer, "precision": "fp16", "checkpoint": {"interval_steps": 4}}
    first = Crew(nursery, starts_for(tmp_path, section, mesh))
    first.watch(lambda crew: len(crew.committed()) >= 1)
    at_step = change_everything(first)
    os.kill(first.workers[3].pid, signal.SIGKILL)
    first.watch()
    assert first.exit_codes()[3] == -signal.SIGKILL
    answers = told(first, "clip", "applied")
    assert [a.rank for a in answers] == RANKS
    assert {a.at_step for a in answers} == {at_step}
    for answer in answers:
        assert HELD.items() <= answer.readback.items()
        assert answer.previous["grad_clip"] == 1.0
    rates = {a.rank: a.readback["lr"] / a.previous["lr"] for a in told(first, "rate", "applied")}
    assert rates == dict.fromkeys(RANKS, 0.5)

    hyper, newest = last_hyper(first), first.committed()[-1]
    resumed_step = read_manifest(checkpoint_dir(tmp_path, newest)).header.step
    second = Crew(
        nursery,
        starts_for(
            tmp_path,
            section,
            mesh,
            attempt=2,
            checkpoints=(newest,),
            hyper=hyper,
            first_command=5,
            until_step=at_step + 6,
        ),
    )
    second.watch()
    assert second.exit_codes() == [0] * 4
    # Each rank says what it holds: right after the load, or where it comes to the step again.
    loaded = second.said(Resumed)
    assert [r.rank for r in loaded] == RANKS
    again = [a.readback for a in told(second, "clip", "applied")]
    assert len(again) == (4 if resumed_step < at_step else 0)
    for readback in again or [r.readback for r in loaded]:
        assert {k: v for k, v in HELD.items() if k != "loss_scale"}.items() <= readback.items()
    # And it trains as the first attempt did: every step that both made is the same, bit for bit.
    before = {s.step: (s.loss, s.lr, s.loss_scale) for s in first.steps()}
    after = {s.step: (s.loss, s.lr, s.loss_scale) for s in second.steps()}
    common = sorted(set(before) & set(after))
    assert {s: before[s] for s in common} == {s: after[s] for s in common}
    assert after[at_step + 6][1] < 0.51 * section_lr(section, at_step + 6)


def section_lr(section: dict[str, Any], step: int) -> float:
    config = TrainConfig.model_validate(section)
    return lr_at(step, config.optimizer, config.schedule)


def test_a_change_for_a_while_is_gone_from_every_rank_after_its_last_step(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    crew = Crew(nursery, starts_for(tmp_path, trainer, MESH))
    crew.watch(stepped_past(1))
    soon = crew.steps()[-1].step + 300
    order = Command(1, "optimizer", cause="adam", values=ADAM, at_step=soon, for_steps=7)
    crew.order(order)
    crew.order(Command(2, "lr-factor", 0.5, "rate", at_step=soon, for_steps=7))
    crew.watch(everyone("rate", "scheduled"))
    assert {a.at_step for a in told(crew, "adam", "scheduled")} == {soon}
    assert last_hyper(crew).scheduled[0] == order
    crew.watch(everyone("rate", "expired"))
    crew.order(Command(3, "stop"))
    crew.watch()
    assert crew.exit_codes() == [0] * 4
    for cause in ("adam", "rate"):
        for phase, at_step in (("applied", soon), ("expired", soon + 7)):
            assert [a.rank for a in told(crew, cause, phase)] == RANKS
            assert {a.at_step for a in told(crew, cause, phase)} == {at_step}
    for answer in told(crew, "adam", "applied"):
        assert (answer.readback["beta2"], answer.readback["eps"]) == (0.98, 1e-6)
    for answer in told(crew, "adam", "expired"):
        assert (answer.readback["beta2"], answer.readback["eps"]) == (0.95, 1e-8)
    halved = [s.step for s in crew.steps() if s.lr < 0.6 * section_lr(trainer, s.step)]
    assert halved == list(range(soon, soon + 7))


def test_a_kill_while_a_change_waits_or_holds_does_not_move_its_steps(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    section = {**trainer, "checkpoint": {"interval_steps": 5}}
    crew = Crew(nursery, starts_for(tmp_path, section, MESH))
    crew.watch(lambda crew: len(crew.committed()) >= 1)
    soon = crew.steps()[-1].step + 400
    crew.order(Command(1, "lr-factor", 0.5, "rate", at_step=soon, for_steps=9))
    crew.watch(everyone("rate", "scheduled"))
    os.kill(crew.workers[1].pid, signal.SIGKILL)
    crew.watch()
    hyper, newest = last_hyper(crew), crew.committed()[-1]
    assert hyper.scheduled
    resumed = Crew(
        nursery,
        starts_for(
            tmp_path,
            section,
            MESH,
            attempt=2,
            checkpoints=(newest,),
            hyper=hyper,
            first_command=2,
            until_step=soon + 12,
        ),
    )
    resumed.watch()
    assert resumed.exit_codes() == [0] * 4
    assert [a.rank for a in told(resumed, "rate", "applied")] == RANKS
    assert [a.rank for a in told(resumed, "rate", "expired")] == RANKS
    halved = [s.step for s in resumed.steps() if s.lr < 0.6 * section_lr(section, s.step)]
    assert halved == list(range(soon, soon + 9))


def test_data_is_left_out_in_steps_or_samples_and_a_pause_saves(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    crew = Crew(nursery, starts_for(tmp_path, trainer, MESH))
    crew.watch(stepped_past(1))
    first = crew.steps()[-1].step + 300
    batch = sequences_per_step(trainer)
    crew.order(Command(1, "skip", cause="steps", target=f"{first}:{first + 5}"))
    samples = f"samples {(first + 9) * batch + 1}:{(first + 11) * batch}"
    crew.order(Command(2, "skip", cause="samples", target=samples))
    crew.order(Command(3, "skip", cause="late", target="0:1"))
    crew.watch(everyone("late", "applied"))
    crew.order(Command(4, "pause", cause="pause", at_step=first + 20))
    crew.watch()
    assert crew.exit_codes() == [0] * 4
    assert {a.error.partition(":")[0] for a in told(crew, "late", "applied")} == {"data-passed"}
    consumed = {s.step: s.data_step for s in crew.steps()}
    assert consumed[first] == first - 1
    assert [consumed[first + 1], consumed[first + 4], consumed[first + 5]] == [
        first + 5,
        first + 8,
        first + 11,
    ]
    last = crew.steps()[-1].step
    assert last == first + 20
    assert crew.committed()[-1] == f"step-{last:08d}.a0001"


def sequences_per_step(section: dict[str, Any]) -> int:
    return TrainConfig.model_validate(section).sequences_per_step(MESH)
