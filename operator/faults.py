"""Planned faults for demonstrations and chaos tests: when, what, and to whom.

The faults are real: signals to real processes, a real change of the learning rate. Each strike is
laid on the run's desk as a FaultInjected, so that the record holds the truth beside what was seen.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..logbook.errors import ConfigError
from ..logbook.events import FaultInjected, InterventionRequested
from ..logbook.state import RunState
from .desk import post_request


class Fault(BaseModel):
    """One planned fault.

    kill-worker: SIGKILL to `rank`. stop-worker: SIGSTOP to `rank`. kill-agent: SIGKILL to the agent
    of the node that carries `rank`. kill-controller: SIGKILL to the controller. raise-lr: set the
    learning rate to `lr` as a person would.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_step: Annotated[int, Field(ge=1)]
    fault: Literal["kill-worker", "stop-worker", "kill-agent", "kill-controller", "raise-lr"]
    rank: Annotated[int, Field(ge=0)] = 0
    lr: Annotated[float, Field(gt=0)] = 0.1


class FaultPlan(BaseModel):
    """Faults in the order in which they strike."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    faults: tuple[Fault, ...]


def load_faults(path: Path) -> FaultPlan:
    """Return the fault plan in a YAML file. Raises ConfigError[faults-invalid]."""
    try:
        return FaultPlan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(
            "faults-invalid",
            f"{path} is not a fault plan: {error}.",
            remedy="It is a list under `faults:`; manifests/runs/demo-faults.yaml is a sample.",
        ) from error


class Injector:
    """Strikes with each fault in turn, once the run trains at its step and the last one is over."""

    def __init__(self, run_dir: Path, plan: FaultPlan) -> None:
        self._run_dir = run_dir
        self._faults = list(plan.faults)
        self._restarts = 0

    @property
    def is_done(self) -> bool:
        return not self._faults

    @property
    def next_text(self) -> str:
        """What strikes next, for whoever watches."""
        if not self._faults:
            return "no more faults are planned"
        fault = self._faults[0]
        return f"next planned fault: {fault.fault} from step {fault.at_step} on"

    def strike(self, state: RunState) -> Fault | None:
        """Strike if it is time to; return the fault that struck."""
        if not self._faults or not self._is_time(state, self._faults[0]):
            return None
        fault = self._faults[0]
        if not _inject(self._run_dir, state, fault):
            return None
        del self._faults[0]
        return fault

    def _is_time(self, state: RunState, fault: Fault) -> bool:
        attempt = state.attempt
        calm = attempt is not None and attempt.first_step_s is not None and not state.paused
        calm = calm and attempt is not None and attempt.signal_s is None
        recovered = all(
            state.incidents[name].recovered_s is not None for name in state.open_incidents
        )
        # A strike that has not been noticed yet must not be followed by another.
        answered = len(state.faults) <= len(state.incidents)
        return calm and recovered and answered and state.step >= fault.at_step


def _inject(run_dir: Path, state: RunState, fault: Fault) -> bool:
    now_s = time.time()
    if fault.fault == "raise-lr":
        target = f"lr {fault.lr:g}"
        request = InterventionRequested(
            id=f"fault-lr-{state.step}",
            action="lr",
            by="fault plan",
            reason="planned fault: a learning rate high enough to diverge",
            value=fault.lr,
        )
        post_request(run_dir, request, time_s=now_s)
    else:
        pid = _target(state, fault)
        if pid is None:
            return False
        target = f"pid {pid}"
        number = signal.SIGSTOP if fault.fault == "stop-worker" else signal.SIGKILL
        now_s = time.time()
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
    struck = FaultInjected(fault.fault, target, injected_s=now_s, step=state.step)
    post_request(run_dir, struck, time_s=now_s)
    return True


def _target(state: RunState, fault: Fault) -> int | None:
    if fault.fault == "kill-controller":
        return state.controller_pid or None
    attempt = state.attempt
    node = attempt.plan.node_of(fault.rank) if attempt is not None else None
    if attempt is None or node is None:
        return None
    if fault.fault == "kill-agent":
        return state.nodes[node].pid or None
    first = next(p.first_rank for p in attempt.plan.placements if p.node == node)
    pids = attempt.pids.get(node, ())
    return pids[fault.rank - first] if fault.rank - first < len(pids) else None
