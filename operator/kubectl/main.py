"""The kubectl-midwatch command, which kubectl runs as `kubectl midwatch`."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence

from ...logbook.errors import ConfigError, MidwatchError
from ..cli.main import main as midwatch
from ..cli.output import one_clear_error
from .access import find_access
from .arguments import Words, take_apart
from .cluster import Kubectl, find_kubectl
from .commands import FAR, LOOKS, OWN, catalogue, own_command_line
from .forward import Forward

# What a person has set for another run, and what would win over what is said here.
OVERRIDING = ("MIDWATCH_TOKEN_FILE", "MIDWATCH_CA_FILE")
USAGE = """Usage: kubectl midwatch COMMAND RUN [OPTIONS]

Watch and steer the TrainingRun RUN; it is reached by port-forward. kubectl's own flags
(--namespace, --context, --kubeconfig, --as, ...) may stand anywhere behind the command.

Commands:
{commands}

`kubectl midwatch COMMAND --help` tells the options of one. `kubectl get trun`,
`kubectl describe trun RUN` and `kubectl wait --for=condition=Succeeded trun/RUN` need no plugin.
"""


def main() -> None:
    """Run one command on one TrainingRun."""
    with one_clear_error():
        serve(take_apart(sys.argv[1:]))


def serve(words: Words) -> None:
    """Do what words ask for, in this process, and exit as the command does.

    Raises: ConfigError[usage]; what the command and kubectl raise.
    """
    command = words.rest[0] if words.rest else "--help"
    if command in ("-h", "--help", "help"):
        print(usage(), end="")
        return
    if command in OWN:
        app = own_command_line()
        sys.argv = ["kubectl midwatch", *words.rest]
        app(obj=find_kubectl(words.connection), prog_name="kubectl midwatch")
    elif command in FAR:
        _far(command, words)
    else:
        known = ", ".join(catalogue())
        raise ConfigError("usage", f"there is no command {command!r}.", remedy=f"Known: {known}.")


def usage() -> str:
    """Return what `kubectl midwatch --help` prints."""
    rows = [f"  {name:15} {told}" for name, (told, _) in catalogue().items()]
    return USAGE.format(commands="\n".join(rows))


def _far(command: str, words: Words) -> None:
    """Run a command of midwatch as it is, with the way to the run in its environment."""
    run, options = run_and_options(command, words.rest[1:])
    sys.argv = ["midwatch", command, *options]
    if run is None:
        midwatch()
        return
    kubectl = find_kubectl(words.connection)
    access = find_access(kubectl, run, FAR[command])
    with Forward(kubectl, access.service, access.port) as forward:
        for name in OVERRIDING:
            os.environ.pop(name, None)
        os.environ["MIDWATCH_URL"] = forward.url
        os.environ["MIDWATCH_TOKEN"] = access.token
        if FAR[command] != LOOKS:
            _go_by_the_clusters_name(kubectl)
        # Where there is no run, none of this folder can be taken for the one that is meant.
        with tempfile.TemporaryDirectory() as nowhere, contextlib.chdir(nowhere):
            midwatch()


def run_and_options(command: str, words: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """Return the run that a command is about, and its options; no run where only help is wanted.

    Raises: ConfigError[usage]: which word of many is the run could only be guessed.
    """
    if any(word in ("-h", "--help") for word in words):
        return None, ["--help"]
    if not words or words[0].startswith("-"):
        raise ConfigError(
            "usage",
            f"`kubectl midwatch {command}` has no run.",
            remedy=f"Name the TrainingRun right behind it: kubectl midwatch {command} RUN ...",
        )
    name = words[0].rpartition("/")[2]
    return name, words[1:]


def _go_by_the_clusters_name(kubectl: Kubectl) -> None:
    """What is asked for is recorded under the name that the cluster knows, not this machine's."""
    with contextlib.suppress(MidwatchError):
        os.environ["LOGNAME"] = kubectl.user()


if __name__ == "__main__":
    main()
