"""How the ranks of one save talk: a gloo process group that nothing else uses.

A save goes on while the loop trains, so its messages must never meet one of the training's. The
group is made once, at the start (2 to 3 ms for four ranks), and a save takes few, small
exchanges. The memory tier passes whole states from rank to rank through one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from .manifest import SaverConfig

_SIZE_BYTES = 8
_SMALL_BYTES = 1024
_OUTCOME_BYTES = 4096
_PIECE_BYTES = 64 << 20


class GlooExchange:
    """The exchange of several ranks. Making one is collective over the default group."""

    def __init__(self, config: SaverConfig) -> None:
        self._is_first = config.rank == 0
        self._world_size = config.world_size
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=config.timeout_s))

    def gather(self, payload: bytes) -> list[bytes]:
        """Return every rank's payload on rank 0, [] elsewhere; one round trip if all are small."""
        rows, largest = self._small_rows(payload)
        if not self._is_first:
            rows = rows[:0]
        elif largest > _SMALL_BYTES:
            rows = torch.empty(self._world_size, largest, dtype=torch.uint8)
        if largest > _SMALL_BYTES:
            received = list(rows) if self._is_first else None
            dist.gather(_framed(payload, largest), received, group=self._group, group_dst=0)
        return [_content(row) for row in rows]

    def all_gather(self, payload: bytes) -> list[bytes]:
        """Return every rank's payload on every rank; one round trip if all are small."""
        rows, largest = self._small_rows(payload)
        if largest > _SMALL_BYTES:
            rows = torch.empty(self._world_size, largest, dtype=torch.uint8)
            dist.all_gather(list(rows), _framed(payload, largest), group=self._group)
        return [_content(row) for row in rows]

    def _small_rows(self, payload: bytes) -> tuple[torch.Tensor, int]:
        """Return every rank's payload, cut to a small row, and the row that all would take."""
        rows = torch.empty(self._world_size, _SMALL_BYTES, dtype=torch.uint8)
        dist.all_gather(list(rows), _framed(payload, _SMALL_BYTES), group=self._group)
        # Rows of a matrix stay aligned for their size only if they are multiples of it.
        return rows, _SIZE_BYTES * (2 + max(_size(row) for row in rows) // _SIZE_BYTES)

    def broadcast(self, payload: bytes) -> bytes:
        """Return rank 0's payload on every rank; one round trip if it is small."""
        row = _framed(payload, _OUTCOME_BYTES)
        dist.broadcast(row, group=self._group, group_src=0)
        needed = _SIZE_BYTES * (2 + _size(row) // _SIZE_BYTES)
        if needed > _OUTCOME_BYTES:
            row = _framed(payload, needed)
            dist.broadcast(row, group=self._group, group_src=0)
        return _content(row)

    def shift(
        self, distance: int, facts: bytes, body: torch.Tensor, room: Callable[[bytes], torch.Tensor]
    ) -> None:
        """Send facts and body to the rank `distance` further on, and receive from the one before.

        room: returns, for the facts received, the bytes (uint8) that their body is to go into.
        """
        rank = dist.get_rank(self._group)
        to = (rank + distance) % self._world_size
        source = (rank - distance) % self._world_size
        row = torch.empty(_SMALL_BYTES, dtype=torch.uint8)
        self._swap(_framed(facts, _SMALL_BYTES), to, row, source)
        self._swap(body, to, room(_content(row)), source)

    def _swap(self, out: torch.Tensor, to: int, into: torch.Tensor, source: int) -> None:
        waits = [dist.irecv(piece, group=self._group, group_src=source) for piece in _pieces(into)]
        waits += [dist.isend(piece, group=self._group, group_dst=to) for piece in _pieces(out)]
        for work in waits:
            if work is not None:
                work.wait()

    def send(self, facts: bytes, body: torch.Tensor, to: int) -> None:
        """Send facts and body to one rank, which calls receive."""
        for piece in (_framed(facts, _SMALL_BYTES), *_pieces(body)):
            dist.send(piece, group=self._group, group_dst=to)

    def receive(self, source: int, room: Callable[[bytes], torch.Tensor]) -> None:
        """Receive what one rank sends; room as in shift."""
        row = torch.empty(_SMALL_BYTES, dtype=torch.uint8)
        dist.recv(row, group=self._group, group_src=source)
        for piece in _pieces(room(_content(row))):
            dist.recv(piece, group=self._group, group_src=source)

    def close(self) -> None:
        """Give the group's threads and sockets back."""
        dist.destroy_process_group(self._group)


class NoExchange:
    """The exchange of a run of one rank."""

    def gather(self, payload: bytes) -> list[bytes]:
        return [payload]

    def all_gather(self, payload: bytes) -> list[bytes]:
        return [payload]

    def shift(
        self, distance: int, facts: bytes, body: torch.Tensor, room: Callable[[bytes], torch.Tensor]
    ) -> None:
        raise AssertionError("a single rank has no neighbour")

    def send(self, facts: bytes, body: torch.Tensor, to: int) -> None:
        raise AssertionError("a single rank has nobody to send to")

    def receive(self, source: int, room: Callable[[bytes], torch.Tensor]) -> None:
        raise AssertionError("a single rank has nobody to receive from")

    def broadcast(self, payload: bytes) -> bytes:
        return payload

    def close(self) -> None:
        """There is nothing to give back."""


def exchange_for(config: SaverConfig) -> GlooExchange | NoExchange:
    """Return the exchange of a rank; collective as GlooExchange."""
    return GlooExchange(config) if config.world_size > 1 else NoExchange()


def _pieces(body: torch.Tensor) -> Iterator[torch.Tensor]:
    """Cut a body into messages of a bounded size."""
    for start in range(0, body.numel(), _PIECE_BYTES):
        yield body[start : start + _PIECE_BYTES]


def _framed(payload: bytes, room: int) -> torch.Tensor:
    """Return the payload's size and as much of it as there is room for."""
    row = torch.zeros(room, dtype=torch.uint8)
    row[:_SIZE_BYTES].view(torch.int64)[0] = len(payload)
    content = payload[: room - _SIZE_BYTES]
    row.numpy().data[_SIZE_BYTES : _SIZE_BYTES + len(content)] = content
    return row


def _size(row: torch.Tensor) -> int:
    return int(row[:_SIZE_BYTES].view(torch.int64))


def _content(row: torch.Tensor) -> bytes:
    return row[_SIZE_BYTES : _SIZE_BYTES + _size(row)].numpy().tobytes()
