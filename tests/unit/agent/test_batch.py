"""Batches: order is kept, attempts are not mixed, a slow reader costs samples and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from midwatch.logbook.wire import Applied, RankSample, StepSample
from midwatch.operator.agent.batch import MessageBatch, SampleBuffer
from midwatch.operator.agent.outbox import Outbox
from midwatch.operator.agent.reports import RankSamples, WorkerMessages
from midwatch.tests.support.fake_trainer import rank_sample, step_sample


def test_messages_leave_in_order_with_the_next_flush() -> None:
    outbox = Outbox("node-a", 1 << 20)
    batch = MessageBatch(outbox)
    batch.add(1, 0, step_sample(1))
    batch.add(1, 1, Applied(1, 7, 2, {"lr": 0.5}))
    batch.add(1, 0, rank_sample(0, 1))
    batch.flush()
    batch.flush()
    messages, samples = outbox.take()
    assert isinstance(messages, WorkerMessages)
    assert [(rank, type(message)) for rank, message in messages.batch] == [
        (0, StepSample),
        (1, Applied),
    ]
    assert isinstance(samples, RankSamples)
    assert samples.batch == (rank_sample(0, 1),)


def test_two_attempts_never_share_a_report() -> None:
    outbox = Outbox("node-a", 1 << 20)
    batch = MessageBatch(outbox)
    for attempt in (1, 2, 1):
        batch.add(attempt, 0, step_sample(attempt))
        batch.add(attempt, 0, rank_sample(0, attempt))
    batch.flush()
    outbox.take()
    reports = outbox.unacknowledged()
    for report in reports:
        assert isinstance(report, WorkerMessages | RankSamples)
        steps = [entry[1] if isinstance(entry, tuple) else entry for entry in report.batch]
        assert {step.step for step in steps} == {report.attempt}


def test_a_flood_is_cut_into_bounded_reports() -> None:
    outbox = Outbox("node-a", 1 << 30)
    batch = MessageBatch(outbox)
    for step in range(2000):
        batch.add(1, 0, step_sample(step))
    batch.flush()
    reports = list(outbox.take())
    sizes = [len(report.batch) for report in reports if isinstance(report, WorkerMessages)]
    assert max(sizes) <= 512
    assert sum(sizes) == 2000


def test_a_reader_that_lags_gets_thinned_samples_and_every_step() -> None:
    outbox = Outbox("node-a", 1 << 30)
    batch = MessageBatch(outbox)
    for step in range(5000):
        batch.add(1, 0, step_sample(step))
        for rank in range(4):
            batch.add(1, rank, rank_sample(rank, step))
        batch.flush()
    seen: list[RankSample] = []
    steps = 0
    outbox.close()
    while reports := outbox.take():
        batch.flush()
        for report in reports:
            if isinstance(report, RankSamples):
                seen += report.batch
            elif isinstance(report, WorkerMessages):
                steps += len(report.batch)
    assert steps == 5000
    assert len(seen) + batch.samples_dropped_total == 20000
    assert 0 < batch.samples_dropped_total < 20000
    by_step: dict[int, set[int]] = {}
    for sample in seen:
        by_step.setdefault(sample.step, set()).add(sample.rank)
    assert all(ranks == {0, 1, 2, 3} for ranks in by_step.values())
    assert max(by_step) > 4900


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3)), max_size=200))
def test_the_sample_buffer_is_bounded_and_counts_what_it_drops(
    arrivals: list[tuple[int, int]],
) -> None:
    buffer = SampleBuffer(samples_max=16)
    for step, rank in arrivals:
        buffer.add(rank_sample(rank, step))
        assert len(buffer) <= 16
    kept, stride = buffer.take()
    assert len(kept) + buffer.dropped_total == len(arrivals)
    assert all(sample.step % stride == 0 for sample in kept)
    assert buffer.stride == 1
    assert len(buffer) == 0
