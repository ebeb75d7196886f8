"""One listening socket in reserve, for a rank 0 that may come to live on this node.

A port that is merely free when it is asked for can be taken before the worker binds it. A socket
that already listens and is handed over cannot, and connections made before rank 0 is up wait in
its backlog.
"""

from __future__ import annotations

import socket

from ...logbook.errors import Retryable

_BACKLOG = 4096


class Rendezvous:
    """Keeps a bound and listening TCP socket; host and port are its address."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._reserve()

    def _reserve(self) -> None:
        self._socket = _listen(self.host, 0)
        # Kept as a number, because other threads ask for it while the socket changes hands.
        self.port = int(self._socket.getsockname()[1])

    def take(self, port: int) -> socket.socket:
        """Give away a socket listening on port, and reserve a fresh one.

        A port other than the reserved one (fixed by a person, or reported before this agent was
        restarted) is bound on the spot.
        Raises: Retryable[rendezvous-port-lost] when somebody else has it.
        """
        if port != self.port:
            try:
                return _listen(self.host, port)
            except OSError as error:
                message = f"port {port} cannot be bound, {self.port} is in reserve: {error}"
                raise Retryable("rendezvous-port-lost", message, delay_s=0.0) from error
        taken = self._socket
        self._reserve()
        return taken

    def close(self) -> None:
        self._socket.close()


def _listen(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if port:
            # A fixed port is bound again by every attempt, while old connections linger.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
