"""The worker processes of one attempt on all nodes together: they step in unison or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from midwatch.health.nodes.liveness import RankProgress
from midwatch.logbook.hyper import ONCE
from midwatch.logbook.plan import AttemptPlan
from midwatch.logbook.wire import (
    Applied,
    CheckpointStage,
    CheckpointTags,
    Command,
    Finished,
    Phase,
    Resumed,
    StepSample,
    WorkerFailed,
    WorkerMessage,
)
from midwatch.trainer.control import Mailbox
from midwatch.trainer.effects import (
    Effect,
    due_commands,
    is_save_due,
    plan_due,
    plan_effect,
    save_interval_steps,
)
from midwatch.trainer.loss_scaler import ScalerState
from midwatch.trainer.schedule import lr_at
from msgspec.structs import replace

from .training import Weights, tags_of, train_one

if TYPE_CHECKING:
    from .agent import SimAgent
    from .world import World


class Life(Enum):
    """What a worker process is doing."""

    ALIVE = "alive"
    STOPPED = "stopped"
    GONE = "gone"


class Worker:
    """One worker process. agent is the agent that forked it and that it dies with."""

    def __init__(self, rank: int, pid: int, agent: SimAgent, first_command: int) -> None:
        self.rank = rank
        self.pid = pid
        self.agent = agent
        self.life = Life.ALIVE
        self.mailbox = Mailbox(None, first_command, _never)


class Gang:
    """Starts when every rank is born, trains, breaks when one is lost, and ends together."""

    def __init__(self, world: World, plan: AttemptPlan) -> None:
        self.plan = plan
        self.workers: dict[int, Worker] = {}
        self.hyper = plan.hyper
        self.weights = Weights()
        self.num_steps = 0
        self.progress_s = math.inf
        self.is_broken = False
        self.is_frozen = False
        self.is_done = False
        self._world = world

    @property
    def attempt(self) -> int:
        return self.plan.attempt

    @property
    def is_training(self) -> bool:
        """Whether it has made a step and nothing has stopped it yet."""
        return self.num_steps > 0 and not (self.is_broken or self.is_frozen or self.is_done)

    # --- beginning -------------------------------------------------------------------------------

    def born(self, agent: SimAgent, ranks: range) -> dict[int, int]:
        """Fork the ranks of one node; return their pids by rank."""
        for rank in ranks:
            pid = self._world.next_pid()
            self.workers[rank] = Worker(rank, pid, agent, self.plan.first_command)
        if len(self.workers) == self.plan.mesh.world_size:
            self._world.timeline.later(self._world.times.load_s, self._load)
        elif len(self.workers) == len(ranks):
            self._world.timeline.later(self._world.times.rendezvous_s, self._give_up_waiting)
        return {rank: self.workers[rank].pid for rank in ranks}

    def _give_up_waiting(self) -> None:
        if len(self.workers) < self.plan.mesh.world_size:
            for worker in self._alive():
                self._fail(worker, "rendezvous-failed", "not all ranks came")

    def _load(self) -> None:
        if self.is_broken:
            return
        loaded, passed_over = self._world.disk.load(self.plan.checkpoints)
        if loaded is None and self.plan.checkpoints:
            for worker in self._alive():
                self._fail(worker, "no-usable-checkpoint", "; ".join(why for _, why in passed_over))
            return
        self.weights = loaded.weights if loaded is not None else Weights()
        name = loaded.id if loaded is not None else ""
        for worker in self._alive():
            resumed = Resumed(worker.rank, self.weights.step, name, 0.1, passed_over)
            self._say(worker, replace(resumed, readback=self._readback()))
        if loaded is not None and loaded.is_unfit:
            self._fail(self.workers[0], "worker-raised", "no step can be made from this state")
            return
        self._catch_up()
        self._next_step()

    # --- training --------------------------------------------------------------------------------

    def _next_step(self, held_up_s: float = 0.0) -> None:
        if self.weights.step >= self._world.config.steps:
            self._save_last(None, stopped=False)
        else:
            self._world.timeline.later(held_up_s + self._world.times.step_s, self._step)

    def _step(self) -> None:
        if self.is_broken or self.is_frozen:
            return
        if any(worker.life is Life.STOPPED for worker in self.workers.values()):
            self.is_frozen = True
            return
        agreed = min(worker.mailbox.highest() for worker in self.workers.values())
        config = self._world.config
        self.weights, sample = train_one(self.weights, self.hyper, config, self._world.physics)
        self.num_steps += 1
        self.progress_s = self._world.timeline.now_s()
        self._world.trained(self, sample)
        self._say(self.workers[0], sample)
        wants_save, is_stopped = self._apply_commands(agreed)
        if is_stopped:
            self._save_last(sample, stopped=True)
            return
        if wants_save or is_save_due(self.weights.step, self.hyper, config):
            self._save(sample)
            self._next_step(self._world.times.blocked_s)
        else:
            self._next_step()

    def _apply_commands(self, agreed: int) -> tuple[bool, bool]:
        """As trainer.loop does it, for all ranks at once."""
        config, mesh, next_step = self._world.config, self.plan.mesh, self.weights.step + 1
        taken = [worker.mailbox.take(agreed) for worker in self.workers.values()]
        effects, told = [], set()
        for command in taken[0]:
            effect = plan_effect(command, self.hyper, next_step, config, mesh)
            effects.append(self._apply(command, effect))
            told.add(command.cause)
        for command in due_commands(self.hyper, next_step):
            effects.append(self._apply(command, plan_due(command, self.hyper, config, mesh)))
            told.add(command.cause)
        self._tell_turns(told)
        return any(e.is_save for e in effects), any(e.is_stop for e in effects)

    def _catch_up(self) -> None:
        config, mesh = self._world.config, self.plan.mesh
        told = set()
        for command in due_commands(self.hyper, self.weights.step + 1):
            if command.kind not in ONCE:
                self._apply(command, plan_due(command, self.hyper, config, mesh))
                told.add(command.cause)
        self._tell_turns(told)

    def _apply(self, command: Command, effect: Effect) -> Effect:
        previous = self._readback()
        self.hyper = effect.hyper
        self._reset_scale()
        for worker in self.workers.values():
            applied = Applied(
                rank=worker.rank,
                seq=command.seq,
                at_step=effect.at_step,
                readback=self._readback(),
                previous=previous,
                error=effect.error,
                hyper=effect.hyper if effect.is_changed else None,
                phase=effect.phase,
                cause=command.cause,
                until_step=effect.until_step,
            )
            self._say(worker, applied)
        return effect

    def _tell_turns(self, told: set[str]) -> None:
        next_step = self.weights.step + 1
        self._reset_scale()
        turns = [(c, "applied") for c in self.hyper.begun_at(next_step) if c not in told]
        turns += [(c, "expired") for c in self.hyper.ended_at(next_step)]
        for cause, phase in turns:
            for worker in self.workers.values():
                readback = self._readback()
                turn = Applied(worker.rank, 0, next_step, readback, phase=phase, cause=cause)
                self._say(worker, turn)

    def _reset_scale(self) -> None:
        scale = self.hyper.struck_at("loss-scale", self.weights.step + 1)
        if scale is not None:
            self.weights = replace(self.weights, scaler=ScalerState(scale))

    def _readback(self) -> dict[str, float]:
        config, step = self._world.config, self.weights.step + 1
        optimizer = config.optimizer

        def at(parameter: str, otherwise: float) -> float:
            value = self.hyper.value_at(parameter, step)
            return otherwise if value is None else value

        return {
            "lr": lr_at(step, optimizer, config.schedule, self.hyper.lr_changes),
            "grad_clip": at("grad-clip", optimizer.grad_clip),
            "beta1": at("beta1", optimizer.beta1),
            "beta2": at("beta2", optimizer.beta2),
            "eps": at("eps", optimizer.eps),
            "weight_decay": at("weight-decay", optimizer.weight_decay),
            "loss_scale": self.weights.scaler.scale,
            "loss_scale_floor": at("loss-scale-floor", config.loss_scaler.floor),
            "save_interval_steps": float(save_interval_steps(self.hyper, config)),
        }

    # --- saving and ending -----------------------------------------------------------------------

    def _save(self, sample: StepSample) -> None:
        weights, world = self.weights, self._world
        if world.storage.fails():
            self._say(self.workers[0], self._stage(weights, "failed", error="disk-full"))
            return
        delay_s = world.storage.save_s()
        world.timeline.later(delay_s, lambda: self._commit(weights, tags_of(sample)))

    def _commit(self, weights: Weights, tags: CheckpointTags) -> None:
        # A save needs every rank; one whose bytes had all left its ranks lands nevertheless.
        if self.is_broken and not self._world.storage.lands_late():
            return
        self._world.disk.commit(weights, self.attempt, tags)
        self._say(self.workers[0], self._stage(weights, "committed", tags=tags), even_if_gone=True)

    def _stage(
        self, weights: Weights, stage: str, tags: CheckpointTags | None = None, error: str = ""
    ) -> CheckpointStage:
        name = self._world.checkpoint_id(weights.step, self.attempt)
        times = self._world.times
        return CheckpointStage(
            name,
            weights.step,
            stage,
            bytes=1000,
            blocked_s=times.blocked_s,
            save_s=times.save_s,
            tags=tags,
            error=error,
        )

    def _save_last(self, sample: StepSample | None, *, stopped: bool) -> None:
        self._world.timeline.later(
            self._world.times.save_s, lambda: self._finish(sample, stopped=stopped)
        )

    def _finish(self, sample: StepSample | None, *, stopped: bool) -> None:
        if self.is_broken or any(w.life is Life.STOPPED for w in self.workers.values()):
            self.is_frozen = True
            return
        if sample is not None or self.num_steps:
            tags = tags_of(sample or self._world.samples[self.weights.step])
            self._commit(self.weights, tags)
        self.is_done = True
        for worker in self._alive():
            self._say(worker, Finished(worker.rank, self.weights.step, stopped))
            worker.life = Life.GONE
            worker.agent.on_exit(self, worker, exit_code=0)

    # --- trouble ---------------------------------------------------------------------------------

    def lose(self, rank: int) -> None:
        """A worker process is gone; every other rank fails in its collective, soon."""
        worker = self.workers[rank]
        if worker.life is Life.GONE:
            return
        worker.life = Life.GONE
        if self.is_broken or self.is_done:
            return
        self.is_broken = True
        for peer in self._alive():
            delay_s = self._world.rng.uniform(0.001, self._world.times.peer_exit_s)
            self._world.timeline.later(delay_s, self._failing(peer))

    def _failing(self, worker: Worker) -> Callable[[], None]:
        return lambda: self._fail(worker, "collective-failed", "connection closed by peer")

    def _fail(self, worker: Worker, code: str, message: str) -> None:
        if worker.life is not Life.ALIVE:
            return
        self._say(worker, WorkerFailed(worker.rank, code, message))
        self.lose(worker.rank)
        worker.agent.on_exit(self, worker, exit_code=1)

    def rows(self, agent: SimAgent) -> tuple[RankProgress, ...]:
        """Return where this agent's ranks stand, as their progress pages would show it."""
        age_s = self._world.timeline.now_s() - self.progress_s
        rows = []
        for worker in self.workers.values():
            if worker.agent is not agent or worker.life is Life.GONE:
                continue
            stopped = worker.life is Life.STOPPED
            rows.append(
                RankProgress(
                    rank=worker.rank,
                    step=self.weights.step,
                    phase=Phase.FORWARD if stopped else Phase.VOTE,
                    age_s=age_s + (0.2 if stopped else 0.0),
                    state="T" if stopped else "S",
                    waits=None if stopped else True,
                )
            )
        return tuple(rows)

    def _alive(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.life is Life.ALIVE]

    def _say(self, worker: Worker, message: WorkerMessage, *, even_if_gone: bool = False) -> None:
        if worker.life is not Life.GONE or even_if_gone:
            worker.agent.on_message(self.attempt, worker.rank, message)


def _never() -> None:
    raise AssertionError("a simulated mailbox has no pipe that could end")
