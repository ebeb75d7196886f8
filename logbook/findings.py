"""What a detector says: one thing seen, how bad it is, since when, and the numbers behind it."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Severity(StrEnum):
    """How far a finding goes: a note, a warning to a person, or grounds for a rollback."""

    OBSERVE = "observe"
    WARN = "warn"
    ROLLBACK = "rollback"

    @property
    def weight(self) -> int:
        """How far it goes, for comparisons."""
        return list(Severity).index(self) + 1


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing a detector saw.

    detector:   name of the detector, e.g. "scaler-collapse".
    kind:       the fault seen: "spike", "level-shift", "creep", "grad-norm-growth",
                "activation-norm-trend", "scaler-collapse", "scale-high", "non-finite",
                "cross-rank-outlier", "plateau", "hang", "straggler", "xid", ...
    step:       step at which it was seen.
    onset_step: step at which it began, as far as the detector can tell; <= step.
    value, reference: observed value and what it was compared with, in the unit that message names.
    node, rank: whom it concerns; None means the whole run.
    device:     GPU UUID, network port or disk on that node, where the detector knows it.
    action:     what a node detector asks for: "ignore", "watch", "drain" (leave the node out at
                the next restart) or "evict" (now); "" where the policy alone decides.
    shadow:     recorded only; the policy must not act on it.
    cost_s:     what it costs every step, 0 where that is not known.
    """

    detector: str
    kind: str
    severity: Severity
    step: int
    onset_step: int
    value: float
    reference: float
    message: str
    node: str | None = None
    rank: int | None = None
    shadow: bool = False
    device: str = ""
    action: str = ""
    cost_s: float = 0.0
