"""The uploader's own process: hashing and TLS never delay the agent, and a kill costs one part.

Run as `python -m midwatch.operator.agent.uploader`. The first frame on standard input is its
UploadConfig, each further one a Request; what it has to say are frames of News on standard output.
It ends with its agent: a thread waits for the end of standard input, as an errand may take long.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path

import msgspec

from ...checkpoints.manifest import Manifest, checkpoint_dir, read_manifest
from ...checkpoints.objects import bandwidth_of, open_store
from ...checkpoints.part_check import check_part, check_stored
from ...checkpoints.remote import RunObjects
from ...checkpoints.retrying import Backoff, persist
from ...checkpoints.store import LocalStore
from ...checkpoints.upload_part import RETRY_FIRST_S, Troubles
from ...checkpoints.uploading import Uploader
from ...logbook.errors import IntegrityError, MidwatchError
from ...logbook.events import CheckpointCommitted
from ...logbook.wire import encode_frame
from .upload_wire import (
    Answer,
    CheckPart,
    CheckStored,
    Delete,
    Errand,
    Forget,
    News,
    Order,
    PartFound,
    Request,
    Stored,
    Sweep,
    Trouble,
    UploadConfig,
    bounded,
    order_reader,
)

POLL_S = 0.5
ERRAND_PATIENCE_S = 60.0
# Training comes first wherever both want the processor.
NICENESS = 10

_READ_BYTES = 1 << 16


def main() -> None:
    """Upload and run errands until standard input ends."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    config = orders.get()
    assert isinstance(config, UploadConfig)
    site = Site(config)
    threading.Thread(target=site.upload_for_ever, name="upload", daemon=True).start()
    while True:
        request = orders.get()
        assert isinstance(request, Request)
        site.run(request)


def _listen(orders: queue.SimpleQueue[Order]) -> None:
    reader = order_reader()
    while data := os.read(sys.stdin.fileno(), _READ_BYTES):
        for order in reader.feed(data):
            orders.put(order)
    os._exit(0)


class Site:
    """One node's uploads and errands."""

    def __init__(self, config: UploadConfig) -> None:
        storage = config.storage
        self._root = Path(storage.local_root)
        store = open_store(storage)
        self._remote = RunObjects(store, config.run, storage.run_id)
        paced = RunObjects(store, config.run, storage.run_id, bandwidth_of(storage))
        self._uploader = Uploader(
            self._root,
            paced,
            Teller(),
            run_id=storage.run_id,
            keep_local=config.keep_local,
            retry_max_s=storage.retry_max_s,
        )
        self._troubles = Troubles(Teller().trouble)
        self._backoff = Backoff(RETRY_FIRST_S, storage.retry_max_s)

    def upload_for_ever(self) -> None:
        """Bring to the store whatever turns up."""
        while True:
            time.sleep(self._turn())

    def _turn(self) -> float:
        """Have the uploader take a turn; return how long to wait before the next."""
        try:
            wait_s = self._uploader.turn()
        except Exception as error:
            # What nobody foresaw, a credential helper's rubbish say, may pass like anything else.
            traceback.print_exc()
            self._troubles.tell(
                "upload-failed",
                f"uploads broke off: {type(error).__name__}; see uploader.log of the agent.",
            )
            return self._backoff.next_s()
        self._troubles.keep(())
        self._backoff.reset()
        return wait_s if self._uploader.is_cut_off else min(wait_s, POLL_S)

    def run(self, request: Request) -> None:
        """Run one errand and answer it."""
        try:
            answer = self._run(request.errand)
        except (MidwatchError, OSError) as error:
            answer = Answer(error=str(error))
        except Exception as error:
            traceback.print_exc()
            answer = Answer(error=f"[uploader-failed] {type(error).__name__}; see uploader.log.")
        tell(msgspec.structs.replace(bounded(answer), number=request.number))

    def _run(self, errand: Errand) -> Answer:
        if isinstance(errand, Forget):
            for checkpoint in errand.checkpoints:
                LocalStore(self._root).delete(checkpoint)
            return Answer()
        if isinstance(errand, CheckPart):
            sound, bad, missing = check_part(checkpoint_dir(self._root, errand.checkpoint))
            return Answer(sound=sound, bad=bad, missing=missing)
        return persist(
            lambda: self._run_remote(errand), Backoff(0.2, 5.0), patience_s=ERRAND_PATIENCE_S
        )

    def _run_remote(self, errand: Errand) -> Answer:
        if isinstance(errand, Delete):
            for checkpoint in errand.checkpoints:
                with contextlib.suppress(IntegrityError):
                    # What another run of this name put there is not ours to delete.
                    self._remote.delete(checkpoint)
        elif isinstance(errand, Sweep):
            self._remote.sweep(errand.attempt, time.time())
        elif isinstance(errand, CheckStored):
            manifest = self._manifest(errand.checkpoint)
            sound, bad = check_stored(self._remote, manifest, errand.names)
            return Answer(sound=sound, bad=bad)
        return Answer()

    def _manifest(self, checkpoint: str) -> Manifest:
        there = self._remote.manifest(checkpoint)
        return there or read_manifest(checkpoint_dir(self._root, checkpoint))


class Teller:
    """Puts on standard output what the uploader tells; an uploading.Witness."""

    def part_found(self, manifest: Manifest, held: tuple[str, ...]) -> None:
        commit = CheckpointCommitted(
            attempt=manifest.attempt,
            checkpoint=manifest.id,
            step=manifest.step,
            bytes=manifest.total_bytes,
            blocked_s=0.0,
            save_s=0.0,
            tags=manifest.header.tags,
        )
        tell(PartFound(commit, held, len(manifest.files)))

    def uploaded(self, manifest: Manifest, upload_s: float) -> None:
        tell(Stored(manifest.id, manifest.total_bytes, upload_s))

    def trouble(self, code: str, message: str, since_s: float) -> None:
        tell(Trouble(code, message, since_s))


_lock = threading.Lock()


def tell(news: News) -> None:
    """Write one frame; two threads have something to say."""
    with _lock:
        sys.stdout.buffer.write(encode_frame(news))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
