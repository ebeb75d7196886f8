"""midwatch data: prepare what a run trains on, by starting the trainer's own program by name."""

from __future__ import annotations

import runpy
import sys

import typer

BUILD = "midwatch.trainer.data.build"

app = typer.Typer(help="Prepare what a run trains on.", no_args_is_help=True)

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=_PASS_ON)
def build(context: typer.Context) -> None:
    """Tokenise folders of text into a corpus: midwatch data build DIR --out OUT."""
    sys.argv = ["midwatch data build", *context.args]
    runpy.run_module(BUILD, run_name="__main__", alter_sys=True)
