"""Where a rank's state is copied when a save begins: an image laid out once and filled each time.

With the memory tier the image stands in one of the two buffers that the node's agent keeps: in
turn, or always in the other while one of them is being written to disk. Otherwise, or where the
node has too little memory for the tier, it stands in this process's own.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from ..logbook.errors import ConfigError
from .dcp_image import Image
from .dcp_memory import Kept, MemoryTier
from .dcp_state import flatten, rank_file
from .memory import Generation
from .saving import StagedFile

OWN = -1


class Stage:
    """The images of one rank. lay_out may run beside the loop; stage waits for it."""

    def __init__(self, rank: int, tier: MemoryTier | None) -> None:
        self._name = rank_file(rank)
        self._tier = tier
        self._images: dict[int, Image] = {}
        self._at = OWN
        self._last: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._laying_out: threading.Event | None = None

    @property
    def has_tier(self) -> bool:
        """Whether states can be staged where the memory tier keeps them."""
        return self._tier is not None and not self._tier.refusal

    @property
    def is_on_cpu(self) -> bool:
        """Whether the state that was staged last lies in host memory."""
        tensors = [t for t in (self._last or ({}, {}))[0].values() if isinstance(t, torch.Tensor)]
        return all(tensor.is_cpu for tensor in tensors)

    def is_laid_out(self, stays: Generation | None) -> bool:
        """Whether the next state only has to be copied. stays: as in stage."""
        is_done = self._laying_out is not None and self._laying_out.is_set()
        return is_done and self._next(stays) in self._images

    def announce(self) -> None:
        """A lay_out is on its way on another thread; stage is to wait for it."""
        self._laying_out = threading.Event()

    def lay_out(self, flat: dict[str, Any], paths: dict[str, Any]) -> None:
        """Make the image for the next state; what goes wrong is met again by stage."""
        assert self._laying_out is not None
        try:
            self._last = flat, paths
            self.lay_out_next()
        except Exception:
            self._images.clear()
        finally:
            self._laying_out.set()

    def lay_out_next(self) -> None:
        """Make the image for the next state, if it is not there, in the layout of the last one."""
        at = self._next()
        if self._last is not None and at not in self._images:
            self._make(at, *self._last)

    def stage(self, state: dict[str, Any], stays: Generation | None = None) -> StagedFile:
        """Copy a state. stays: the generation whose buffer is not to be taken, None: the newest.

        Raises: ConfigError[state-not-plain]; OSError, MemoryError.
        """
        if self._laying_out is not None:
            self._laying_out.wait()
        self._last = flat, paths = flatten(state)
        at = self._next(stays)
        image = self._images.get(at)
        if at != OWN:
            assert self._tier is not None
            self._tier.give_up(at, stays)
        if image is None or not image.is_for(flat) or not image.stage(flat):
            self._images.pop(at, None)  # Its memory goes before the next one's comes.
            image, at = self._make(at, flat, paths)
            image.stage(flat)
        self._at = at
        return StagedFile(image.part.file, image.view, image.part)

    def keep_staged(self, kept: Kept) -> bool:
        """Make what was staged last a generation of the memory tier; collective.

        kept.stays: as it was staged with.
        """
        assert self._tier is not None
        image = self._images[self._at]
        is_kept = self._tier.keep(self._at, kept, image.part, len(image.view))
        if is_kept:
            self.lay_out_next()
        else:
            # Laid out anew next time, with the room that it may have lacked.
            self._images.pop(self._at, None)
        return is_kept

    def _next(self, stays: Generation | None = None) -> int:
        return self._tier.next_buffer(stays) if self._tier is not None and self.has_tier else OWN

    def _make(self, at: int, flat: dict[str, Any], paths: dict[str, Any]) -> tuple[Image, int]:
        tier = self._tier
        if tier is not None and at != OWN:
            try:
                self._images[at] = Image(
                    flat, paths, self._name, lambda size, part: tier.lay_out(at, size, part)
                )
            except ConfigError as error:
                if error.code != "memory-too-small":
                    raise
                tier.refuse(error.code, f"{error.message} {error.remedy}")
                at = OWN
        if at == OWN:
            self._images[OWN] = Image(flat, paths, self._name)
        return self._images[at], at
