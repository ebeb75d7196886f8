"""What a form of an intervention is made of, and what a person's answers amount to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec
from msgspec.structs import replace

from .fold_interventions import is_revocable
from .parameters import GROUPS, PARAMETERS, Bound, parse_range
from .state import RunState


class FieldKind(StrEnum):
    """What a field holds, and where its choices come from."""

    NUMBER = "number"
    STEP = "step"
    COUNT = "count"
    RANGE = "range"
    NODE = "node"
    CHECKPOINT = "checkpoint"
    INCIDENT = "incident"
    CHANGE = "change"
    SWITCH = "switch"


WHOLE = (FieldKind.STEP, FieldKind.COUNT)
"""Kinds that say when and for how long; they hold whole numbers."""


class Field(msgspec.Struct, frozen=True):
    """One thing to fill in. What it holds goes into the request by its kind.

    A number is the request's value, or one of its values where parameter names it; a step and a
    count say when and for how long; everything else is the target.
    """

    label: str
    kind: FieldKind
    help: str
    low: Bound = Bound(-math.inf)
    high: Bound = Bound(math.inf)
    is_optional: bool = False
    parameter: str = ""


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


AT_STEP = Field(
    "at step", FieldKind.STEP, "the first step under it; empty: at once", is_optional=True
)
AFTER_STEP = Field(
    "at step", FieldKind.STEP, "when that step is completed; empty: at once", is_optional=True
)
FOR_STEPS = Field("for steps", FieldKind.COUNT, "then as before; empty: for good", is_optional=True)


def number(parameter: str) -> Field:
    """Return the field of a parameter: optional where its action sets others as well."""
    known = PARAMETERS[parameter]
    is_one_of = any(parameter in group for group in GROUPS.values())
    return Field(
        known.label, FieldKind.NUMBER, known.help, known.low, known.high, is_one_of, parameter
    )


class Answers(msgspec.Struct, frozen=True):
    """A form filled in, as the parts of a request."""

    value: float = 0.0
    target: str = ""
    values: dict[str, float] = {}
    at_step: int | None = None
    for_steps: int | None = None


def choices_of(field: Field, state: RunState, switches: tuple[str, ...]) -> tuple[str, ...]:
    """Return what may stand in a field now; () where it is a number.

    switches: every NAME=MODE there is.
    """
    if field.kind is FieldKind.NODE:
        return tuple(state.nodes)
    if field.kind is FieldKind.CHECKPOINT:
        newest = sorted(state.checkpoints.values(), key=lambda known: -known.step)
        return tuple(known.checkpoint for known in newest)
    if field.kind is FieldKind.INCIDENT:
        silent = (n for n, i in reversed(state.incidents.items()) if not i.acknowledged)
        return tuple(silent)
    if field.kind is FieldKind.CHANGE:
        made = reversed(state.interventions.items())
        return tuple(name for name, known in made if is_revocable(state, known))
    return switches if field.kind is FieldKind.SWITCH else ()


def range_text(field: Field, spec: Mapping[str, Any]) -> str:
    """Return the limits of a number for a person, "" where there are none."""
    low, high = field.low.resolve(spec), field.high.resolve(spec)
    return f"{low:g} to {high:g}" if math.isfinite(low) and math.isfinite(high) else ""


def fault_of(field: Field, text: str, spec: Mapping[str, Any], choices: tuple[str, ...]) -> str:
    """Return what is wrong with what a person wrote into a field, "" when nothing is."""
    if not text.strip():
        return "" if field.is_optional else f"{field.label} is missing"
    if field.kind in WHOLE:
        is_whole = text.strip().isdecimal() and int(text) > 0
        return "" if is_whole else f"{field.label} {text.strip()!r} is no number of steps"
    if field.kind is FieldKind.RANGE:
        said = f"{field.label} {text.strip()!r} is no range FIRST:LAST"
        return said if parse_range(text) is None else ""
    if field.kind is not FieldKind.NUMBER:
        return "" if text.strip() in choices else f"there is no {field.label} {text.strip()!r}"
    try:
        value = float(text)
    except ValueError:
        return f"{field.label} {text.strip()!r} is not a number"
    if not field.low.resolve(spec) <= value <= field.high.resolve(spec):
        return f"{field.label} {value:g} is outside {range_text(field, spec)}"
    return ""


def fault_of_all(form: Form, texts: tuple[str, ...]) -> str:
    """Return what is wrong with the fields together, each of them sound; "" when nothing is."""
    numbers = [f.label for f in form.fields if f.kind is FieldKind.NUMBER]
    pairs = zip(form.fields, texts, strict=True)
    if not numbers or any(f.kind is FieldKind.NUMBER and text.strip() for f, text in pairs):
        return ""
    return f"nothing is asked for: fill in {' or '.join(numbers)}"


def answers_of(form: Form, texts: tuple[str, ...]) -> Answers:
    """Return the parts of the request that texts, one for each field and sound, amount to."""
    answers = Answers()
    for field, text in zip(form.fields, texts, strict=True):
        if text.strip():
            answers = _answered(form, answers, field, text.strip())
    return answers


def _answered(form: Form, answers: Answers, field: Field, text: str) -> Answers:
    if field.kind is FieldKind.STEP:
        return replace(answers, at_step=int(text))
    if field.kind is FieldKind.COUNT:
        return replace(answers, for_steps=int(text))
    if field.kind is not FieldKind.NUMBER:
        return replace(answers, target=text)
    if form.action in GROUPS:
        return replace(answers, values={**answers.values, field.parameter: float(text)})
    return replace(answers, value=float(text))
