"""The memory tier as ranks use it: copies to the neighbour node, and a load that reads no disk.

Only workers move bytes, through the process group of the saves; agents hold the buffers. Every
collective call here is entered by all ranks, and whatever fails on one of them is told to the
others in the next message, never by staying away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import torch

from ..logbook.decoding import prepared
from ..logbook.errors import ConfigError, IntegrityError, MidwatchError
from ..logbook.tiers import SLOTS_PER_RANK, MemoryOrder
from ..logbook.wire import StepSample
from .dcp_load import files_needed
from .dcp_state import rank_file
from .index import RankPart, decode_index, encode_index, merge_parts
from .manifest import Manifest, SaveHeader, SaverConfig
from .memory import (
    PAGE_BYTES,
    BodyFacts,
    Generation,
    Shard,
    ShardHead,
    Slot,
    body_room_bytes,
    encode_part,
    write_head,
)
from .memory_choice import Holding, missing_shards, plan_transfers, whole_generations
from .source import Repaired

_ROUND_BYTES = 1 << 16
_PAIR = SLOTS_PER_RANK // 2
_decode_part = msgspec.msgpack.Decoder(prepared(RankPart)).decode

Room = Callable[[bytes], torch.Tensor]


class Messenger(Protocol):
    """What the tier needs of dcp_exchange.GlooExchange."""

    def all_gather(self, payload: bytes) -> list[bytes]: ...

    def shift(self, distance: int, facts: bytes, body: torch.Tensor, room: Room) -> None: ...

    def send(self, facts: bytes, body: torch.Tensor, to: int) -> None: ...

    def receive(self, source: int, room: Room) -> None: ...


class Kept(msgspec.Struct, frozen=True):
    """What goes with a state into memory; stays as in next_buffer."""

    header: SaveHeader
    stays: Generation | None = None


class _Said(msgspec.Struct, frozen=True, array_like=True):
    """What one rank tells of a generation. parts: encoded, by shard, where others need them."""

    sound: tuple[int, ...]
    bad: tuple[int, ...]
    head: bytes
    parts: dict[int, bytes]


class _Wish(msgspec.Struct, frozen=True, array_like=True):
    wanted: tuple[int, ...]
    error: str


class MemoryTier:
    """One rank's part in the memory tier.

    refusal, refusal_code: why this rank takes no part in copying, "" when it does.
    newest:  the last generation that all ranks hold whole.
    """

    def __init__(self, order: MemoryOrder, config: SaverConfig, messenger: Messenger) -> None:
        slots = [Slot(fd) for fd in order.fds]
        local_rank = config.rank % order.ranks_per_node
        groups = range(0, len(slots), SLOTS_PER_RANK)
        own = slots[local_rank * SLOTS_PER_RANK : (local_rank + 1) * SLOTS_PER_RANK]
        self.refusal, self.refusal_code = "", ""
        if len(own) < SLOTS_PER_RANK:
            self.refuse("memory-not-given", "the agent gave this rank no buffers.")
        self.newest: Generation | None = None
        self._order = order
        self._config = config
        self._messenger = messenger
        self._own, self._copies = own[:_PAIR], own[_PAIR:]
        # A node may have carried more ranks before: what is left of them is looked after as well.
        self._readable = [
            slot
            for first in groups
            if first // SLOTS_PER_RANK % order.ranks_per_node == local_rank
            for slot in slots[first : first + SLOTS_PER_RANK]
        ]
        self._part: tuple[RankPart, bytes] | None = None

    def refuse(self, code: str, why: str) -> None:
        """Take no part in copying from now on, and so keep all ranks from it."""
        self.refusal_code, self.refusal = code, why

    # --- staging ---

    def next_buffer(self, stays: Generation | None = None) -> int:
        """Return which of this rank's own two buffers the next state goes to.

        stays: the whole generation that is spared, the same on all ranks; None: the newest. While
            an older one is being written to disk, the newest has to make room for its successor.
        """
        return self._victim(self._own, stays or self.newest)

    def lay_out(self, buffer: int, image_bytes: int, part: RankPart) -> torch.Tensor:
        """Return room for an image in one of the two buffers.

        Raises: ConfigError[memory-too-small]; OSError.
        """
        room = body_room_bytes(image_bytes, self._encoded(part))
        needed = SLOTS_PER_RANK * (PAGE_BYTES + room)
        if needed > self._order.rank_bytes_max:
            raise ConfigError(
                "memory-too-small",
                f"keeping the state in memory takes {needed >> 20} MiB a rank on this node, "
                f"{self._order.rank_bytes_max >> 20} MiB are to be had.",
                remedy="Raise checkpoints.memory.host_frac, or set checkpoints.memory.mode: off.",
            )
        slot = self._own[buffer]
        slot.begin(room)
        return torch.frombuffer(slot.room()[:image_bytes], dtype=torch.uint8).zero_()

    def give_up(self, buffer: int, stays: Generation | None = None) -> None:
        """What is in a buffer is about to be overwritten; stays as in next_buffer."""
        if stays is not None:
            self.newest = stays
        self._own[buffer].begin(0)

    # --- keeping ---

    def keep(self, buffer: int, kept: Kept, part: RankPart, image_bytes: int) -> bool:
        """Make a staged state a generation, copied to the neighbour; True when it is on all ranks.

        Collective; never raises for what goes wrong on this rank alone.
        """
        # A rank that was refused its room while it staged has the state elsewhere, in no buffer.
        error = self.refusal
        facts, body = BodyFacts(0, 0, b""), torch.empty(0, dtype=torch.uint8)
        try:
            if not error:
                slot = self._own[buffer]
                head = self._head(kept, part, image_bytes)
                slot.finish(*write_head(slot, head, self._encoded(part)))
                facts, body = slot.facts, torch.frombuffer(slot.body(), dtype=torch.uint8)
        except (MidwatchError, OSError) as cause:
            error = str(cause)
        if self._order.ranks_per_node < self._config.world_size:
            error = self._exchange_copies(facts, body, kept.stays) or error
        errors = self._messenger.all_gather(error.encode())
        if not any(errors):
            self.newest = Generation(kept.header.step, self._config.attempt)
        return not any(errors)

    def _exchange_copies(
        self, facts: BodyFacts, body: torch.Tensor, stays: Generation | None
    ) -> str:
        slot = self._copies[self._victim(self._copies, stays or self.newest)]
        received: list[BodyFacts] = []

        def room(encoded: bytes) -> torch.Tensor:
            coming = msgspec.msgpack.decode(encoded, type=prepared(BodyFacts))
            received.append(coming)
            if not coming.body_bytes:
                return torch.empty(0, dtype=torch.uint8)
            slot.begin(-(-coming.body_bytes // _ROUND_BYTES) * _ROUND_BYTES)
            return torch.frombuffer(slot.room()[: coming.body_bytes], dtype=torch.uint8)

        encoded = msgspec.msgpack.encode(facts)
        self._messenger.shift(self._order.ranks_per_node, encoded, body, room)
        (coming,) = received
        if not coming.body_bytes:
            return "the neighbour had nothing to copy"
        if slot.finish(coming.body_bytes, coming.head_bytes) != coming.digest:
            slot.begin(0)
            return "the neighbour's state arrived damaged"
        return ""

    def _head(self, kept: Kept, part: RankPart, image_bytes: int) -> ShardHead:
        return ShardHead(
            run=self._config.run,
            attempt=self._config.attempt,
            rank=self._config.rank,
            mesh=self._config.mesh,
            header=kept.header,
            fingerprint=self._config.fingerprint,
            image_bytes=image_bytes,
            part_bytes=len(self._encoded(part)),
            is_sufficient=part.is_sufficient,
        )

    def _encoded(self, part: RankPart) -> bytes:
        if self._part is None or self._part[0] is not part:
            self._part = part, encode_part(part)
        return self._part[1]

    def _victim(self, pair: Sequence[Slot], stays: Generation | None) -> int:
        """Return the buffer of a pair that can be given up: never that of the state that stays.

        The loop asks at every step, also while the copying thread fills a buffer: each generation
        is read once, and the thread names one the newest only after it stands in its buffer.
        """
        whole: list[tuple[Generation, int]] = []
        for at, slot in enumerate(pair):
            generation = slot.generation
            if generation is None:
                return at
            whole.append((generation, at))
        return min((found for found in whole if found[0] != stays), default=whole[0])[1]

    # --- loading ---

    def find(self, state: dict[str, Any], oldest_step: int) -> MemorySource | str:
        """Return the newest generation that the nodes hold whole, ready to be read by this rank.

        Collective. Otherwise why there is none; "" when memory holds nothing of this run.
        oldest_step: an older generation is worth less than a checkpoint that is at hand.
        """
        held = self._held()
        mine = [
            Holding(generation, shard, head.mesh, head.is_sufficient)
            for generation, shards in held.items()
            for shard, (_, head) in shards.items()
        ]
        said = self._messenger.all_gather(msgspec.msgpack.encode(mine))
        rows = [msgspec.msgpack.decode(row, type=prepared(list[Holding])) for row in said]
        reason = missing_shards(rows)
        for generation in whole_generations(rows, oldest_step):
            found = self._open(generation, rows, held.get(generation, {}), state)
            if isinstance(found, MemorySource):
                self.newest = generation
                return found
            reason = found
        return reason

    def _held(self) -> dict[Generation, dict[int, tuple[Slot, ShardHead]]]:
        found: dict[Generation, dict[int, tuple[Slot, ShardHead]]] = {}
        for slot in self._readable:
            head = slot.head()
            is_ours = head is not None and head.run == self._config.run
            if head is not None and is_ours and head.attempt >= self._order.since:
                found.setdefault(head.generation, {})[head.rank] = slot, head
        return found

    def _open(
        self,
        generation: Generation,
        rows: Sequence[Sequence[Holding]],
        held: dict[int, tuple[Slot, ShardHead]],
        state: dict[str, Any],
    ) -> MemorySource | str:
        every = [h for row in rows for h in row if h.generation == generation]
        is_simple = all(h.is_sufficient and h.mesh == self._config.mesh for h in every)
        shards, bad = _sound_shards(held)
        parts = {} if is_simple else {n: encode_part(shard.part) for n, shard in shards.items()}
        head = next((msgspec.msgpack.encode(s.head) for s in shards.values()), b"")
        mine = _Said(tuple(sorted(shards)), tuple(sorted(bad)), head, parts)
        gathered = self._messenger.all_gather(msgspec.msgpack.encode(mine))
        said = [msgspec.msgpack.decode(row, type=prepared(_Said)) for row in gathered]
        wishes = [_Wish((rank,), "") for rank in range(len(said))]
        index = None
        if not is_simple:
            index, wishes = self._wishes(said, every[0].mesh.world_size, state)
            if index is None:
                return f"[memory-unusable] {generation.id} in memory: {wishes[0].error}"
        transfers = plan_transfers([s.sound for s in said], [w.wanted for w in wishes])
        if transfers is None:
            return (
                f"[memory-corrupt] {generation.id} in memory is damaged, and no other copy is whole"
            )
        errors: dict[int, str] = {}
        for step in transfers:
            if step.giver == self._config.rank:
                self._give(held[step.shard][0], step.taker)
            elif step.taker == self._config.rank:
                self._take(step.shard, step.giver, shards, errors)
        repaired = tuple(
            (rank_file(n), f"rank {rank}'s copy in memory is damaged")
            for rank, row in enumerate(said)
            for n in row.bad
        )
        head = next(row.head for row in said if row.head)
        manifest = msgspec.msgpack.decode(head, type=prepared(ShardHead)).as_manifest(
            sum(len(shard.image) for shard in shards.values())
        )
        return MemorySource(manifest, index, shards, (self._config.rank, repaired, errors))

    def _wishes(
        self, said: Sequence[_Said], num_shards: int, state: dict[str, Any]
    ) -> tuple[bytes | None, list[_Wish]]:
        """Work out from all parts which shards each rank needs; (encoded index, wishes of all)."""
        parts: dict[int, bytes] = {}
        for row in said:
            parts |= row.parts
        index, mine = None, _Wish((), "")
        try:
            merged = merge_parts([_decode_part(parts[n]) for n in range(num_shards)])
            index = encode_index(merged)
            names = files_needed("in memory", merged, state, self._config.rank)
            numbers = {rank_file(n): n for n in range(num_shards)}
            mine = _Wish(tuple(sorted(numbers[name] for name in names)), "")
        except KeyError as missing:
            mine = _Wish((), f"no sound copy of the state of rank {missing}")
        except MidwatchError as error:
            mine = _Wish((), str(error))
        gathered = self._messenger.all_gather(msgspec.msgpack.encode(mine))
        wishes = [msgspec.msgpack.decode(row, type=prepared(_Wish)) for row in gathered]
        failed = [wish for wish in wishes if wish.error]
        return (None, failed) if failed else (index, wishes)

    def _give(self, slot: Slot, to: int) -> None:
        body = torch.frombuffer(slot.body(), dtype=torch.uint8)
        self._messenger.send(msgspec.msgpack.encode(slot.facts), body, to)

    def _take(
        self, number: int, source: int, shards: dict[int, Shard], errors: dict[int, str]
    ) -> None:
        received: list[tuple[BodyFacts, torch.Tensor]] = []

        def room(encoded: bytes) -> torch.Tensor:
            facts = msgspec.msgpack.decode(encoded, type=prepared(BodyFacts))
            received.append((facts, torch.empty(facts.body_bytes, dtype=torch.uint8)))
            return received[0][1]

        self._messenger.receive(source, room)
        ((facts, body),) = received
        try:
            shards[number] = Shard.received(body.numpy().data, facts)
        except IntegrityError as error:
            errors[number] = str(error)


class MemorySource:
    """A generation in memory, as a load reads it; see source.Source."""

    tier = "memory"

    def __init__(
        self,
        manifest: Manifest,
        index: bytes | None,
        shards: dict[int, Shard],
        about: tuple[int, Repaired, dict[int, str]],
    ) -> None:
        rank, self.repaired, self._errors = about
        self.manifest = manifest
        self._shards = {rank_file(number): shard for number, shard in shards.items()}
        self._error = "; ".join(self._errors.values())
        if index is not None:
            self.index = decode_index(memoryview(index))
        elif not self._error:
            # On the mesh that saved it a rank's own part describes all that it needs.
            self.index = merge_parts([shards[rank].part], is_whole=False)

    def opened(self) -> MemorySource:
        """Return this. Raises: IntegrityError[memory-corrupt] when a shard arrived damaged."""
        if self._error:
            raise IntegrityError("memory-corrupt", self._error, remedy="Load from disk.")
        return self

    @property
    def recent(self) -> tuple[StepSample, ...]:
        """The last steps before the state, as far as a shard at hand tells of them."""
        told = (shard.head.header.recent for shard in self._shards.values())
        return max(told, key=len, default=())

    def read(self, name: str) -> memoryview:
        """Return a rank's image, which was verified when it was opened."""
        return self._shards[name].image


def _sound_shards(
    held: dict[int, tuple[Slot, ShardHead]],
) -> tuple[dict[int, Shard], list[int]]:
    shards, bad = {}, []
    for number, (slot, _) in held.items():
        try:
            if not slot.is_sound():
                bad.append(number)
                continue
            shards[number] = slot.shard()
        except IntegrityError:
            bad.append(number)
    return shards, bad
