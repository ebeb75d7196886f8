"""The real controller over real Ray actors with fake agents in them: as many as a machine carries.

    python -m tests.bench.actors [--nodes N] [--calm S] [--deaths N]

A host actor turns the real Controller over the real RayCluster and journal; each node is a Ray
actor of its own that says once a second what a node agent of 8 ranks says, and takes the orders of
one. Only forkserver and workers are missing. core_frac: of the host's process over a calm span,
Ray's own share for bringing the reports included. decision_p99_s: from the death of an agent's
actor to the end of the turn that starts the next attempt.
The last line is one JSON object {"nodes", "core_frac", "decision_p99_s"}.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from midwatch.logbook import events as ev
from midwatch.logbook import wire
from midwatch.operator.agent import reports as rp
from midwatch.operator.agent.plan import LocalPlan
from midwatch.operator.fleet import Identity
from midwatch.operator.runtime.local_ray import set_local_environment
from midwatch.operator.spec import RunSpec

from .processes import cpu_s

RANKS = 8
WAIT_S = 300.0
HOST = "bench/host"
_encode = msgspec.msgpack.encode


class FakeAgent:
    """One node: an actor that reports as an agent does and does as it is told."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._name = f"{node}-{os.getpid()}"
        self._seq = 0
        self._attempt = 0
        self._ranks: tuple[int, ...] = ()
        self._step = 0
        self._ends = threading.Event()
        self._chance = random.Random(node)
        self._host: Any = None
        threading.Thread(target=self._live, daemon=True).start()

    def identity(self) -> bytes:
        return _encode(Identity(self._node, self._name, self._node, RANKS, os.getpid()))

    def lifeline(self) -> None:
        self._ends.wait()

    def start(self, encoded: bytes) -> None:
        plan = msgspec.msgpack.decode(encoded, type=LocalPlan)
        self._attempt = plan.attempt
        self._ranks = tuple(start.rank for start in plan.workers)
        if not self._ranks:
            return
        pids = {rank: 10_000 + rank for rank in self._ranks}
        resumed = tuple((rank, wire.Resumed(rank, self._step, "")) for rank in self._ranks)
        self._say(
            rp.WorkersStarted(attempt=self._attempt, pids=pids),
            rp.WorkerMessages(attempt=self._attempt, batch=resumed),
        )

    def stop(self, attempt: int) -> None:
        self._ranks = ()

    def send(self, attempt: int, command: bytes) -> None:
        return None

    def _live(self) -> None:
        import ray
        from midwatch.operator.runtime.names import NAMESPACE

        self._host = ray.get_actor(HOST, namespace=NAMESPACE)
        while not self._ends.wait(1.0):
            self._say(*self._second())

    def _second(self) -> list[rp.AgentReport]:
        said: list[rp.AgentReport] = [_status(self._attempt, self._node)]
        if not self._ranks:
            return said
        self._step += 1
        batch = tuple(_rank_sample(rank, self._step, self._chance) for rank in self._ranks)
        said.append(rp.RankSamples(attempt=self._attempt, batch=batch, stride=1, dropped_total=0))
        if 0 in self._ranks:
            sample = _step_sample(self._step, self._chance)
            said.append(rp.WorkerMessages(attempt=self._attempt, batch=((0, sample),)))
        return said

    def _say(self, *reports: rp.AgentReport) -> None:
        stamped = []
        for report in reports:
            self._seq += 1
            about = {"node": self._node, "agent": self._name, "seq": self._seq}
            stamped.append(msgspec.structs.replace(report, **about, time_s=time.time()))
        if self._host is not None:
            self._host.ingest.remote(self._name, _encode(stamped))


