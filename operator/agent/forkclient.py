"""The agent's side of its forkserver: starts it, replaces it when it dies, passes news on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Protocol

from .forkwire import (
    Born,
    FromForkserver,
    Gone,
    PreloadFailed,
    Ready,
    Spawn,
    SpawnFailed,
    receive_news,
    send_order,
)
from .loop import READ, EventLoop, Timer
from .plan import AgentConfig

_BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_EXIT_WAIT_S = 8.0


class ForkserverListener(Protocol):
    """Who hears what happens; every method is called on the loop's thread."""

    def on_ready(self) -> None: ...

    def on_born(self, news: Born, pidfd: int) -> None: ...

    def on_spawn_failed(self, news: SpawnFailed) -> None: ...

    def on_gone(self, news: Gone) -> None: ...

    def on_forkserver_lost(self, message: str) -> None: ...


class Forkserver:
    """One forkserver process at a time.

    state: "starting", "ready", "failed" (it ended before it was ready; it is tried again, ever more
    rarely) or "closed". error, error_code: why it last failed; empty once ready. Its workers cannot
    outlive it, so losing it is losing them.
    """

    def __init__(self, loop: EventLoop, config: AgentConfig, listener: ForkserverListener) -> None:
        self.state = "starting"
        self.error = ""
        self.error_code = ""
        self.threads = 0
        self.log_path = Path(config.work_dir) / "forkserver.log"
        self._loop = loop
        self._config = config
        self._listener = listener
        self._failures = 0
        self._preload_error = ""
        self._retry: Timer | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    @property
    def pid(self) -> int:
        """Process id, 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def launch(self) -> None:
        """Start the process. Must run on the loop's thread, whose end the kernel signals to it."""
        self._retry = None
        self._preload_error = ""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", _PROGRAM, "--socket-fd", str(theirs.fileno())]
        command += ["--parent-pid", str(os.getpid())]
        for preload in self._config.preload:
            command += ["--preload", f"{preload.entry}={json.dumps(preload.config)}"]
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.log_path.open("ab") as log, theirs:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=_environment(self._config),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            self._give_up(f"forkserver did not start: {error}")
            return
        self._sock = ours
        self._loop.watch(ours.fileno(), READ, self._on_socket)

    def spawn(self, order: Spawn, fds: tuple[int, ...]) -> None:
        """Order a worker. Raises: OSError when the forkserver is gone or does not read."""
        if self._sock is None:
            raise BrokenPipeError("there is no forkserver")
        send_order(self._sock, order, fds)

    def replace(self) -> None:
        """Kill a forkserver that does not answer, and its workers with it; a new one is started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def close(self) -> None:
        """End it for good, and wait until it has ended its workers."""
        self.state = "closed"
        if self._retry is not None:
            self._retry.cancel()
        self._hang_up()
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _on_socket(self) -> None:
        while self._sock is not None:
            try:
                received = receive_news(self._sock)
            except BlockingIOError:
                return
            except ConnectionResetError:
                received = None
            if received is None:
                self._on_lost()
                return
            self._on_news(*received)

    def _on_news(self, news: FromForkserver, fds: list[int]) -> None:
        if isinstance(news, Gone):
            self._listener.on_gone(news)
        elif isinstance(news, Born):
            # Only work done proves it sound: one that is ready and then dies must not spin.
            self._failures = 0
            self._listener.on_born(news, fds[0])
        elif isinstance(news, SpawnFailed):
            self._listener.on_spawn_failed(news)
        elif isinstance(news, PreloadFailed):
            self._preload_error = f"preload {news.entry} failed:\n{news.error}"
        elif isinstance(news, Ready):
            self.state, self.threads = "ready", news.threads
            self.error = self.error_code = ""
            self._listener.on_ready()

    def _on_lost(self) -> None:
        self._hang_up()
        assert self._process is not None
        try:
            # Its socket is closed, so it is exiting; a stuck exit is cut short.
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process = None
        self._give_up(self._preload_error or f"forkserver ended with status {status}")

    def _give_up(self, message: str) -> None:
        had_been_ready = self.state == "ready"
        self.error = message
        self.error_code = "preload-failed" if self._preload_error else "forkserver-lost"
        self.state = "starting" if had_been_ready else "failed"
        delay_s = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1
        if not had_been_ready:
            delay_s = max(delay_s, _BACKOFF_S[1])
        self._retry = self._loop.call_later(delay_s, self.launch)
        self._listener.on_forkserver_lost(message)

    def _hang_up(self) -> None:
        if self._sock is not None:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None


_PROGRAM = "midwatch.operator.agent.forkserver"


def _environment(config: AgentConfig) -> dict[str, str]:
    """Return the agent's environment with the config's additions and the agent's import path.

    The interpreter's own folders stay out: a worker may run another Python as a subprocess.
    """
    own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    inherited = [str(Path(entry or os.curdir).absolute()) for entry in sys.path]
    added = [
        entry
        for entry in inherited
        if entry not in own and os.path.exists(entry) and not entry.endswith("lib-dynload")
    ]
    path = os.pathsep.join(dict.fromkeys([*config.python_path, *added]))
    return {**os.environ, **config.env, "PYTHONPATH": path}
