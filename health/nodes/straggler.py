"""Which rank is slower than the rest, not now and then, but all the time.

A step is as slow as its slowest rank, so one sick GPU slows thousands. Single steps of 3.4 times
the median are normal in healthy runs (a slow read, a collected heap, a neighbour's traffic), so a
rank is called a straggler only when it is behind the median rank in nearly all of the last steps.
Pure, one pass; memory is one number a rank and one bit a step of the window.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import msgspec

from ...logbook.findings import Finding, Severity
from .verdicts import Action

DETECTOR = "straggler"


class StragglerRules(msgspec.Struct, frozen=True):
    """When a rank counts as a straggler.

    ratio:        a rank is slow in a step when it computes this many times as long as the median.
    min_excess_s: and at least so much longer: where steps take milliseconds, noise is all there is.
    window_steps: so many steps are looked back on, and none is judged before.
    slow_frac:    a straggler was slow in this share of them; it is none any more below half of it.
    min_ranks:    fewer ranks than this have no middle to be compared with.
    """

    ratio: float = 1.25
    min_excess_s: float = 0.02
    window_steps: int = 50
    slow_frac: float = 0.9
    min_ranks: int = 3


class _Rank(msgspec.Struct):
    """What is remembered of a rank: in which of the last steps it was slow, and by how much."""

    slow: int = 0
    seen: int = 0
    ratio: float = 1.0
    excess_s: float = 0.0
    is_told: bool = False


class StragglerDetector:
    """Compares what the ranks of one attempt computed in each step."""

    def __init__(self, rules: StragglerRules | None = None) -> None:
        self._rules = rules or StragglerRules()
        self._window = (1 << self._rules.window_steps) - 1
        self._ranks: dict[int, _Rank] = {}

    def restarted(self) -> None:
        """Forget everything: ranks may sit on other nodes now."""
        self._ranks.clear()

    def observe(
        self, step: int, compute_s: Mapping[int, float], nodes: Mapping[int, str]
    ) -> list[Finding]:
        """Take the time that every rank computed in one step, communication excluded.

        Returns: a finding for each rank that has just become a straggler, slowest first; then one
            with action "ignore" for each that has just ceased to be one.
        """
        rules = self._rules
        if len(compute_s) < rules.min_ranks:
            return []
        median_s = statistics.median(compute_s.values())
        if not (math.isfinite(median_s) and median_s > 0):
            return []
        found, over = [], []
        for rank in sorted(compute_s):
            known = self._ranks.setdefault(rank, _Rank())
            was_told = known.is_told
            self._note(known, compute_s[rank], median_s)
            if known.is_told and not was_told:
                found.append((known.ratio, self._finding(step, rank, known, median_s, nodes)))
            elif was_told and not known.is_told:
                over.append(self._over(step, rank, known, nodes))
        return [finding for _, finding in sorted(found, key=lambda pair: -pair[0])] + over

    def _note(self, known: _Rank, spent_s: float, median_s: float) -> None:
        rules = self._rules
        is_slow = spent_s > rules.ratio * median_s and spent_s - median_s > rules.min_excess_s
        known.slow = (known.slow << 1 | is_slow) & self._window
        known.seen = min(known.seen + 1, rules.window_steps)
        # One wild step must not colour the figure that people read.
        clipped = min(spent_s / median_s, 10.0)
        known.ratio += (clipped - known.ratio) / known.seen
        known.excess_s += ((clipped - 1.0) * median_s - known.excess_s) / known.seen
        num_slow = known.slow.bit_count()
        if known.is_told:
            known.is_told = num_slow >= rules.slow_frac / 2 * rules.window_steps
            return
        enough = num_slow >= rules.slow_frac * rules.window_steps
        known.is_told = enough and known.seen >= rules.window_steps

    def _over(self, step: int, rank: int, known: _Rank, nodes: Mapping[int, str]) -> Finding:
        rules = self._rules
        slow = known.slow.bit_count()
        return Finding(
            detector=DETECTOR,
            kind="straggler",
            severity=Severity.OBSERVE,
            step=step,
            onset_step=step,
            value=known.ratio,
            reference=1.0,
            message=f"rank {rank} keeps pace again: slow in {slow} of {rules.window_steps} steps",
            node=nodes.get(rank),
            rank=rank,
            action=Action.IGNORE.value,
        )

    def _finding(
        self, step: int, rank: int, known: _Rank, median_s: float, nodes: Mapping[int, str]
    ) -> Finding:
        rules = self._rules
        return Finding(
            detector=DETECTOR,
            kind="straggler",
            severity=Severity.WARN,
            step=step,
            onset_step=max(step - rules.window_steps + 1, 0),
            value=known.ratio,
            reference=1.0,
            message=f"rank {rank} computes {known.ratio:.2f} times as long as the median rank "
            f"({median_s:.3g} s), in {known.slow.bit_count()} of {rules.window_steps} steps",
            node=nodes.get(rank),
            rank=rank,
            action=Action.DRAIN.value,
            cost_s=max(known.excess_s, 0.0),
        )
