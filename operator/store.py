"""The store of a run's checkpoints, as its spec describes it: the one place where it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..checkpoints.store import CheckpointStore, Listing, LocalStore
from .spec import RunSpec

DISK = "disk"


def open_store(spec: RunSpec, run_dir: Path) -> CheckpointStore:
    """Return the store of a run, for reading or for deleting; nothing is created."""
    return LocalStore(run_dir)


def list_tiers(spec: RunSpec, run_dir: Path) -> Mapping[str, Listing]:
    """Return what each tier of a run holds, by its name."""
    return {DISK: LocalStore(run_dir).listing()}
