"""Reports never hold up the loop; a slow agent loses rank samples and nothing else."""

import os
import threading
from collections import deque
from collections.abc import Iterator

import pytest
from midwatch.logbook.errors import Fatal
from midwatch.logbook.wire import (
    Applied,
    CheckpointStage,
    Finished,
    RankSample,
    Resumed,
    StepSample,
    WorkerFailed,
    WorkerMessage,
    encode_frame,
    worker_message_reader,
)
from midwatch.trainer import report as report_module
from midwatch.trainer.report import RANK_SAMPLE_BACKLOG_BYTES, PipeReport, PlainReport


def rank_sample(step: int) -> RankSample:
    return RankSample(0, step, 0.1, 0.0, 0.1, 0.1, 0.1, 0.1, 5.0, 1.0, False)


def step_sample(step: int, loss_scale: float | None = None) -> StepSample:
    return StepSample(
        step, 0.0, 5.0, 1.0, 1e-3, 2.0, False, False, loss_scale, 64, step - 1, 0.1, 640.0, 0.01
    )


def never_gone() -> None:
    raise AssertionError("the agent is there")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            continue


def drain(report: PipeReport, reading: int, writing: int) -> list[WorkerMessage]:
    """Read everything the report still holds, as an agent does that has woken up."""
    closing = threading.Thread(target=lambda: (report.close(30.0), os.close(writing)))
    closing.start()
    reader = worker_message_reader()
    messages: list[WorkerMessage] = []
    while data := os.read(reading, 4096):
        messages.extend(reader.feed(data))
    closing.join()
    return messages


def test_messages_arrive_in_order(pipe: tuple[int, int]) -> None:
    report = PipeReport(pipe[1], never_gone)
    sent: list[WorkerMessage] = [
        Resumed(0, 0, ""),
        step_sample(1),
        rank_sample(1),
        Applied(0, 1, 2, {"lr": 1.0}),
        CheckpointStage("step-1", 1, "committed"),
        WorkerFailed(0, "code", "message", "x" * 100_000),
        Finished(0, 1),
    ]
    for message in sent:
        report.send(message)
    assert drain(report, *pipe) == sent
    assert report.dropped_total == 0


def test_a_silent_agent_costs_rank_samples_and_nothing_else(
    pipe: tuple[int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    report = PipeReport(pipe[1], never_gone)
    steps = 8000
    for step in range(1, steps + 1):
        report.send(step_sample(step))
        report.send(rank_sample(step))
    assert report.dropped_total > 0
    received = drain(report, *pipe)
    kept = [m for m in received if isinstance(m, StepSample)]
    assert [m.step for m in kept] == list(range(1, steps + 1))
    ranks = [m.step for m in received if isinstance(m, RankSample)]
    assert ranks == sorted(ranks)
    assert len(ranks) + report.dropped_total == steps
    assert capfd.readouterr().err == f"{report.dropped_total} rank samples dropped: slow agent\n"


def test_rank_samples_are_kept_again_once_the_agent_has_caught_up(pipe: tuple[int, int]) -> None:
    report = PipeReport(pipe[1], never_gone)
    step = 0
    while report.dropped_total == 0:
        step += 1
        report.send(rank_sample(step))
    assert step * len(encode_frame(rank_sample(step))) > RANK_SAMPLE_BACKLOG_BYTES
    os.set_blocking(pipe[0], False)
    reader = worker_message_reader()
    seen: list[WorkerMessage] = []
    while not seen or seen[-1] != rank_sample(step - 1):
        seen.extend(reader.feed(os.read(pipe[0], 1 << 16)))
        report.close(0.01)
    report.send(rank_sample(step + 1))
    assert reader.feed(os.read(pipe[0], 1 << 16)) == [rank_sample(step + 1)]


def test_an_agent_that_never_reads_is_called_dead(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "BACKLOG_BYTES_MAX", 1 << 17)
    report = PipeReport(pipe[1], never_gone)
    with pytest.raises(Fatal) as caught:
        deque(map(report.send, map(step_sample, range(1, 100_000))), maxlen=0)
    assert caught.value.code == "agent-not-reading"


def test_a_closed_pipe_says_that_the_agent_is_gone(pipe: tuple[int, int]) -> None:
    gone = threading.Event()
    report = PipeReport(pipe[1], gone.set)
    os.close(pipe[0])
    report.send(rank_sample(1))
    assert gone.is_set()


def test_plain_report_prints_on_rank_0_only(capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        report = PlainReport(rank, last_step=3, period_s=0.0)
        report.send(Resumed(rank, 2, "step-2", passed_over=(("step-4", "file-corrupt: bad"),)))
        report.send(step_sample(3, loss_scale=512.0))
        report.send(rank_sample(3))
        report.send(CheckpointStage("step-3", 3, "failed", error="disk-full: no room"))
        report.send(Finished(rank, 3))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "step-2" in lines[0]
    assert "file-corrupt" in lines[0]
    assert lines[1].startswith("step 3/3 loss 5.0000")
    assert "scale 512" in lines[1]
    assert "disk-full" in lines[2]


def test_plain_report_prints_failures_of_every_rank_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    PlainReport(3, last_step=3).send(WorkerFailed(3, "mesh-does-not-fit", "no", ""))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "mesh-does-not-fit" in captured.err


def test_plain_report_thins_steps_but_prints_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    report = PlainReport(0, last_step=50, period_s=3600.0)
    for step in range(1, 51):
        report.send(step_sample(step))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/50", "50/50"]
