"""Nights as data: what a seed decides, and nights that once failed, kept as what they were.

A seed means what the draws say today; a kept night means the same for ever. Each lies in nights/ as
one JSON object, and test_random.py plays all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from midwatch.operator.simulation.conditions import Times
from midwatch.operator.simulation.training import Physics
from midwatch.operator.spec import RunSpec

KEPT = Path(__file__).parent / "nights"


class Fault(msgspec.Struct, frozen=True):
    """Something that goes wrong at a virtual second. index names a rank or a node.

    ask: what a person asks for, by name.
    """

    at_s: float
    kind: str
    index: int = 0
    amount: float = 0.0
    ask: str = ""


class Plan(msgspec.Struct, frozen=True):
    """Everything that a night follows from."""

    seed: int
    spec: RunSpec
    physics: Physics
    times: Times
    faults: tuple[Fault, ...]


class _Kept(msgspec.Struct, frozen=True):
    seed: int
    spec: dict[str, Any]
    physics: Physics
    times: Times
    faults: tuple[Fault, ...]


def encode(plan: Plan) -> bytes:
    """Return a night as JSON for people."""
    spec = plan.spec.model_dump(mode="json")
    kept = _Kept(plan.seed, spec, plan.physics, plan.times, plan.faults)
    return msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n"


def decode(text: bytes) -> Plan:
    """Return the night that encode() has written."""
    kept = msgspec.json.decode(text, type=_Kept)
    spec = RunSpec.model_validate(kept.spec)
    return Plan(kept.seed, spec, kept.physics, kept.times, kept.faults)


def kept_nights() -> dict[str, Plan]:
    """Return every night that is kept, by its name."""
    return {path.stem: decode(path.read_bytes()) for path in sorted(KEPT.glob("*.json"))}
