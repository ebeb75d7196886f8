"""Whole runs for chaos tests: the real controller on a real Ray, real workers, real faults."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import ray
from midwatch.logbook import events as ev
from midwatch.logbook.reader import read
from midwatch.logbook.state import RunState
from midwatch.operator.cli.runs import StateFollower, load_state
from midwatch.operator.runtime.leaving import end_actors
from midwatch.operator.runtime.names import NAMESPACE, agent_name, controller_name, node_names
from midwatch.operator.runtime.session import Session, submit, tear_down
from midwatch.operator.spec import RunSpec
from midwatch.trainer.data.build import BuildConfig, build
from midwatch.trainer.data.corpus import stdlib_dir

DEADLINE_S = 120.0
LOOK_S = 0.005

# Called at every look; returns True once it has done what it was made for.
Strike = Callable[[RunState], bool]


def build_corpus(folder: Path) -> Path:
    """Tokenise a little of the standard library for the nano model."""
    out = folder / "corpus"
    build([stdlib_dir()], out, BuildConfig(vocab_size=272, max_bytes=200_000))
    return out


def nano_spec(
    name: str, run_dir: Path, corpus: Path, *, spares: int = 0, **changes: Any
) -> RunSpec:
    """Return a run of the nano model: 2 x 2 ranks on two nodes, saved every 5 steps."""
    trainer: dict[str, Any] = {
        "preset": "nano",
        "model": {"vocab": 272},
        "steps": 40,
        "schedule": {"warmup_steps": 5},
        "data": {"dir": str(corpus)},
        "checkpoint": {"interval_steps": 5},
    }
    trainer |= changes.pop("trainer", {})
    spec: dict[str, Any] = {
        "name": name,
        "run_dir": str(run_dir),
        "mesh": {"dp_shard": 2, "tp": 2},
        "nodes": {"ranks_per_node": 2, "spares": spares, "preflight": "off"},
        "trainer": trainer,
        "restart": {"hang_min_s": 3.0},
        "numeric": {"rollback_margin_steps": 2},
    }
    return RunSpec.model_validate(spec | changes)


class LiveRun:
    """One run under way. Use as a context manager: its actors are gone afterwards."""

    def __init__(self, spec: RunSpec, session: Session) -> None:
        self.spec = spec
        self.run_dir = Path(spec.run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._session = session
        self._follower: StateFollower | None = None

    def __enter__(self) -> LiveRun:
        submit(self.spec, self.run_dir, self._session)
        self._follower = StateFollower(self.run_dir)
        return self

    def __exit__(self, *_: object) -> None:
        tear_down(self.spec)
        # A test that failed leaves its run at work.
        nodes = node_names(self.spec.num_nodes, self.spec.nodes.spares)
        agents = [agent_name(self.spec.name, node) for node in nodes]
        end_actors([controller_name(self.spec.name), *agents])

    @property
    def state(self) -> RunState:
        assert self._follower is not None
        self._follower.poll()
        return self._follower.state

    def until(self, done: Callable[[RunState], bool], *strikes: Strike) -> RunState:
        """Follow the run until done, giving each strike its turn; all must have struck by then."""
        waiting = list(strikes)
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            state = self.state
            waiting = [strike for strike in waiting if not strike(state)]
            if done(state):
                assert not waiting, "a planned fault never struck"
                return state
            time.sleep(LOOK_S)
        raise AssertionError(f"not done in {DEADLINE_S} s: {self.describe()}")

    def finish(self, *strikes: Strike) -> RunState:
        """Follow the run to its end."""
        return self.until(lambda state: state.is_at_rest, *strikes)

    def describe(self) -> str:
        state = self.state
        log = (self.run_dir / "logs" / "controller.log").read_text()[-2000:]
        return f"{state.status} step {state.step} attempt {state.attempt}\n{log}"

    def live_state(self) -> RunState:
        """Return the state that the controller itself holds."""
        actor = ray.get_actor(controller_name(self.spec.name), namespace=NAMESPACE)
        return msgspec.msgpack.decode(ray.get(actor.snapshot.remote()), type=RunState)

    def assert_fold_is_live(self) -> None:
        """The journal, folded, is the state that the controller holds, once both are at one seq."""
        found: list[tuple[RunState, RunState]] = []

        def same_seq() -> bool:
            found[:] = [(self.live_state(), load_state(self.run_dir))]
            return found[0][0].seq == found[0][1].seq

        wait_until(same_seq, "the journal and the controller never came to the same event")
        live, folded = found[0]
        # Encoded, since a NaN equals nothing.
        assert msgspec.msgpack.encode(live) == msgspec.msgpack.encode(folded)

    def events(self) -> list[ev.Event]:
        return [record.event for record in read(self.run_dir / "journal", ev.Event)]

    def losses(self) -> dict[int, float]:
        """Return the loss of every step as the final lineage holds it."""
        found: dict[int, float] = {}
        for event in self.events():
            if isinstance(event, ev.StepDone):
                found[event.sample.step] = event.sample.loss
            elif isinstance(event, ev.StepsRecalled):
                found |= {sample.step: sample.loss for sample in event.samples}
        return found


def wait_until(holds: Callable[[], bool], otherwise: str, deadline_s: float = 30.0) -> None:
    """Look again and again until something holds; fail with a message after a generous time."""
    end_s = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end_s, otherwise
        time.sleep(LOOK_S)


def is_training(state: RunState) -> bool:
    attempt = state.attempt
    return attempt is not None and attempt.first_step_s is not None and attempt.signal_s is None


def worker_pid(state: RunState, rank: int) -> int | None:
    """Return the process of a rank of the current attempt, once it is known."""
    attempt = state.attempt
    node = attempt.plan.node_of(rank) if attempt is not None else None
    if attempt is None or node is None or node not in attempt.pids:
        return None
    first = next(p.first_rank for p in attempt.plan.placements if p.node == node)
    return attempt.pids[node][rank - first]


def kill(pid: int | None, number: int = signal.SIGKILL) -> bool:
    """Send a signal; False when there is nobody to send it to (yet)."""
    if not pid:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def strike_worker(rank: int, at_step: int, number: int = signal.SIGKILL) -> Strike:
    """Signal a worker once the run has completed at_step."""

    def strike(state: RunState) -> bool:
        ready = is_training(state) and state.step >= at_step
        return ready and kill(worker_pid(state, rank), number)

    return strike


def strike_agent(rank: int, at_step: int) -> Strike:
    """Kill the agent that carries a rank once the run has completed at_step."""

    def strike(state: RunState) -> bool:
        if not is_training(state) or state.step < at_step:
            return False
        assert state.attempt is not None
        return kill(state.nodes[state.attempt.plan.node_of(rank) or ""].pid)

    return strike


def strike_controller(when: Callable[[RunState], bool]) -> Strike:
    """Kill the controller at the first look at which when holds."""

    def strike(state: RunState) -> bool:
        return when(state) and kill(state.controller_pid)

    return strike
