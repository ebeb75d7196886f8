"""Points out of the log lines of Megatron-LM and DeepSpeed.

Traps in such logs, all met in recorded ones: the loss field is left out when it is NaN, and the
counter of NaN iterations can stay 0; after an overflow the printed gradient norm is the previous
one; a loss scale at its floor is printed as "reducing to" itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

from ..numerics.point import Point
from .fields import FORMATS_READ, unreadable

_MEGATRON = re.compile(r"\biteration\s+(\d+)\s*/\s*\d+\s*\|(.*)")
_MEGATRON_LOSS = ("lm loss", "loss", "reduced_train_loss", "language loss")
_NUMBER = r"([-+]?(?:\d[\d.]*(?:[eE][-+]?\d+)?|nan|inf(?:inity)?))"
_STEP = re.compile(r"\bsteps?\s*[:=]\s*(\d+)")
_LOSS = re.compile(rf"\bloss\s*[:=]\s*{_NUMBER}", re.IGNORECASE)
_LR = re.compile(rf"\blr\s*[:=]\s*\[?{_NUMBER}")
_SKIPPED = re.compile(r"\bskipped\s*=\s*(\d+)")
_OVERFLOW = re.compile(
    rf"overflow.*Attempted loss scale: {_NUMBER},(?: reducing to {_NUMBER})?", re.IGNORECASE
)


def looks_like_log(line: str) -> bool:
    """Whether line is one that read_log() would take a value from."""
    return bool(_MEGATRON.search(line) or _OVERFLOW.search(line) or _is_step_line(line))


def read_log(lines: Iterable[tuple[int, str]], source: str) -> Iterator[Point]:
    """Yield the points of a log; lines of other kinds are passed over.

    lines: (line number, text).
    Raises: ConfigError[replay-unreadable] for a line of a known kind with an impossible value, or
        when no line is of a known kind.
    """
    deepspeed = _DeepSpeed()
    seen, last_line, last_step = False, 1, 0
    for line_number, line in lines:
        last_line = line_number
        try:
            match = _MEGATRON.search(line)
            if match:
                point = _megatron(int(match[1]), match[2], last_step)
                last_step = point.step
                seen = True
                yield point
                continue
            known, done = deepspeed.take(line)
        except ValueError as error:
            raise unreadable(source, line_number, str(error)) from error
        seen = seen or known
        if done is not None:
            yield done
    rest = deepspeed.flush()
    if rest is not None:
        yield rest
    if not seen:
        raise unreadable(
            source,
            last_line,
            "no line up to here is from Megatron-LM or DeepSpeed",
            FORMATS_READ,
        )


def _megatron(step: int, rest: str, last_step: int) -> Point:
    values: dict[str, str] = {}
    for part in rest.split("|"):
        key, colon, text = part.rpartition(":")
        if colon:
            values[key.strip().lower()] = text.strip()
    skipped = round(_value(values, "number of skipped iterations") or 0.0)
    loss = next((_value(values, key) for key in _MEGATRON_LOSS if key in values), None)
    # Steps since the last line; all of them skipped is the one case in which no loss is normal.
    gap = step - last_step if 0 < last_step < step else 1
    if loss is None and skipped < gap:
        loss = math.nan
    return Point(
        step=step,
        loss=loss,
        grad_norm=_value(values, "grad norm"),
        loss_scale=_value(values, "loss scale"),
        lr=_value(values, "learning rate"),
        skipped=skipped,
    )


def _value(values: dict[str, str], key: str) -> float | None:
    if key not in values:
        return None
    try:
        return float(values[key])
    except ValueError:
        raise ValueError(f"{key!r} has {values[key]!r}, which is not a number") from None


def _is_step_line(line: str) -> bool:
    return bool(_STEP.search(line) and (_LOSS.search(line) or _SKIPPED.search(line)))


class _DeepSpeed:
    """Collects what several lines say about one step, and overflows, which carry no step."""

    def __init__(self) -> None:
        self._pending: Point | None = None
        self._scale: float | None = None
        self._skipped_total: int | None = None
        self._overflows = 0

    def take(self, line: str) -> tuple[bool, Point | None]:
        """Return (line is of a known kind, the point it completes or None)."""
        overflow = _OVERFLOW.search(line)
        if overflow:
            self._overflows += 1
            self._scale = float(overflow[2] or overflow[1])
            return True, None
        if not _is_step_line(line):
            return False, None
        match = _STEP.search(line)
        assert match is not None
        step = int(match[1])
        done = None
        if self._pending is None or self._pending.step != step:
            done = self.flush()
            self._pending = Point(step=step, loss_scale=self._scale, skipped=self._overflows)
            self._overflows = 0
        self._fill(self._pending, line)
        return True, done

    def flush(self) -> Point | None:
        """Return the point that is being collected, if any."""
        done, self._pending = self._pending, None
        return done

    def _fill(self, point: Point, line: str) -> None:
        if loss := _LOSS.search(line):
            point.loss = float(loss[1])
        if lr := _LR.search(line):
            point.lr = float(lr[1])
        if skipped := _SKIPPED.search(line):
            total = int(skipped[1])
            since = total - self._skipped_total if self._skipped_total is not None else total
            point.skipped = max(point.skipped, since, 0)
            self._skipped_total = total
