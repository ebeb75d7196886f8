"""One worker process as its agent holds it: descriptors, progress page, and how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from ...health.nodes.liveness import RankProgress
from ...logbook.wire import (
    ASIDE,
    PROGRESS_BYTES,
    CollectiveTrace,
    Command,
    Phase,
    ProgressPage,
    WorkerMessage,
    WorkerStart,
    encode_frame,
    worker_message_reader,
)
from .process import process_state, signal_group
from .reports import Exit

_PIPE_BYTES = 1 << 20
_READ_BYTES = 1 << 18
_BACKLOG_BYTES_MAX = 1 << 20


@dataclass
class ChildEnds:
    """Descriptors for the child, in the order in which it expects them; closed once sent.

    buffers: those of the memory tier, which stay open here.
    """

    fds: tuple[int, ...]
    listener: socket.socket | None = None
    buffers: tuple[int, ...] = ()

    def all_fds(self) -> tuple[int, ...]:
        listener = () if self.listener is None else (self.listener.fileno(),)
        return (*self.fds, *listener, *self.buffers)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        if self.listener is not None:
            self.listener.close()


@dataclass
class LocalWorker:
    """A worker from the order to fork it until its end has been reported.

    pidfd: -1 until it is born. is_dead: the kernel has said so, its exit status is not known yet.
    is_over: its end has been reported and its descriptors are closed.
    trace: its answer to request_trace, None until there is one.
    """

    start: WorkerStart
    log_path: Path
    stack_path: Path
    report_fd: int
    command_fd: int
    page: ProgressPage
    ordered_s: float = field(default_factory=time.monotonic)
    pid: int = 0
    pidfd: int = -1
    exit: Exit | None = None
    is_dead: bool = False
    is_over: bool = False
    trace: CollectiveTrace | None = None

    def __post_init__(self) -> None:
        self._reader = worker_message_reader()
        self._backlog = bytearray()
        self.is_readable = True

    @property
    def rank(self) -> int:
        return self.start.rank

    @property
    def is_born(self) -> bool:
        return self.pid > 0

    @property
    def has_backlog(self) -> bool:
        """Whether commands wait for room in the pipe."""
        return bool(self._backlog)

    # --- from the worker ---

    def read(self) -> list[WorkerMessage] | None:
        """Return what one read of the pipe completes; None when it is empty or closed.

        Raises: ValueError or msgspec.MsgspecError when the worker writes no valid frames; nothing
            more can be understood of it then.
        """
        if not self.is_readable:
            return None
        try:
            data = os.read(self.report_fd, _READ_BYTES)
        except BlockingIOError:
            return None
        if not data:
            self.is_readable = False
            return None
        return self._reader.feed(data)

    def progress(self, with_state: bool) -> RankProgress:
        """Return where the worker stands; its process state costs a read of /proc."""
        step, phase, noted_s, rounds = 0, Phase.BORN, 0.0, 0
        if not self.is_over:
            # A page that holds nonsense must not blind the agent to the other ranks.
            with contextlib.suppress(ValueError):
                step, phase, noted_s, rounds = self.page.read()
        age_s = time.monotonic() - (noted_s or self.ordered_s)
        state = process_state(self.pid) if with_state and self.is_born else "?"
        return RankProgress(self.rank, step, phase, max(age_s, 0.0), state, rounds=rounds)

    # --- to the worker ---

    def send(self, command: Command) -> bool:
        """Write a command, or keep it until the pipe has room; False when there is no room left."""
        frame = encode_frame(command)
        if len(self._backlog) + len(frame) > _BACKLOG_BYTES_MAX:
            return False
        self._backlog += frame
        self.flush_commands()
        return True

    def flush_commands(self) -> None:
        """Write what the pipe takes. A worker that has closed its end loses its commands."""
        while self._backlog:
            try:
                written = os.write(self.command_fd, self._backlog)
            except BlockingIOError:
                return
            except BrokenPipeError:
                self._backlog.clear()
                return
            del self._backlog[:written]

    def signal(self, signum: int) -> None:
        """Signal the worker's process group, if it is born and not over."""
        if self.is_born and not self.is_over:
            signal_group(self.pidfd, self.pid, signum)

    def request_stack(self) -> None:
        """Ask the worker itself, not its group, to dump its stacks."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGUSR1)

    def request_trace(self) -> None:
        """Ask where it stands in its collectives; a thread of the worker answers."""
        self.trace = None
        self.send(Command(ASIDE, "trace"))

    # --- its end ---

    def close(self) -> None:
        """Give up every descriptor; remembers nothing but the exit."""
        self.is_over = True
        self.page.close()
        for fd in (self.report_fd, self.command_fd, self.pidfd):
            if fd >= 0:
                os.close(fd)


def open_worker(
    start: WorkerStart, log_path: Path, stack_path: Path
) -> tuple[LocalWorker, ChildEnds]:
    """Create the pipes and the page of a worker to be. Raises: OSError when out of descriptors."""
    opened: list[int] = []
    try:
        report_read, report_write = os.pipe2(os.O_CLOEXEC)
        opened += [report_read, report_write]
        command_read, command_write = os.pipe2(os.O_CLOEXEC)
        opened += [command_read, command_write]
        page_fd = os.memfd_create("progress", os.MFD_CLOEXEC)
        opened.append(page_fd)
        os.ftruncate(page_fd, PROGRESS_BYTES)
        page = ProgressPage(page_fd)
    except OSError:
        for fd in opened:
            os.close(fd)
        raise
    os.set_blocking(report_read, False)
    os.set_blocking(command_write, False)
    with contextlib.suppress(OSError):
        # Room for a burst while the agent is busy; unprivileged users may have less.
        fcntl.fcntl(report_read, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    worker = LocalWorker(start, log_path, stack_path, report_read, command_write, page)
    return worker, ChildEnds((report_write, command_read, page_fd))
