"""What `kubectl midwatch` can do: the commands of midwatch that work from afar, and its own."""

from __future__ import annotations

from collections.abc import Callable

import typer

from ..cli.main import command_line
from .access import OPERATOR, VIEWER
from .objects import approve, intervene, reject

# What looks takes the viewer's token, and the operator's where only that may be read.
LOOKS = (VIEWER, OPERATOR)
# What can also write shows itself to viewers, too; the API refuses them the rest.
BOTH = (OPERATOR, VIEWER)
ACTS = (OPERATOR,)
FAR: dict[str, tuple[str, ...]] = {
    "status": LOOKS,
    "watch": BOTH,
    "journal": LOOKS,
    "notes": BOTH,
    "interventions": LOOKS,
    "lr": ACTS,
    "clip": ACTS,
    "scaler": ACTS,
    "optimizer": ACTS,
    "skip": ACTS,
    "checkpoint": ACTS,
    "rollback": ACTS,
    "pause": ACTS,
    "resume": ACTS,
    "stop": ACTS,
    "quarantine": ACTS,
    "release": ACTS,
    "ack": ACTS,
    "revert": ACTS,
}
OWN: dict[str, Callable[..., None]] = {"intervene": intervene, "approve": approve, "reject": reject}


def own_command_line() -> typer.Typer:
    """Return the commands that speak to the cluster alone; their context holds a Kubectl."""
    app = typer.Typer(
        name="kubectl midwatch",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for command in OWN.values():
        app.command()(command)
    return app


def catalogue() -> dict[str, tuple[str, list[str]]]:
    """Return every command by name, in the order of help: what it does, and its options."""
    found = dict(typer.main.get_group(command_line("")).commands)
    found |= typer.main.get_group(own_command_line()).commands
    return {
        name: (
            found[name].get_short_help_str(80),
            [flag for param in found[name].params for flag in param.opts if flag.startswith("--")],
        )
        for name in (*FAR, *OWN)
        if name in found
    }
