"""The midwatch command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from ... import __version__
from .output import USAGE, one_clear_error


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


def root(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_version, is_eager=True
    ),
) -> None:
    """The night watch over large training runs."""


def _run_lazily() -> Callable[..., Any]:
    # Ray takes a second to import; commands that only read a folder must not pay for it.
    from .run_command import run

    return run


def _simulate_lazily() -> Callable[..., Any]:
    # It loads the trainer's rules, which nothing but a simulation needs.
    from .simulate import simulate_command

    return simulate_command


def command_line(name: str) -> typer.Typer:
    """Return the command line for a call of the command name, every command in it.

    But for watch, which is alone: its first screen does not wait for what only others need.
    """
    app = typer.Typer(
        name="midwatch",
        help="The night watch over large training runs.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(root)
    from . import watch

    app.command()(watch.watch)
    if name != "watch":
        _add_others(app, name)
    return app


def _add_others(app: typer.Typer, name: str) -> None:
    from . import (
        checkpoints,
        data,
        detectors,
        doctor,
        health,
        inspect,
        metrics,
        operate,
        report,
        serve,
    )
    from . import steer_life as sl
    from . import steer_values as sv
    from .submit import submit

    app.command()(inspect.status)
    app.command()(inspect.journal)
    app.command()(inspect.notes)
    app.command()(report.report)
    app.command()(metrics.metrics)
    app.command()(serve.serve)
    app.command()(doctor.doctor)
    app.command()(submit)
    for change in (sv.lr, sv.clip, sv.scaler, sv.optimizer, sv.skip):
        app.command()(change)
    for order in (sl.checkpoint, sl.rollback, sl.pause, sl.resume, sl.stop):
        app.command()(order)
    for word in (sl.quarantine, sl.release, sl.ack, sl.revert, sl.interventions):
        app.command()(word)
    app.command()(detectors.detectors)
    app.command()(operate.operator)
    app.command()(health.xid)
    app.command()(health.classify)
    app.command()(health.replay)
    app.add_typer(checkpoints.app, name="checkpoints")
    app.add_typer(data.app, name="data")
    simulate = _simulate_lazily() if name == "simulate" else _simulate_placeholder
    app.command(name="simulate")(simulate)
    if name == "run":
        app.command()(_run_lazily())
    else:
        app.command(name="run")(_run_placeholder)


def main() -> None:
    """Run the command line; every error of ours is one message and its exit status."""
    app = command_line(sys.argv[1] if len(sys.argv) > 1 else "")
    with one_clear_error():
        try:
            app()
        except SystemExit as end:
            # Typer ends usage errors with 2 as well.
            raise SystemExit(end.code if end.code is not None else 0) from None


def _run_placeholder() -> None:
    """Train under the controller and watch; Ctrl-C saves and stops."""
    raise SystemExit(USAGE)


def _simulate_placeholder() -> None:
    """Simulate a run in virtual time: what would fail, what would be done, what it would cost."""
    raise SystemExit(USAGE)


if __name__ == "__main__":
    main()
