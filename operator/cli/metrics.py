"""midwatch metrics: the numbers of a run for other programs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ...logbook.chronicle import read_chronicle
from ...logbook.tensorboard import write_tensorboard
from .output import Output, OutputOption, RunArgument, print_json
from .places import TokenFileOption, UrlOption, all_records, place_of


def metrics(
    run: RunArgument = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write TensorBoard event files to this folder instead.")
    ] = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Print a run's metrics as Prometheus reads them, or write its curves for TensorBoard."""
    place = place_of(run, url, token_file)
    if tensorboard is None:
        # Here alone: the client takes its time to load, and no other command needs it.
        from ...logbook.metrics import collect, exposition

        state, now_s = place.state(), time.time()
        if output is Output.TEXT:
            print(exposition(state, now_s), end="")
            return
        samples = [sample for family in collect(state, now_s) for sample in family.samples]
        print_json([{"name": s.name, "labels": s.labels, "value": s.value} for s in samples])
        return
    chronicle = read_chronicle(all_records(place))
    written = write_tensorboard(chronicle, tensorboard)
    if output is Output.JSON:
        steps = len(chronicle.curves)
        print_json({"folder": str(tensorboard), "steps": steps, "values": written})
        return
    print(f"{written} values of {len(chronicle.curves)} steps in {tensorboard}")
