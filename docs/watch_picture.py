"""Draw docs/watch.svg, the terminal logbook: python docs/watch_picture.py [RUN_DIR]

Without a folder it shows a made-up run of 992 GPUs, with one that run as it stands.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from midwatch.logbook.tui.app import Pace, WatchApp
from midwatch.logbook.tui.source import JournalSource
from midwatch.tests.support.synthetic_run import write_night

TARGET = Path(__file__).with_name("watch.svg")
SIZE = (120, 40)


async def draw(run_dir: Path, now_s: float | None) -> None:
    """Save what the screen shows once the whole run is read; now_s None: the time of its end."""
    source = JournalSource(run_dir / "journal")
    app = WatchApp(source, None, Pace(poll_s=0.02, clock=lambda: now_s or app.book.state.time_s))
    async with app.run_test(size=SIZE) as pilot:
        while not app.book.is_whole or app.book.read_frac < 1.0:
            await pilot.pause(0.01)
        await pilot.pause(0.1)
        TARGET.write_text(app.export_screenshot(title="midwatch watch"), encoding="utf-8")


def main(arguments: list[str]) -> None:
    if arguments:
        asyncio.run(draw(Path(arguments[0]), None))
        return
    with tempfile.TemporaryDirectory() as folder:
        run = write_night(Path(folder))
        asyncio.run(draw(run.folder, run.now_s))
        run.close()


if __name__ == "__main__":
    main(sys.argv[1:])
