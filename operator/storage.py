"""From the spec to where a node keeps its part of each checkpoint, and what sets this run apart."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from ..checkpoints.objects import prepare_store
from ..logbook.tiers import Storage
from .spec import RunSpec

RUN_ID_NAME = "run-id"
STORE_NAME = "store-url"
"""File in the run folder with the address of the store that was made for the run."""


def run_id_of(run_dir: str | Path) -> str:
    """Return the id of the run in a run folder, made up at the first call.

    A run of the same name in another folder has another one, so neither takes the checkpoints of
    the other for its own where both use one store.
    """
    path = Path(run_dir) / RUN_ID_NAME
    temporary = path.with_name(f"{RUN_ID_NAME}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        temporary.write_text(secrets.token_hex(6))
        # Of two controllers that begin at once, one wins.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
    return path.read_text().strip()


def known_run_id(run_dir: str | Path) -> str:
    """Return the id of the run in a run folder, "" when it has none."""
    path = Path(run_dir) / RUN_ID_NAME
    return path.read_text().strip() if path.exists() else ""


def prepare_store_once(spec: RunSpec, run_dir: str | Path) -> None:
    """Make the store of a run at its first start, and again only when its address has changed.

    A store that is not there at a later start is not mounted, and must not be begun anew beside it.
    Raises: ConfigError[store-not-there].
    """
    url = spec.checkpoints.store.url
    note = Path(run_dir, STORE_NAME)
    if not url or (note.exists() and note.read_text() == url):
        return
    prepare_store(url)
    note.write_text(url)


def storage_of(spec: RunSpec, run_dir: str | Path, run_id: str, node: str) -> Storage | None:
    """Return what a node needs to know of the durable tiers, None when there is no store."""
    store = spec.checkpoints.store
    if not store.url:
        return None
    return Storage(
        url=store.url,
        local_root=str(_parts_dir(spec, run_dir, run_id) / node),
        run_id=run_id,
        endpoint_url=store.endpoint_url,
        region=store.region,
        path_style=store.path_style,
        ca_bundle=store.ca_bundle,
        part_mib=store.part_mib,
        concurrency=store.concurrency,
        bandwidth_mib_s=store.bandwidth_mib_s,
        timeout_s=store.timeout_s,
        retry_max_s=store.retry_max_s,
    )


def node_folders(spec: RunSpec, run_dir: str | Path) -> list[Path]:
    """Return where the nodes whose disks are seen from here keep their parts of checkpoints."""
    return sorted(_parts_dir(spec, run_dir, known_run_id(run_dir)).glob("*"))


def _parts_dir(spec: RunSpec, run_dir: str | Path, run_id: str) -> Path:
    local_dir = spec.checkpoints.store.local_dir
    return Path(local_dir, f"{spec.name}.{run_id}") if local_dir else Path(run_dir, "local")
