"""Cross-rank outlier: one rank whose values disagree with all others, again and again.

A GPU that computes wrongly without reporting an error shows up here first. A loss out of place does
not prove one: every rank reads data of its own, and a long document that is unusually hard or easy
keeps one rank away from the others for many steps. A gradient shard is summed over the data of
all ranks, so no data explains one that is out of place by itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import msgspec

from ...logbook.findings import Severity
from .config import CrossRankConfig
from .point import Signal

_LOSS, _GRAD_NORM = "loss", "grad_norm"


class RankPoint(msgspec.Struct, gc=False):
    """What one rank alone saw in one step, before any reduction across ranks."""

    rank: int
    loss: float | None = None
    grad_norm: float | None = None
    node: str | None = None


class _Oddity(msgspec.Struct, frozen=True, gc=False):
    """One value out of place. gross: so far that no batch explains it.

    blank: NaN or zero, which is also what the mean over a batch without a single label gives.
    """

    rank: int
    metric: str
    value: float
    median: float
    gross: bool
    blank: bool = False


class _Strike(msgspec.Struct, frozen=True, gc=False):
    """One step in which a rank was out of place. grave: in a way that data does not explain."""

    step: int
    grave: bool


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
        odd_strays = []
        for rank, value in values:
            if not 0.0 < value < math.inf:
                blank = self.name == _LOSS and (value == 0.0 or math.isnan(value))
                found.append(_Oddity(rank, self.name, value, middle, not blank, blank))
                continue
            distance = math.log(value / middle)
            stray = distance - self._usual.get(rank, distance)
            if self._is_out(stray):
                gross = abs(stray) >= math.log(self._config.gross_ratio)
                found.append(_Oddity(rank, self.name, value, middle, gross))
                odd_strays.append(abs(stray))
            else:
                strays.append(abs(stray))
                self._learn(rank, distance, stray)
        # Half against half: the median is as likely to be the wrong side.
        few = 2 * len(found) < len(values)
        # What a few ranks stray is not what ranks usually scatter; among four it would soon be.
        self._fold_scatter(sorted(strays if few else strays + odd_strays))
        return found if few else []

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
        self._strikes: dict[int, list[_Strike]] = {}
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
        odd: dict[int, list[_Oddity]] = {}
        for metric in self._metrics:
            values = [
                (point.rank, value)
                for point in ordered
                if (value := getattr(point, metric.name)) is not None
            ]
            for oddity in metric.judge(values):
                odd.setdefault(oddity.rank, []).append(oddity)
        struck = [self._strike(step, odd[rank], node[rank]) for rank in sorted(odd)]
        signals = [signal for signal in struck if signal is not None]
        return signals + self._forgive(step, odd)

    def _strike(self, step: int, oddities: list[_Oddity], node: str | None) -> Signal | None:
        """Count one step in which a rank was out of place; return what that comes to, if new."""
        worst = oddities[-1]
        rank = worst.rank
        # Hard data moves the loss, and may move the gradient with it; it does not make it infinite.
        grave = worst.metric == _GRAD_NORM and (
            len(oddities) == 1 or not math.isfinite(worst.value)
        )
        last_steps = self._config.lasting_steps
        strikes = [at for at in self._strikes.get(rank, []) if step - at.step < last_steps]
        strikes.append(_Strike(step, grave))
        self._strikes[rank] = strikes
        severity = self._severity(step, strikes, oddities)
        if severity is None or self._told.get(rank) in (severity, Severity.ROLLBACK):
            return None
        self._told[rank] = severity
        return Signal(
            detector=self.name,
            kind="cross-rank-outlier",
            severity=severity,
            onset_step=strikes[0].step,
            value=worst.value,
            reference=worst.median,
            message=f"{worst.metric} of rank {rank} is {worst.value:.4g} where the median rank "
            f"has {worst.median:.4g}, {len(strikes)} times in {step - strikes[0].step + 1} steps",
            rank=rank,
            node=node,
        )

    def _severity(
        self, step: int, strikes: list[_Strike], oddities: list[_Oddity]
    ) -> Severity | None:
        config = self._config
        grave = sum(at.grave and step - at.step < config.repeat_steps for at in strikes)
        if grave >= config.repeat_count:
            return Severity.ROLLBACK
        if len(strikes) >= config.lasting_count or any(oddity.gross for oddity in oddities):
            return Severity.WARN
        return None if all(oddity.blank for oddity in oddities) else Severity.OBSERVE

    def _forgive(self, step: int, struck: Collection[int]) -> list[Signal]:
        over = [
            rank
            for rank, strikes in sorted(self._strikes.items())
            if rank not in struck and step - strikes[-1].step >= self._config.repeat_steps
        ]
        signals = []
        for rank in over:
            onset = self._strikes.pop(rank)[0].step
            if self._told.pop(rank, None) is None:
                continue
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
    return _Metric(_LOSS, config), _Metric(_GRAD_NORM, config)
