"""Read the numbers of a pasted training log: is its loss scale collapsing, drifting or starting up?

Works on the few lines a report quotes, in the forms of fairseq, Megatron-LM, DeepSpeed, apex and
the Hugging Face trainer. It only names what a text shows; the detectors of health/numerics judge a
live run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import msgspec

from .labels import (
    HEALTHY_STARTUP_OVERFLOWS,
    LOSS_SCALE_COLLAPSE,
    LOSS_SCALE_NORMAL_DRIFT,
    NAN_LOSS,
)

# fairseq prints three decimals, so a scale under this shows as 0.000.
SCALE_GONE = 1e-3
# A dynamic scaler starts at 2^16 to 2^32 and walks down; an fp16 run lives well above this.
SCALE_STARTING_UP = 256.0
# A reduction that changes nothing is the floor when it is this low; higher up it is hysteresis.
SCALE_FLOOR_MAX = 1.0
LOSS_FALLING_FRAC = 0.97

_NUMBER = r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+|nan|inf(?:inity)?))\b"
_SCALE = re.compile(
    rf"(?:loss|grad)[ _]scaler?[\"']?\s*(?:to)?\s*[:=| ]\s*{_NUMBER}", re.IGNORECASE
)
_REDUCED = re.compile(
    rf"(?:reducing(?: loss scale)? to|setting loss scale to|loss scale to):?\s*{_NUMBER}",
    re.IGNORECASE,
)
_ATTEMPTED = re.compile(rf"attempted loss scale:?\s*{_NUMBER}", re.IGNORECASE)
_OVERFLOW = re.compile(r"\boverflow|skipping step|skipped (?:a |optimizer )?step", re.IGNORECASE)
_SKIPPED = re.compile(r"skipped iterations:\s*(\d+)", re.IGNORECASE)
_LOSS = re.compile(
    rf"(?<![a-z_-])(?:lm[ _]|train(?:ing)?[ _])?loss[\"']?\s*[:=| ]\s*{_NUMBER}", re.IGNORECASE
)
# Any loss by any name will do when it is no number at all; Megatron counts such steps instead.
_BAD_LOSS = re.compile(
    r"loss\w*[\"']?\s*[:=| ]\s*[-+]?(?:nan|inf)\b|nan iterations:\s*[1-9]", re.IGNORECASE
)
_NORM = re.compile(rf"(?:grad(?:ient)?[ _]?norm|gnorm)[\"']?\s*[:=| ]\s*{_NUMBER}", re.IGNORECASE)
_VALIDATION = re.compile(r"\bvalid|\beval", re.IGNORECASE)


class NumericReading(msgspec.Struct, frozen=True):
    """A label the numbers support; lines are 0-based indices of the telling lines."""

    label: str
    confidence: float
    lines: tuple[int, ...]


class _Log(msgspec.Struct):
    """What the lines of one text say; line numbers are 0-based indices."""

    scales: list[tuple[int, float]] = []
    overflows: list[int] = []
    floor_hits: list[int] = []
    losses: list[float] = []
    bad_losses: list[int] = []
    bad_norms: list[int] = []

    @property
    def is_loss_falling(self) -> bool:
        return len(self.losses) >= 3 and self.losses[-1] < LOSS_FALLING_FRAC * self.losses[0]


def read_numbers(lines: Sequence[str]) -> NumericReading | None:
    """Return the numeric label that a training log shows, or None when it shows none."""
    log = _Log()
    for index, line in enumerate(lines):
        _read_line(log, index, line)
    return _read_not_finite(log) or _read_scale(log)


def _read_line(log: _Log, index: int, line: str) -> None:
    reduced = _REDUCED.search(line)
    scale = reduced or _SCALE.search(line)
    if scale is not None:
        log.scales.append((index, float(scale[1])))
    skipped = _SKIPPED.search(line)
    if reduced or _OVERFLOW.search(line) or (skipped and int(skipped[1]) > 0):
        log.overflows.append(index)
        attempted = _ATTEMPTED.search(line)
        if reduced and attempted and float(attempted[1]) <= float(reduced[1]) <= SCALE_FLOOR_MAX:
            log.floor_hits.append(index)
        return
    _read_loss(log, index, line)


def _read_loss(log: _Log, index: int, line: str) -> None:
    if not _VALIDATION.search(line):
        loss = _LOSS.search(line)
        if _BAD_LOSS.search(line):
            log.bad_losses.append(index)
        elif loss is not None:
            log.losses.append(float(loss[1]))
    norm = _NORM.search(line)
    if norm is not None and not math.isfinite(float(norm[1])):
        log.bad_norms.append(index)


def _read_not_finite(log: _Log) -> NumericReading | None:
    """A loss that is no number; or gradient norms that are none while no step is skipped."""
    if log.bad_losses:
        return NumericReading(NAN_LOSS, 0.85, tuple(log.bad_losses))
    if len(log.bad_norms) >= 2 or (log.bad_norms and not log.losses and not log.overflows):
        return NumericReading(NAN_LOSS, 0.75, tuple(log.bad_norms))
    return None


def _read_scale(log: _Log) -> NumericReading | None:
    """Judge the last loss scale by its size, by what led to it and by what the loss did."""
    if not log.scales:
        return None
    last = log.scales[-1][1]
    telling = tuple(log.overflows or [index for index, _ in log.scales])
    if log.floor_hits:
        sure = len(log.floor_hits) >= 2
        return NumericReading(LOSS_SCALE_COLLAPSE, 0.75 if sure else 0.55, tuple(log.floor_hits))
    if last < 1.0 and log.is_loss_falling:
        return NumericReading(LOSS_SCALE_NORMAL_DRIFT, 0.5 if last < SCALE_GONE else 0.7, telling)
    if last < SCALE_GONE:
        return NumericReading(LOSS_SCALE_COLLAPSE, 0.8, telling)
    if last < 1.0:
        sure = len(log.overflows) >= 2 or len(log.losses) >= 3
        return NumericReading(LOSS_SCALE_COLLAPSE, 0.6 if sure else 0.35, telling)
    if not log.overflows:
        return None
    if last == 1.0 and len(log.overflows) >= 3:
        return NumericReading(LOSS_SCALE_COLLAPSE, 0.5, telling)
    healthy = 0.75 if last >= SCALE_STARTING_UP else 0.5
    return NumericReading(HEALTHY_STARTUP_OVERFLOWS, healthy, telling)
