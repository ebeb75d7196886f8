"""The loop asks which buffer comes next, at every step, while the copying thread fills them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from midwatch.checkpoints import memory
from midwatch.checkpoints.dcp_exchange import NoExchange
from midwatch.checkpoints.dcp_memory import Kept, MemoryTier
from midwatch.checkpoints.dcp_stage import OWN
from midwatch.checkpoints.index import RankPart
from midwatch.checkpoints.memory import Generation, Slot
from midwatch.logbook.wire import Mesh

from tests.support.memory_nodes import Nodes
from tests.unit.checkpoints import models

PART = RankPart("__0_0.distcp", {}, {}, {"a": ("a",)}, True)
IMAGE_BYTES = 4000
COPIES = 600


def tier_on(folder: Path, attempt: int = 1) -> MemoryTier:
    config = models.saver_config(str(folder), 0, Mesh(1, 1), attempt=attempt)
    return MemoryTier(Nodes(folder / "memory", 1).order("node-0"), config, NoExchange())


def copy(tier: MemoryTier, step: int, stays: Generation | None = None) -> int:
    """Do what a save does with its buffer; return which it was."""
    buffer = tier.next_buffer(stays)
    tier.give_up(buffer, stays)
    tier.lay_out(buffer, IMAGE_BYTES, PART)
    assert tier.keep(buffer, Kept(models.header(step), stays=stays), PART, IMAGE_BYTES)
    return buffer


def test_states_go_to_the_two_buffers_in_turn_also_after_a_restart(tmp_path: Path) -> None:
    first = tier_on(tmp_path)
    assert [copy(first, step) for step in range(1, 6)] == [0, 1, 0, 1, 0]
    # A new process maps what the old one left, and goes on beside the newest.
    second = tier_on(tmp_path, attempt=2)
    second.newest = Generation(5, 1)
    assert copy(second, 6) == 1


def test_while_a_state_is_to_stay_all_others_go_to_the_other_buffer(tmp_path: Path) -> None:
    tier = tier_on(tmp_path)
    assert [copy(tier, step) for step in (1, 2, 3)] == [0, 1, 0]
    held = Generation(3, 1)
    assert [copy(tier, step, held) for step in (4, 5, 6)] == [1, 1, 1]
    assert tier.newest == Generation(6, 1)
    # Until its successor is whole, the state that stays is the newest there is.
    tier.give_up(tier.next_buffer(held), held)
    assert tier.newest == held
    assert [copy(tier, step) for step in (7, 8)] == [1, 0]


def test_a_state_that_found_no_room_is_not_taken_for_what_lies_there(tmp_path: Path) -> None:
    tier = tier_on(tmp_path)
    copy(tier, 1)
    copy(tier, 2)
    tier.refuse("memory-too-small", "it has grown")
    assert not tier.keep(OWN, Kept(models.header(3)), PART, IMAGE_BYTES)
    assert tier.newest == Generation(2, 1)
    steps = {generation.step for generation, _ in Nodes(tmp_path / "memory", 1).held("node-0")}
    assert steps == {1, 2}


def test_asking_reads_nothing_of_the_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = tier_on(tmp_path)
    for step in (1, 2, 3):
        copy(tier, step)

    def refuse(*_: object) -> None:
        raise AssertionError("the loop was made to read a buffer")

    for name in ("head", "_encoded_head", "body", "room"):
        monkeypatch.setattr(Slot, name, refuse)
    assert tier.next_buffer() == 1


def test_the_newest_whole_state_is_never_named_while_another_is_written(tmp_path: Path) -> None:
    """What the loop is told is right for a moment of the time in which it asked."""
    tier = tier_on(tmp_path)
    copy(tier, 1)
    copy(tier, 2)
    is_over = threading.Event()
    wrong: list[str] = []
    asked = 0

    def write() -> None:
        try:
            for step in range(3, COPIES + 3):
                copy(tier, step)
        finally:
            is_over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not is_over.is_set():
        before = tier.newest
        buffer = tier.next_buffer()
        # Steps rise by one and the buffers take turns, so the newest of even steps stands in 1.
        if before == tier.newest and before is not None and buffer == (before.step + 1) % 2:
            wrong.append(f"buffer {buffer} holds {before}")
        asked += 1
    writer.join()
    assert asked > COPIES // 10
    assert wrong == []
    assert tier.newest == Generation(COPIES + 2, 1)


def test_a_generation_is_told_by_what_is_whole(tmp_path: Path) -> None:
    with (tmp_path / "slot").open("w+b") as file:
        slot = Slot(file.fileno())
        assert slot.generation is None
        part = memory.encode_part(PART)
        slot.begin(memory.body_room_bytes(IMAGE_BYTES, part))
        head = memory.ShardHead(
            run="r",
            attempt=3,
            rank=0,
            mesh=Mesh(1, 1),
            header=models.header(7),
            fingerprint=models.FINGERPRINT,
            image_bytes=IMAGE_BYTES,
            part_bytes=len(part),
            is_sufficient=True,
        )
        slot.finish(*memory.write_head(slot, head, part))
        assert slot.generation == head.generation == Generation(7, 3)
        assert Slot(file.fileno()).generation == Generation(7, 3)
        slot.begin(0)
        assert slot.generation is None
        assert Slot(file.fileno()).generation is None
