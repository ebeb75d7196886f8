"""What a node agent is told: once for its life (AgentConfig), and once per attempt (LocalPlan)."""

from __future__ import annotations

from typing import Any

import msgspec

from ...health.nodes.liveness import HangLimits
from ...logbook.errors import ConfigError
from ...logbook.wire import WorkerStart
from .probing import ProbeConfig
from .upload_wire import UploadConfig


class Preload(msgspec.Struct, frozen=True):
    """A function that the forkserver calls once, before any worker is born.

    entry: "package.module:function"; it is called with config, and must leave no thread running
    and CUDA untouched, since every worker is forked from the process it leaves behind.
    """

    entry: str
    config: dict[str, Any] = {}


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one node agent.

    node:        name of the node in every report.
    work_dir:    where the forkserver logs and stack dumps lie; created when missing.
    host:        address under which other nodes reach a rank 0 that lives here.
    env:         added to the forkserver's environment at its start; settings that libraries read
                 once, like OMP_NUM_THREADS, must stand here.
    python_path: put in front of the module search path of the forkserver and its workers.
    batch_s, status_s, poll_s: rhythm of batched reports, of AgentStatus and of the hang watch.
    *_deadline_s: after how long a start or a kill counts as failed.
    log_bytes_max: a worker log that grows past it loses its older part.
    retain_bytes_max: reports kept for a controller that is away.
    memory_frac: share of the memory free at the agent's start that the memory tier may take.
    upload: how checkpoints get from this node's disk to the durable store; None: there is none.
    """

    node: str
    work_dir: str
    host: str = "127.0.0.1"
    preload: tuple[Preload, ...] = ()
    env: dict[str, str] = {}
    python_path: tuple[str, ...] = ()
    hang: HangLimits = HangLimits()
    probe: ProbeConfig = ProbeConfig()
    batch_s: float = 0.1
    status_s: float = 1.0
    poll_s: float = 0.1
    ready_deadline_s: float = 180.0
    fork_deadline_s: float = 15.0
    kill_deadline_s: float = 10.0
    log_bytes_max: int = 64 << 20
    retain_bytes_max: int = 32 << 20
    memory_frac: float = 0.0
    upload: UploadConfig | None = None


class LocalPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The part of an attempt that runs on one node.

    attempt:     below zero for a preflight (logbook.plan.PreflightPlan.attempt), which runs beside
                 attempts that have no worker here, and ends when one has.
    workers:     start orders of this node's ranks, without file descriptors. None at all is a
                 valid plan: a spare ends whatever it ran before and waits.
    entry_point: "package.module:function", called in each worker with its WorkerStart; its return
                 value (None is 0) becomes the exit status.
    log_dir:     where the workers' standard output and error go; created when missing. Local disk:
                 a network file system that hangs would hang the agent with it.
    env, rank_env: environment of all workers, and additions for single ranks.
    keeps_memory: whether states in the node's memory may be resumed from; False drops them.
        A preflight leaves them as they are.
    """

    attempt: int
    workers: tuple[WorkerStart, ...]
    entry_point: str
    log_dir: str
    env: dict[str, str] = {}
    rank_env: dict[int, dict[str, str]] = {}
    keeps_memory: bool = False


def check_plan(plan: LocalPlan) -> None:
    """Refuse a plan that contradicts itself. Raises: ConfigError[bad-plan]."""
    ranks = [start.rank for start in plan.workers]
    strays = [start.attempt for start in plan.workers if start.attempt != plan.attempt]
    if strays:
        raise ConfigError("bad-plan", f"plan of attempt {plan.attempt} holds workers of {strays}")
    if len(set(ranks)) != len(ranks):
        raise ConfigError("bad-plan", f"plan of attempt {plan.attempt} repeats a rank: {ranks}")
    if plan.entry_point.count(":") != 1:
        message = f"entry point {plan.entry_point!r} is not of the form package.module:function"
        raise ConfigError("bad-plan", message)
