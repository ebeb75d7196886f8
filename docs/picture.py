"""Draw docs/terminal.svg from a real run: python docs/picture.py runs/demo [SEQ]

The picture is the live view of `midwatch run` at journal event SEQ; without SEQ, a little
after the last incident was recovered from.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from midwatch.logbook import events as ev
from midwatch.logbook.fold import evolve
from midwatch.logbook.live_view import render_live
from midwatch.logbook.reader import read
from midwatch.logbook.state import RunState
from rich.console import Console

TARGET = Path(__file__).with_name("terminal.svg")
WIDTH = 104


def main(run_dir: str, seq: int | None) -> None:
    state = RunState()
    chosen = state
    for record in read(Path(run_dir) / "journal", ev.Event):
        state = evolve(state, record.event, seq=record.seq, time_s=record.time_s)
        watched = bool(state.open_incidents) and state.attempt is not None
        calm = watched and state.attempt is not None and state.attempt.num_steps == 10
        if record.seq == seq or (seq is None and calm):
            chosen = state
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(render_live(chosen, int(chosen.spec["trainer"]["steps"]), chosen.time_s))
    console.save_svg(str(TARGET), title="midwatch run --demo")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
