"""Cross-rank outlier: one rank whose values disagree with all others, again and again.

A GPU that computes wrongly without reporting an error shows up here first. A single odd value does
not mean much: every rank sees its own batch, and batches can be odd.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import msgspec

from ...logbook.findings import Severity
from .config import CrossRankConfig
from .point import Signal


class RankPoint(msgspec.Struct, gc=False):
    """What one rank alone saw in one step, before any reduction across ranks."""

    rank: int
    loss: float | None = None
    grad_norm: float | None = None
    node: str | None = None


class _Oddity(msgspec.Struct, frozen=True, gc=False):
    """One value out of place. gross: so far that no batch explains it."""

    rank: int
    metric: str
    value: float
    median: float
    gross: bool


class _Metric:
    """One metric of every rank: each rank's usual distance from the median rank, and the scatter.

    Distances are logarithms of ratios. Shards differ in size and content, so a rank may sit apart
    from the median for good; only a departure from where it usually sits is news.
    """

    def __init__(self, name: str, config: CrossRankConfig) -> None:
        self.name = name
        self._config = config
        self._usual: dict[int, float] = {}
        self._scatter = 0.0
        self._steps = 0

    def judge(self, values: Sequence[tuple[int, float]]) -> list[_Oddity]:
        """Return every value that is out of place in this step."""
        good = sorted(value for _, value in values if 0.0 < value < math.inf)
        # Without a majority of sound values there is nobody to disagree with: not one rank's fault.
        if len(good) < self._config.min_ranks or 2 * len(good) <= len(values):
            return []
        middle = good[len(good) >> 1]
        found = []
        strays = []
        for rank, value in values:
            if not 0.0 < value < math.inf:
                found.append(_Oddity(rank, self.name, value, middle, True))
                continue
            distance = math.log(value / middle)
            stray = distance - self._usual.get(rank, distance)
            strays.append(abs(stray))
            if self._is_out(stray):
                gross = abs(stray) >= math.log(self._config.gross_ratio)
                found.append(_Oddity(rank, self.name, value, middle, gross))
            else:
                self._learn(rank, distance, stray)
        self._fold_scatter(sorted(strays))
        # Half against half: the median is as likely to be the wrong side.
        return found if 2 * len(found) < len(values) else []

    def _is_out(self, stray: float) -> bool:
        config = self._config
        if self._steps < config.ready_steps:
            return False
        least = math.log(config.min_ratio)
        return abs(stray) > max(config.outlier_z * self._scatter, least)

    def _learn(self, rank: int, distance: float, stray: float) -> None:
        if rank not in self._usual:
            self._usual[rank] = distance
        else:
            pace = 1.0 / min(self._steps + 1, self._config.history_steps)
            self._usual[rank] += pace * stray

    def _fold_scatter(self, strays: list[float]) -> None:
        self._steps += 1
        if self._steps == 1 or not strays:
            return
        # The upper quartile of absolute strays is 1.15 deviations of what ranks usually scatter.
        now = strays[(3 * len(strays)) >> 2] / 1.15
        pace = 1.0 / min(self._steps - 1, self._config.history_steps)
        self._scatter += pace * (now - self._scatter)


class CrossRankDetector:
    """Compares what the ranks report for one step, and counts disagreement per rank."""

    name = "cross-rank"

    def __init__(self, config: CrossRankConfig) -> None:
        self._config = config
        self._metrics = _metrics(config)
        self._strikes: dict[int, list[int]] = {}
        self._told: dict[int, Severity] = {}

    def restarted(self, at_step: int) -> None:
        """Forget the strikes: ranks may sit on other nodes now."""
        self._strikes.clear()
        self._told.clear()
        self._metrics = _metrics(self._config)

    def observe_ranks(self, step: int, points: Iterable[RankPoint]) -> list[Signal]:
        """Take the values of all ranks for one step; return what changed, by rank."""
        ordered = sorted(points, key=lambda point: point.rank)
        node = {point.rank: point.node for point in ordered}
        worst: dict[int, _Oddity] = {}
        for metric in self._metrics:
            values = [
                (point.rank, value)
                for point in ordered
                if (value := getattr(point, metric.name)) is not None
            ]
            for oddity in metric.judge(values):
                if oddity.rank not in worst or oddity.gross:
                    worst[oddity.rank] = oddity
        struck = [self._strike(step, worst[rank], node[rank]) for rank in sorted(worst)]
        signals = [signal for signal in struck if signal is not None]
        return signals + self._forgive(step, worst)

    def _strike(self, step: int, oddity: _Oddity, node: str | None) -> Signal | None:
        rank = oddity.rank
        config = self._config
        strikes = [at for at in self._strikes.get(rank, []) if step - at < config.repeat_steps]
        strikes.append(step)
        self._strikes[rank] = strikes
        if len(strikes) >= config.repeat_count:
            severity = Severity.ROLLBACK
        else:
            severity = Severity.WARN if oddity.gross else Severity.OBSERVE
        if self._told.get(rank) in (severity, Severity.ROLLBACK):
            return None
        self._told[rank] = severity
        return Signal(
            detector=self.name,
            kind="cross-rank-outlier",
            severity=severity,
            onset_step=strikes[0],
            value=oddity.value,
            reference=oddity.median,
            message=f"{oddity.metric} of rank {rank} is {oddity.value:.4g} where the median rank "
            f"has {oddity.median:.4g}, {len(strikes)} times in {step - strikes[0] + 1} steps",
            rank=rank,
            node=node,
        )

    def _forgive(self, step: int, struck: Collection[int]) -> list[Signal]:
        over = [
            rank
            for rank, strikes in sorted(self._strikes.items())
            if rank not in struck and step - strikes[-1] >= self._config.repeat_steps
        ]
        signals = []
        for rank in over:
            onset = self._strikes.pop(rank)[0]
            self._told.pop(rank, None)
            signals.append(
                Signal(
                    detector=self.name,
                    kind="cross-rank-outlier",
                    severity=Severity.OBSERVE,
                    onset_step=onset,
                    value=0.0,
                    reference=0.0,
                    message="agrees with the others again",
                    rank=rank,
                    ended=True,
                )
            )
        return signals


def _metrics(config: CrossRankConfig) -> tuple[_Metric, ...]:
    return _Metric("loss", config), _Metric("grad_norm", config)
