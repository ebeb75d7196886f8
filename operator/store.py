"""The store of a run's checkpoints, as its spec describes it: the one place where it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..checkpoints.remote_store import RemoteStore, listing_or_none
from ..checkpoints.store import CheckpointStore, Listing, LocalStore
from .spec import RunSpec
from .storage import known_run_id, node_folders, storage_of

DISK, STORE = "disk", "store"


def open_store(spec: RunSpec, run_dir: Path) -> CheckpointStore:
    """Return the store of a run, for reading or for deleting; nothing is created.

    With a durable store that one, which outlives every node; otherwise the run folder.
    """
    return open_durable(spec, run_dir) or LocalStore(run_dir)


def list_tiers(spec: RunSpec, run_dir: Path) -> tuple[Mapping[str, Listing], str]:
    """Return what each tier of a run that can be seen from here holds, and what could not be seen.

    The disks of other machines cannot; a store that does not answer hides nothing else.
    """
    remote = open_durable(spec, run_dir)
    if remote is None:
        return {DISK: LocalStore(run_dir).listing()}, ""
    parts = [LocalStore(folder).listing() for folder in node_folders(spec, run_dir)]
    committed = {m.id: m for part in parts for m in part.committed}
    broken = {b.id: b for part in parts for b in part.broken}
    disk = Listing(tuple(committed.values()), tuple(broken.values()))
    stored, trouble = listing_or_none(remote)
    return ({DISK: disk} if stored is None else {DISK: disk, STORE: stored}), trouble


def open_durable(spec: RunSpec, run_dir: Path) -> RemoteStore | None:
    """Return the durable store of a run, None when its checkpoints lie in the run folder."""
    storage = storage_of(spec, run_dir, known_run_id(run_dir), "here")
    return RemoteStore(storage, spec.name) if storage is not None else None
