"""What people may ask of a run: one table, from which forms, help and commands are made.

An entry says what to ask for, not what comes of it: the policy judges every request again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from .state import RunState


class FieldKind(StrEnum):
    """What a field holds, and where its choices come from."""

    NUMBER = "number"
    NODE = "node"
    CHECKPOINT = "checkpoint"
    SWITCH = "switch"


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


class Field(msgspec.Struct, frozen=True):
    """One thing to fill in. A number goes into the request's value, everything else into target."""

    label: str
    kind: FieldKind
    help: str
    low: Bound = Bound(-math.inf)
    high: Bound = Bound(math.inf)


class Form(msgspec.Struct, frozen=True):
    """One intervention. action: as in events.InterventionRequested; key: of the terminal logbook.

    is_guarded: the request holds for the attempt that its author saw, and no other.
    """

    action: str
    key: str
    title: str
    help: str
    fields: tuple[Field, ...] = ()
    is_guarded: bool = True


_NODE = Field("node", FieldKind.NODE, "name of the node")
_CHECKPOINT = Field("checkpoint", FieldKind.CHECKPOINT, "id of the checkpoint")

FORMS: tuple[Form, ...] = (
    Form(
        "lr",
        "L",
        "Set the learning rate",
        "The next step's rate; the rest of the schedule is scaled alike.",
        (
            Field(
                "rate",
                FieldKind.NUMBER,
                "new rate of the next step",
                Bound(1e-8, "limits.lr_min"),
                Bound(1.0, "limits.lr_max"),
            ),
        ),
    ),
    Form(
        "lr-factor",
        "F",
        "Scale the learning rate",
        "Multiplies the remaining schedule, on top of the factors in force.",
        (
            Field(
                "factor",
                FieldKind.NUMBER,
                "factor on the remaining schedule",
                Bound(100.0, "limits.lr_factor_max", is_inverse=True),
                Bound(100.0, "limits.lr_factor_max"),
            ),
        ),
    ),
    Form("stop", "S", "Stop the run", "Finishes the step, saves, and ends the run."),
    Form(
        "resume",
        "R",
        "Resume the run",
        "Sets a paused or stopped run going again; spent budgets start anew.",
        is_guarded=False,
    ),
    Form(
        "quarantine",
        "Q",
        "Quarantine a node",
        "Places nothing on the node from the next attempt on, until it is released.",
        (_NODE,),
    ),
    Form(
        "release",
        "U",
        "Release a node",
        "A quarantined node may be used again.",
        (_NODE,),
        is_guarded=False,
    ),
    Form(
        "detector",
        "D",
        "Switch a detector",
        "act: its findings count; shadow: they are recorded only; off.",
        (Field("detector=mode", FieldKind.SWITCH, "as in creep=shadow"),),
    ),
    Form(
        "pin",
        "P",
        "Pin a checkpoint",
        "Keeps it, whatever retention says.",
        (_CHECKPOINT,),
        is_guarded=False,
    ),
    Form(
        "unpin",
        "N",
        "Unpin a checkpoint",
        "Leaves it to retention again.",
        (_CHECKPOINT,),
        is_guarded=False,
    ),
    Form(
        "verify",
        "V",
        "Verify a checkpoint",
        "Has the run read every byte back.",
        (_CHECKPOINT,),
        is_guarded=False,
    ),
    Form(
        "quarantine-checkpoint",
        "K",
        "Quarantine a checkpoint",
        "The run resumes from it no more, until it is released.",
        (_CHECKPOINT,),
        is_guarded=False,
    ),
    Form(
        "release-checkpoint",
        "G",
        "Release a checkpoint",
        "A quarantined checkpoint may be resumed from again.",
        (_CHECKPOINT,),
        is_guarded=False,
    ),
    Form(
        "prune",
        "X",
        "Prune checkpoints",
        "Deletes now what retention no longer keeps.",
        is_guarded=False,
    ),
)


class Answers(msgspec.Struct, frozen=True):
    """A form filled in, as the parts of a request."""

    value: float = 0.0
    target: str = ""


def choices_of(field: Field, state: RunState, switches: tuple[str, ...]) -> tuple[str, ...]:
    """Return what may stand in a field now; () where it is a number.

    switches: every NAME=MODE there is.
    """
    if field.kind is FieldKind.NODE:
        return tuple(state.nodes)
    if field.kind is FieldKind.CHECKPOINT:
        newest = sorted(state.checkpoints.values(), key=lambda known: -known.step)
        return tuple(known.checkpoint for known in newest)
    return switches if field.kind is FieldKind.SWITCH else ()


def range_text(field: Field, spec: Mapping[str, Any]) -> str:
    """Return the limits of a number for a person, "" where there are none."""
    low, high = field.low.resolve(spec), field.high.resolve(spec)
    return f"{low:g} to {high:g}" if math.isfinite(low) and math.isfinite(high) else ""


def fault_of(field: Field, text: str, spec: Mapping[str, Any], choices: tuple[str, ...]) -> str:
    """Return what is wrong with what a person wrote into a field, "" when nothing is."""
    if not text.strip():
        return f"{field.label} is missing"
    if field.kind is not FieldKind.NUMBER:
        return "" if text.strip() in choices else f"there is no {field.label} {text.strip()!r}"
    try:
        value = float(text)
    except ValueError:
        return f"{field.label} {text.strip()!r} is not a number"
    if not field.low.resolve(spec) <= value <= field.high.resolve(spec):
        return f"{field.label} {value:g} is outside {range_text(field, spec)}"
    return ""


def answers_of(form: Form, texts: tuple[str, ...]) -> Answers:
    """Return the parts of the request that texts, one for each field and sound, amount to."""
    value, target = 0.0, ""
    for field, text in zip(form.fields, texts, strict=True):
        if field.kind is FieldKind.NUMBER:
            value = float(text)
        else:
            target = text.strip()
    return Answers(value, target)