class Host:
    """Turns the controller, as the controller actor does, over nodes that are fake agents."""

    def __init__(self, spec: dict[str, Any], run_dir: str) -> None:
        import ray
        from midwatch.logbook.journal import Journal
        from midwatch.operator.controller import Controller
        from midwatch.operator.desk import FileDesk
        from midwatch.operator.policy.decide import POLICY_VERSION
        from midwatch.operator.ports import Ports
        from midwatch.operator.runtime.controller_actor import TICK_S
        from midwatch.operator.runtime.ray_cluster import ClusterSettings, RayCluster

        class Cluster(RayCluster):
            def _adopt(self, node: str) -> bool:
                return False

            def _create(self, index: int, node: str) -> Any:
                options = {"num_cpus": 0, "max_concurrency": 4}
                return ray.remote(FakeAgent).options(**options).remote(node)

        class Clock:
            def now_s(self) -> float:
                return time.time()

        self._woken = threading.Event()
        run_spec = RunSpec.model_validate(spec)
        settings = ClusterSettings(run_dir=run_dir, resources={})
        self._cluster = Cluster(run_spec, settings, self._woken.set)
        journal = Journal[ev.Event](Path(run_dir) / "journal", ev.Event)
        desk = FileDesk(Path(run_dir))
        ports = Ports(Clock(), journal, self._cluster, self._cluster, desk)
        self._controller = Controller(run_spec, ports)
        submitted = ev.RunSubmitted(run_spec.name, spec, "", POLICY_VERSION, "bench", "bench")
        self._controller.record(submitted, sync=True)
        self._tick_s = TICK_S
        self._starts_s: dict[int, float] = {}
        threading.Thread(target=self._turn, daemon=True).start()

    def ingest(self, agent: str, payload: bytes) -> int:
        return self._cluster.ingest(agent, payload)

    def stands(self) -> tuple[int, int, int]:
        """Return (attempts, steps of the newest, process id)."""
        attempt = self._controller.state.attempt
        steps = attempt.num_steps if attempt is not None else 0
        return self._controller.state.num_attempts, steps, os.getpid()

    def started_s(self, attempt: int) -> float:
        """Return when the turn was over that decided to start an attempt; 0.0 before."""
        return self._starts_s.get(attempt, 0.0)

    def kill(self) -> float:
        """Kill the actor of a node that carries ranks; return when."""
        import ray

        attempt = self._controller.state.attempt
        assert attempt is not None
        handle = self._cluster._agents[attempt.plan.nodes[-1]]
        at_s = time.time()
        ray.kill(handle)
        return at_s

    def _turn(self) -> None:
        while True:
            self._woken.wait(self._tick_s)
            self._woken.clear()
            before = self._controller.state.num_attempts
            self._controller.tick()
            newest = self._controller.state.num_attempts
            if newest > before:
                self._starts_s[newest] = time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=16, help="actors that carry ranks")
    parser.add_argument("--calm", type=float, default=20.0, help="seconds without faults")
    parser.add_argument("--deaths", type=int, default=4, help="actors killed one by one")
    options = parser.parse_args()
    set_local_environment()
    # Only now: ray reads the environment when it is imported.
    import ray
    from midwatch.operator.runtime.names import NAMESPACE
    from midwatch.operator.runtime.session import ray_session

    spec = _spec(options.nodes, options.deaths)
    with tempfile.TemporaryDirectory() as folder, ray_session("local"):
        host = (
            ray.remote(Host)
            .options(name=HOST, namespace=NAMESPACE, num_cpus=0, max_concurrency=16)
            .remote(spec.model_dump(mode="json"), folder)
        )
        _until(lambda: ray.get(host.stands.remote())[1] >= 3, "the first attempt trains")
        _, _, pid = ray.get(host.stands.remote())
        began_s, before_s = time.monotonic(), cpu_s(pid)
        time.sleep(options.calm)
        frac = (cpu_s(pid) - before_s) / (time.monotonic() - began_s)
        delays_s = [_death(ray, host) for _ in range(options.deaths)]
    print(f"{options.nodes} nodes: {frac:.2%} of a core; {[f'{d:.3f}' for d in delays_s]}")
    result = {"nodes": options.nodes, "core_frac": frac, "decision_p99_s": max(delays_s)}
    print(json.dumps({key: round(value, 4) for key, value in result.items()}))


def _death(ray: Any, host: Any) -> float:
    """Kill one actor; return how long the decision took, once the next attempt trains."""
    attempts = ray.get(host.stands.remote())[0]
    killed_s = ray.get(host.kill.remote())
    _until(lambda: ray.get(host.stands.remote())[0] > attempts, "the death is answered")
    _until(lambda: ray.get(host.stands.remote())[1] >= 3, "the next attempt trains")
    started_s: float = ray.get(host.started_s.remote(attempts + 1))
    return started_s - killed_s


def _until(done: Any, what: str) -> None:
    end_s = time.monotonic() + WAIT_S
    while not done():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not within {WAIT_S:.0f} s: {what}")
        time.sleep(0.1)


def _spec(nodes: int, spares: int) -> RunSpec:
    return RunSpec.model_validate(
        {
            "name": "actors",
            "mesh": {"dp_shard": nodes, "tp": RANKS},
            "nodes": {"ranks_per_node": RANKS, "spares": spares, "preflight": "off"},
            "trainer": {"steps": 1_000_000},
            "restart": {"max_restarts_per_hour": 1000, "heartbeat_deadline_s": 60.0},
        }
    )


def _status(attempt: int, node: str) -> rp.AgentStatus:
    return rp.AgentStatus(
        attempt=attempt,
        rows=(),
        pids={},
        forkserver="ready",
        forkserver_error="",
        threads=1,
        rendezvous_host=node,
        rendezvous_port=40_000,
        samples_dropped_total=0,
        reports_dropped_total=0,
        reports_lost_total=0,
    )


def _rank_sample(rank: int, step: int, chance: random.Random) -> wire.RankSample:
    noise = 1.0 + 0.01 * chance.random()
    return wire.RankSample(
        rank, step, 1.0, 0.01, 0.3 * noise, 0.55 * noise, 0.1, 0.02, 2.0 * noise, 0.3 * noise, False
    )


def _step_sample(step: int, chance: random.Random) -> wire.StepSample:
    return wire.StepSample(
        step=step,
        time_s=time.time(),
        loss=4.0 + 0.02 * chance.random(),
        grad_norm=0.3 + 0.01 * chance.random(),
        lr=1e-4,
        activation_norm=100.0 - 1e-3 * step + 0.01 * chance.random(),
        found_inf=False,
        skipped=False,
        loss_scale=64.0,
        tokens=4096,
        data_step=step - 1,
        step_s=1.0,
        tokens_per_s=4096.0,
        model_tflops_per_device=100.0,
    )


if __name__ == "__main__":
    main()
