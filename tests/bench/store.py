"""What the durable tiers cost: a save against a raw copy to the same disk, upload, restore by tier.

One rank saves float32 tensors to its node's folder, an uploader brings them to an S3 service on
loopback (SeaweedFS, or moto where that is not installed; --folder uses a shared path), and the
state is loaded from the disk and, on a node that has nothing, from the store. Every load is from a
warm page cache. Run: python -m tests.bench.store [--mib 256] [--rounds 5] [--dir DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from midwatch.checkpoints.dcp import Saver, load_first
from midwatch.checkpoints.objects import open_store, prepare_store
from midwatch.checkpoints.remote import RunObjects
from midwatch.checkpoints.retrying import Backoff, persist
from midwatch.checkpoints.tiered import Tiers
from midwatch.checkpoints.uploading import Uploader
from midwatch.logbook.tiers import Storage

from tests.support import s3_servers
from tests.unit.checkpoints import models
from tests.unit.checkpoints.test_uploading import Heard

MIB = 1 << 20
TENSORS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", default=None, help="folder on the disk that counts")
    parser.add_argument("--folder", action="store_true", help="a shared path instead of S3")
    args = parser.parse_args()
    s3_servers.set_credentials(os.environ)
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = Path(name)
        with storage_in(folder, args.folder) as storage:
            found = measure(folder, storage, args.mib, args.rounds)
    for key, values in found.items():
        low, high = min(values), max(values)
        print(f"{key:24} {statistics.median(values):10.4g}   ({low:.4g} to {high:.4g})")
    result = {key: statistics.median(values) for key, values in found.items()}
    wanted = ("write_frac_of_raw_copy", "upload_mib_s", "restore_disk_s", "restore_store_s")
    print(json.dumps({key: result[key] for key in wanted}))


@contextlib.contextmanager
def storage_in(folder: Path, is_folder: bool) -> Iterator[Storage]:
    if is_folder:
        print("store: a shared path")
        prepare_store(str(folder / "shared"))
        yield Storage(url=str(folder / "shared"), local_root=str(folder / "node"), run_id="id")
        return
    serve = s3_servers.seaweed if s3_servers.weed_path() else s3_servers.moto
    print(f"store: {serve.__name__} on loopback")
    place = folder / "service"
    place.mkdir()
    with serve(place) as endpoint:
        yield endpoint.storage(folder, part_mib=16, run_id="id", timeout_s=60.0)


def measure(folder: Path, storage: Storage, mib: int, rounds: int) -> dict[str, list[float]]:
    state = state_of(mib)
    config = models.saver_config(str(folder), 0, models.Mesh(1, 1))
    saver = Saver(msgspec.structs.replace(config, storage=storage))
    remote = RunObjects(open_store(storage), "r", "id")
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        raw_s = raw_copy_s(folder, mib)
        outcome = saver.save(state, models.header(number + 1)).result(600.0)
        assert outcome.stage == "committed", outcome.error
        heard = Heard()
        uploader = Uploader(Path(storage.local_root), remote, heard, run_id="id", keep_local=1)
        upload_s = timed(lambda up=uploader, heard=heard: bring(up, heard))
        spare = msgspec.structs.replace(storage, local_root=str(folder / "spare"))
        disk_s = restore_s(storage, outcome.checkpoint, state, "disk")
        store_s = restore_s(spare, outcome.checkpoint, state, "store")
        shutil.rmtree(folder / "spare")
        persist(lambda name=outcome.checkpoint: remote.delete(name), Backoff(0.1, 1.0), 60.0)
        if number == 0:
            continue  # The first pays for imports, connections and the layout of the image.
        size_mib = outcome.bytes / MIB
        note = {
            "write_frac_of_raw_copy": raw_s / outcome.save_s * size_mib / mib,
            "raw_copy_mib_s": mib / raw_s,
            "sha256_mib_s": 64 / timed(lambda: hashlib.sha256(bytes(64 * MIB)).digest()),
            "save_mib_s": size_mib / outcome.save_s,
            "upload_mib_s": size_mib / upload_s,
            "restore_disk_s": disk_s,
            "restore_store_s": store_s,
        }
        for key, value in note.items():
            found.setdefault(key, []).append(value)
    saver.close()
    return found


def state_of(mib: int) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    count = mib * MIB // 4 // TENSORS
    return {f"weights.{number}": torch.randn(count) for number in range(TENSORS)}


def raw_copy_s(folder: Path, mib: int) -> float:
    """Write as many bytes to the same disk with nothing but write and fsync."""
    data = memoryview(os.urandom(MIB)) if mib else memoryview(b"")
    path = folder / "raw"

    def write() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for _ in range(mib):
            os.write(fd, data)
        os.fsync(fd)
        os.close(fd)

    seconds = timed(write)
    path.unlink()
    return seconds


def bring(uploader: Uploader, heard: Heard) -> None:
    while not heard.stored:
        time.sleep(0.0 if uploader.turn() == 0.0 or heard.stored else 0.05)
    if heard.troubles:
        print(f"troubles on the way: {heard.troubles}")


def restore_s(storage: Storage, checkpoint: str, state: dict[str, Any], tier: str) -> float:
    report = load_first(Tiers(storage, "r").candidates((checkpoint,)), state)
    assert (report.checkpoint, report.tier) == (checkpoint, tier)
    return report.load_s


def timed(call: Callable[[], None]) -> float:
    begun_s = time.perf_counter()
    call()
    return time.perf_counter() - begun_s


if __name__ == "__main__":
    main()
