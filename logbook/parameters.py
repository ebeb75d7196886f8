"""What can be set in a running trainer: one table, from which limits, forms and read-backs follow.

Policy, forms, command line and trainer use the names of this table and no others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec


class Bound(msgspec.Struct, frozen=True):
    """A limit of a number: a value of the spec by its dotted path, or value where it has none.

    is_inverse: one over that value.
    """

    value: float
    path: str = ""
    is_inverse: bool = False

    def resolve(self, spec: Mapping[str, Any]) -> float:
        """Return the limit that holds under spec."""
        found: Any = spec
        for name in self.path.split(".") if self.path else ():
            found = found.get(name) if isinstance(found, Mapping) else None
        value = float(found) if isinstance(found, int | float) and self.path else self.value
        return 1.0 / value if self.is_inverse else value


class Parameter(msgspec.Struct, frozen=True):
    """One value that a person may set, and between what.

    readback: its name in what ranks read back from the live objects.
    is_momentary: it strikes at one step and goes its own way from there.
    needs_scaler: it means something only where the loss is scaled (fp16).
    """

    name: str
    label: str
    help: str
    readback: str
    low: Bound
    high: Bound
    is_momentary: bool = False
    needs_scaler: bool = False

    def refuse(self, value: float, spec: Mapping[str, Any]) -> str:
        """Return why a value cannot be set, "" when it can."""
        low, high = self.low.resolve(spec), self.high.resolve(spec)
        if math.isfinite(value) and low <= value <= high:
            return ""
        return f"{self.name} {value:g} is outside limits [{low:g}, {high:g}]"


def _limits(name: str, low: float, high: float) -> tuple[Bound, Bound]:
    return Bound(low, f"limits.{name}_min"), Bound(high, f"limits.{name}_max")


PARAMETERS: dict[str, Parameter] = {
    parameter.name: parameter
    for parameter in (
        Parameter("lr", "rate", "new rate of that step", "lr", *_limits("lr", 1e-8, 1.0)),
        Parameter(
            "lr-factor",
            "factor",
            "factor on the remaining schedule",
            "lr",
            Bound(100.0, "limits.lr_factor_max", is_inverse=True),
            Bound(100.0, "limits.lr_factor_max"),
        ),
        Parameter(
            "grad-clip",
            "clip",
            "largest gradient norm that reaches the optimizer",
            "grad_clip",
            *_limits("grad_clip", 1e-4, 1000.0),
        ),
        Parameter(
            "loss-scale",
            "scale",
            "resets the scaler to it; then it moves by itself",
            "loss_scale",
            *_limits("loss_scale", 2.0**-20, 2.0**24),
            is_momentary=True,
            needs_scaler=True,
        ),
        Parameter(
            "loss-scale-floor",
            "floor",
            "the scale never goes below it",
            "loss_scale_floor",
            *_limits("loss_scale", 2.0**-20, 2.0**24),
            needs_scaler=True,
        ),
        Parameter(
            "beta1", "beta1", "decay of the first moment", "beta1", *_limits("beta1", 0, 0.999)
        ),
        Parameter(
            "beta2", "beta2", "decay of the second moment", "beta2", *_limits("beta2", 0.5, 0.99999)
        ),
        Parameter("eps", "eps", "added to the root of it", "eps", *_limits("eps", 1e-12, 1.0)),
        Parameter(
            "weight-decay",
            "weight decay",
            "decoupled decay of matrices",
            "weight_decay",
            *_limits("weight_decay", 0.0, 1.0),
        ),
    )
}
"""By name. Every one of them can be changed at an agreed step, and for a while only."""

GROUPS: dict[str, tuple[str, ...]] = {
    "optimizer": ("beta1", "beta2", "eps", "weight-decay"),
    "scaler": ("loss-scale", "loss-scale-floor"),
}
"""Actions that set several parameters at once, in the values of a request."""
LASTING = ("lr", "lr-factor", "grad-clip", *GROUPS)
"""Actions whose change may be for a while only."""


def values_of(action: str, value: float, values: Mapping[str, float]) -> dict[str, float]:
    """Return every parameter that a request or command sets, {} when it sets none."""
    if action in PARAMETERS:
        return {action: value}
    return dict(values) if action in GROUPS else {}


def refuse_values(
    action: str, value: float, values: Mapping[str, float], spec: Mapping[str, Any]
) -> str:
    """Return why the values of a request cannot be set, "" when they can or there are none."""
    group = GROUPS.get(action)
    if group is not None:
        strangers = [name for name in values if name not in group]
        if strangers or not values:
            said = f"{', '.join(strangers)} is none of its" if strangers else "it names none of its"
            return f"{action} sets nothing: {said} parameters {', '.join(group)}"
    for name, wanted in values_of(action, value, values).items():
        refusal = PARAMETERS[name].refuse(wanted, spec)
        if refusal:
            return refusal
    return ""


def parse_range(text: str) -> tuple[int, int, bool] | None:
    """Return (first, last, whether of samples) of "FIRST:LAST" or "samples FIRST:LAST".

    LAST is not included. None where the text says nothing of the kind.
    """
    words = text.split()
    is_samples = len(words) == 2 and words[0] == "samples"
    if not words or (len(words) > 1 and not is_samples):
        return None
    first, colon, last = words[-1].partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        return None
    return int(first), int(last), is_samples
