"""The Cluster port over Ray: actors started, watched and spoken to, never awaited.

What comes back (reports, deaths, results) is put on one queue by Ray's callback threads, and wakes
the controller.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ...health.nodes.liveness import HangLimits
from ...logbook.decoding import prepared
from ...logbook.events import CheckpointCommitted
from ...logbook.plan import AttemptPlan, PreflightPlan
from ...logbook.preflight import ORDER_VARIABLE
from ...logbook.state import RunState
from ...logbook.wire import Command
from ..agent.plan import AgentConfig, LocalPlan, Preload
from ..agent.probing import ProbeConfig
from ..agent.reports import AgentReport, PartHeld, is_routine
from ..agent.upload_wire import UploadConfig
from ..fleet import Fleet, Identity
from ..ports import NodeGone, Signal
from ..preflight import order_of
from ..spec import RunSpec
from ..storage import run_id_of, storage_of
from .leaving import end_actors, give_back_places
from .names import NAMESPACE, agent_name, node_names
from .node_agent import AgentSettings, NodeAgent
from .ray_calls import brief, ignore, on_result
from .ray_checkpoints import FolderCheckpoints, RunCheckpoints, TieredCheckpoints
from .starts import preflight_starts, worker_starts

_encode = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode
_decode_reports = msgspec.msgpack.Decoder(prepared(list[AgentReport])).decode
_log = logging.getLogger(__name__)

AGENT_THREADS = 8
RECREATE_S = 5.0
ADOPT_TIMEOUT_S = 5.0


class ClusterSettings(msgspec.Struct, frozen=True):
    """Where the nodes of a run are placed.

    bundles: the placement group that holds one bundle a node, None when all share one machine.
    resources: what each agent asks of Ray, e.g. {"num_gpus": 8}.
    """

    run_dir: str
    resources: dict[str, float]
    bundles: PlacementGroup | None = None


class RayCluster:
    """The nodes of one run. wake is called, from any thread, whenever a signal has arrived."""

    def __init__(self, spec: RunSpec, settings: Any, wake: Callable[[], None]) -> None:
        self._spec = spec
        self._settings = settings
        self._wake = wake
        self._fleet = Fleet(spec.restart.heartbeat_deadline_s)
        self._names = node_names(spec.num_nodes, spec.nodes.spares)
        if settings.bundles is not None:
            # Spares that found no machine when the places were reserved have none.
            self._names = self._names[: settings.bundles.bundle_count]
        self._signals: deque[Signal] = deque()
        self._heard: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self._acknowledged: dict[str, int] = {}
        self._agents: dict[str, Any] = {}
        self._created_s: dict[str, float] = {}
        self._met: set[str] = set()
        self._lock = threading.Lock()
        self._plan_node = ""
        self._run_id = run_id_of(settings.run_dir)
        self._checkpoints: RunCheckpoints = (
            TieredCheckpoints(self._present, self._emit)
            if spec.checkpoints.store.url
            else FolderCheckpoints(settings.run_dir, self._present, self._emit)
        )

    # --- Cluster port ----------------------------------------------------------------------------

    def poll(self) -> Sequence[Signal]:
        now_s = time.time()
        with self._lock:
            found = list(self._signals)
            self._signals.clear()
            self._taken, self._heard = self._heard, {}
            found += self._fleet.silent(now_s)
        return found

    def acknowledge(self) -> None:
        with self._lock:
            self._acknowledged.update(self._taken)

    def maintain(self, state: RunState) -> None:
        """Adopt agents that are there, tell of those that are gone, create what is missing."""
        self._checkpoints.maintain(state)
        for index, node in enumerate(self._names):
            if self._fleet.is_present(node) or node in self._met:
                continue
            now_s = time.time()
            if now_s - self._created_s.get(node, 0.0) < RECREATE_S:
                continue
            self._created_s[node] = now_s
            known = state.nodes.get(node)
            is_wanted = known is None or not known.quarantined
            if self._adopt(node) or not is_wanted:
                continue
            if known is not None and known.present:
                # It did not outlive the controller that knew it.
                self._emit(NodeGone(node, known.incarnation, "its actor is gone"))
            if not state.status.is_terminal:
                self._create_and_meet(index, node)
            else:
                del self._created_s[node]

    def start(self, plan: AttemptPlan) -> None:
        host, port = self._fleet.rendezvous(plan.placements[0].node, plan.attempt)
        self._plan_node = plan.placements[0].node
        self._checkpoints.sweep(plan.attempt)
        starts = worker_starts(self._spec, self._settings.run_dir, plan, (host, port), self._run_id)
        for node, agent in self._agents.items():
            local = LocalPlan(
                attempt=plan.attempt,
                workers=tuple(starts.get(node, ())),
                entry_point=self._spec.entry_points.worker,
                log_dir=str(Path(self._settings.run_dir) / "logs" / f"attempt-{plan.attempt}"),
                keeps_memory=plan.memory_since is not None,
            )
            agent.start.remote(_encode(local))

    def stop(self, attempt: int) -> None:
        for agent in self._agents.values():
            agent.stop.remote(attempt)

    def examine(self, plan: PreflightPlan) -> None:
        host, port = self._fleet.rendezvous(plan.nodes[0], plan.attempt)
        run_dir = self._settings.run_dir
        order = _encode_json(order_of(plan, self._spec, run_dir)).decode()
        starts = preflight_starts(self._spec, run_dir, plan, host, port)
        for node, agent in self._agents.items():
            if node not in starts:
                if plan.number > 1:
                    agent.stop.remote(plan.attempt + 1)
                continue
            local = LocalPlan(
                attempt=plan.attempt,
                workers=tuple(starts[node]),
                entry_point=self._spec.entry_points.preflight,
                log_dir=str(Path(run_dir) / "logs" / f"preflight-{plan.number}"),
                env={ORDER_VARIABLE: order},
            )
            agent.start.remote(_encode(local))

    def end_examination(self, number: int) -> None:
        self.stop(-number)

    def send(self, attempt: int, command: Command) -> None:
        for agent in self._agents.values():
            agent.send.remote(attempt, _encode(command))

    def close(self) -> None:
        """Have every agent of the run end its workers."""
        for node, agent in self._agents.items():
            if self._fleet.is_present(node):
                agent.close.remote()

    def give_back(self) -> None:
        """End the agents' actors, which hold devices, and let go of their places."""
        end_actors([agent_name(self._spec.name, node) for node in self._names])
        give_back_places(self._spec.name)

    # --- what comes back -------------------------------------------------------------------------

    def ingest(self, agent: str, payload: bytes) -> int:
        """Take reports of an agent; return the highest seq of its that is safely journaled.

        Only what may call for a decision wakes the controller; the rest it meets at its next turn.
        """
        now_s = time.time()
        reports = _decode_reports(payload)
        is_news = False
        with self._lock:
            for report in reports:
                up = self._fleet.take(report, now_s)
                if up is not None:
                    self._signals.append(up)
                if isinstance(report, PartHeld):
                    self._checkpoints.note(report)
                self._signals.append(report)
                self._heard[agent] = max(self._heard.get(agent, 0), report.seq)
                is_news = is_news or up is not None or not is_routine(report)
            acknowledged = self._acknowledged.get(agent, 0)
        if is_news:
            self._wake()
        return acknowledged

    def _adopt(self, node: str) -> bool:
        """Meet the agent that an earlier controller created, if it is alive."""
        try:
            handle = ray.get_actor(agent_name(self._spec.name, node), namespace=NAMESPACE)
            # The name of an actor that is being killed outlives it for a moment.
            ray.get(handle.identity.remote(), timeout=ADOPT_TIMEOUT_S)
        except GetTimeoutError:
            _log.info("the agent of %s is slow to answer", node)
        except (ValueError, RayError):
            return False
        self._meet(node, handle)
        return True

    def _create_and_meet(self, index: int, node: str) -> None:
        try:
            self._meet(node, self._create(index, node))
        except ValueError as error:
            # Its name is still held by an actor on its way out: the next turn tries again.
            ignore(error)

    def _meet(self, node: str, handle: Any) -> None:
        """Ask an agent who it is; until it answers or dies, nobody else is looked for."""
        self._agents[node] = handle
        self._met.add(node)

        def known(who: bytes) -> None:
            self._registered(node, who)
            self._met.discard(node)

        def failed(error: BaseException) -> None:
            ignore(error)
            self._met.discard(node)

        on_result(handle.identity.remote(), known, failed)

    def _create(self, index: int, node: str) -> Any:
        options: dict[str, Any] = dict(self._settings.resources)
        if self._settings.bundles is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                self._settings.bundles, placement_group_bundle_index=index
            )
        actor = ray.remote(NodeAgent).options(
            name=agent_name(self._spec.name, node),
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=0,
            max_concurrency=AGENT_THREADS,
            **options,
        )
        settings = AgentSettings(
            run=self._spec.name,
            run_dir=self._settings.run_dir,
            config=agent_config(self._spec, self._settings, node, self._run_id),
            slots=self._spec.nodes.ranks_per_node,
        )
        return actor.remote(_encode(settings))

    def _registered(self, node: str, encoded: bytes) -> None:
        who = msgspec.msgpack.decode(encoded, type=prepared(Identity))
        with self._lock:
            self._fleet.register(who, time.time())
        self._checkpoints.met(node, self._agents[node])
        lost = self._lost(node, who.agent)
        on_result(self._agents[node].lifeline.remote(), lambda _: lost("it closed"), lost)

    def _lost(self, node: str, agent: str) -> Callable[[object], None]:
        def lost(reason: object) -> None:
            text = reason if isinstance(reason, str) else f"its process died ({brief(reason)})"
            with self._lock:
                gone = self._fleet.gone(node, agent, text)
                if gone is not None:
                    self._signals.append(gone)
            self._wake()

        return lost

    # --- Checkpoints port ------------------------------------------------------------------------

    def verify(self, checkpoint: str) -> None:
        self._checkpoints.verify(checkpoint)

    def prune(self, checkpoints: tuple[str, ...]) -> None:
        self._checkpoints.prune(checkpoints)

    def unknown(self, known: Sequence[str]) -> list[CheckpointCommitted]:
        return self._checkpoints.unknown(known)

    def _present(self) -> list[tuple[str, Any]]:
        """Return (node, actor) of the agents that are there, the one that serves rank 0 first."""
        present = [n for n in self._agents if self._fleet.is_present(n)]
        present.sort(key=lambda node: node != self._plan_node)
        return [(node, self._agents[node]) for node in present]

    def _emit(self, signal: Signal) -> None:
        with self._lock:
            self._signals.append(signal)
        self._wake()


