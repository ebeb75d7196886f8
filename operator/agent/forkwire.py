"""What an agent and its forkserver say to each other, over one SOCK_SEQPACKET pair.

Packets keep message boundaries and the file descriptors that belong to them together. An order to
fork travels as a memfd among those descriptors, so its size (a worker's whole configuration) is
not bound by a socket buffer.
"""

from __future__ import annotations

import os
import socket
from array import array

import msgspec

PACKET_BYTES_MAX = 1 << 17
TEXT_BYTES_MAX = 1 << 15
# Of one order: those of the worker itself, and every memory-tier buffer of a node of 16 ranks.
FDS_MAX = 8 + 16 * 4


class Spawn(msgspec.Struct, frozen=True):
    """Fork one worker. With it come descriptors in this order: the encoded Spawn itself, report
    pipe (write end), command pipe (read end), progress page, if has_listener the rendezvous
    socket, and the buffers of the memory tier.

    start: encoded WorkerStart. env: added to the environment the forkserver was started with.
    """

    attempt: int
    rank: int
    entry_point: str
    start: bytes
    env: dict[str, str]
    log_path: str
    stack_path: str
    has_listener: bool


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Preloads are done. threads: of the process; more than one makes forking unsafe."""

    preload_s: float
    threads: int


class PreloadFailed(msgspec.Struct, frozen=True, tag="preload-failed"):
    """A preload raised, or broke what forking needs; the forkserver exits after saying so."""

    entry: str
    error: str


class Born(msgspec.Struct, frozen=True, tag="born"):
    """A worker was forked; its pidfd comes with the packet."""

    attempt: int
    rank: int
    pid: int


class SpawnFailed(msgspec.Struct, frozen=True, tag="spawn-failed"):
    """fork() failed."""

    attempt: int
    rank: int
    error: str


class Gone(msgspec.Struct, frozen=True, tag="gone"):
    """A worker ended, its process group with it; it is reaped."""

    attempt: int
    rank: int
    pid: int
    exit_code: int | None
    signal: int | None


FromForkserver = Ready | PreloadFailed | Born | SpawnFailed | Gone

_encoder = msgspec.msgpack.Encoder()
_news = msgspec.msgpack.Decoder[FromForkserver](FromForkserver)
_orders = msgspec.msgpack.Decoder[Spawn](Spawn)


def send_news(sock: socket.socket, news: FromForkserver, fds: tuple[int, ...] = ()) -> None:
    """Tell the agent. Raises: OSError when it is gone."""
    _send(sock, _encoder.encode(news), fds, 0)


def receive_news(sock: socket.socket) -> tuple[FromForkserver, list[int]] | None:
    """Return one message and its descriptors, or None at the end of the connection.

    Raises: BlockingIOError when nothing is there.
    """
    data, fds = _receive(sock)
    return (_news.decode(data), fds) if data else None


def send_order(sock: socket.socket, order: Spawn, fds: tuple[int, ...]) -> None:
    """Order a worker; fds as Spawn lists them, without the order itself.

    Raises: BlockingIOError when the forkserver does not read; OSError when it is gone.
    """
    body = _encoder.encode(order)
    memory = os.memfd_create("spawn", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(memory), "wb") as out:
            out.write(body)
        _send(sock, b"spawn", (memory, *fds), socket.MSG_DONTWAIT)
    finally:
        os.close(memory)


def receive_order(sock: socket.socket) -> tuple[Spawn, list[int]] | None:
    """Return one order and its descriptors, or None when the agent is gone.

    Raises: BlockingIOError when nothing is there.
    """
    data, fds = _receive(sock)
    if not data:
        return None
    memory = fds.pop(0)
    try:
        body = os.pread(memory, os.fstat(memory).st_size, 0)
    finally:
        os.close(memory)
    return _orders.decode(body), fds


# socket.send_fds and recv_fds drop their flags argument (CPython 3.11), and would block.


def _send(sock: socket.socket, data: bytes, fds: tuple[int, ...], flags: int) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary, flags)


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    received = array("i")
    room = socket.CMSG_SPACE(FDS_MAX * received.itemsize)
    flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    data, ancillary, _, _ = sock.recvmsg(PACKET_BYTES_MAX, room, flags)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
    return data, list(received)
