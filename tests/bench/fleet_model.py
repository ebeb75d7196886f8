"""Thousands of agents in memory, saying what real ones say, and the time in which they say it.

The controller's ports are the real ones: RayCluster with its reports encoded as they come over the
wire, the journal on disk, the desk and the lemon memory as files. Only the agent actors are made
up; nothing of Ray's own transport is in it.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec
from midwatch.health.nodes.liveness import RankProgress
from midwatch.logbook import wire
from midwatch.operator.agent import reports as rp
from midwatch.operator.agent.plan import LocalPlan
from midwatch.operator.fleet import Identity
from midwatch.operator.ports import PruneResult
from midwatch.operator.runtime.ray_cluster import RayCluster

RANKS_PER_NODE = 8
START_S = 2.0
"""From the birth of an attempt's processes to its loaded state."""
STEP_S = 1.0
SAVE_EVERY_STEPS = 20
SAVE_S = 3.0
PEER_EXIT_S = 0.4
"""When a rank dies its peers die of broken connections within this, if nobody ends them first."""
ORDER_S = 0.005
BEAT_S = 0.1
"""How often an agent gathers what its workers say."""
STACK = "\n".join(f'  File "torch/distributed/module_{n}.py", line {n} in call' for n in range(40))
_encode = msgspec.msgpack.Encoder().encode


class Timeline:
    """Simulated time, in which the controller's work takes as long as it takes here.

    cpu_s: CPU seconds that work has had so far.
    """

    def __init__(self) -> None:
        self.time_s = 1_764_000_000.0
        self.cpu_s = 0.0
        self._working_since_s: float | None = None
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def now_s(self) -> float:
        since_s = self._working_since_s
        return self.time_s + (time.perf_counter() - since_s if since_s is not None else 0.0)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.time_s + delay_s, next(self._order), call))

    def next_s(self) -> float:
        return self._due[0][0] if self._due else math.inf

    def run_next(self) -> None:
        due_s, _, call = heapq.heappop(self._due)
        self.time_s = max(self.time_s, due_s)
        call()

    def work(self, call: Callable[[], Any]) -> None:
        """Let the controller work; its time passes for everybody."""
        began_cpu_s = time.process_time()
        self._working_since_s = time.perf_counter()
        call()
        self.time_s, self._working_since_s = self.now_s(), None
        self.cpu_s += time.process_time() - began_cpu_s


class ModelCluster(RayCluster):
    """The real cluster port around agents that are not there."""

    def __init__(self, spec: Any, settings: Any, wake: Callable[[], None], model: Fleet) -> None:
        super().__init__(spec, settings, wake)
        self._model = model

    def _adopt(self, node: str) -> bool:
        return False

    def _create(self, index: int, node: str) -> Any:
        return self._model.agent(index, node)

    def prune(self, checkpoints: tuple[str, ...]) -> None:
        self._model.timeline.later(1.0, lambda: self._emit(PruneResult(checkpoints)))

    def _sweep(self, attempt: int) -> None:
        pass


class _Call:
    """A method of an agent actor: hands over, and returns something that settles some time."""

    def __init__(self, call: Callable[..., Future[Any]]) -> None:
        self._call = call

    def remote(self, *args: Any) -> _Ref:
        return _Ref(self._call(*args))


class _Ref:
    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def future(self) -> Future[Any]:
        return self._future


