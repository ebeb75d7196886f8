"""The stretch of steps that all charts show: zoomed, moved along, or following the run. Pure."""

from __future__ import annotations

import msgspec

MIN_STEPS = 16
ZOOM = 2.0
PAN_FRAC = 0.25


class Span(msgspec.Struct, frozen=True):
    """steps: how many are shown, None for all. end: the last one shown, None for the newest."""

    steps: int | None = None
    end: int | None = None

    def bounds(self, first: int, last: int) -> tuple[int, int]:
        """Return the first and the last step shown of a run with steps first to last."""
        end = last if self.end is None else min(self.end, last)
        if self.steps is None:
            return first, max(end, first + 1)
        begin = max(end - self.steps + 1, first)
        return begin, max(begin + self.steps - 1, begin + 1)

    def zoomed(self, closer: bool, first: int, last: int) -> Span:
        """Return the span that shows half or twice as much around the same middle.

        A span that follows the run goes on following it.
        """
        begin, end = self.bounds(first, last)
        shown, total = end - begin + 1, max(last - first + 1, 2)
        steps = int(shown / ZOOM) if closer else int(shown * ZOOM)
        steps = max(min(steps, total), min(MIN_STEPS, total))
        if steps >= total:
            return Span()
        if self.end is None:
            return Span(steps)
        return Span(steps, min((begin + end + steps) // 2, last))

    def panned(self, later: bool, first: int, last: int) -> Span:
        """Return the span a quarter of its width further on; at the end it follows the run."""
        if self.steps is None:
            return self
        _, end = self.bounds(first, last)
        move = max(int(self.steps * PAN_FRAC), 1)
        end = end + move if later else max(end - move, first + self.steps - 1)
        return Span(self.steps, None if end >= last else end)

    def centred(self, step: int, first: int, last: int) -> Span:
        """Return the span of the same width, or a tenth of all, around a step."""
        steps = self.steps or max((last - first + 1) // 10, MIN_STEPS)
        end = step + steps // 2
        return Span(steps, None if end >= last else max(end, first + steps - 1))
