"""kubectl itself, but for port-forward, which leads to a port of this machine.

Environment: KUBECTL_REAL: the real one; RELAY_PORT: where to lead; RELAY_LOG: calls, a line each;
RELAY_FAILS: say this and give up.
"""

from __future__ import annotations

import os
import socket
import sys
import threading


def main() -> None:
    words = sys.argv[1:]
    if words[:1] != ["port-forward"]:
        os.execv(os.environ["KUBECTL_REAL"], ["kubectl", *words])
    with open(os.environ["RELAY_LOG"], "a", encoding="utf-8") as log:
        log.write(f"{os.getpid()} {' '.join(words)}\n")
    if told := os.environ.get("RELAY_FAILS"):
        sys.exit(told)
    local, _, remote = next(word for word in words if ":" in word).partition(":")
    with socket.create_server(("127.0.0.1", int(local or 0))) as server:
        print(f"Forwarding from 127.0.0.1:{server.getsockname()[1]} -> {remote}", flush=True)
        while True:
            client, _ = server.accept()
            target = socket.create_connection(("127.0.0.1", int(os.environ["RELAY_PORT"])))
            for ends in ((client, target), (target, client)):
                threading.Thread(target=_pump, args=ends, daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        sink.close()


if __name__ == "__main__":
    main()
