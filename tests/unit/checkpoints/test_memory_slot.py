"""A buffer of the memory tier says what is in it, and only while that is whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from midwatch.checkpoints.index import RankPart
from midwatch.checkpoints.memory import (
    PAGE_BYTES,
    Generation,
    Shard,
    ShardHead,
    Slot,
    body_room_bytes,
    encode_part,
    write_head,
)
from midwatch.logbook.errors import IntegrityError
from midwatch.logbook.wire import Mesh

from tests.unit.checkpoints import models

IMAGE = bytes(range(251)) * 40
PART = RankPart("__0_0.distcp", {}, {}, {"a": ("a",)}, True)


@pytest.fixture
def fd() -> Iterator[int]:
    opened = os.memfd_create("slot")
    yield opened
    os.close(opened)


def head(step: int = 7) -> ShardHead:
    return ShardHead(
        run="r",
        attempt=3,
        rank=0,
        mesh=Mesh(2, 1),
        header=models.header(step),
        fingerprint=models.FINGERPRINT,
        image_bytes=len(IMAGE),
        part_bytes=len(encode_part(PART)),
        is_sufficient=True,
    )


def fill(slot: Slot, step: int = 7) -> None:
    part = encode_part(PART)
    slot.begin(body_room_bytes(len(IMAGE), part))
    slot.room()[: len(IMAGE)] = IMAGE
    slot.finish(*write_head(slot, head(step), part))


def test_what_was_finished_is_read_by_whoever_maps_the_buffer(fd: int) -> None:
    fill(Slot(fd))
    reader = Slot(fd)
    found = reader.head()
    assert found is not None
    assert found.generation == Generation(7, 3)
    assert reader.is_sound()
    shard = reader.shard()
    assert bytes(shard.image) == IMAGE
    assert shard.part == PART


def test_a_buffer_is_empty_until_it_is_finished(fd: int) -> None:
    assert Slot(fd).head() is None
    slot = Slot(fd)
    fill(slot)
    # The writer dies here, with another state half written.
    slot.begin(0)
    slot.room()[: len(IMAGE)] = bytes(len(IMAGE))
    assert Slot(fd).head() is None


def test_a_buffer_grows_and_is_used_again(fd: int) -> None:
    slot = Slot(fd)
    fill(slot)
    slot.begin(1 << 20)
    assert slot.room_bytes == 1 << 20
    fill(slot, 8)
    found = Slot(fd).head()
    assert found is not None
    assert found.generation.step == 8


def test_every_flipped_bit_of_a_body_is_noticed(fd: int) -> None:
    fill(Slot(fd))
    size = os.fstat(fd).st_size
    body = len(Slot(fd).room())
    assert body == size - PAGE_BYTES
    reader = Slot(fd)
    assert reader.head() is not None
    length = len(reader.body())
    for position in range(0, length, 97):
        (byte,) = os.pread(fd, 1, PAGE_BYTES + position)
        os.pwrite(fd, bytes([byte ^ 16]), PAGE_BYTES + position)
        assert Slot(fd).head() is None or not whole_and_sound(fd)
        os.pwrite(fd, bytes([byte]), PAGE_BYTES + position)
    assert whole_and_sound(fd)


def test_a_page_of_nonsense_is_an_empty_buffer(fd: int) -> None:
    fill(Slot(fd))
    for position in range(24):
        (byte,) = os.pread(fd, 1, position)
        os.pwrite(fd, bytes([byte ^ 0x80]), position)
        assert Slot(fd).head() is None or not whole_and_sound(fd)
        os.pwrite(fd, bytes([byte]), position)


def whole_and_sound(fd: int) -> bool:
    slot = Slot(fd)
    return slot.head() is not None and slot.is_sound()


def test_a_head_that_outgrows_its_room_is_refused(fd: int) -> None:
    slot = Slot(fd)
    slot.begin(len(IMAGE) + 128)
    with pytest.raises(IntegrityError) as caught:
        write_head(slot, head(), encode_part(PART))
    assert caught.value.code == "memory-head-too-large"


def test_a_body_damaged_on_its_way_is_refused(fd: int) -> None:
    slot = Slot(fd)
    fill(slot)
    received = bytearray(slot.body())
    assert Shard.received(memoryview(received), slot.facts).head == head()
    received[5] ^= 1
    with pytest.raises(IntegrityError) as caught:
        Shard.received(memoryview(received), slot.facts)
    assert caught.value.code == "memory-corrupt"


def test_a_file_on_disk_serves_as_well(tmp_path: Path) -> None:
    with (tmp_path / "slot").open("w+b") as file:
        fill(Slot(file.fileno()))
        assert whole_and_sound(file.fileno())
