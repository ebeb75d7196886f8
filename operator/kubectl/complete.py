"""The kubectl_complete-midwatch command: kubectl asks it what may come next on the line.

It answers as kubectl's own completion does: a candidate a line, `candidate<tab>description` where
there is one, and last a colon and a number that says what the shell may add by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ...logbook.errors import MidwatchError
from .arguments import NAMESPACE_FLAGS, VALUED, take_apart
from .cluster import RUNS, find_kubectl
from .commands import catalogue
from .objects import INTERVENTIONS

NO_FILES, DEFAULT = 4, 0
ON_INTERVENTIONS = ("approve", "reject")


def main() -> None:
    """Print what may come next."""
    candidates, directive = complete(sys.argv[1:])
    for line in candidates:
        print(line)
    print(f":{directive}")


def complete(words: Sequence[str]) -> tuple[list[str], int]:
    """Return the candidates for the last of words, which may be empty, and kubectl's directive."""
    *before, last = words or [""]
    typed = take_apart(before)
    if before and before[-1] in VALUED:
        if before[-1] not in NAMESPACE_FLAGS:
            return [], DEFAULT
        connection = take_apart(before[:-1]).connection
        return _matching(_names(connection, "namespaces"), last), NO_FILES
    if not typed.rest:
        return _matching(_commands(), last), NO_FILES
    if last.startswith("-"):
        return _matching(_options(typed.rest[0]), last), NO_FILES
    if len(typed.rest) == 1:
        kind = INTERVENTIONS if typed.rest[0] in ON_INTERVENTIONS else RUNS
        return _matching(_names(typed.connection, kind), last), NO_FILES
    return [], NO_FILES


def _matching(candidates: Sequence[str], start: str) -> list[str]:
    return [candidate for candidate in candidates if candidate.startswith(start)]


def _commands() -> list[str]:
    return [f"{name}\t{told}" for name, (told, _) in catalogue().items()]


def _options(command: str) -> list[str]:
    _, options = catalogue().get(command, ("", []))
    return options


def _names(connection: Sequence[str], kind: str) -> list[str]:
    """The names of objects; none where the cluster cannot be asked."""
    try:
        return find_kubectl(connection).names(kind)
    except MidwatchError:
        return []
