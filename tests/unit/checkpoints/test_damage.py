"""Whatever happens to whichever file, it is noticed, named, and never loaded."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from midwatch.checkpoints import index as index_module
from midwatch.checkpoints.dcp import Saver, load, load_first
from midwatch.checkpoints.manifest import (
    MANIFEST_NAME,
    FileEntry,
    checkpoint_dir,
    checkpoint_id,
    read_manifest,
)
from midwatch.checkpoints.manifest import decode as decode_manifest
from midwatch.checkpoints.manifest import encode as encode_manifest
from midwatch.checkpoints.shardfile import write_file
from midwatch.checkpoints.source import in_run_folder
from midwatch.checkpoints.verify import verify
from midwatch.logbook.errors import ConfigError, IntegrityError
from midwatch.logbook.wire import Mesh

from tests.unit.checkpoints import models

SHARD, INDEX, METADATA = "__0_0.distcp", "index.msgpack", ".metadata"


def state_of(value: float) -> dict[str, Any]:
    return {"weights": torch.full((40, 40), value), "scaler": {"scale": value}, "step": int(value)}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    saver = Saver(models.saver_config(str(tmp_path), 0, Mesh(1, 1)))
    for step in (1, 2):
        outcome = saver.save(state_of(float(step)), models.header(step)).result(30.0)
        assert outcome.stage == "committed"
    saver.close()
    return tmp_path


@pytest.fixture
def newest(run_dir: Path) -> Path:
    return checkpoint_dir(run_dir, checkpoint_id(2, 1))


def flip(path: Path, position: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def code_of(action: Callable[[], Any]) -> str:
    with pytest.raises(IntegrityError) as caught:
        action()
    return caught.value.code


@pytest.mark.parametrize("name", [SHARD, INDEX, METADATA])
@pytest.mark.parametrize("position", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_one_flipped_bit_is_named(newest: Path, name: str, position: float) -> None:
    flip(newest / name, position)
    with pytest.raises(IntegrityError) as caught:
        verify(newest)
    assert caught.value.code == "shard-checksum"
    assert name in caught.value.message
    verify(newest, deep=False)


def test_every_byte_of_the_manifest_counts(newest: Path) -> None:
    whole = (newest / MANIFEST_NAME).read_bytes()
    assert decode_manifest(whole).step == 2
    for position in range(len(whole) - 1):  # The last byte is the newline after the document.
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        with pytest.raises(IntegrityError) as caught:
            decode_manifest(bytes(damaged))
        assert caught.value.code in ("manifest-corrupt", "manifest-format")


@pytest.mark.parametrize("name", [SHARD, INDEX, METADATA])
@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize(
    ("damage", "code"),
    [(truncate, "shard-size"), (extend, "shard-size"), (Path.unlink, "shard-missing")],
    ids=["truncated", "extended", "deleted"],
)
def test_a_file_of_the_wrong_size_is_named(
    newest: Path, name: str, deep: bool, damage: Callable[[Path], None], code: str
) -> None:
    damage(newest / name)
    with pytest.raises(IntegrityError) as caught:
        verify(newest, deep)
    assert caught.value.code == code
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("name", "damage", "code"),
    [
        (SHARD, lambda path: flip(path, 0.5), "shard-checksum"),
        (INDEX, lambda path: flip(path, 0.5), "shard-checksum"),
        (MANIFEST_NAME, lambda path: flip(path, 0.5), "manifest-corrupt"),
        (SHARD, truncate, "shard-size"),
        (INDEX, truncate, "shard-size"),
        (MANIFEST_NAME, truncate, ""),
        (SHARD, Path.unlink, "shard-missing"),
        (INDEX, Path.unlink, "shard-missing"),
        (MANIFEST_NAME, Path.unlink, "manifest-missing"),
    ],
)
def test_a_load_touches_nothing_before_all_is_verified(
    run_dir: Path, newest: Path, name: str, damage: Callable[[Path], None], code: str
) -> None:
    damage(newest / name)
    state = state_of(-1.0)
    if not code:  # Only the newline after the document is gone.
        assert load(newest, state).header == models.header(2)
        return
    assert code_of(lambda: load(newest, state)) == code
    assert torch.equal(state["weights"], state_of(-1.0)["weights"])
    assert state["step"] == -1
    report = load_first(in_run_folder(run_dir, [newest.name, checkpoint_id(1, 1)]), state)
    assert report.checkpoint == checkpoint_id(1, 1)
    assert state["step"] == 1
    assert torch.equal(state["weights"], state_of(1.0)["weights"])
    assert [name for name, _ in report.passed_over] == [newest.name]
    assert f"[{code}]" in report.passed_over[0][1]


def test_no_candidate_left_is_an_error_that_names_each(run_dir: Path) -> None:
    for step in (1, 2):
        flip(checkpoint_dir(run_dir, checkpoint_id(step, 1)) / SHARD, 0.5)
    names = [checkpoint_id(2, 1), checkpoint_id(1, 1), checkpoint_id(7, 7)]
    with pytest.raises(IntegrityError) as caught:
        load_first(in_run_folder(run_dir, names), state_of(0.0))
    assert caught.value.code == "no-usable-checkpoint"
    assert all(name in caught.value.message for name in names)


def test_no_candidate_given_is_a_fresh_start(run_dir: Path) -> None:
    report = load_first((), state_of(0.0))
    assert (report.checkpoint, report.header, report.passed_over) == ("", None, ())


def test_a_copy_under_another_name_is_refused(newest: Path) -> None:
    renamed = newest.rename(newest.with_name(checkpoint_id(9, 1)))
    assert code_of(lambda: read_manifest(renamed)) == "manifest-corrupt"


@pytest.mark.parametrize(
    "state",
    [
        {"weights": torch.zeros(40, 41)},
        {"weights": torch.zeros(40, 40, dtype=torch.float16)},
        {"other": torch.zeros(1)},
        {"scaler": {"growth": 1.0}},
    ],
    ids=["shape", "dtype", "tensor-missing", "value-missing"],
)
def test_another_model_is_refused(newest: Path, state: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(newest, state)
    assert caught.value.code == "state-mismatch"


def test_part_of_a_checkpoint_can_be_loaded(newest: Path) -> None:
    state = {"weights": torch.zeros(40, 40)}
    load(newest, state)
    assert torch.equal(state["weights"], state_of(2.0)["weights"])


# --- files made by somebody else -----------------------------------------------------------------


def rewrite(directory: Path, name: str, content: bytes) -> None:
    """Replace a file and renew the manifest, as an attacker who can write there would."""
    entry = write_file(directory / name, memoryview(content))
    manifest = read_manifest(directory)
    files = tuple(entry if old.name == name else old for old in manifest.files)
    renewed = msgspec.structs.replace(manifest, files=files)
    (directory / MANIFEST_NAME).write_bytes(encode_manifest(renewed))


class Trap:
    """Unpickling this leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_load_runs_no_pickle_even_with_right_checksums(newest: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    rewrite(newest, METADATA, pickle.dumps(Trap(mark)))
    load(newest, state_of(0.0))
    assert not mark.exists()

    index = msgspec.msgpack.decode((newest / INDEX).read_bytes(), type=index_module.Index)
    room = index.values["step"].copies[0][1]
    shard = bytearray((newest / SHARD).read_bytes())
    trap = pickle.dumps(Trap(mark))
    assert len(trap) <= room.bytes
    shard[room.offset : room.offset + room.bytes] = trap.ljust(room.bytes, b"\0")
    rewrite(newest, SHARD, bytes(shard))
    verify(newest)
    assert code_of(lambda: load(newest, state_of(0.0))) == "value-unsafe"
    assert not mark.exists()
    # The trap works: unpickled, it leaves its mark.
    pickle.loads(trap)
    assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"\xc1", msgspec.msgpack.encode({"files": 3})])
def test_an_index_of_the_wrong_shape_is_told(newest: Path, content: bytes) -> None:
    rewrite(newest, INDEX, content)
    assert code_of(lambda: load(newest, state_of(0.0))) == "index-corrupt"


def test_a_file_outside_the_manifest_is_never_read(newest: Path) -> None:
    manifest = read_manifest(newest)
    files = tuple(entry for entry in manifest.files if entry.name != SHARD)
    renewed = msgspec.structs.replace(manifest, files=files)
    (newest / MANIFEST_NAME).write_bytes(encode_manifest(renewed))
    assert code_of(lambda: load(newest, state_of(0.0))) == "shard-missing"


def test_a_directory_in_place_of_a_file_is_told(newest: Path) -> None:
    (newest / SHARD).unlink()
    (newest / SHARD).mkdir()
    assert code_of(lambda: verify(newest)) in ("shard-size", "shard-unreadable")


def test_an_entry_is_what_was_written(tmp_path: Path) -> None:
    data = os.urandom(3 * (1 << 20) + 17)
    entry = write_file(tmp_path / "x", memoryview(data))
    import hashlib

    assert entry == FileEntry("x", len(data), hashlib.sha256(data).hexdigest())
    assert (tmp_path / "x").read_bytes() == data
