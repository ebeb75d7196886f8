"""A job under Midwatch on a private local Ray. Imports ray: set its environment first."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Protocol

from midwatch.logbook import events as ev
from midwatch.logbook.decisions import StartAttempt
from midwatch.logbook.reader import read
from midwatch.logbook.record import Record
from midwatch.logbook.state import RunState
from midwatch.logbook.wire import StepSample
from midwatch.operator.runtime.session import ray_session
from midwatch.operator.spec import RunSpec
from midwatch.tests.support.live_run import LiveRun, is_training

from .processes import Usage, command_of, descendants, wait_gone
from .stamps import FIRST_STEP, read_stamps

STAMPED = {"worker": "midwatch.tests.bench.stamps:main"}
BUDGET = {"max_restarts_per_hour": 1000}
SELDOM_S = 0.25
"""How often a run is looked at that must not be disturbed."""
Moments = dict[str, float]


class Victims(Protocol):
    def next(self) -> tuple[int, float]: ...


def kill_workers(
    spec: dict[str, Any], victims: Victims, kills: int, calm_steps: int
) -> list[Moments]:
    """Kill a worker again and again; return the moments of each recovery, in seconds since."""
    stamped = {**spec, "entry_points": STAMPED, "restart": BUDGET}
    with (
        ray_session("local") as session,
        LiveRun(RunSpec.model_validate(stamped), session) as run,
    ):
        struck = [_strike(run, *victims.next(), calm_steps) for _ in range(kills)]
        run.until(lambda state: _is_calm(state, 1))
        records = list(read(run.run_dir / "journal", ev.Event))
    return [
        _moments(run.run_dir, records, attempt, killed_s, gone_s)
        for attempt, killed_s, gone_s in struck
    ]


def _strike(run: LiveRun, rank: int, pause_s: float, calm_steps: int) -> tuple[int, float, float]:
    """Kill a rank of a calm attempt; return (its number, when, when all of it was gone)."""
    run.until(lambda state: _is_calm(state, calm_steps))
    time.sleep(pause_s)
    attempt = run.state.attempt
    assert attempt is not None
    pids = [pid for place in attempt.plan.placements for pid in attempt.pids[place.node]]
    killed_s = time.time()
    os.kill(pids[rank], signal.SIGKILL)
    return attempt.number, killed_s, wait_gone(pids)


def _is_calm(state: RunState, steps: int) -> bool:
    return is_training(state) and state.attempt is not None and state.attempt.num_steps >= steps


def _moments(
    run_dir: Path, records: list[Record[ev.Event]], attempt: int, killed_s: float, gone_s: float
) -> Moments:
    """Return what happened when between a kill and the first step of the next attempt."""
    exited_s, decided_s, born_s = 0.0, 0.0, 0.0
    for record in records:
        event = record.event
        if isinstance(event, ev.WorkerExited) and event.attempt == attempt:
            exited_s = exited_s or record.time_s
        elif isinstance(event, ev.WorkersStarted) and event.attempt == attempt + 1:
            born_s = record.time_s
        elif isinstance(event, ev.DecisionMade):
            action = event.decision.action
            if isinstance(action, StartAttempt) and action.plan.attempt == attempt + 1:
                decided_s = record.time_s
        elif isinstance(event, ev.StepDone) and event.attempt == attempt + 1:
            stepped_s, known_s = event.sample.time_s, record.time_s
            break
    stamps = read_stamps(run_dir, attempt + 1)
    moments = {
        "exit known to the controller": exited_s,
        "decided": decided_s,
        "old processes gone": gone_s,
        "new processes entered": stamps["ENTERED"],
        "corpus open, meeting begins": stamps["RENDEZVOUS"],
        "process group made": stamps["BUILDING"],
        "mesh, model, optimizer built": stamps["LOADING"],
        "state loaded": stamps["TRAINING"],
        "first forward": stamps["FORWARD"],
        "first backward": stamps["BACKWARD"],
        "first vote": stamps["VOTE"],
        "first update": stamps["OPTIMIZER"],
        "all ranks past the first step": stamps[FIRST_STEP],
        "first new step": stepped_s,
        "births known to the controller": born_s,
        "first step known to the controller": known_s,
    }
    return {name: stamp_s - killed_s for name, stamp_s in moments.items()}


def train_watched(spec: dict[str, Any], warm_steps: int, last_frac: float) -> Usage:
    """Train a job under Midwatch; return what the steps after the warm ones took."""
    run_spec = RunSpec.model_validate(spec)
    last_step = last_frac * spec["trainer"]["steps"]
    with ray_session("local") as session, LiveRun(run_spec, session) as run:
        begin = _sample_at(run, warm_steps)
        usage = Usage(_groups(run.state))
        end = _sample_at(run, last_step)
        return usage.stop(end.step - begin.step, end.time_s - begin.time_s)


def _sample_at(run: LiveRun, step: float) -> StepSample:
    """Wait for a step, looking seldom, and return the newest sample."""
    while True:
        state = run.state
        assert not state.incidents, run.describe()
        if state.last is not None and state.step >= step:
            return state.last
        time.sleep(SELDOM_S)


def _groups(state: RunState) -> dict[str, list[int]]:
    """Return the processes of a run on a private Ray, by what they belong to."""
    assert state.attempt is not None
    busy = set(state.attempt.plan.nodes)
    workers = [pid for pids in state.attempt.pids.values() for pid in pids]
    groups = {
        "workers": workers,
        "controller": [state.controller_pid],
        "agents of the ranks' nodes": [n.pid for n in state.nodes.values() if n.node in busy],
        "agent of the spare": [n.pid for n in state.nodes.values() if n.node not in busy],
    }
    groups["forkservers"] = [
        pid
        for pid in descendants(os.getpid())
        if "midwatch.operator.agent" in command_of(pid) and pid not in workers
    ]
    ours = {pid for pids in groups.values() for pid in pids}
    for pid in descendants(os.getpid()):
        if pid not in ours:
            groups.setdefault(f"Ray: {_ray_part(command_of(pid))}", []).append(pid)
    groups["this bench"] = [os.getpid()]
    return groups


def _ray_part(command: str) -> str:
    """Return the name of one of Ray's own processes."""
    parts = ("gcs_server", "raylet/raylet", "log_monitor", "runtime_env", "dashboard/agent")
    return next((part for part in parts if part in command), command[:24])
