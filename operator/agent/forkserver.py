"""A small program that loads a trainer once and forks a worker from it per order.

Importing torch and warming up a trainer takes seconds; forking a process that has done so takes
milliseconds, and every attempt still begins with fresh processes. It is a program of its own, not
a child of the agent's interpreter: nothing of the agent (threads, locks, sockets, its __main__) is
in what gets forked. It stays single-threaded for the same reason.

No worker outlives it: it ends them when the agent's socket closes, and the kernel ends them when
it dies itself.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import traceback

from .child import open_fds, resolve_entry, run_worker
from .forkwire import (
    TEXT_BYTES_MAX,
    Born,
    Gone,
    PreloadFailed,
    Ready,
    Spawn,
    SpawnFailed,
    receive_order,
    send_news,
)
from .process import adopt_orphans, child_pids, set_parent_death_signal

_SHUTDOWN_S = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Preload, then serve until the agent is gone. Returns the exit status."""
    options = _parse(arguments)
    sock = socket.socket(fileno=options.socket_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # During the preload there is nobody to tidy up after, and nobody reading the socket.
    set_parent_death_signal(signal.SIGKILL, options.parent_pid)
    began_s = time.monotonic()
    for name in options.preload:
        failure = _preload(name)
        if failure is not None:
            send_news(sock, failure)
            return 1
    gc.collect()
    gc.freeze()
    server = ForkServer(sock, open_fds() - {sock.fileno()})
    set_parent_death_signal(signal.SIGTERM, options.parent_pid)
    send_news(sock, Ready(time.monotonic() - began_s, _count_threads()))
    server.serve()
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="forkserver", description=__doc__)
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument(
        "--preload", action="append", default=[], help="package.module:function[=JSON object]"
    )
    return parser.parse_args(arguments)


def _preload(argument: str) -> PreloadFailed | None:
    name, _, config = argument.partition("=")
    try:
        resolve_entry(name)(json.loads(config or "{}"))
    except BaseException:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        return PreloadFailed(name, text[-TEXT_BYTES_MAX:])
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return PreloadFailed(name, "the preload initialised CUDA, which no forked worker can use")
    return None


def _count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


class ForkServer:
    """One event loop over the agent's socket and SIGCHLD.

    shared_fds: descriptors that preloaded modules opened; workers inherit those and no others.
    """

    def __init__(self, sock: socket.socket, shared_fds: frozenset[int]) -> None:
        self._sock = sock
        self._shared_fds = shared_fds
        self._workers: dict[int, tuple[int, int]] = {}
        self._is_told_to_end = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        adopt_orphans()

    def serve(self) -> None:
        """Fork and reap until the agent is gone or SIGTERM comes; then end every worker."""
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        is_connected = True
        try:
            while is_connected and not self._is_told_to_end:
                for fd, _ in poller.poll():
                    if fd == self._wake_read:
                        self._drain_wakeups()
                        self._reap()
                    else:
                        is_connected = self._take_order()
        except (BrokenPipeError, ConnectionResetError):
            pass  # The agent went away between two calls.
        finally:
            self._end_all()

    def _on_sigterm(self, *_: object) -> None:
        self._is_told_to_end = True

    def _drain_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _take_order(self) -> bool:
        try:
            received = receive_order(self._sock)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        if received is None:
            return False
        order, fds = received
        try:
            self._spawn(order, fds)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _spawn(self, order: Spawn, fds: list[int]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        server_pid = os.getpid()
        # A signal meant for the worker must wait until this program's handlers are gone from it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                self._be_worker(order, fds, server_pid)
        except OSError as error:
            send_news(self._sock, SpawnFailed(order.attempt, order.rank, str(error)))
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        # Not reaped yet, so the number cannot mean another process: the one safe moment for this.
        pidfd = os.pidfd_open(pid)
        self._workers[pid] = (order.attempt, order.rank)
        try:
            send_news(self._sock, Born(order.attempt, order.rank, pid), (pidfd,))
        finally:
            os.close(pidfd)

    def _be_worker(self, order: Spawn, fds: list[int], server_pid: int) -> None:
        status = 1
        try:
            # The number is closed with all others; the object must not close it a second time.
            self._sock.detach()
            status = run_worker(order, fds, server_pid, self._shared_fds)
        finally:
            os._exit(status)

    def _reap(self) -> None:
        """Collect every child that ended; the group of a worker ends with it."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                break
            worker = self._workers.pop(ended.si_pid, None)
            if worker is not None:
                # While the leader is a zombie its group number cannot be taken by a stranger.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(ended.si_pid, signal.SIGKILL)
            os.waitid(os.P_PID, ended.si_pid, os.WEXITED)
            if worker is not None:
                self._report_gone(worker, ended)
        if not self._workers:
            self._kill_adopted()

    def _report_gone(self, worker: tuple[int, int], ended: os.waitid_result) -> None:
        attempt, rank = worker
        has_exited = ended.si_code == os.CLD_EXITED
        exit_code = ended.si_status if has_exited else None
        signum = None if has_exited else ended.si_status
        send_news(self._sock, Gone(attempt, rank, ended.si_pid, exit_code, signum))

    def _kill_adopted(self) -> None:
        """End what dead workers left behind in groups of their own."""
        for pid in child_pids():
            if pid not in self._workers:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def _end_all(self) -> None:
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        deadline_s = time.monotonic() + _SHUTDOWN_S
        with contextlib.suppress(ChildProcessError):
            while time.monotonic() < deadline_s:
                self._kill_adopted()
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
                if ended is None:
                    time.sleep(0.002)
                else:
                    self._workers.pop(ended.si_pid, None)


if __name__ == "__main__":
    # Flushing is all that is wanted of an orderly exit; threads of a preload must not delay it.
    exit_status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_status)
