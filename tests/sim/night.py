"""One night: a world, the real Controller over it, and a checker that looks after every tick.

A controller can be made to crash at any call of a port, just before or just after its effect; the
next one folds the journal, as in life.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from midwatch.logbook import events as ev
from midwatch.logbook.errors import Fatal, Retryable
from midwatch.logbook.journal import Journal, JournalOptions
from midwatch.logbook.record import Record
from midwatch.logbook.state import Incident, RunState
from midwatch.operator.controller import Controller
from midwatch.operator.ports import Ports
from midwatch.operator.simulation.conditions import Times
from midwatch.operator.simulation.drive import ControllerCrash, Drive
from midwatch.operator.simulation.edges import MemoryJournal, SimCluster, SimDesk
from midwatch.operator.simulation.timeline import Timeline
from midwatch.operator.simulation.training import Physics, train_config
from midwatch.operator.simulation.world import Setting, World
from midwatch.operator.spec import RunSpec
from midwatch.tests.support.builders import make_spec

from .checkers import Checker


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


class DiskFull(Retryable):
    """A write of the journal that the disk refused; nothing of it is there."""


class NoteLost(OSError):
    """A note that could not be written."""


class Disk:
    """How many writes of the controller fail next. num_failed: so far."""

    def __init__(self) -> None:
        self.failing_appends = 0
        self.failing_notes = 0
        self.num_failed = 0

    def append(self) -> None:
        if self.failing_appends > 0:
            self.failing_appends -= 1
            self.num_failed += 1
            raise DiskFull("disk-full", "no space left for the journal", delay_s=1.0)

    def note(self) -> None:
        if self.failing_notes > 0:
            self.failing_notes -= 1
            self.num_failed += 1
            raise NoteLost("no space left for a note")


class FailingDesk(SimDesk):
    """A desk whose notes may find no space."""

    def __init__(self, world: World, disk: Disk) -> None:
        super().__init__(world)
        self._disk = disk

    def write_note(self, state: RunState, incident: Incident) -> None:
        self._disk.note()
        super().write_note(state, incident)


class JumpingClock:
    """The controller's clock, which somebody may set forward or back while it runs."""

    def __init__(self, timeline: Timeline) -> None:
        self.ahead_s = 0.0
        self._timeline = timeline

    def now_s(self) -> float:
        return self._timeline.now_s() + self.ahead_s


class Watched:
    """A journal that shows the checker every record it takes."""

    def __init__(self, journal: Any, checker: Checker, disk: Disk) -> None:
        self.epoch: int = journal.epoch
        self._journal = journal
        self._checker = checker
        self._disk = disk

    def append(
        self, events: Sequence[tuple[float, int, ev.Event]], sync: bool = False
    ) -> list[Record[ev.Event]]:
        self._disk.append()
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


class Night(Drive):
    """Drives one run. Times are virtual; limits end a night that gets nowhere."""

    # As in life, where a controller that cannot write ends, and a new one begins.
    deadly = (ControllerCrash, DiskFull, NoteLost)

    def __init__(
        self,
        spec: RunSpec | None = None,
        *,
        seed: int = 0,
        physics: Physics | None = None,
        times: Times | None = None,
        journal: MemoryJournal | DiskJournal | None = None,
    ) -> None:
        spec = spec or make_spec()
        config = train_config(spec.trainer["steps"], spec.trainer["interval_steps"])
        setting = Setting(spec, config, seed, physics or Physics(seed), times or Times())
        super().__init__(setting, journal or MemoryJournal())
        self.journal: Any
        self.fuse = Fuse()
        self.disk = Disk()
        self.num_fenced = 0
        self.clock = JumpingClock(self.timeline)
        self.checker = Checker(self.spec, self.world)

    # --- what tests ask --------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """The state as the journal has it."""
        return self.checker.shadow

    def run(self, until: Callable[[RunState], bool], limit_s: float = 900.0) -> RunState:
        """Let time pass until the state is as wanted. AssertionError when it never is."""
        assert self.run_until(until, limit_s), self._describe(limit_s)
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

    def linger(self, for_s: float) -> None:
        """The controller is taken for dead and replaced, but goes on turning for a while.

        It hears nothing any more, and must not write once its successor does.
        """
        zombie = self.controller
        if zombie is None:
            return
        end_s = self.timeline.elapsed_s + for_s

        def turn() -> None:
            try:
                zombie.tick()
            except Fatal as error:
                if error.code != "journal-fenced":
                    raise
                self.num_fenced += 1
                return
            except self.deadly:
                return
            if self.timeline.elapsed_s < end_s:
                self.timeline.later(self._turning.tick_s, turn)

        self.crash()
        self.timeline.later(self._turning.tick_s, turn)

    # --- the controller's life -------------------------------------------------------------------

    def _ports(self, journal: Any, cluster: SimCluster) -> Ports:
        self.checker.reopened(journal.records())
        return Ports(
            clock=self.clock,
            journal=Fused(Watched(journal, self.checker, self.disk), self.fuse),
            cluster=Fused(cluster, self.fuse),
            checkpoints=Fused(cluster, self.fuse),
            desk=Fused(FailingDesk(self.world, self.disk), self.fuse),
            lemons=Fused(self.lemons, self.fuse),
        )

    def _recover(self, controller: Controller, journal: Any) -> None:
        controller.recover(journal.records())

    def _ticked(self, controller: Controller) -> None:
        self.checker.look(controller.state)

    def _describe(self, limit_s: float) -> str:
        state = self.state
        pending = "\n  ".join(self.checker.pending()) or "nothing"
        return (
            f"not reached within {limit_s:.0f} s: run is {state.status} at step {state.step}, "
            f"attempt {state.num_attempts} {state.paused} {state.pause_reason}\n  {pending}"
        )
