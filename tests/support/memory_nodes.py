"""Nodes' memory for tests: one file a buffer, which any process can open and a test can destroy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from midwatch.checkpoints.memory import Generation, Slot
from midwatch.logbook.tiers import SLOTS_PER_RANK, MemoryOrder

ROOMY_BYTES = 1 << 40


class Nodes:
    """The buffers of several nodes below one folder."""

    def __init__(self, folder: Path, ranks_per_node: int) -> None:
        self.folder = folder
        self.ranks_per_node = ranks_per_node

    def order(
        self, node: str, *, since: int = 0, every_steps: int | None = 1, room: int = ROOMY_BYTES
    ) -> MemoryOrder:
        """Return the order of a rank that lives on a node, its buffers open in this process."""
        return MemoryOrder(
            ranks_per_node=self.ranks_per_node,
            since=since,
            every_steps=every_steps,
            rank_bytes_max=room,
            fds=tuple(os.open(path, os.O_RDWR | os.O_CREAT) for path in self.buffers(node)),
        )

    def buffers(self, node: str) -> list[Path]:
        """Return the files of a node, those of each local rank together: own, own, copy, copy."""
        (self.folder / node).mkdir(parents=True, exist_ok=True)
        there = len(list((self.folder / node).iterdir()))
        # A node that carried more ranks before still holds what they left.
        count = max(self.ranks_per_node * SLOTS_PER_RANK, there)
        return [self.folder / node / f"slot-{number}" for number in range(count)]

    def lose(self, node: str) -> None:
        """The node is gone with all that it held."""
        shutil.rmtree(self.folder / node)

    def held(self, node: str) -> dict[tuple[Generation, int], list[Path]]:
        """Return where whole states of which (generation, rank) lie on a node."""
        found: dict[tuple[Generation, int], list[Path]] = {}
        for path in self.buffers(node):
            fd = os.open(path, os.O_RDWR | os.O_CREAT)
            head = Slot(fd).head()
            os.close(fd)
            if head is not None:
                found.setdefault((head.generation, head.rank), []).append(path)
        return found

    def flip(self, path: Path, position: int = 5000) -> None:
        """Flip a bit of a buffer, behind its page of facts."""
        with path.open("r+b") as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1]))
