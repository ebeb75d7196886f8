"""The line a person reads for a record, and the filters over records."""

from __future__ import annotations

import msgspec
import pytest
from midwatch.logbook import decisions as de
from midwatch.logbook import events as ev
from midwatch.logbook.plan import AttemptPlan, Placement
from midwatch.logbook.record import Record
from midwatch.logbook.render_text import MAX_TEXT, Filters, known_kinds, line_of
from midwatch.logbook.wire import Hyper, Mesh, StepSample
from midwatch.logbook.words import bytes_text
from midwatch.tests.support.event_strategies import KINDS


def text_of(event: ev.Event) -> str:
    """The part of the line behind time, seq, attempt and kind."""
    return line_of(Record(1, 0.0, 1, 1, event)).split(maxsplit=5)[5]


def start(num_nodes: int) -> de.StartAttempt:
    placements = tuple(Placement(f"node-{i}", 8 * i, 8) for i in range(num_nodes))
    plan = AttemptPlan(4, Mesh(num_nodes, 8), placements, ("step-00000350",), 350, Hyper())
    return de.StartAttempt(plan, rollback_onset=390, lr_factor=0.9, quarantines=("step-00000400",))


def test_the_whole_line() -> None:
    record = Record(17, 1767323045.75, 2, 3, ev.NodeLost("node-1", "abc", "its process died"))
    assert line_of(record) == (
        "2026-01-02 03:04:05.750Z     17  a2   node-lost              "
        "node-1 is gone: its process died"
    )


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            ev.WorkerExited(2, 3, "node-1", signal=9, step=40, phase="backward"),
            "rank 3 on node-1 killed by SIGKILL after step 40 (backward)",
        ),
        (
            ev.WorkerExited(2, 3, "node-1", exit_code=1, code="mesh-does-not-fit", message="x"),
            "rank 3 on node-1 exited with 1 after step 0: [mesh-does-not-fit] x",
        ),
        (
            ev.AttemptResumed(2, 350, "s-350", 0.084, (("s-400", "bad-digest"),)),
            "training at step 350 from s-350, loaded in 84 ms; passed over s-400: bad-digest",
        ),
        (ev.AttemptResumed(1, 0, "", 0.0), "training at step 0 afresh"),
        (ev.CheckpointVerified("step-1", "digest"), "step-1 is NOT sound: digest"),
        (ev.ActionDone("2/7"), "2/7 done"),
        (
            ev.InterventionRequested("i1", "lr-factor", "ann", "too hot", value=0.5),
            "i1 ann asks for lr-factor 0.5: too hot",
        ),
        (
            ev.CommandApplied(1, 3, "n", (0, 1), 60, {"lr": 3e-4}, {"lr": 6e-4}),
            "command 3 in force on n from step 60: lr 0.0006 -> 0.0003",
        ),
        (ev.NoteAdded("ann", "watch this", "inc-1"), "ann on inc-1: watch this"),
        (
            ev.NodeIdentified("node-1", "a", "4c4c", (("GPU-1", "s1"), ("GPU-2", "")), "bad twice"),
            "node-1 has named its hardware: machine 4c4c; GPU-1, GPU-2 (bad twice)",
        ),
    ],
)
def test_phrases(event: ev.Event, text: str) -> None:
    assert text_of(event) == text


def test_a_step_says_nan_and_skipped() -> None:
    sample = StepSample(
        step=9,
        time_s=0.0,
        loss=float("nan"),
        grad_norm=float("inf"),
        lr=6e-4,
        activation_norm=1.0,
        found_inf=True,
        skipped=True,
        loss_scale=0.5,
        tokens=1,
        data_step=9,
        step_s=1.0,
        tokens_per_s=1234.5,
        model_tflops_per_device=0.0,
    )
    text = text_of(ev.StepDone(1, sample))
    assert text.startswith("step 9 loss nan grad inf lr 0.0006 scale 0.5 activation 1 1,23")
    assert "SKIPPED" in text


def test_a_decision_names_action_and_reason_however_many_nodes() -> None:
    for num_nodes, nodes in (
        (2, "node-0, node-1"),
        (124, "node-0, node-1, node-2, node-3 and 120"),
    ):
        decision = de.Decision("3/1", start(num_nodes), "loss scale collapsed", incident="inc-2")
        text = text_of(ev.DecisionMade(decision))
        assert text.startswith(f"3/1 start attempt 4 on {nodes}")
        assert "LR x0.9" in text
        assert text.endswith("never again step-00000400: loss scale collapsed [inc-2]")


def test_an_unknown_kind_is_written_as_key_value() -> None:
    class Odd(msgspec.Struct, tag_field="kind", tag="odd"):
        attempt: int
        text: str
        value: float
        flag: bool
        rows: tuple[int, ...]
        inner: dict[str, float]
        nothing: int | None = None

    line = line_of(Record(1, 0.0, 1, 1, Odd(1, 'a "b"', 1 / 3, True, (1, 2), {"lr": 0.1})))
    assert line.endswith(
        'odd                    text="a \\"b\\"" value=0.333333 flag=yes rows=[1 2] inner=(lr=0.1)'
    )


def test_a_line_is_one_line_and_steers_no_terminal() -> None:
    text = text_of(ev.NoteAdded("ann", "two\nlines \x1b[31mred \u2028 \x9b31m"))
    assert text == "ann: two\\nlines \\x1b[31mred \\u2028 \\x9b31m"
    assert len(text_of(ev.NoteAdded("ann", "x" * 5000))) == MAX_TEXT


def test_filters() -> None:
    records = [
        Record(seq, 0.0, attempt, 1, event)
        for seq, attempt, event in (
            (1, 1, ev.NoteAdded("a", "b")),
            (2, 1, ev.ActionDone("1/1")),
            (3, 2, ev.NoteAdded("a", "b")),
        )
    ]

    def shown(filters: Filters) -> list[int]:
        return [record.seq for record in records if filters.match(record)]

    assert shown(Filters()) == [1, 2, 3]
    assert shown(Filters(kinds=frozenset({"note-added"}))) == [1, 3]
    assert shown(Filters(attempt=1)) == [1, 2]
    assert shown(Filters(since_seq=2)) == [2, 3]
    assert shown(Filters(kinds=frozenset({"note-added"}), attempt=2, since_seq=2)) == [3]


def test_every_kind_is_known_by_name() -> None:
    assert {"decision", "step", "worker-exited"} <= set(known_kinds())
    assert len(known_kinds()) == len(KINDS)


def test_sizes() -> None:
    sizes = [999, 1000, 1_250_000, 350_000_000_000, 2_100_000_000_000]
    assert [bytes_text(s) for s in sizes] == ["999 bytes", "1 kB", "1.25 MB", "350 GB", "2.1 TB"]
