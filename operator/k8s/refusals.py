"""What the operator was refused at its last look, as reasons for the status of the run."""

from __future__ import annotations

from .observed import Observed

LASTING = 3
"""A failure that may pass by itself is told once it has come so often in a row."""
BLOCKING = ("ApplyRefused", "StartRefused", "SecretsForbidden")
"""Without these a run does not get to train."""
_REASONS = {
    "ApplyObject": "ApplyRefused",
    "MakeToken": "ApplyRefused",
    "StartController": "StartRefused",
    "RemoveCluster": "RemovalRefused",
    "RemovePod": "RemovalRefused",
    "Cordon": "CordonRefused",
}


def refusals(observed: Observed) -> list[tuple[str, str]]:
    """Return (reason, message) of what could not be done and will not be; what blocks first."""
    found = [
        (_REASONS[each.what], each.message)
        for each in observed.failures
        if each.what in _REASONS
        and (each.is_final or (each.code == "kube-unwilling" and each.times >= LASTING))
    ]
    if observed.reach.secrets:
        found.append(("SecretsForbidden", observed.reach.secrets))
    return sorted(found, key=lambda each: each[0] not in BLOCKING)
