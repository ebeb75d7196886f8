"""The worker processes of one attempt on all nodes together: they step in unison or not at all."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ...checkpoints.memory import Generation
from ...health.nodes.liveness import RankProgress
from ...logbook.plan import AttemptPlan
from ...logbook.wire import (
    CheckpointStage,
    CheckpointTags,
    Command,
    Finished,
    Hyper,
    Resumed,
    StepSample,
    WorkerFailed,
    WorkerMessage,
)
from .memory_tier import Copy
from .pace import Pace
from .rules import Mailbox
from .sayings import row_of, stage_of
from .steering import Steering
from .training import Saved, Weights, tags_of, train_one

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

    __slots__ = ("agent", "life", "mailbox", "pid", "rank")

    def __init__(self, rank: int, pid: int, agent: SimAgent) -> None:
        self.rank = rank
        self.pid = pid
        self.agent = agent
        self.life = Life.ALIVE
        # Made with the first command: most attempts never hear one.
        self.mailbox: Any = None


class Gang:
    """Starts when every rank is born, trains, breaks when one is lost, and ends together.

    num_left: workers that are not gone. progress_s: when the last step was completed.
    """

    def __init__(self, world: World, plan: AttemptPlan) -> None:
        self.plan = plan
        self.workers: dict[int, Worker] = {}
        self.steering = Steering(plan, world.config, self._say_all)
        self.weights = Weights()
        self.num_steps = 0
        self.num_left = 0
        self.progress_s = math.inf
        self.is_broken = False
        self.is_frozen = False
        self.is_done = False
        self._landed_s = 0.0
        self._world = world
        self._has_commands = False
        self._num_stopped = 0
        self._memory_step: int | None = None
        self._lives: tuple[str, ...] = ()
        self._recent: deque[StepSample] = deque(maxlen=world.setting.recalled_steps)
        self._pace = Pace(world, plan)

    @property
    def attempt(self) -> int:
        return self.plan.attempt

    @property
    def hyper(self) -> Hyper:
        """The changes in force."""
        return self.steering.hyper

    @property
    def _is_plain(self) -> bool:
        return not self._has_commands and self.steering.is_plain

    @property
    def is_training(self) -> bool:
        """Whether it has made a step and nothing has stopped it yet."""
        return self.num_steps > 0 and not (self.is_broken or self.is_frozen or self.is_done)

    # --- beginning -------------------------------------------------------------------------------

    def born(self, agent: SimAgent, ranks: range) -> dict[int, int]:
        """Fork the ranks of one node; return their pids by rank."""
        pids = dict(zip(ranks, self._world.next_pids(len(ranks)), strict=True))
        for rank, pid in pids.items():
            self.workers[rank] = Worker(rank, pid, agent)
        self.num_left += len(ranks)
        if len(self.workers) == self.plan.mesh.world_size:
            self._world.timeline.later(self._load_s(), self._load)
        elif len(self.workers) == len(ranks):
            self._world.timeline.later(self._world.times.rendezvous_s, self._give_up_waiting)
        return pids

    def _give_up_waiting(self) -> None:
        if len(self.workers) < self.plan.mesh.world_size:
            for worker in self._alive():
                self._fail(worker, "rendezvous-failed", "not all ranks came")

    def _in_memory(self) -> Copy | None:
        agents = self._world.agents.values()
        lives = {agent.node: agent.identity.agent for agent in agents if agent.is_alive}
        return self._world.memory.newest(self.plan, lives)

    def _load_s(self) -> float:
        times = self._world.times
        if self._world.memory.is_on and self._in_memory() is not None:
            return times.memory_load_s
        wait_s = self._world.storage.wait_s(self._world.timeline.elapsed_s)
        return times.load_s + (wait_s if self.plan.checkpoints else 0.0)

    def _load(self) -> None:
        if self.is_broken:
            return
        if self._world.memory.is_on and self.plan.memory_since is None:
            self._world.memory.drop()
        copy = self._in_memory() if self._world.memory.is_on else None
        if copy is not None:
            self.weights = copy.weights
            self._resumed(copy.generation.id, "memory", (), copy.recent)
            self.weights = self.steering.catch_up(self.weights)
            self._next_step()
            return
        loaded, passed_over = self._world.disk.load(self.plan.checkpoints)
        if loaded is None and self.plan.checkpoints:
            for worker in self._alive():
                self._fail(worker, "no-usable-checkpoint", "; ".join(why for _, why in passed_over))
            return
        self._take(loaded, passed_over)

    def _take(self, loaded: Saved | None, passed_over: tuple[tuple[str, str], ...]) -> None:
        self.weights = loaded.weights if loaded is not None else Weights()
        if loaded is None:
            self._resumed("", "", passed_over)
        else:
            self._world.disk.loads_total += 1
            self._resumed(loaded.id, "disk", passed_over, loaded.recent)
        if loaded is not None and loaded.is_unfit:
            self._fail(self.workers[0], "worker-raised", "no step can be made from this state")
            return
        self.weights = self.steering.catch_up(self.weights)
        self._next_step()

    def _resumed(
        self,
        name: str,
        tier: str,
        passed_over: tuple[tuple[str, str], ...],
        recalled: tuple[StepSample, ...] = (),
    ) -> None:
        self._recent.extend(recalled)
        load_s = self._world.times.memory_load_s if tier == "memory" else self._world.times.load_s
        step = self.weights.step

        def said(rank: int) -> WorkerMessage:
            recent = recalled if rank == 0 else ()
            resumed = Resumed(rank, step, name, load_s, passed_over, tier, recalled=recent)
            return replace(resumed, readback=readback)

        readback = self.steering.readback(self.weights)
        self._say_all(said)

    # --- training --------------------------------------------------------------------------------

    def pace_changed(self) -> None:
        """Some node has become slower, or computes numbers that are off."""
        self._pace.look()

    def _next_step(self, held_up_s: float = 0.0) -> None:
        if self.weights.step >= self._world.config.steps:
            self._save_last(None, stopped=False)
        else:
            self._world.timeline.later(held_up_s + self._pace.step_s, self._step)

    def _step(self) -> None:
        if self.is_broken or self.is_frozen:
            return
        if self._num_stopped:
            self.freeze()
            return
        world = self._world
        weights = self._pace.sickened(self.weights)
        self.weights, sample = train_one(weights, self.steering.hyper, world.setting)
        now_s, step_s = world.timeline.now_s(), self._pace.step_s
        sample = replace(sample, time_s=now_s, step_s=step_s, memory_step=self._memory_step)
        held_up_s = self._copied(sample)
        self.num_steps += 1
        self.progress_s = sample.time_s
        self._recent.append(sample)
        world.trained(self, sample)
        if self._pace.is_watched:
            self._pace.tell(self, sample.step)
        self._say(self.workers[0], sample)
        wants_save, is_stopped = self._apply_commands() if not self._is_plain else (False, False)
        if is_stopped:
            self._save_last(sample, stopped=True)
        elif wants_save or sample.step % self.steering.interval_steps == 0:
            self._save(sample)
            self._next_step(held_up_s + world.times.blocked_s)
        else:
            self._next_step(held_up_s)

    def _copied(self, sample: StepSample) -> float:
        """Lay the state down in memory, if it is time; return what that holds training up."""
        world = self._world
        if not world.memory.is_due(sample.step):
            return 0.0
        if not self._lives:
            self._lives = tuple(
                self.workers[place.first_rank].agent.identity.agent
                for place in self.plan.placements
            )
        recent = (*self._recent, sample)[-world.setting.recalled_steps :]
        generation = Generation(sample.step, self.attempt)
        world.memory.lay_down(Copy(generation, self.weights, self._lives, recent))
        self._memory_step = sample.step
        return world.times.memory_copy_s or 0.0

    def receive(self, workers: Iterable[Worker], command: Command) -> None:
        """Put a command into the mailboxes of some workers."""
        self._has_commands = True
        for worker in workers:
            if worker.mailbox is None:
                worker.mailbox = Mailbox(None, self.plan.first_command, _never)
            worker.mailbox.put(command)

    def _apply_commands(self) -> tuple[bool, bool]:
        boxes = [worker.mailbox for worker in self.workers.values()]
        commands: list[Command] = []
        if boxes and all(box is not None for box in boxes):
            agreed = min(box.highest() for box in boxes)
            commands, *_ = [box.take(agreed) for box in boxes]
        self.weights, wants_save, is_stopped = self.steering.take(commands, self.weights)
        return wants_save, is_stopped

    # --- saving and ending -----------------------------------------------------------------------

    def _save(self, sample: StepSample) -> None:
        weights, world = self.weights, self._world
        if world.storage.fails(world.timeline.elapsed_s):
            self._say(self.workers[0], self._stage(weights, "failed", error="disk-full"))
            return
        delay_s = world.storage.save_s()
        self._landed_s = max(self._landed_s, world.timeline.elapsed_s + delay_s)
        world.timeline.later(delay_s, lambda: self._commit(weights, tags_of(sample)))

    def _commit(self, weights: Weights, tags: CheckpointTags) -> None:
        # A save needs every rank; one whose bytes had all left its ranks lands nevertheless.
        if self.is_broken and not self._world.storage.lands_late():
            return
        recent = tuple(sample for sample in self._recent if sample.step <= weights.step)
        self._world.disk.commit(weights, self.attempt, tags, recent)
        self._say(self.workers[0], self._stage(weights, "committed", tags=tags), even_if_gone=True)

    def _stage(
        self, weights: Weights, stage: str, tags: CheckpointTags | None = None, error: str = ""
    ) -> CheckpointStage:
        name = self._world.checkpoint_id(weights.step, self.attempt)
        return stage_of(self._world.setting, name, weights.step, stage, tags, error)

    def _save_last(self, sample: StepSample | None, *, stopped: bool) -> None:
        # Ranks leave only once what they have handed over has landed.
        wait_s = max(self._landed_s - self._world.timeline.elapsed_s, 0.0)
        self._world.timeline.later(
            wait_s + self._world.times.save_s, lambda: self._finish(sample, stopped=stopped)
        )

    def _finish(self, sample: StepSample | None, *, stopped: bool) -> None:
        if self.is_broken or self._num_stopped:
            self.freeze()
            return
        if sample is not None or self._recent:
            self._commit(self.weights, tags_of(sample or self._recent[-1]))
        self.is_done = True
        for worker in self._alive():
            self._say(worker, Finished(worker.rank, self.weights.step, stopped))
            self._is_gone(worker)
            worker.agent.on_exit(self, worker, exit_code=0)

    # --- trouble ---------------------------------------------------------------------------------

    def stop_worker(self, rank: int) -> bool:
        """Let a worker stand still; return whether it was moving."""
        worker = self.workers.get(rank)
        if worker is None or worker.life is not Life.ALIVE:
            return False
        worker.life = Life.STOPPED
        self._num_stopped += 1
        return True

    def freeze(self) -> None:
        """Nobody moves any more: every agent's watch will find that out by itself."""
        self.is_frozen = True
        for agent in {id(w.agent): w.agent for w in self.workers.values()}.values():
            agent.watch(self)

    def lose(self, rank: int) -> None:
        """A worker process is gone; every other rank fails in its collective, soon."""
        worker = self.workers[rank]
        if worker.life is Life.GONE:
            return
        self._is_gone(worker)
        if self.is_broken or self.is_done:
            return
        self.is_broken = True
        rng, times = self._world.rng, self._world.times
        for peer in self._alive():
            delay_s = rng.uniform(0.001, times.peer_exit_s)
            self._world.timeline.later(delay_s, self._failing(peer))
        if self._num_stopped:
            self.freeze()

    def end(self, workers: Iterable[Worker]) -> None:
        """The agent of these workers ends them."""
        for worker in workers:
            self.lose(worker.rank)

    def fail(self, rank: int, code: str, message: str) -> bool:
        """A worker ends by itself; return whether it was alive."""
        worker = self.workers[rank]
        if worker.life is not Life.ALIVE:
            return False
        self._fail(worker, code, message)
        return True

    def _failing(self, worker: Worker) -> Callable[[], None]:
        return lambda: self._fail(worker, "collective-failed", "connection closed by peer")

    def _fail(self, worker: Worker, code: str, message: str) -> None:
        if worker.life is not Life.ALIVE:
            return
        self._say(worker, WorkerFailed(worker.rank, code, message))
        self.lose(worker.rank)
        worker.agent.on_exit(self, worker, exit_code=1)

    def _is_gone(self, worker: Worker) -> None:
        self._num_stopped -= worker.life is Life.STOPPED
        worker.life = Life.GONE
        self.num_left -= 1

    def rows(self, workers: Iterable[Worker]) -> tuple[RankProgress, ...]:
        """Return where some workers stand, as their progress pages would show it."""
        age_s = self._world.timeline.now_s() - self.progress_s
        return tuple(
            row_of(worker.rank, worker.life is Life.STOPPED, self.weights.step, age_s)
            for worker in workers
            if worker.life is not Life.GONE
        )

    def _alive(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.life is Life.ALIVE]

    def _say(self, worker: Worker, message: WorkerMessage, *, even_if_gone: bool = False) -> None:
        if worker.life is not Life.GONE or even_if_gone:
            worker.agent.on_messages(self.attempt, ((worker.rank, message),))

    def _say_all(self, message_of: Callable[[int], WorkerMessage]) -> None:
        """Let every worker that is alive say something; an agent gathers what its workers say."""
        by_agent: dict[str, tuple[SimAgent, list[tuple[int, WorkerMessage]]]] = {}
        for worker in self._alive():
            name = worker.agent.identity.agent
            said = by_agent.setdefault(name, (worker.agent, []))[1]
            said.append((worker.rank, message_of(worker.rank)))
        for agent, batch in by_agent.values():
            agent.on_messages(self.attempt, tuple(batch))


def _never() -> None:
    raise AssertionError("a simulated mailbox has no pipe that could end")
