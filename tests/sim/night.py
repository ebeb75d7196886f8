"""One night: a world, the real Controller over it, and a checker that looks after every tick.

A controller can be made to crash at any call of a port, just before or just after its effect; the
next one folds the journal, as in life.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from midwatch.logbook import events as ev
from midwatch.logbook.journal import Journal, JournalOptions
from midwatch.logbook.record import Record
from midwatch.logbook.state import RunState
from midwatch.operator.controller import Controller
from midwatch.operator.policy.decide import POLICY_VERSION
from midwatch.operator.ports import Lemons, NoLemons, Ports
from midwatch.operator.spec import RunSpec
from midwatch.tests.support.builders import make_spec

from .checkers import Checker
from .edges import MemoryJournal, SimCluster, SimDesk
from .timeline import Timeline
from .training import Physics, train_config
from .world import Times, World

TICK_S = 0.25
RESTART_S = 1.5


class ControllerCrash(BaseException):
    """The controller process dies here and now; nothing may catch it."""


class Fuse:
    """Counts calls of ports and blows at the chosen one."""

    def __init__(self) -> None:
        self.calls = 0
        self.blows_at: int | None = None

    def burn(self) -> None:
        self.calls += 1
        if self.blows_at is not None and self.calls >= self.blows_at:
            self.blows_at = None
            raise ControllerCrash


class Fused:
    """A port whose calls burn a fuse before and after their effect."""

    def __init__(self, port: Any, fuse: Fuse) -> None:
        self._port = port
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._port, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            self._fuse.burn()
            result = value(*args, **kwargs)
            self._fuse.burn()
            return result

        return call


class Watched:
    """A journal that shows the checker every record it takes."""

    def __init__(self, journal: Any, checker: Checker) -> None:
        self.epoch: int = journal.epoch
        self._journal = journal
        self._checker = checker

    def append(
        self, events: Sequence[tuple[float, int, ev.Event]], sync: bool = False
    ) -> list[Record[ev.Event]]:
        records: list[Record[ev.Event]] = self._journal.append(events, sync=sync)
        self._checker.appended(records)
        return records


class DiskJournal:
    """The real journal in a folder, opened again by every controller."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: Journal[ev.Event] | None = None

    def reopen(self) -> Journal[ev.Event]:
        """Close what a dead controller left open, and open it for the next."""
        self.close()
        options = JournalOptions(wait_s=0.0, takeover=True, segment_bytes=64 << 10)
        self._open = Journal(self._folder, ev.Event, options)
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


class Night:
    """Drives one run. Times are virtual; limits end a night that gets nowhere."""

    def __init__(
        self,
        spec: RunSpec | None = None,
        *,
        seed: int = 0,
        physics: Physics | None = None,
        times: Times | None = None,
        journal: MemoryJournal | DiskJournal | None = None,
    ) -> None:
        self.spec = spec or make_spec()
        trainer = self.spec.trainer
        config = train_config(trainer["steps"], trainer["interval_steps"])
        self.world = World(self.spec, config, seed, physics or Physics(seed), times or Times())
        self.lemons: Lemons = NoLemons()
        self.fuse = Fuse()
        self.journal = journal or MemoryJournal()
        self.checker = Checker(self.spec, self.world)
        self.controller: Controller | None = None
        self.num_crashes = 0
        self._tick_is_due = False

    # --- what tests ask --------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """The state as the journal has it."""
        return self.checker.shadow

    @property
    def timeline(self) -> Timeline:
        return self.world.timeline

    def run(self, until: Callable[[RunState], bool], limit_s: float = 900.0) -> RunState:
        """Let time pass until the state is as wanted. AssertionError when it never is."""
        if self.controller is None and not self.num_crashes:
            self._boot()
            self._turn()
        end_s = self.timeline.elapsed_s + limit_s
        while not until(self.state):
            assert self.timeline.elapsed_s < end_s, self._describe(limit_s)
            assert self.timeline.advance(), "nothing is left to happen"
        return self.state

    def run_for(self, span_s: float) -> RunState:
        """Let time pass."""
        end_s = self.timeline.elapsed_s + span_s
        return self.run(lambda _: self.timeline.elapsed_s >= end_s, span_s + 60.0)

    def run_to_step(self, step: int) -> RunState:
        """Let the run train up to a step."""
        return self.run(lambda s: s.step >= step and s.attempt is not None)

    def run_to_end(self, limit_s: float = 3600.0) -> RunState:
        """Let the run come to its end."""
        return self.run(lambda s: s.status.is_terminal, limit_s)

    def ask(self, action: str, value: float = 0.0, target: str = "", **more: Any) -> str:
        """A person asks for something; return the id of the request."""
        name = more.pop("id", f"{action}-{self.checker.shadow.seq}")
        request = ev.InterventionRequested(
            id=name, action=action, by="ann", reason="test", value=value, target=target, **more
        )
        self.world.ask(request)
        return name

    def crash_after(self, calls: int) -> None:
        """Have the controller die at its calls-th port call from now (1 is the next)."""
        self.fuse.blows_at = self.fuse.calls + calls

    def crash(self) -> None:
        """The controller dies between two ticks."""
        if self.controller is not None:
            self._died()

    # --- the controller's life -------------------------------------------------------------------

    def _boot(self) -> None:
        journal = self.journal.reopen()
        self.world.cluster = cluster = SimCluster(self.world, self._wake)
        self.checker.reopened(journal.records())
        ports = Ports(
            clock=self.timeline,
            journal=Fused(Watched(journal, self.checker), self.fuse),
            cluster=Fused(cluster, self.fuse),
            checkpoints=Fused(cluster, self.fuse),
            desk=Fused(SimDesk(self.world), self.fuse),
            lemons=Fused(self.lemons, self.fuse),
        )
        controller = Controller(self.spec, ports)
        try:
            self._open(controller, journal.epoch, journal)
        except ControllerCrash:
            self.controller = controller
            self._died()
            return
        self.controller = controller

    def _open(self, controller: Controller, epoch: int, journal: Any) -> None:
        controller.recover(journal.records())
        if not controller.state.run:
            submitted = ev.RunSubmitted(
                run=self.spec.name,
                spec=self.spec.model_dump(mode="json"),
                digest="",
                policy_version=POLICY_VERSION,
                midwatch_version="",
                by="ann",
            )
            controller.record(submitted, sync=True)
        controller.take_over()
        folded = controller.state.seq
        controller.record(ev.ControllerStarted(epoch, "host", 1, folded), sync=True)

    def _turn(self) -> None:
        self._wake()
        self.timeline.later(TICK_S, self._turn)

    def _wake(self) -> None:
        if not self._tick_is_due:
            self._tick_is_due = True
            self.timeline.later(0.0, self._tick)

    def _tick(self) -> None:
        self._tick_is_due = False
        if self.controller is None:
            return
        try:
            self.controller.tick()
        except ControllerCrash:
            self._died()
            return
        self.checker.look(self.controller.state)

    def _died(self) -> None:
        self.controller = None
        self.world.cluster = None
        self.num_crashes += 1
        self.timeline.later(RESTART_S, self._boot)

    def _describe(self, limit_s: float) -> str:
        state = self.state
        pending = "\n  ".join(self.checker.pending()) or "nothing"
        return (
            f"not reached within {limit_s:.0f} s: run is {state.status} at step {state.step}, "
            f"attempt {state.num_attempts} {state.paused} {state.pause_reason}\n  {pending}"
        )
