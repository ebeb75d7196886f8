"""The way to a run's API: `kubectl port-forward`, started again whenever it ends."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from types import TracebackType

from ...logbook.errors import Retryable
from .cluster import Kubectl

START_TIMEOUT_S = 30.0
RESTART_DELAY_S = 1.0
END_TIMEOUT_S = 5.0
_READY = re.compile(rb"Forwarding from 127\.0\.0\.1:(\d+) ->")


class Forward:
    """A port of this machine that leads to a service of the cluster. Use as a context manager.

    kubectl ends its forwarding with the pod that it led to. The port stays the same when it is
    started again, so whoever talks through it sees a server that went away and came back.
    """

    def __init__(self, kubectl: Kubectl, service: str, port: int) -> None:
        self._kubectl = kubectl
        self._service = service
        self._port = port
        self._local_port = 0
        self._told = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="port-forward", daemon=True)

    def __enter__(self) -> Forward:
        self._thread.start()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._ready.wait(0.05):
            if time.monotonic() > deadline_s or self._over.is_set():
                self.close()
                raise Retryable(
                    "forward-failed",
                    f"no way to service {self._service}, port {self._port}: "
                    f"{self._told or 'kubectl port-forward said nothing'}.",
                    delay_s=RESTART_DELAY_S,
                    remedy="`kubectl describe trun` tells whether the run's head is up; forwarding "
                    "takes the permission to create pods/portforward.",
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._local_port}"

    def close(self) -> None:
        """End the forwarding; harmless when repeated."""
        self._over.set()
        with self._lock:
            if self._process is not None:
                self._process.terminate()
        self._thread.join(END_TIMEOUT_S)
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.kill()

    def _keep(self) -> None:
        while not self._over.is_set():
            process = self._start()
            if process is None:
                return
            self._listen(process)
            process.wait()
            if not self._ready.is_set():
                # It never came up: to try again is for whoever asked.
                self._over.set()
            self._over.wait(RESTART_DELAY_S)

    def _start(self) -> subprocess.Popen[bytes] | None:
        command = self._kubectl.command(
            *("port-forward", "--address", "127.0.0.1", f"service/{self._service}"),
            f"{self._local_port or ''}:{self._port}",
        )
        with self._lock:
            if self._over.is_set():
                return None
            # A group of its own: Ctrl-C is for the command that uses it, which ends it then.
            self._process = subprocess.Popen(
                command,
                cwd=self._kubectl.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            return self._process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                found = _READY.search(line)
                if found is not None:
                    self._local_port = int(found.group(1))
                    self._ready.set()
                else:
                    self._told = line.decode(errors="replace").strip()[:300].rstrip(".")