def _settled(value: Any = None) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Agent:
    """One node's agent as the controller meets it: an actor handle, and what it reports."""

    def __init__(self, fleet: Fleet, index: int, node: str) -> None:
        self.fleet = fleet
        self.node = node
        self.ranks: tuple[int, ...] = ()
        self.pids: dict[int, int] = {}
        self.attempt = -1
        self.is_alive = True
        self.has_lost_rank = False
        self._echoes: list[tuple[wire.WorkerFailed, rp.ExitRow]] = []
        self.name = f"agent-{node}-{next(fleet.lives)}"
        self._seq = 0
        self._life: Future[Any] = Future()
        self.identity = _Call(lambda: _settled(_encode(self._who(index))))
        self.lifeline = _Call(lambda: self._life)
        self.start = _Call(lambda plan: self._order(lambda: self._start(plan)))
        self.stop = _Call(lambda attempt: self._order(lambda: self._stop(attempt)))
        self.send = _Call(lambda attempt, command: self._order(lambda: self._apply(command)))
        self.verify = _Call(self._verify)
        fleet.timeline.later(index / fleet.num_agents, self._beat)

    def _who(self, index: int) -> Identity:
        return Identity(self.node, self.name, f"10.0.{index // 250}.{index % 250}", 8, 1000 + index)

    def _order(self, call: Callable[[], None]) -> Future[Any]:
        self.fleet.timeline.later(ORDER_S, call)
        return _settled()

    # --- orders ---

    def _start(self, encoded: bytes) -> None:
        plan = msgspec.msgpack.decode(encoded, type=LocalPlan)
        self.attempt, self.has_lost_rank = plan.attempt, False
        self.ranks = tuple(start.rank for start in plan.workers)
        self.pids = {rank: 10_000 * plan.attempt + rank for rank in self.ranks}
        if self.ranks:
            self.say(rp.WorkersStarted(attempt=self.attempt, pids=self.pids))
            self.fleet.timeline.later(START_S, lambda: self._resumed(plan))

    def _resumed(self, plan: LocalPlan) -> None:
        if self.attempt != plan.attempt or not self.ranks:
            return
        source = next(iter(plan.workers[0].checkpoints), "")
        step = int(source[5:13]) if source else 0
        said = tuple((rank, wire.Resumed(rank, step, source, 1.0)) for rank in self.ranks)
        self.say(rp.WorkerMessages(attempt=self.attempt, batch=said))
        self.fleet.resumed(self.attempt, step)

    def _stop(self, attempt: int) -> None:
        if attempt >= self.attempt:
            self.ranks = ()
        self.say(rp.AttemptStopped(attempt=attempt, exits=()))

    def _apply(self, encoded: bytes) -> None:
        command = msgspec.msgpack.decode(encoded, type=wire.Command)
        readback = {"lr": 1e-4 * command.value, "grad_clip": 1.0}
        said = tuple(
            (rank, wire.Applied(rank, command.seq, self.fleet.step + 2, readback, readback))
            for rank in self.ranks
        )
        self.say(rp.WorkerMessages(attempt=self.attempt, batch=said))

    def _verify(self, checkpoint: str) -> Future[Any]:
        future: Future[Any] = Future()
        self.fleet.timeline.later(2.0, lambda: self.fleet.timeline.work(_setter(future, "")))
        return future

    # --- reports ---

    def say(self, *reports: rp.AgentReport) -> None:
        """Deliver reports; what the controller does with them on arrival is its work."""
        if not self.is_alive:
            return
        stamped = []
        for report in reports:
            self._seq += 1
            stamp = {"node": self.node, "agent": self.name, "seq": self._seq}
            now_s = self.fleet.timeline.time_s
            stamped.append(msgspec.structs.replace(report, **stamp, time_s=now_s))
        payload = _encode(stamped)
        self.fleet.timeline.work(lambda: self.fleet.cluster.ingest(self.name, payload))

    def _beat(self) -> None:
        """The agent's second: the samples of its ranks, and its status."""
        if not self.is_alive:
            return
        self.fleet.timeline.later(1.0, self._beat)
        is_training = bool(self.ranks) and self.fleet.is_training(self.attempt)
        samples = self._samples() if is_training else ()
        self.say(*samples, self._status(is_training))

    def _samples(self) -> tuple[rp.AgentReport, ...]:
        chance, step = self.fleet.chance, self.fleet.step
        batch = tuple(
            wire.RankSample(
                rank=rank,
                step=step,
                step_s=STEP_S,
                data_s=0.01,
                forward_s=0.29 + 0.01 * chance.random(),
                backward_s=0.58 + 0.02 * chance.random(),
                comm_s=0.1,
                optimizer_s=0.02,
                local_loss=2.0 + 0.05 * chance.random(),
                local_grad_norm=0.3 + 0.01 * chance.random(),
                found_inf=False,
            )
            for rank in self.ranks
        )
        return (rp.RankSamples(attempt=self.attempt, batch=batch, stride=1, dropped_total=0),)

    def _status(self, is_training: bool) -> rp.AgentReport:
        phase = wire.Phase.BACKWARD if is_training else wire.Phase.LOADING
        return rp.AgentStatus(
            attempt=self.attempt,
            rows=tuple(RankProgress(rank, self.fleet.step, phase, 0.3) for rank in self.ranks),
            pids=self.pids,
            forkserver="ready",
            forkserver_error="",
            threads=1,
            rendezvous_host="10.0.0.1",
            rendezvous_port=40_000,
            samples_dropped_total=0,
            reports_dropped_total=0,
            reports_lost_total=0,
        )

    # --- faults ---

    def lose_rank(self, attempt: int, rank: int, *, signal: int | None) -> None:
        """A worker ends: killed by a signal, or of a collective that a peer's death broke."""
        if attempt != self.attempt or rank not in self.ranks:
            return
        self.ranks = tuple(other for other in self.ranks if other != rank)
        code = None if signal is not None else 1
        row = rp.ExitRow(
            exit=rp.Exit(rank, self.pids[rank], code, signal),
            cause="exit" if signal is None else "signal",
            step=self.fleet.step,
            phase=wire.Phase.BACKWARD,
            log_tail="x" * 1000,
        )
        exited = rp.WorkerExited(attempt=self.attempt, **msgspec.structs.asdict(row))
        if signal is not None:
            self.has_lost_rank = True
            self.say(exited)
            return
        words = wire.WorkerFailed(rank, "collective-failed", "Connection closed by peer", STACK)
        if self.has_lost_rank:
            if not self._echoes:
                self.fleet.timeline.later(BEAT_S, lambda: self._say_echoes(attempt))
            self._echoes.append((words, row))
            return
        self.has_lost_rank = True
        self.say(rp.WorkerMessages(attempt=self.attempt, batch=((rank, words),)), exited)

    def _say_echoes(self, attempt: int) -> None:
        echoes, self._echoes = self._echoes, []
        if attempt != self.attempt:
            return
        words = tuple((row.exit.rank, said) for said, row in echoes)
        rows = tuple(row for _, row in echoes)
        self.say(
            rp.WorkerMessages(attempt=attempt, batch=words),
            rp.WorkersExited(attempt=attempt, rows=rows),
        )

    def hang(self, stopped: int) -> None:
        """The progress deadline passes; one rank is stopped, the others wait for it."""
        if not self.ranks:
            return
        self.say(
            rp.HangSuspected(
                attempt=self.attempt,
                rank=None,
                reason="",
                waited_s=10.0,
                deadline_s=10.0,
                median_step_s=STEP_S,
                rows=tuple(self._stuck(rank, rank == stopped) for rank in self.ranks),
                stacks=dict.fromkeys(self.ranks, STACK),
            )
        )

    def _stuck(self, rank: int, is_stopped: bool) -> RankProgress:
        phase = wire.Phase.FORWARD if is_stopped else wire.Phase.BACKWARD
        state, waits = ("T", None) if is_stopped else ("S", True)
        return RankProgress(rank, self.fleet.step, phase, 10.2, state, waits)

    def die(self) -> None:
        """The agent's process ends; its actor's death is known at once."""
        self.is_alive = False
        self.ranks = ()
        error = _setter(self._life, ConnectionError("the actor died"))
        self.fleet.timeline.work(error)


