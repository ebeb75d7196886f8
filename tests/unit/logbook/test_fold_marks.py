"""What findings mark on nodes: whose word stays when another's is taken back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.findings import Finding, Severity
from midwatch.logbook.state import NodeState
from midwatch.tests.support.builders import fold, started

SLOW = ("straggler", "straggler", "drain", 2)
ALSO_SLOW = ("straggler", "straggler", "drain", 3)
KEEPS_PACE = ("straggler", "straggler-recovered", "ignore", 2)
SICK = ("nvml", "row-remap-pending", "drain", None)
DISAGREES = ("cross-rank", "rank-gradient-disagrees", "watch", 2)
DISAGREES_MORE = ("cross-rank", "rank-gradient-disagrees", "drain", 2)


def marked(*said: tuple[str, str, str, int | None]) -> NodeState:
    """Node n1 after findings, each (detector, kind, action, rank)."""
    events = [
        ev.FindingSeen(
            f"f-{number:06d}",
            1,
            Finding(
                detector=detector,
                kind=kind,
                severity=Severity.WARN,
                step=5,
                onset_step=5,
                value=0.0,
                reference=0.0,
                message=kind,
                node="n1",
                rank=rank,
                action=action,
            ),
        )
        for number, (detector, kind, action, rank) in enumerate(said, 1)
    ]
    return fold(events, started()).nodes["n1"]


@pytest.mark.parametrize(
    ("said", "drain", "suspicion"),
    [
        ([SLOW], "straggler", "straggler (f-000001)"),
        ([SLOW, KEEPS_PACE], "", ""),
        ([SLOW, SICK], "row-remap-pending", "straggler (f-000001)"),
        ([SLOW, SICK, KEEPS_PACE], "row-remap-pending", "straggler (f-000001)"),
        ([SICK, SLOW, KEEPS_PACE], "row-remap-pending", "straggler (f-000002)"),
        ([DISAGREES, SLOW, KEEPS_PACE], "", "rank-gradient-disagrees (f-000001)"),
        ([SLOW, DISAGREES, KEEPS_PACE], "", "rank-gradient-disagrees (f-000002)"),
        (
            [SLOW, DISAGREES_MORE, KEEPS_PACE],
            "rank-gradient-disagrees",
            "rank-gradient-disagrees (f-000002)",
        ),
        ([ALSO_SLOW, KEEPS_PACE], "straggler", "straggler (f-000001)"),
        ([SICK, DISAGREES_MORE], "row-remap-pending", "rank-gradient-disagrees (f-000002)"),
    ],
)
def test_a_straggler_that_keeps_pace_takes_back_its_own_marks_only(
    said: Sequence[tuple[str, str, str, int | None]], drain: str, suspicion: str
) -> None:
    node = marked(*said)
    assert (node.drain.finding.kind if node.drain is not None else "") == drain
    assert node.suspicion.partition(":")[0] == suspicion
