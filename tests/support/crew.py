"""Real workers as an agent runs them: forked from a warm process, with pipes and progress pages."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from midwatch.logbook.wire import (
    PROGRESS_BYTES,
    Applied,
    CheckpointStage,
    Command,
    Hyper,
    Mesh,
    Phase,
    ProgressPage,
    RankSample,
    StepSample,
    WorkerFailed,
    WorkerMessage,
    WorkerStart,
    encode_frame,
    worker_message_reader,
)

DEADLINE_S = 60.0
PIPE_BYTES = 4096
"""The smallest pipe there is: about twenty samples fill it."""


class Nursery:
    """The warm process; one serves a whole test session."""

    def __init__(self, trainer: dict[str, Any], env: dict[str, str] | None = None) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = str(Path(__file__).with_name("nursery.py"))
        config = msgspec.json.encode(trainer).decode()
        self.process = subprocess.Popen(
            [sys.executable, program, str(theirs.fileno()), config],
            pass_fds=[theirs.fileno()],
            env={**os.environ, **(env or {})},
        )
        theirs.close()
        self._ended: dict[int, int] = {}
        self.crews: list[Crew] = []

    def fork(self, start: WorkerStart, descriptors: list[int]) -> int:
        """Return the pid of a new worker that holds copies of descriptors."""
        socket.send_fds(self._channel, [msgspec.msgpack.encode(start)], descriptors)
        while True:
            kind, pid, status = msgspec.json.decode(self._channel.recv(1 << 12))
            if kind == "born":
                return int(pid)
            self._ended[pid] = status

    def exit_code(self, pid: int, timeout_s: float = DEADLINE_S) -> int:
        """Wait for a worker to end and return its exit code, or minus the signal that ended it."""
        deadline_s = time.monotonic() + timeout_s
        while pid not in self._ended:
            self._channel.settimeout(max(0.01, deadline_s - time.monotonic()))
            _, ended, status = msgspec.json.decode(self._channel.recv(1 << 12))
            self._ended[ended] = status
        self._channel.settimeout(None)
        return os.waitstatus_to_exitcode(self._ended[pid])

    def end_crews(self) -> None:
        """Make sure that no worker of any crew is left."""
        while self.crews:
            self.crews.pop().end()

    def close(self) -> None:
        self._channel.close()
        self.process.wait(DEADLINE_S)


class Worker:
    """The agent's end of one worker."""

    def __init__(
        self, nursery: Nursery, start: WorkerStart, listener: socket.socket | None
    ) -> None:
        report, their_report = os.pipe()
        fcntl.fcntl(their_report, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        their_command, command = os.pipe()
        page = os.memfd_create("progress")
        os.truncate(page, PROGRESS_BYTES)
        theirs = [their_report, their_command, page]
        self.page = ProgressPage(page)
        inherits = start.rank == 0 and listener is not None
        descriptors = [*theirs, listener.fileno()] if inherits and listener else theirs
        descriptors = [*descriptors, *(start.memory.fds if start.memory else ())]
        self.pid = nursery.fork(start, descriptors)
        for descriptor in theirs:
            os.close(descriptor)
        self.rank = start.rank
        self.messages: list[WorkerMessage] = []
        self.report: int | None = report
        self._command: int | None = command
        self._reader = worker_message_reader()

    def order(self, command: Command) -> None:
        assert self._command is not None
        os.write(self._command, encode_frame(command))

    def read(self) -> None:
        """Take in what the report pipe holds; at its end forget the pipe."""
        assert self.report is not None
        data = os.read(self.report, 1 << 16)
        if data:
            self.messages.extend(self._reader.feed(data))
        else:
            self._close_report()

    def abandon(self) -> None:
        """Do as an agent does that dies: close every pipe."""
        self._close_report()
        if self._command is not None:
            os.close(self._command)
            self._command = None

    def _close_report(self) -> None:
        if self.report is not None:
            os.close(self.report)
            self.report = None


class Crew:
    """The workers of one attempt."""

    def __init__(
        self, nursery: Nursery, starts: Iterable[WorkerStart], *, share_listener: bool = True
    ) -> None:
        """share_listener False keeps the rendezvous port busy instead of handing it to rank 0."""
        self._nursery = nursery
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        shared = self._listener if share_listener else None
        self.workers: list[Worker] = []
        nursery.crews.append(self)
        for start in starts:
            placed = msgspec.structs.replace(start, rendezvous_port=port)
            self.workers.append(Worker(nursery, placed, shared))
        if share_listener:
            self._listener.close()

    def order(self, command: Command, ranks: Iterable[int] | None = None) -> None:
        for worker in self.workers:
            if ranks is None or worker.rank in ranks:
                worker.order(command)

    def watch(
        self, until: Callable[[Crew], bool] = lambda crew: False, timeout_s: float = DEADLINE_S
    ) -> None:
        """Read reports until the condition holds or every pipe has ended."""
        deadline_s = time.monotonic() + timeout_s
        while not until(self):
            open_pipes = {w.report: w for w in self.workers if w.report is not None}
            if not open_pipes:
                return
            left_s = deadline_s - time.monotonic()
            ready, _, _ = select.select(list(open_pipes), [], [], max(0.0, left_s))
            if not ready:
                raise TimeoutError(f"still waiting; the workers are at {self.places()}")
            for pipe in ready:
                open_pipes[pipe].read()

    def exit_codes(self, timeout_s: float = DEADLINE_S) -> list[int]:
        return [self._nursery.exit_code(worker.pid, timeout_s) for worker in self.workers]

    def places(self) -> list[tuple[int, Phase]]:
        return [worker.page.read()[:2] for worker in self.workers]

    def deadline(self) -> Deadline:
        return Deadline(self)

    def end(self) -> None:
        """Make sure that nothing of this attempt is left."""
        self._listener.close()
        for worker in self.workers:
            worker.abandon()
        self.exit_codes()
        for worker in self.workers:
            worker.page.close()

    # --- what was said ----------------------------------------------------------------------------

    def said(self, kind: type[Any], rank: int | None = None) -> list[Any]:
        return [
            message
            for worker in self.workers
            if rank is None or worker.rank == rank
            for message in worker.messages
            if isinstance(message, kind)
        ]

    def steps(self) -> list[StepSample]:
        return self.said(StepSample)

    def losses(self) -> list[float]:
        return [sample.loss for sample in self.steps()]

    def rank_samples(self, rank: int) -> list[RankSample]:
        return self.said(RankSample, rank)

    def applied(self) -> list[Applied]:
        return self.said(Applied)

    def failures(self) -> list[WorkerFailed]:
        return self.said(WorkerFailed)

    def committed(self) -> list[str]:
        stages: list[CheckpointStage] = self.said(CheckpointStage)
        return [stage.checkpoint for stage in stages if stage.stage == "committed"]


class Deadline:
    """Bounds a loop that looks at something no descriptor tells about."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._ends_s = time.monotonic() + DEADLINE_S

    def check(self) -> None:
        if time.monotonic() > self._ends_s:
            raise TimeoutError(f"still waiting; the workers are at {self._crew.places()}")
        time.sleep(0.005)


def starts_for(
    run_dir: Path,
    trainer: dict[str, Any],
    mesh: Mesh,
    *,
    attempt: int = 1,
    until_step: int | None = None,
    checkpoints: tuple[str, ...] = (),
    hyper: Hyper | None = None,
    first_command: int = 1,
) -> list[WorkerStart]:
    """Return what an agent would hand to each rank of an attempt on this machine."""
    return [
        WorkerStart(
            run="crew",
            run_dir=str(run_dir),
            attempt=attempt,
            rank=rank,
            local_rank=rank,
            world_size=mesh.world_size,
            node="here",
            mesh=mesh,
            rendezvous_host="127.0.0.1",
            rendezvous_port=0,
            trainer=trainer,
            hyper=hyper or Hyper(),
            checkpoints=checkpoints,
            until_step=until_step,
            first_command=first_command,
        )
        for rank in range(mesh.world_size)
    ]
