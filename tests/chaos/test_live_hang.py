"""A rank stuck in its own code, alive and well to look at, is named by what it has not called."""

from __future__ import annotations

from pathlib import Path

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.state import Status
from midwatch.operator.runtime.session import Session
from midwatch.tests.support.stuck_rank import STUCK_AT_STEP, STUCK_RANK

from tests.support.live_run import LiveRun, nano_spec

pytestmark = pytest.mark.chaos


def test_the_laggard_is_named_by_the_collective_it_has_not_called(
    session: Session, tmp_path: Path, corpus: Path
) -> None:
    spec = nano_spec(
        "stuck",
        tmp_path / "run",
        corpus,
        entry_points={"worker": "midwatch.tests.support.stuck_rank:main"},
    )
    with LiveRun(spec, session) as run:
        state = run.finish()
        hangs = [e for e in run.events() if isinstance(e, ev.HangSuspected)]
        evidence = [Path(hang.stacks).read_text() for hang in hangs]
    assert (state.status, state.num_attempts) == (Status.COMPLETED, 2)
    (incident,) = state.incidents.values()
    assert (incident.draft.fault, incident.draft.rank) == ("hang", STUCK_RANK)
    assert incident.draft.step == STUCK_AT_STEP - 1
    assert "has not called gloo:" in incident.decisions[0].reason
    rows = {row.rank: row for hang in hangs for row in hang.rows}
    assert sorted(rows) == [0, 1, 2, 3]
    assert all(row.marks for row in rows.values())
    assert all("collectives:" in text for text in evidence)
