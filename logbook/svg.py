"""A small writer of line charts as SVG text: panels one above the other over one shared axis.

Nothing but text is needed to draw, so a controller can illustrate a note without a plotting
library. Values that are not finite leave a gap and a cross at the upper edge of their panel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

import msgspec

from .y_range import cut_text, y_range

WIDTH, LEFT, RIGHT, GAP = 900, 74, 16, 26
POINTS_MAX = 1200
INK, FAINT, GRID = "#24292f", "#57606a", "#e4e7eb"
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
CROSSES_MAX = 40
BARE_MARKS_MAX = 30
"""More marks without a label are but ticks at the bottom: whole lines would hide the curve."""
EXTREME = 1e300
"""Beyond it, differences and powers leave what a float can hold: as good as infinite."""


class Line(msgspec.Struct, frozen=True):
    """One curve: xs rise; ys may hold NaN. label "" leaves it out of the legend.

    is_aside: it has no say in the scale, and may leave the picture.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    label: str = ""
    width: float = 1.4
    is_aside: bool = False


class Mark(msgspec.Struct, frozen=True):
    """A vertical line through every panel; its label stands over the first."""

    x: float
    colour: str
    label: str
    is_dashed: bool = False


class Panel(msgspec.Struct, frozen=True):
    """One chart. log_base: 0 for a plain axis; a panel with a value of 0 or less is plain too.

    is_cut: a few values that would flatten the rest leave the picture, and its title says so.
    """

    title: str
    lines: Sequence[Line]
    log_base: float = 0.0
    height: int = 110
    is_cut: bool = False


class _Scale(msgspec.Struct, frozen=True):
    """Maps values of [low, high] to pixels of [start, end]."""

    low: float
    high: float
    start: float
    end: float
    log_base: float = 0.0

    def at(self, value: float) -> float:
        low, high, value = (self._of(v) for v in (self.low, self.high, value))
        part = (value - low) / (high - low) if high > low else 0.5
        # What lies far outside is cut off by its panel; an endless number would be no pixel.
        return self.start + min(max(part, -1.0), 2.0) * (self.end - self.start)

    def _of(self, value: float) -> float:
        return math.log(max(value, 1 / EXTREME)) if self.log_base else value


def draw(panels: Sequence[Panel], title: str, x_label: str, marks: Sequence[Mark] = ()) -> str:
    """Return the SVG of panels over one x axis."""
    shown = [panel for panel in panels if any(_finite(line.ys) for line in panel.lines)]
    xs = [x for panel in shown for line in panel.lines for x in line.xs]
    xs += [mark.x for mark in marks]
    x_scale = _Scale(min(xs, default=0.0), max(xs, default=1.0), LEFT, WIDTH - RIGHT)
    rows = _label_rows(marks, x_scale)
    top = 34.0 + 13.0 * (max(rows, default=-1) + 1)
    body: list[str] = []
    y = top
    for panel in shown:
        body += _panel(panel, x_scale, y + 16)
        y += 16 + panel.height + GAP - 16
    bottom = y - GAP + 16
    under = _marks(marks, rows, x_scale, top + 10, bottom)
    axis = _x_axis(x_scale, top + 16, bottom, x_label)
    if not shown:
        axis = [text(LEFT, bottom + 10, "nothing was recorded", FAINT)]
    return document(title, bottom + 36, [*axis, *under, *body])


def document(title: str, height: float, body: Iterable[str]) -> str:
    """Return an SVG of WIDTH by height with a title and a body of elements."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}" role="img" font-family="{escape(FONT)}" '
        f'font-size="11"><title>{clean(title)}</title>'
    )
    paper = f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>'
    caption = text(8, 18, title, INK, weight="600", size=13)
    return "\n".join([head, paper, caption, *body, "</svg>", ""])


def text(
    x: float, y: float, words: str, colour: str, anchor: str = "start", size: int = 11,
    weight: str = "400",
) -> str:  # fmt: skip
    """Return a line of text whose baseline begins (or ends, or is centred) at x, y."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" '
        f'font-size="{size}" font-weight="{weight}">{clean(words)}</text>'
    )


def clean(words: str) -> str:
    """Return words as XML text: escaped, without what XML has no room for."""
    return escape("".join(c if c.isprintable() else " " for c in words))


