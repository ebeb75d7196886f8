"""A GPU dies under a live run: a real agent sees it in its driver, and another node takes over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.state import RunState, Status
from midwatch.operator.runtime.session import Session

from tests.support.live_run import LiveRun, nano_spec
from tests.support.nvml_stub import NvmlStub, build, uuid_of

pytestmark = pytest.mark.chaos


def test_an_xid_on_one_node_moves_its_ranks_to_the_spare(
    session: Session, tmp_path: Path, corpus: Path
) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler for the stand-in driver")
    library = build(tmp_path)
    driver = NvmlStub(library, tmp_path / "control")
    nodes = {"ranks_per_node": 2, "spares": 1, "watch_gpus": "on", "kernel_log": "off"}
    spec = nano_spec(
        "xid",
        tmp_path / "run",
        corpus,
        trainer={"steps": 120},
        nodes=nodes,
        env=driver.environment,
    )
    struck: list[str] = []

    def xid_79(state: RunState) -> bool:
        if state.step < 12 or state.attempt is None:
            return False
        node = state.attempt.plan.nodes[1]
        NvmlStub(library, tmp_path / f"control.{node}").send_xid(0, 79)
        struck.append(node)
        return True

    with LiveRun(spec, session) as run:
        state = run.finish(xid_79)
        findings = [e.finding for e in run.events() if isinstance(e, ev.FindingSeen)]
        log = (run.run_dir / "logs" / f"agent-{struck[0]}.log").read_text()
    assert state.status is Status.COMPLETED
    assert state.num_attempts == 2
    xids = [(f.node, f.device, f.action) for f in findings if f.kind == "xid"]
    assert xids == [(struck[0], uuid_of(0), "evict")]
    assert [n.node for n in state.nodes.values() if n.quarantined] == struck
    assert [(i.draft.fault, i.draft.node) for i in state.incidents.values()] == [("xid", struck[0])]
    assert "GPUs are watched" in log
    book = json.loads((tmp_path / "lemons.json").read_text())
    assert book["gpus"][uuid_of(0)]["last_cause"] == "xid"