def _setter(future: Future[Any], value: Any) -> Callable[[], None]:
    """Return what settles a future, with a value or an error."""
    if isinstance(value, Exception):
        return lambda: future.set_exception(value)
    return lambda: future.set_result(value)


class Fleet:
    """All agents, and the training that their ranks do together."""

    cluster: ModelCluster

    def __init__(self, timeline: Timeline, num_agents: int, seed: int) -> None:
        self.timeline = timeline
        self.num_agents = num_agents
        self.chance = random.Random(seed)
        self.lives = itertools.count(1)
        self.agents: dict[str, Agent] = {}
        self.step = 0
        self._training = -1

    def agent(self, index: int, node: str) -> Agent:
        """Bring a node's agent to life."""
        self.agents[node] = Agent(self, index, node)
        return self.agents[node]

    def carrying(self) -> list[Agent]:
        """Return the agents that carry ranks of the newest attempt, by rank."""
        newest = max((agent.attempt for agent in self.agents.values()), default=-1)
        at_work = [a for a in self.agents.values() if a.ranks and a.attempt == newest]
        return sorted(at_work, key=lambda agent: agent.ranks)

    @property
    def num_ranks(self) -> int:
        return sum(len(agent.ranks) for agent in self.carrying())

    def is_training(self, attempt: int) -> bool:
        return attempt == self._training

    def resumed(self, attempt: int, step: int) -> None:
        """A node's ranks are ready; the first to be so begins the steps of all."""
        if attempt > self._training:
            self._training, self.step = attempt, step
            self.timeline.later(STEP_S, lambda: self._step(attempt))

    def stand_still(self) -> None:
        """No step is made any more until another attempt has started."""
        self._training = -abs(self._training)

    def _step(self, attempt: int) -> None:
        if attempt != self._training:
            return
        self.timeline.later(STEP_S, lambda: self._step(attempt))
        self.step += 1
        self._say(attempt, self._sample())
        if self.step % SAVE_EVERY_STEPS == 0:
            step = self.step
            self.timeline.later(SAVE_S, lambda: self._say(attempt, self._committed(step, attempt)))

    def _say(self, attempt: int, message: wire.WorkerMessage) -> None:
        first = next((agent for agent in self.carrying() if 0 in agent.ranks), None)
        if first is not None and first.attempt == attempt:
            first.say(rp.WorkerMessages(attempt=attempt, batch=((0, message),)))

    def _sample(self) -> wire.StepSample:
        return wire.StepSample(
            step=self.step,
            time_s=self.timeline.time_s,
            loss=2.0 + 0.05 * self.chance.random(),
            grad_norm=0.3 + 0.02 * self.chance.random(),
            lr=1.2e-4,
            activation_norm=100.0 - 0.01 * self.step + 0.1 * self.chance.random(),
            found_inf=False,
            skipped=False,
            loss_scale=65536.0,
            tokens=2_000_000,
            data_step=self.step,
            step_s=STEP_S,
            tokens_per_s=2e6,
            model_tflops_per_device=147.0,
        )

    def _committed(self, step: int, attempt: int) -> wire.CheckpointStage:
        tags = wire.CheckpointTags(2.0, 0.3, 100.0 - 0.01 * step, 65536.0, 1.2e-4)
        name = f"step-{step:08d}.a{attempt:04d}"
        return wire.CheckpointStage(name, step, "committed", 10**12, 0.5, SAVE_S, tags)
