"""What is told of a run's spec: all of it but the values in its env that look like secrets.

What is told goes into the journal, and from there to everybody who reads the run: its state, the
API, notes, reports. Who needs the values, the agents, gets them with the spec itself.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from ..logbook import events as ev
from .policy.decide import POLICY_VERSION
from .spec import RunSpec

KEPT_BACK = "(kept back)"
"""Stands for a value that is there and is not told: no part of it, and no digest."""
_SECRET_NAME = re.compile(
    "key|secret|token|pass|pwd|credential|auth|private|cookie|webhook|dsn|sas|connection_string",
    re.IGNORECASE,
)
_USER_IN_URL = re.compile(r"://[^/\s@]+@")


def spec_told(spec: RunSpec) -> dict[str, Any]:
    """Return the spec as plain data that anybody may read; a state's spec compares with this.

    Two specs that differ only in values kept back are told alike.
    """
    env = {name: _told(name, value) for name, value in spec.env.items()}
    return {**spec.model_dump(mode="json"), "env": env}


def submission(spec: RunSpec, *, midwatch_version: str, by: str) -> ev.RunSubmitted:
    """Return the event that tells of a spec."""
    told = spec_told(spec)
    canonical = msgspec.json.encode(told, order="deterministic")
    return ev.RunSubmitted(
        run=spec.name,
        spec=told,
        digest=hashlib.sha256(canonical).hexdigest(),
        policy_version=POLICY_VERSION,
        midwatch_version=midwatch_version,
        by=by,
    )


def _told(name: str, value: str) -> str:
    is_secret = _SECRET_NAME.search(name) or _USER_IN_URL.search(value)
    return KEPT_BACK if value and is_secret else value
