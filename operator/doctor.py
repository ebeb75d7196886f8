"""Run a preflight on this machine, through a real agent and real worker processes.

The agent is the one that runs in production and the workers are started by it, from the trainer's
entry point named here; nothing of Ray or of a controller is needed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..health.nodes.preflight_judge import PreflightVerdict, Silence, judge_preflight
from ..logbook.errors import Fatal
from ..logbook.preflight import ORDER_VARIABLE, PreflightDone, PreflightLimits, PreflightOrder
from ..logbook.tiers import Storage
from ..logbook.wire import PEER_CODES, Mesh, WorkerFailed, WorkerStart
from .agent.plan import AgentConfig, LocalPlan, Preload
from .agent.reports import (
    AgentReport,
    AgentStatus,
    Exit,
    StartFailed,
    WorkerExited,
    WorkerMessages,
    WorkersExited,
)
from .agent.supervisor import Supervisor
from .preflight import plan_order

ENTRY_POINT = "midwatch.trainer.preflight:main"
PRELOAD = "midwatch.trainer.preflight:preload"
_ATTEMPT = 1
# Read once, when numpy and torch are imported; a forkserver may have one thread only.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What to examine. nodes > 1 on one machine only plays several nodes.

    deadline_s: for the whole of it, births included; ranks that have not answered by then failed.
    work_dir: for logs; store_dir: "" leaves the checkpoint store out; storage: a durable one.
    entry_point, preload: of the workers, by name.
    """

    num_nodes: int
    ranks_per_node: int
    limits: PreflightLimits
    deadline_s: float
    work_dir: str
    scratch_dir: str
    store_dir: str = ""
    storage: Storage | None = None
    device: str = "auto"
    entry_point: str = ENTRY_POINT
    preload: str = PRELOAD

    @property
    def nodes(self) -> tuple[str, ...]:
        """The node of every rank, by rank."""
        return tuple(
            f"node-{index}" for index in range(self.num_nodes) for _ in range(self.ranks_per_node)
        )


def examine(examination: Examination) -> PreflightVerdict:
    """Run the preflight and return its verdict; ranks that do not answer are part of it.

    Raises: Fatal[preflight-not-started] when no worker could be started at all.
    """
    order = plan_order(
        examination.num_nodes,
        examination.ranks_per_node,
        examination.limits,
        examination.scratch_dir,
        examination.store_dir,
        examination.storage,
    )
    gathered = _Gathered(len(examination.nodes))
    supervisor = Supervisor(_agent_config(examination), gathered.take)
    try:
        supervisor.start(_local_plan(examination, order, *supervisor.rendezvous))
        gathered.wait(examination.deadline_s)
    finally:
        supervisor.close()
    silent = gathered.silent(examination.deadline_s)
    return judge_preflight(order, examination.nodes, gathered.reports, silent)


def _agent_config(examination: Examination) -> AgentConfig:
    return AgentConfig(
        node="doctor",
        work_dir=str(Path(examination.work_dir) / "agent"),
        preload=(Preload(examination.preload),),
        env=_ENVIRONMENT,
    )


def _local_plan(examination: Examination, order: PreflightOrder, host: str, port: int) -> LocalPlan:
    nodes = examination.nodes
    starts = tuple(
        WorkerStart(
            run="doctor",
            run_dir=examination.work_dir,
            attempt=_ATTEMPT,
            rank=rank,
            local_rank=rank % examination.ranks_per_node,
            world_size=len(nodes),
            node=node,
            mesh=Mesh(len(nodes), 1),
            rendezvous_host=host,
            rendezvous_port=port,
            trainer={"device": examination.device},
        )
        for rank, node in enumerate(nodes)
    )
    return LocalPlan(
        attempt=_ATTEMPT,
        workers=starts,
        entry_point=examination.entry_point,
        log_dir=str(Path(examination.work_dir) / "logs"),
        env={ORDER_VARIABLE: msgspec.json.encode(order).decode()},
    )


class _Gathered:
    """What the workers reported, filled by the agent's thread."""

    def __init__(self, world_size: int) -> None:
        self.reports: dict[int, PreflightDone] = {}
        self._world_size = world_size
        self._failed: dict[int, WorkerFailed] = {}
        self._exits: dict[int, Exit] = {}
        self._not_started = ""
        self._changed = threading.Condition()

    def take(self, reports: Sequence[AgentReport]) -> None:
        with self._changed:
            for report in reports:
                self._take(report)
            self._changed.notify_all()

    def _take(self, report: AgentReport) -> None:
        if isinstance(report, WorkerMessages):
            for rank, message in report.batch:
                if isinstance(message, PreflightDone):
                    self.reports[rank] = message
                elif isinstance(message, WorkerFailed):
                    self._failed[rank] = message
        elif isinstance(report, WorkerExited):
            self._exits[report.exit.rank] = report.exit
        elif isinstance(report, WorkersExited):
            self._exits |= {row.exit.rank: row.exit for row in report.rows}
        elif isinstance(report, StartFailed):
            self._not_started = f"{report.code}: {report.message}"
        elif isinstance(report, AgentStatus) and report.forkserver == "failed":
            self._not_started = report.forkserver_error

    def wait(self, limit_s: float) -> None:
        """Wait until every rank has reported or ended. Raises: Fatal[preflight-not-started]."""
        deadline_s = time.monotonic() + limit_s
        with self._changed:
            while not self._not_started and not self._is_whole():
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return
                self._changed.wait(left_s)
            if self._not_started:
                raise Fatal(
                    "preflight-not-started",
                    f"no worker could be started: {self._not_started}",
                    remedy="Check the installation with python -c 'import torch'.",
                )

    def _is_whole(self) -> bool:
        return all(rank in self.reports or rank in self._exits for rank in range(self._world_size))

    def silent(self, limit_s: float) -> dict[int, Silence]:
        """Return why each rank without a report has none."""
        return {
            rank: self._silence(rank, limit_s)
            for rank in range(self._world_size)
            if rank not in self.reports
        }

    def _silence(self, rank: int, limit_s: float) -> Silence:
        words, end = self._failed.get(rank), self._exits.get(rank)
        if words is not None:
            is_own = words.code not in PEER_CODES
            return Silence(f"failed: {words.code}: {words.message}", is_own)
        if end is not None:
            how = f"signal {end.signal}" if end.signal else f"exit {end.exit_code}"
            return Silence(f"its process ended without a report ({how})")
        return Silence(f"no report within {limit_s:g} s")