def thin(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Return at most about POINTS_MAX points: the lowest and highest of each slice, in order.

    A slice with a value that is not finite keeps one of them.
    """
    points = list(zip(xs, ys, strict=True))
    if len(points) <= POINTS_MAX:
        return points
    size = math.ceil(2 * len(points) / POINTS_MAX)
    kept: list[tuple[float, float]] = []
    for first in range(0, len(points), size):
        part = points[first : first + size]
        finite = [p for p in part if _is_drawn(p[1])]
        ends = {min(finite, key=_y), max(finite, key=_y)} if finite else set()
        odd = [p for p in part if not _is_drawn(p[1])][:1]
        kept += sorted({*ends, *odd}, key=lambda point: point[0])
    return kept


def _y(point: tuple[float, float]) -> float:
    return point[1]


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if _is_drawn(value)]


def _is_drawn(value: float) -> bool:
    return math.isfinite(value) and abs(value) < EXTREME


def _panel(panel: Panel, x_scale: _Scale, top: float) -> list[str]:
    values = [v for line in panel.lines if not line.is_aside for v in _finite(line.ys)]
    values = values or [v for line in panel.lines for v in _finite(line.ys)]
    low, high, title = min(values), max(values), panel.title
    log_base = panel.log_base if low > 1 / EXTREME else 0.0
    if panel.is_cut and not log_base:
        shown = y_range([(value, value) for value in values])
        low, high, title = shown.low, shown.high, title + cut_text(shown, ".4g")
    if not log_base:
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - room, high + room
    elif low == high:
        low, high = low / log_base, high * log_base
    scale = _Scale(low, high, top + panel.height, top, log_base)
    parts = [text(LEFT, top - 4, title, INK, weight="600")]
    last_y = math.inf
    for tick in ticks(low, high, log_base):
        y = scale.at(tick)
        if last_y - y < 11:
            continue
        last_y = y
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>'
        )
        parts.append(text(LEFT - 6, y + 4, number(tick), FAINT, "end", 10))
    box = f"{LEFT} {top:.1f} {WIDTH - LEFT - RIGHT} {panel.height}"
    parts.append(
        f'<svg x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{panel.height}" '
        f'viewBox="{box}" overflow="hidden">'
    )
    for line in panel.lines:
        parts += _curve(line, x_scale, scale)
    return [*parts, "</svg>", *_legend(panel, top)]


def log_if_wide(lines: Sequence[Line], ratio: float) -> float:
    """Return 10 for curves whose values are more than ratio apart, 0 for others."""
    values = [v for line in lines for v in _finite(line.ys)]
    is_wide = bool(values) and min(values) > 0 and max(values) > ratio * min(values)
    return 10.0 if is_wide else 0.0


def _legend(panel: Panel, top: float) -> list[str]:
    parts: list[str] = []
    x = float(WIDTH - RIGHT)
    for line in reversed([line for line in panel.lines if line.label]):
        parts.append(text(x, top - 4, line.label, line.colour, "end", 10))
        x -= 6.2 * len(line.label) + 14
    return parts


def _curve(line: Line, x_scale: _Scale, y_scale: _Scale) -> list[str]:
    runs: list[list[str]] = [[]]
    crosses: list[float] = []
    for x, y in thin(line.xs, line.ys):
        if _is_drawn(y):
            runs[-1].append(f"{x_scale.at(x):.1f},{y_scale.at(y):.1f}")
        elif runs[-1] or len(crosses) < CROSSES_MAX:
            crosses.append(x_scale.at(x))
            runs.append([])
    style = (
        f'fill="none" stroke="{line.colour}" stroke-width="{line.width}" stroke-linejoin="round"'
    )
    parts = [f'<polyline {style} points="{" ".join(run)}"/>' for run in runs if len(run) > 1]
    for run in runs:
        if len(run) == 1:
            at_x, at_y = run[0].split(",")
            parts.append(f'<circle cx="{at_x}" cy="{at_y}" r="1.8" fill="{line.colour}"/>')
    top = y_scale.end
    parts += [
        f'<path d="M{x - 3:.1f} {top:.1f}l6 6m0 -6l-6 6" stroke="#cf222e" stroke-width="1.4"/>'
        for x in crosses[:CROSSES_MAX]
    ]
    return parts


def _x_axis(scale: _Scale, top: float, bottom: float, label: str) -> list[str]:
    parts = [text((LEFT + WIDTH - RIGHT) / 2, bottom + 28, label, FAINT, "middle")]
    for tick in ticks(scale.low, scale.high):
        x = scale.at(tick)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="{GRID}"/>'
        )
        parts.append(text(x, bottom + 14, number(tick), FAINT, "middle", 10))
    return parts


def _label_rows(marks: Sequence[Mark], scale: _Scale) -> list[int]:
    """Return for each mark the row of its label, so that none covers another; -1 without one."""
    ends: list[float] = []
    rows: list[int] = []
    for mark in marks:
        if not mark.label:
            rows.append(-1)
            continue
        start = _label_start(mark, scale)
        row = next((r for r, end in enumerate(ends) if end < start), len(ends))
        ends[row : row + 1] = [start + 6.0 * len(mark.label) + 10]
        rows.append(row)
    return rows


def _label_start(mark: Mark, scale: _Scale) -> float:
    return max(min(scale.at(mark.x) + 3, WIDTH - RIGHT - 6.0 * len(mark.label)), 4.0)


def _marks(
    marks: Sequence[Mark], rows: Sequence[int], scale: _Scale, top: float, bottom: float
) -> list[str]:
    parts: list[str] = []
    is_crowded = rows.count(-1) > BARE_MARKS_MAX
    for mark, row in zip(marks, rows, strict=True):
        x = scale.at(mark.x)
        bare_y = bottom - 10.0 if is_crowded else top
        label_y = 34.0 + 13.0 * row if mark.label else bare_y
        dash = ' stroke-dasharray="4 3"' if mark.is_dashed else ""
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{label_y + 3:.1f}" y2="{bottom:.1f}" '
            f'stroke="{mark.colour}" stroke-width="1.1"{dash}/>'
        )
        if mark.label:
            start = _label_start(mark, scale)
            parts.append(text(start, label_y, mark.label, mark.colour, size=10))
    return parts


def ticks(low: float, high: float, log_base: float = 0.0, most: int = 6) -> list[float]:
    """Return round values within [low, high]; powers of the base where there is one."""
    if not high - low > 1 / EXTREME:
        return [low]
    if log_base:
        first, last = math.ceil(_power(low, log_base)), math.floor(_power(high, log_base))
        every = max(1, math.ceil((last - first + 1) / most))
        powers = [log_base**power for power in range(first, last + 1, every)]
        if len(powers) > 1:
            return powers
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _power(value: float, base: float) -> float:
    # Rounded: the logarithm of a whole power may miss it by the last bit.
    return round(math.log(value, base), 9)


def number(value: float) -> str:
    """Return a tick's value in few characters: 12,000, 0.25, 3e-05."""
    if value and (abs(value) >= 1e7 or abs(value) < 1e-3):
        return f"{value:.3g}"
    return f"{value:,.6g}" if value == round(value, 6) else f"{value:,.4g}"
