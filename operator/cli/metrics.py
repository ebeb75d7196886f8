"""midwatch metrics: the numbers of a run for other programs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ...logbook import events as ev
from ...logbook.chronicle import read_chronicle
from ...logbook.reader import read
from ...logbook.tensorboard import write_tensorboard
from .output import RunArgument
from .runs import find_run, load_state


def metrics(
    run: RunArgument = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write TensorBoard event files to this folder instead.")
    ] = None,
) -> None:
    """Print a run's metrics as Prometheus reads them, or write its curves for TensorBoard."""
    folder = find_run(run)
    if tensorboard is None:
        # Here alone: the client takes its time to load, and no other command needs it.
        from ...logbook.metrics import exposition

        print(exposition(load_state(folder), time.time()), end="")
        return
    chronicle = read_chronicle(read(folder / "journal", ev.Event))
    written = write_tensorboard(chronicle, tensorboard)
    print(f"{written} values of {len(chronicle.curves)} steps in {tensorboard}")
