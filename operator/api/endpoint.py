"""Where a run is served from, told in its folder: RUN_DIR/api/endpoint.json.

Whoever is named there is the one server of the run. A process that finds another one named has
been replaced, and leaves.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec

from ...logbook.decoding import prepared
from .order import ServeOrder
from .tokens import FOLDER

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Endpoint(msgspec.Struct, frozen=True):
    """A server of a run. place, pid and born_ticks name its process among all there ever were.

    place: the boot of its machine, and its process namespace there. order: digest of what it was
    started with.
    """

    url: str
    host: str
    port: int
    place: str
    pid: int
    born_ticks: int
    order: str = ""

    @property
    def is_here(self) -> bool:
        """Whether its process is one of those that this process could see."""
        return self.place == here()

    @property
    def is_alive(self) -> bool:
        """Whether its process is known to live; one elsewhere cannot be known to."""
        return self.is_here and born_ticks(self.pid) == self.born_ticks


def here() -> str:
    """Return what process ids of this process's world belong to."""
    return f"{_BOOT_ID.read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"


def born_ticks(pid: int) -> int:
    """Return when a process was started, in clock ticks since boot; -1 if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return -1
    # A zombie is dead already; field 22 of the line is the 20th behind the name.
    return -1 if fields[0] == b"Z" else int(fields[19])


def endpoint_of_this_process(order: ServeOrder, scheme: str, host: str, port: int) -> Endpoint:
    """Return this process as a server that listens at host and port."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    shown = f"[{name}]" if ":" in name else name
    pid = os.getpid()
    return Endpoint(
        url=f"{scheme}://{shown}:{port}",
        host=socket.gethostname(),
        port=port,
        place=here(),
        pid=pid,
        born_ticks=born_ticks(pid),
        order=order.digest,
    )


def read_endpoint(run_dir: Path) -> Endpoint | None:
    """Return the server that a run's folder tells of, None where it tells of none."""
    try:
        blob = _path(run_dir).read_bytes()
        return msgspec.json.decode(blob, type=prepared(Endpoint))
    except (OSError, ValueError):
        return None


def write_endpoint(run_dir: Path, endpoint: Endpoint) -> None:
    """Tell of a server in the run's folder, in place of the one before. Raises OSError."""
    path = _path(run_dir)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(endpoint) + b"\n")
    draft.replace(path)


def remove_endpoint(run_dir: Path, endpoint: Endpoint) -> None:
    """Tell of a server no more, unless another one has taken its place."""
    if read_endpoint(run_dir) == endpoint:
        _path(run_dir).unlink(missing_ok=True)


def _path(run_dir: Path) -> Path:
    return run_dir / FOLDER / "endpoint.json"
