"""What would have been seen and decided: the panel and a policy over a recorded curve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from ...logbook import record
from ...logbook.findings import Finding
from ..numerics.config import PanelConfig
from ..numerics.panel import Panel
from ..numerics.point import Point

Decide = Callable[[Finding], tuple[str, float]]


class ReplayRow(msgspec.Struct, frozen=True):
    """One finding and what the policy would have done about it.

    decision: the policy's word; lr_factor: by which it would have multiplied the remaining
    schedule, 1.0 for not at all.
    """

    step: int
    kind: str
    severity: str
    detector: str
    onset_step: int
    value: float
    reference: float
    decision: str
    lr_factor: float


def decide_nothing(finding: Finding) -> tuple[str, float]:
    """Return ("none", 1.0): for a replay that only asks what would have been seen."""
    return "none", 1.0


def replay(
    points: Iterable[Point],
    config: PanelConfig | None = None,
    decide: Decide = decide_nothing,
) -> Iterator[ReplayRow]:
    """Yield one row per finding, in the order in which they would have been made.

    The curve goes on as it was recorded whatever is decided, so after a decision to roll back the
    rows tell what the run that was not rolled back looked like.
    """
    panel = Panel(config)
    for point in points:
        for finding in panel.update(point):
            decision, lr_factor = decide(finding)
            yield ReplayRow(
                step=finding.step,
                kind=finding.kind,
                severity=finding.severity.value,
                detector=finding.detector,
                onset_step=finding.onset_step,
                value=finding.value,
                reference=finding.reference,
                decision=decision,
                lr_factor=lr_factor,
            )


def to_json(row: ReplayRow) -> str:
    """Return row as one JSON object on one line; a value that is not finite stands as its word."""
    return record.to_json(row).decode()
