"""A line of TCP to a port of this machine, which can be cut while it is in use."""

from __future__ import annotations

import contextlib
import socket
import threading


class CutLine:
    """Leads to a port; use as a context manager. cut() ends what is open, the next may come."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.connections_total = 0

    def __enter__(self) -> CutLine:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would leave the thread in its accept.
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        for thread in self._threads:
            thread.join(10.0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def cut(self) -> None:
        """End every connection that is open now, in both directions."""
        with self._lock:
            ends, self._open = self._open, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            target = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self._open += [client, target]
                self.connections_total += 1
            for ends in ((client, target), (target, client)):
                thread = threading.Thread(target=self._pump, args=ends, daemon=True)
                thread.start()
                self._threads.append(thread)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
