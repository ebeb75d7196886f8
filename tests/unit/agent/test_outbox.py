"""Retain and acknowledge: nothing that matters is forgotten early, and memory stays bounded."""

from __future__ import annotations

import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from midwatch.operator.agent.outbox import Deliverer, Outbox
from midwatch.operator.agent.reports import (
    AgentNote,
    AgentReport,
    AgentStatus,
    RankSamples,
    WorkerMessages,
)
from midwatch.tests.support.agents import Recorder
from midwatch.tests.support.fake_trainer import rank_sample, step_sample


def note(text: str = "x") -> AgentNote:
    return AgentNote(attempt=1, code="test", message=text)


def samples(count: int) -> RankSamples:
    batch = tuple(rank_sample(0, step) for step in range(count))
    return RankSamples(attempt=1, batch=batch, stride=1, dropped_total=0)


def steps(count: int) -> WorkerMessages:
    return WorkerMessages(attempt=1, batch=tuple((0, step_sample(step)) for step in range(count)))


def status() -> AgentStatus:
    return AgentStatus(
        attempt=1,
        rows=(),
        pids={},
        forkserver="ready",
        forkserver_error="",
        threads=1,
        rendezvous_host="h",
        rendezvous_port=1,
        samples_dropped_total=0,
        reports_dropped_total=0,
        reports_lost_total=0,
    )


def seqs(reports: list[AgentReport]) -> list[int]:
    return [report.seq for report in reports]


def test_reports_are_stamped_in_order() -> None:
    outbox = Outbox("node-a", 1 << 20)
    assert [outbox.push(note()) for _ in range(3)] == [1, 2, 3]
    taken = outbox.take()
    assert [(report.seq, report.node, report.agent) for report in taken] == [
        (seq, "node-a", outbox.agent) for seq in (1, 2, 3)
    ]
    assert all(report.time_s > 1e9 for report in taken)


def test_two_lives_of_an_agent_are_told_apart() -> None:
    assert Outbox("node-a", 1).agent != Outbox("node-a", 1).agent


def test_what_was_taken_is_kept_until_acknowledged() -> None:
    outbox = Outbox("node-a", 1 << 20)
    for _ in range(4):
        outbox.push(note())
    assert outbox.unacknowledged() == []
    outbox.take()
    assert seqs(outbox.unacknowledged()) == [1, 2, 3, 4]
    outbox.acknowledge(2)
    assert seqs(outbox.unacknowledged()) == [3, 4]
    outbox.acknowledge(1)
    outbox.acknowledge(99)
    assert outbox.unacknowledged() == []


def test_a_newer_status_replaces_an_unread_one() -> None:
    outbox = Outbox("node-a", 1 << 20)
    outbox.push(status())
    outbox.push(note())
    outbox.push(status())
    assert [(type(report), report.seq) for report in outbox.take()] == [
        (AgentNote, 2),
        (AgentStatus, 3),
    ]
    outbox.push(status())
    assert seqs(list(outbox.unacknowledged())) == [2]


def test_overflow_drops_samples_and_status_before_anything_else() -> None:
    size = len(msgspec.msgpack.encode(steps(10)))
    outbox = Outbox("node-a", 6 * size)
    outbox.push(status())
    for _ in range(20):
        outbox.push(samples(10))
    for _ in range(5):
        outbox.push(steps(10))
    kept = list(outbox.take())
    assert len([report for report in kept if isinstance(report, WorkerMessages)]) == 5
    assert outbox.dropped_total > 10
    assert outbox.lost_total == 0


def test_overflow_of_durable_reports_loses_the_oldest_and_counts() -> None:
    size = len(msgspec.msgpack.encode(steps(10)))
    outbox = Outbox("node-a", 6 * size)
    for _ in range(20):
        outbox.push(steps(10))
    kept = list(outbox.take())
    assert seqs(kept) == list(range(21 - len(kept), 21))
    assert outbox.lost_total == 20 - len(kept)


@given(st.lists(st.sampled_from(["note", "samples", "status", "take", "acknowledge"]), max_size=60))
def test_every_report_is_delivered_dropped_or_replaced_and_order_holds(actions: list[str]) -> None:
    outbox = Outbox("node-a", 3000)
    delivered: list[AgentReport] = []
    pushed = 0
    for action in [*actions, "note", "take"]:
        if action == "take":
            if pushed > len(delivered) and outbox._fresh:
                delivered += outbox._take_fresh()
        elif action == "acknowledge" and delivered:
            outbox.acknowledge(delivered[-1].seq)
        elif action in ("note", "samples", "status"):
            made = {"note": note, "samples": lambda: samples(5), "status": status}[action]
            pushed = outbox.push(made())
    assert seqs(delivered) == sorted(set(seqs(delivered)))
    notes = [report for report in delivered if isinstance(report, AgentNote)]
    assert len(notes) + outbox.lost_total >= actions.count("note") + 1
    assert outbox._bytes == sum(size for _, size in outbox._kept.values())
    assert outbox._bytes <= 3000


def test_taking_waits_for_a_push_and_ends_with_close() -> None:
    outbox = Outbox("node-a", 1 << 20)
    recorder = Recorder()
    deliverer = Deliverer(outbox, recorder, "test-reports")
    deliverer.begin()
    outbox.push(note("a"))
    recorder.wait(AgentNote)
    outbox.push(note("b"))
    deliverer.close(10.0)
    assert [report.message for report in recorder.all_of(AgentNote)] == ["a", "b"]


def test_a_reader_that_raises_is_asked_again_and_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox = Outbox("node-a", 1 << 20)
    seen: list[int] = []
    failed = threading.Event()

    def reader(reports: list[AgentReport]) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("the controller is away")
        seen.extend(seqs(reports))

    deliverer = Deliverer(outbox, reader, "test-reports")
    deliverer.begin()
    outbox.push(note())
    assert failed.wait(10.0)
    outbox.push(note())
    deliverer.close(10.0)
    assert seen == [2]
    assert seqs(outbox.unacknowledged()) == [1, 2]
    assert "the controller is away" in caplog.text
