"""A small stand-in for a node agent's forkserver: preloads the trainer, then forks on request.

Run as a program with the number of a unix socket. Each request is a msgpack WorkerStart with its
descriptors attached, in the order report, command, progress[, listen]; the answer is the pid. When
a child ends, (pid, status of waitpid) is sent too.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import selectors
import socket
import sys
from typing import Any

import msgspec
from midwatch.logbook.wire import WorkerStart

REQUEST_BYTES_MAX = 1 << 16


def _attribute(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _be_worker(start: WorkerStart, descriptors: list[int], worker: str) -> None:
    status = 1
    try:
        report, command, progress, *others = descriptors
        memory = start.memory
        buffers = [others.pop() for _ in range(len(memory.fds))][::-1] if memory else []
        start = msgspec.structs.replace(
            start,
            report_fd=report,
            command_fd=command,
            progress_fd=progress,
            listen_fd=others[0] if others else None,
            memory=memory and msgspec.structs.replace(memory, fds=tuple(buffers)),
        )
        _attribute(worker)(start)
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve(channel: socket.socket, worker: str) -> None:
    waiting = selectors.DefaultSelector()
    waiting.register(channel, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.data is not None:
                waiting.unregister(key.fd)
                os.close(key.fd)
                _, status = os.waitpid(key.data, 0)
                channel.send(msgspec.json.encode(["ended", key.data, status]))
                continue
            request, descriptors, _, _ = socket.recv_fds(channel, REQUEST_BYTES_MAX, 64)
            if not request:
                return
            pid = os.fork()
            if pid == 0:
                channel.close()
                start = msgspec.msgpack.decode(request, type=WorkerStart)
                _be_worker(start, descriptors, worker)
            for descriptor in descriptors:
                os.close(descriptor)
            waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
            channel.send(msgspec.json.encode(["born", pid, 0]))


if __name__ == "__main__":
    _attribute("midwatch.trainer.warmup:preload")(msgspec.json.decode(sys.argv[2]))
    # A tester that is gone needs no answer, and no worker outlives this process.
    with (
        socket.socket(fileno=int(sys.argv[1])) as channel,
        contextlib.suppress(ConnectionError),
    ):
        _serve(channel, "midwatch.trainer.worker:main")
