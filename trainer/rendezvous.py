"""How the ranks of an attempt meet: one TCP store, then one process group."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

# torch.distributed hands these on without declaring it.
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from ..logbook.errors import MidwatchError
from ..logbook.wire import WorkerStart

STORE_TIMEOUT = timedelta(seconds=120)
"""A rank that the others wait for longer than this at start-up is not coming."""
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Only a backstop: a hang is found by the agent's progress deadline long before."""


class RendezvousError(MidwatchError):
    """The ranks of an attempt did not find each other."""


@dataclass(frozen=True)
class Meeting:
    """Where and as whom a rank meets the others.

    listen_fd: already listening socket on which rank 0 serves the store; None binds the port.
    is_served: somebody else serves the store, so that rank 0 is a client too.
    prefix:    keeps the keys of one attempt apart from those of others in the same store. gloo
               leaves its addresses in the store, and those of a dead attempt must not be found.
    """

    host: str
    port: int
    rank: int
    world_size: int
    prefix: str
    listen_fd: int | None = None
    is_served: bool = False


def meeting_of(start: WorkerStart) -> Meeting:
    """Return the meeting that a controller's WorkerStart describes."""
    return Meeting(
        host=start.rendezvous_host,
        port=start.rendezvous_port,
        rank=start.rank,
        world_size=start.world_size,
        prefix=f"attempt-{start.attempt}",
        listen_fd=start.listen_fd,
    )


def connect_store(meeting: Meeting) -> Store:
    """Return this attempt's store, served by rank 0 unless somebody else does.

    Raises: RendezvousError[port-taken], RendezvousError[rendezvous-failed].
    """
    serves = meeting.rank == 0 and not meeting.is_served
    try:
        store = TCPStore(
            meeting.host,
            meeting.port,
            is_master=serves,
            timeout=STORE_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=meeting.listen_fd if serves else None,
        )
    except (RuntimeError, ValueError) as error:
        where = f"{meeting.host}:{meeting.port}"
        if serves and "EADDRINUSE" in str(error):
            raise RendezvousError(
                "port-taken",
                f"rank 0 cannot serve the rendezvous: {where} is in use.",
                remedy="Choose another port, or end the process that holds this one.",
            ) from error
        raise RendezvousError(
            "rendezvous-failed",
            f"rank {meeting.rank} could not reach the rendezvous at {where}: {error}",
            remedy="Look at the log of rank 0: it serves this address.",
        ) from error
    return PrefixStore(meeting.prefix, store)


def join(start: WorkerStart, store: Store, device: torch.device) -> None:
    """Create the default process group: gloo for CPU tensors, NCCL for those of a GPU.

    Raises: RendezvousError[rendezvous-failed].
    """
    prefer_loopback(start.rendezvous_host)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=start.rank,
            world_size=start.world_size,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
    except RuntimeError as error:
        raise RendezvousError(
            "rendezvous-failed",
            f"rank {start.rank} could not connect to its peers: {error}",
            remedy="Look at the other ranks: one of them did not start or died.",
        ) from error


def prefer_loopback(host: str) -> None:
    """Have gloo connect over the loopback interface when ranks meet at host there.

    Otherwise gloo asks the resolver for this machine's name, which is slow where it is unknown.
    """
    if _is_loopback(host):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