def agent_config(spec: RunSpec, settings: ClusterSettings, node: str, run_id: str) -> AgentConfig:
    """Return the settings of one node's agent."""
    limits = spec.restart
    storage = storage_of(spec, settings.run_dir, run_id, node)
    threads = str(spec.trainer.get("threads", 1))
    num_sharing = spec.num_nodes + spec.nodes.spares if settings.bundles is None else 1
    return AgentConfig(
        node=node,
        work_dir=str(Path(settings.run_dir) / "agents" / node),
        host=str(ray.util.get_node_ip_address()),
        preload=(Preload(spec.entry_points.preload, spec.trainer),),
        env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **spec.env},
        upload=None
        if storage is None
        else UploadConfig(
            run=spec.name,
            storage=storage,
            keep_local=spec.retention.keep_local,
            env=spec.env,
        ),
        hang=HangLimits(
            multiple=limits.hang_multiple, min_s=limits.hang_min_s, max_s=limits.hang_max_s
        ),
        probe=ProbeConfig(
            gpus=spec.nodes.watch_gpus,
            kernel_log=spec.nodes.kernel_log,
            env={**spec.env, "MIDWATCH_NODE": node},
            is_shared_machine=num_sharing > 1,
        ),
        memory_frac=spec.checkpoints.memory.host_frac / num_sharing,
    )
