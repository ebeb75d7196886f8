"""The workers of one preflight, which live on a node only while nothing trains there.

A preflight is no attempt: it raises no fence, and training never waits for it longer than its
workers take to die. Its number stands below zero where an attempt's stands above; the newest is
lowest.
"""

from __future__ import annotations

from collections.abc import Callable

from .local_attempt import Desk, LocalAttempt
from .plan import LocalPlan
from .reports import StartFailed


class SideRun:
    """Holds at most one preflight at a time. on_over: called when its last worker is gone."""

    def __init__(self, desk: Desk, on_over: Callable[[], None]) -> None:
        self.current: LocalAttempt | None = None
        self._newest = 0
        self._desk = desk
        self._on_over = on_over
        self._pending: LocalPlan | None = None

    @property
    def is_live(self) -> bool:
        """Whether workers of a preflight may still be alive here."""
        return self.current is not None

    def start(self, plan: LocalPlan) -> None:
        """Run a preflight once the older one is gone; the same or an older one is ignored."""
        if plan.attempt >= self._newest:
            return
        self.end()
        self._newest, self._pending = plan.attempt, plan

    def refuse(self, plan: LocalPlan, code: str, message: str) -> None:
        """Say that a preflight cannot run here."""
        self._desk.outbox.push(StartFailed(attempt=plan.attempt, code=code, message=message))

    def stop(self, number: int) -> None:
        """End the preflight of this number (below zero) or an older one; it cannot start again."""
        if self._newest >= number:
            self._newest = min(self._newest, number)
            self.end()

    def end(self) -> None:
        """Kill what runs, and forget what waits for its turn."""
        self._pending = None
        if self.current is not None and not self.current.is_ending:
            self.current.end(0.0)

    def advance(self, fork_state: str, error: str) -> bool:
        """Begin what waits, if its turn has come; return whether it was begun."""
        plan = self._pending
        if plan is None or self.is_live or fork_state not in ("ready", "failed"):
            return False
        self._pending = None
        if fork_state == "failed":
            self.refuse(plan, "preload-failed", error)
            return False
        self.current = LocalAttempt(plan, self._desk, self._over)
        self.current.spawn()
        return True

    def _over(self, attempt: LocalAttempt) -> None:
        if self.current is attempt:
            self.current = None
        self._on_over()
