"""Each GPU has the health that its node, its rank and what is said of both give it."""

from __future__ import annotations

import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.findings import Finding, Severity
from midwatch.logbook.tui.fleet import (
    Gpu,
    Health,
    NodeHealth,
    counts_text,
    fleet_of,
    layout_of,
)
from midwatch.tests.support.builders import decided, fold, started


def healths(*events: ev.Event) -> dict[str, list[Health]]:
    """The health of every GPU of a run of two nodes and a spare after events."""
    nodes = fleet_of(fold(events, started()))
    return {node.node: [gpu.health for gpu in node.gpus] for node in nodes}


def finding(**about: object) -> Finding:
    return Finding("nvml", "xid", Severity.WARN, 1, 1, 0.0, 0.0, "XID 63", **about)  # type: ignore[arg-type]


def test_placed_nodes_train_and_others_are_spares() -> None:
    assert healths() == {
        "n0": [Health.TRAINING] * 2,
        "n1": [Health.TRAINING] * 2,
        "n2": [Health.SPARE] * 2,
    }


def test_a_rank_that_died_fails_alone() -> None:
    found = healths(ev.WorkerExited(1, 3, "n1", signal=9))
    assert found["n1"] == [Health.TRAINING, Health.FAILING]


def test_a_node_that_is_gone_or_out_is_so_with_every_gpu() -> None:
    state = started()
    found = healths(ev.NodeLost("n0", "1", "no heartbeat"), decided(state, d.QuarantineNode("n1")))
    assert found["n0"] == [Health.ABSENT] * 2
    assert found["n1"] == [Health.QUARANTINED] * 2


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"device": "GPU-b"}, [Health.TRAINING, Health.WATCHED]),
        ({"rank": 0}, [Health.WATCHED, Health.TRAINING]),
        ({}, [Health.WATCHED, Health.WATCHED]),
    ],
)
def test_a_finding_concerns_the_gpu_that_it_names(
    about: dict[str, object], expected: list[Health]
) -> None:
    again = ev.NodeJoined("n0", "1", "host", 2, gpus=(("GPU-a", "1"), ("GPU-b", "2")))
    seen = ev.FindingSeen("f-1", 1, finding(node="n0", **about))
    assert healths(again, seen)["n0"] == expected


@pytest.mark.parametrize(("attempt", "expected"), [(1, [1, 0]), (0, [1, 1])])
def test_what_is_to_be_drained_stays_so_whoever_is_rank_0_by_now(
    attempt: int, expected: list[int]
) -> None:
    """The node is passed over by placement until a release, in whatever attempt it was marked."""
    seen = ev.FindingSeen("f-1", attempt, finding(node="n0", rank=0, action="drain"))
    found = healths(seen)["n0"]
    assert [health is Health.DRAINING for health in found] == [bool(each) for each in expected]


def test_a_lemon_is_no_spare() -> None:
    lemon = ev.NodeJoined("n2", "1", "host", 2, lemon="3 failures within 30 d")
    assert healths(lemon)["n2"] == [Health.DRAINING] * 2


def test_shadows_and_older_attempts_say_nothing() -> None:
    shadow = ev.FindingSeen("f-1", 1, finding(node="n0", shadow=True))
    older = ev.FindingSeen("f-2", 0, finding(node="n0"))
    assert healths(shadow, older)["n0"] == [Health.TRAINING] * 2


def test_every_health_reads_without_colour() -> None:
    assert len({health.glyph for health in Health}) == len({health.word for health in Health}) == 7
    nodes = [NodeHealth("n0", "h", Health.SPARE, "", (Gpu(0, None, Health.SPARE),) * 3)]
    assert counts_text(nodes) == "□ 3 spare"
    assert counts_text([]) == "no node has joined yet"


@pytest.mark.parametrize(
    ("count", "width", "height", "with_names", "with_gpus"),
    [
        (124, 118, 24, True, True),
        (124, 78, 16, False, True),
        (124, 78, 9, False, False),
        (2048, 118, 24, False, False),
    ],
)
def test_the_layout_tells_as_much_as_fits(
    count: int, width: int, height: int, with_names: bool, with_gpus: bool
) -> None:
    gpus = tuple(Gpu(index, index, Health.TRAINING) for index in range(8))
    nodes = [NodeHealth(f"n{n:04d}", "h", Health.TRAINING, "", gpus) for n in range(count)]
    layout = layout_of(nodes, width, height)
    assert (layout.with_names, layout.with_gpus) == (with_names, with_gpus)
    assert layout.columns * layout.rows >= count
    assert layout.columns * layout.cell_width <= width
    assert layout.rows <= height
