"""From the name of a TrainingRun to its API: where it is, and a token that this user may read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...logbook.errors import Fatal
from .cluster import RUNS, Forbidden, Kubectl

TOKEN_KEY = "token"
VIEWER, OPERATOR = "viewerSecret", "operatorSecret"


class Access(msgspec.Struct, frozen=True):
    """service, port: of the run's API in its namespace; token: of the role that could be had."""

    service: str
    port: int
    token: str


def find_access(kubectl: Kubectl, run: str, roles: Sequence[str]) -> Access:
    """Return the way to a run's API, with the token of the first of roles that may be read.

    Raises: as Kubectl.call; Fatal[run-not-served]; Forbidden[forbidden] when no token may be read.
    """
    found = kubectl.get(RUNS, run)
    api = (found.get("status") or {}).get("api") or {}
    if not api.get("service") or not api.get("port"):
        raise Fatal(
            "run-not-served",
            f"{run} serves no API now: {why_not(found)}.",
            remedy=f"`kubectl describe trun {run}` has the whole story.",
        )
    refused: Forbidden | None = None
    for role in roles:
        try:
            token = kubectl.secret(str(api.get(role, "")), TOKEN_KEY)
        except Forbidden as error:
            refused = refused or error
        else:
            return Access(str(api["service"]), int(api["port"]), token)
    assert refused is not None
    raise refused


def why_not(run: dict[str, Any]) -> str:
    """Return, in one line, what the conditions of a TrainingRun say of its not being ready."""
    conditions = (run.get("status") or {}).get("conditions") or []
    bad = [c for c in conditions if (c.get("type"), c.get("status")) in _TELLING]
    told = [f"{c['type']} is {c['status']}: {c.get('reason')}, {c.get('message')}" for c in bad]
    return "; ".join(part.rstrip(".") for part in told) or "the operator has not looked at it yet"


_TELLING = frozenset(
    {
        ("Succeeded", "True"),
        ("Succeeded", "False"),
        ("Admitted", "False"),
        ("Ready", "False"),
        ("Ready", "Unknown"),
        ("Stalled", "True"),
    }
)
