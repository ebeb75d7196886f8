"""What is known of a run's checkpoints, from its journal and from what its stores hold. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from ..checkpoints.fingerprint import differences
from ..checkpoints.manifest import Fingerprint, Manifest
from ..checkpoints.store import Listing
from ..logbook.checkpoint_text import health_text, outcome_text
from ..logbook.state import CheckpointState, RunState
from .policy.storage import retention_plan
from .spec import RunSpec

UNKNOWN_TO_RETENTION = "the journal has not heard of it"


class CheckpointRow(msgspec.Struct, frozen=True):
    """One checkpoint. tiers: where it lies; () for one that is gone although nobody deleted it.

    verified, error, quarantined, abandoned as in state.CheckpointState. pin: why it is pinned, ""
    when it is not. kept: why retention keeps it now; goes: why it does not. One of them is "".
    """

    id: str
    step: int
    attempt: int
    age_s: float
    bytes: int
    tiers: tuple[str, ...]
    verified: bool | None
    error: str
    health: str
    outcome: str
    quarantined: str
    abandoned: bool
    pin: str
    kept: str
    goes: str


def checkpoint_rows(
    state: RunState, spec: RunSpec, tiers: Mapping[str, Listing], now_s: float
) -> list[CheckpointRow]:
    """Return every checkpoint that the journal or a tier knows of, oldest step first."""
    plan = retention_plan(state, spec, now_s)
    kept, goes = dict(plan.keep), dict(plan.delete)
    known = {**_found(tiers), **state.checkpoints}
    rows = []
    for name in sorted(known, key=lambda n: (known[n].step, known[n].attempt)):
        each = known[name]
        is_told = name in state.checkpoints
        rows.append(
            CheckpointRow(
                id=name,
                step=each.step,
                attempt=each.attempt,
                age_s=max(now_s - each.time_s, 0.0),
                bytes=each.bytes,
                tiers=tuple(tier for tier, held in tiers.items() if name in _ids(held)),
                verified=each.verified,
                error=each.error,
                health=health_text(each),
                outcome=outcome_text(each, state.step) if is_told else "",
                quarantined=each.quarantined,
                abandoned=each.abandoned,
                pin=state.pins.get(name, ""),
                kept=kept.get(name, "" if is_told else UNKNOWN_TO_RETENTION),
                goes=goes.get(name, ""),
            )
        )
    return rows


def tiers_of(tiers: Mapping[str, Listing]) -> dict[str, tuple[str, ...]]:
    """Return in which tiers each checkpoint lies that lies in any."""
    found: dict[str, tuple[str, ...]] = {}
    for tier, held in tiers.items():
        for name in _ids(held):
            found[name] = (*found.get(name, ()), tier)
    return found


def compared_with(saved: Fingerprint, here: Fingerprint) -> tuple[str, ...]:
    """Return what differs between where a checkpoint was saved and a machine without a worker.

    What only a worker can see (the GPU, and what torch says of CUDA and NCCL) is left out.
    """
    seen = replace(here, gpu=saved.gpu, packages={**saved.packages, **here.packages})
    return differences(saved, seen)


def _ids(listing: Listing) -> frozenset[str]:
    return frozenset(listing.ids) | {broken.id for broken in listing.broken}


def _found(tiers: Mapping[str, Listing]) -> dict[str, CheckpointState]:
    """What the tiers hold, told as the journal would have told it."""
    found: dict[str, CheckpointState] = {}
    for listing in tiers.values():
        for manifest in listing.committed:
            found.setdefault(manifest.id, _state_of(manifest))
    return found


def _state_of(manifest: Manifest) -> CheckpointState:
    return CheckpointState(
        checkpoint=manifest.id,
        step=manifest.step,
        attempt=manifest.attempt,
        bytes=manifest.total_bytes,
        time_s=manifest.created_s,
        save_s=0.0,
        blocked_s=0.0,
        tags=manifest.header.tags,
    )
