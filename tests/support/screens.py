"""The terminal logbook under test: in a pretended terminal, driven by keys, seen as a picture."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from midwatch.logbook.errors import ConfigError
from midwatch.logbook.state import RunState
from midwatch.logbook.tui.app import Pace, WatchApp
from midwatch.logbook.tui.controls import Ask, Places
from midwatch.logbook.tui.pane import Pane
from midwatch.logbook.tui.source import JournalSource
from midwatch.tests.support.synthetic_run import SyntheticRun
from textual.pilot import Pilot
from textual.worker import Worker

DEADLINE_S = 30.0
LOOKS_AT_A_PICTURE = 60
RENEW = "MIDWATCH_RENEW_PICTURES"
Screen = Pilot[None]


class RecordingControls:
    """Controls that remember what was asked of them. refusal: what submit raises, if anything."""

    def __init__(self, refusal: str = "") -> None:
        self.previewed: list[Ask] = []
        self.submitted: list[Ask] = []
        self._refusal = refusal

    def preview(self, state: RunState, ask: Ask) -> str:
        self.previewed.append(ask)
        return f"would send {ask.form.action}: {ask.reason}"

    def submit(self, ask: Ask) -> str:
        if self._refusal:
            raise ConfigError("no-such-run", self._refusal)
        self.submitted.append(ask)
        return f"{ask.form.action}-1"

    def places(self, state: RunState) -> Places:
        """All lie on disk, the older half in the store as well."""
        names = list(state.checkpoints)
        stored = names[: len(names) // 2]
        return Places({n: ("disk", "store") if n in stored else ("disk",) for n in names})

    def switches(self, state: RunState) -> tuple[str, ...]:
        return ("creep=act", "creep=shadow", "creep=off")


def drive(scenario: Awaitable[None]) -> None:
    """Run a scenario to its end."""

    async def whole() -> None:
        await scenario

    asyncio.run(whole())


@asynccontextmanager
async def watching(
    run: SyntheticRun,
    size: tuple[int, int] = (120, 40),
    controls: RecordingControls | None = None,
) -> AsyncIterator[Screen]:
    """A screen of that size on a run; its clock stands three seconds after the last event."""
    source = JournalSource(run.folder / "journal")
    pace = Pace(poll_s=0.02, paint_s=0.0, clock=lambda: run.now_s + 3.0)
    app = WatchApp(source, controls, pace)
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: app.book.is_whole and app.book.read_frac >= 1.0)
        yield pilot


async def until(pilot: Screen, condition: Callable[[], bool]) -> None:
    """Let the screen work until a condition holds; fail after a generous deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "what was waited for did not come about"
        await pilot.pause(0.01)


def watch_app(pilot: Screen) -> WatchApp:
    assert isinstance(pilot.app, WatchApp)
    return pilot.app


def text_on(pilot: Screen) -> str:
    """Return the characters on the screen, line by line."""
    rows = pilot.app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in rows)


async def compare_picture(pilot: Screen, expected: Path, drawn: Path) -> None:
    """Fail unless the screen is what the picture shows; what was drawn is left beside the test."""
    await until(pilot, lambda: not any(_is_at_work(worker) for worker in pilot.app.workers))
    await pilot.pause()
    known = expected.read_text(encoding="utf-8") if expected.exists() else ""
    svg, looks = "", 0
    # Parts of the screen are laid out behind others: the line of keys comes last.
    while looks < LOOKS_AT_A_PICTURE and (svg != known or os.environ.get(RENEW)):
        svg = _normal(pilot.app.export_screenshot(title="midwatch watch"))
        looks += 1
        await pilot.pause(0.05)
    # What it comes to show it must go on showing.
    svg = _normal(pilot.app.export_screenshot(title="midwatch watch"))
    if os.environ.get(RENEW):
        expected.parent.mkdir(exist_ok=True)
        expected.write_text(svg, encoding="utf-8")
    drawn.write_text(svg, encoding="utf-8")
    known = expected.read_text(encoding="utf-8") if expected.exists() else ""
    assert svg == known, f"{drawn} differs from {expected}; look at both, then set {RENEW}=1"


def _is_at_work(worker: Worker[object]) -> bool:
    """Whether a view still waits for something; app and forms wait for the run and for people."""
    return not worker.is_finished and isinstance(worker.node, Pane)


def _normal(svg: str) -> str:
    """Take out the number by which one drawing on a page is told from another."""
    return re.sub(r"terminal-\d+", "terminal", svg)
