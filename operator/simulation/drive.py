"""Turns the real Controller over a simulated world: born, woken, lost and born again.

A turn in which nothing arrived and nothing fell due changes nothing, so while a run is calm the
turns of the wheel lie further and further apart; whatever arrives wakes it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from ...logbook import events as ev
from ...logbook.state import RunState
from ..controller import Controller
from ..ports import Desk, Lemons, NoLemons, Ports, RunJournal
from ..spec_told import submission
from .edges import SimCluster, SimDesk
from .timeline import Timeline
from .world import Setting, World


class ControllerCrash(BaseException):
    """The controller process dies here and now; nothing may catch it."""


class Reopened(Protocol):
    """A journal that every new controller opens anew."""

    def reopen(self) -> RunJournal: ...


class Turning(msgspec.Struct, frozen=True):
    """When the wheel turns, in virtual seconds.

    tick_s: while something is afoot; calm_s: at most, when nothing was for a while. turn_s: what a
    turn itself takes, in which more may arrive. restart_s: until a lost controller is replaced.
    """

    tick_s: float = 0.25
    calm_s: float = 0.25
    turn_s: float = 0.0
    restart_s: float = 1.5


class Drive:
    """One run in a world of its own. controller: None while none is alive.

    deadly: what ends a controller; another one begins after it.
    """

    deadly: tuple[type[BaseException], ...] = (ControllerCrash,)

    def __init__(
        self,
        setting: Setting,
        journal: Reopened,
        *,
        turning: Turning | None = None,
        lemons: Lemons | None = None,
    ) -> None:
        self.world = World(setting)
        self.spec = setting.spec
        self.journal = journal
        self.lemons: Lemons = lemons or NoLemons()
        self.controller: Controller | None = None
        self.num_crashes = 0
        self.ticks_total = 0
        self._turning = turning or Turning()
        self._last = RunState()
        self._tick_due_s: float | None = None
        self._free_s = 0.0
        self._ticked_s = 0.0
        self._wait_s = self._turning.tick_s
        self._other_records = 0

    # --- what others ask -------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """The state as the newest controller has it, or its predecessor had."""
        return self.controller.state if self.controller is not None else self._last

    @property
    def timeline(self) -> Timeline:
        return self.world.timeline

    def run_until(self, done: Callable[[RunState], bool], limit_s: float) -> bool:
        """Let time pass until the state is as wanted, or limit_s have passed; return which."""
        if self.controller is None and not self.num_crashes:
            self._boot()
            self._turn()
        end_s = self.timeline.elapsed_s + limit_s
        advance = self.timeline.advance
        while not done(self.state):
            if self.timeline.elapsed_s >= end_s or not advance():
                return False
        return True

    def crash(self) -> None:
        """The controller dies between two ticks."""
        if self.controller is not None:
            self._died()

    # --- the controller's life -------------------------------------------------------------------

    def _boot(self) -> None:
        journal = self.journal.reopen()
        self.world.cluster = cluster = SimCluster(self.world, self._wake)
        controller = Controller(self.spec, self._ports(journal, cluster))
        try:
            self._open(controller, journal)
        except self.deadly:
            self.controller = controller
            self._died()
            return
        self.controller = controller
        self._wait_s = self._turning.tick_s
        self.timeline.later(self._turning.tick_s, self._wake)

    def _ports(self, journal: RunJournal, cluster: SimCluster) -> Ports:
        desk: Desk = SimDesk(self.world)
        return Ports(self.timeline, journal, cluster, cluster, desk, self.lemons)

    def _recover(self, controller: Controller, journal: Any) -> None:
        """Give a new controller the state that a fold of the journal amounts to."""
        controller.state = self._last
        controller.recover(())

    def _open(self, controller: Controller, journal: RunJournal) -> None:
        self._recover(controller, journal)
        if not controller.state.run:
            submitted = submission(self.spec, midwatch_version="", by="ann")
            controller.record(submitted, sync=True)
        controller.take_over()
        folded = controller.state.seq
        controller.record(ev.ControllerStarted(journal.epoch, "host", 1, folded), sync=True)

    def _turn(self) -> None:
        """Turn the wheel at least so often, whatever arrives."""
        if self.timeline.elapsed_s - self._ticked_s >= self._wait_s / 2:
            self._wake()
        state = self.state
        routine = state.steps_total + state.num_findings
        is_calm = state.seq - routine == self._other_records and not state.pending
        self._other_records = state.seq - routine
        turning = self._turning
        self._wait_s = min(2 * self._wait_s, turning.calm_s) if is_calm else turning.tick_s
        self.timeline.later(self._wait_s, self._turn)

    def _wake(self) -> None:
        due_s = max(self.timeline.elapsed_s, self._free_s)
        if self._tick_due_s is None:
            self._tick_due_s = due_s
            self.timeline.later(due_s - self.timeline.elapsed_s, self._tick)

    def _tick(self) -> None:
        self._tick_due_s = None
        if self.controller is None:
            return
        self._ticked_s = self.timeline.elapsed_s
        self._free_s = self._ticked_s + self._turning.turn_s
        self.ticks_total += 1
        try:
            self.controller.tick()
        except self.deadly:
            self._died()
            return
        self._ticked(self.controller)

    def _ticked(self, controller: Controller) -> None:
        """A tick has ended; for whoever looks on."""

    def _died(self) -> None:
        if self.controller is not None:
            self._last = self.controller.state
        self.controller = None
        self.world.cluster = None
        self.num_crashes += 1
        self.timeline.later(self._turning.restart_s, self._boot)
