"""What a freshly forked worker does between fork() and its entry point.

It leaves the forkserver behind: signals, descriptors, output and process group become its own.
Descriptors matter most: a pipe end of another worker that stayed open here would keep the agent
from ever seeing that worker's end of file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from ...logbook.decoding import prepared
from ...logbook.errors import ConfigError
from ...logbook.wire import WorkerFailed, WorkerStart, encode_frame
from .forkwire import Spawn
from .process import set_parent_death_signal

START_FAILED_STATUS = 70
UNCAUGHT_STATUS = 1
STACK_FILE_ENV = "MIDWATCH_STACK_FILE"

_RESET_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

# faulthandler keeps only the number of the file that it writes to.
_stack_files: list[Any] = []


def run_worker(order: Spawn, fds: list[int], server_pid: int, shared_fds: frozenset[int]) -> int:
    """Become the worker that order describes and run it; return its exit status.

    shared_fds: descriptors that preloaded modules hold and may keep.
    """
    report_fd = fds[0]
    try:
        _leave_forkserver(server_pid, shared_fds | frozenset(fds))
        _redirect_output(order.log_path)
        os.environ.update(order.env)
        os.environ[STACK_FILE_ENV] = order.stack_path
        _answer_stack_requests(order.stack_path)
        start = _worker_start(order, fds)
        entry = resolve_entry(order.entry_point)
    except BaseException as error:
        _report_failed_start(order, report_fd, error)
        return START_FAILED_STATUS
    return call_entry(entry, start)


def resolve_entry(name: str) -> Callable[..., Any]:
    """Import "package.module:function". Raises: ConfigError[bad-entry-point]."""
    module_name, _, attribute = name.partition(":")
    try:
        entry = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError("bad-entry-point", f"cannot load {name!r}: {error}") from error
    if not callable(entry):
        raise ConfigError("bad-entry-point", f"{name!r} is not a function")
    return entry  # type: ignore[no-any-return]  # callable() narrows to an unknown signature


def call_entry(entry: Callable[[WorkerStart], object], start: WorkerStart) -> int:
    """Run a worker's entry point; turn whatever comes out of it into an exit status."""
    status = UNCAUGHT_STATUS
    try:
        result = entry(start)
        status = result if isinstance(result, int) else 0
    except SystemExit as request:
        status = _exit_status(request)
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
    return status & 0xFF


def _exit_status(request: SystemExit) -> int:
    if request.code is None:
        return 0
    if isinstance(request.code, int):
        return request.code
    print(request.code, file=sys.stderr)
    return UNCAUGHT_STATUS


def _leave_forkserver(server_pid: int, keep: frozenset[int]) -> None:
    # Both sides set the group, so neither can act on the worker before it has one of its own.
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for signum in _RESET_SIGNALS:
        # A stack request that comes before its handler must not kill.
        ignored = signum == signal.SIGUSR1
        signal.signal(signum, signal.SIG_IGN if ignored else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    set_parent_death_signal(signal.SIGKILL, server_pid)
    for fd in open_fds() - keep:
        with contextlib.suppress(OSError):
            os.close(fd)


def open_fds() -> frozenset[int]:
    """Return the descriptors open in this process."""
    # The listing shows its own descriptor too, which is closed by the time that it is checked.
    return frozenset(fd for fd in map(int, os.listdir("/proc/self/fd")) if _is_open(fd))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _redirect_output(log_path: str) -> None:
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    for stream in (sys.stdout, sys.stderr):
        # A worker that is killed cannot flush, and its last lines are the ones that matter.
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]  # preloads leave the real streams in place
    faulthandler.enable(file=sys.__stderr__ or 2)


def _answer_stack_requests(stack_path: str) -> None:
    file = open(stack_path, "ab", buffering=0)  # noqa: SIM115 - open for the worker's whole life
    _stack_files.append(file)
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)


def _worker_start(order: Spawn, fds: list[int]) -> WorkerStart:
    start = msgspec.msgpack.decode(order.start, type=prepared(WorkerStart))
    report_fd, command_fd, progress_fd, *others = fds
    listen_fd = others.pop(0) if order.has_listener else None
    memory = start.memory
    return msgspec.structs.replace(
        start,
        report_fd=report_fd,
        command_fd=command_fd,
        progress_fd=progress_fd,
        listen_fd=listen_fd,
        memory=memory and msgspec.structs.replace(memory, fds=tuple(others)),
    )


def _report_failed_start(order: Spawn, report_fd: int, error: BaseException) -> None:
    text = traceback.format_exc()
    print(text, file=sys.stderr)
    _flush()
    code = getattr(error, "code", "worker-start-failed")
    last_words = WorkerFailed(order.rank, str(code), str(error), text)
    with contextlib.suppress(OSError):
        os.write(report_fd, encode_frame(last_words))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
