"""Run a function on real ranks: one process each, joined by gloo.

Processes are born from a forkserver that has torch and the trainer loaded, so a group of four takes
a fraction of a second, and no thread of the test process is ever forked.
"""

from __future__ import annotations

import atexit
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_PRELOADED = ["pytest", "torch.distributed.tensor", "midwatch.trainer.step"]


class RankFailed(Exception):
    """A rank raised, died or did not answer; the message holds its traceback."""


def run_ranks(
    fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 100.0
) -> list[Any]:
    """Return what fn(rank, *args) returned on every rank, in the order of ranks.

    fn must be a module-level function, its arguments and result picklable. Within it the default
    process group exists (gloo, world_size ranks) and torch uses one thread.
    Raises: RankFailed with the traceback of the first rank that failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        children: list[ForkServerProcess] = []
        pipes: list[connection.Connection] = []
        try:
            for rank in range(world_size):
                ours, theirs = context.Pipe(duplex=False)
                place = (str(sys.modules[fn.__module__].__file__), fn.__qualname__)
                child = context.Process(
                    target=_be_rank, args=(theirs, place, rank, world_size, store, args)
                )
                child.start()
                theirs.close()
                children.append(child)
                pipes.append(ours)
            return _collect(pipes, timeout_s)
        finally:
            for child in children:
                child.kill()
            for child in children:
                child.join()
            for pipe in pipes:
                pipe.close()


def _collect(pipes: list[connection.Connection], timeout_s: float) -> list[Any]:
    deadline_s = time.monotonic() + timeout_s
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = connection.wait(waiting, timeout=max(0.0, deadline_s - time.monotonic()))
        if not ready:
            silent = [rank for rank in range(len(pipes)) if rank not in results]
            raise RankFailed(f"ranks {silent} did not answer within {timeout_s} s")
        for pipe in ready:
            rank = pipes.index(pipe)  # type: ignore[arg-type]  # wait() returns what it was given
            results[rank] = _receive(rank, pipes[rank])
    return [results[rank] for rank in range(len(pipes))]


def _receive(rank: int, pipe: connection.Connection) -> Any:
    try:
        succeeded, value = pipe.recv()
    except EOFError:
        raise RankFailed(f"rank {rank} died without a word") from None
    if not succeeded:
        raise RankFailed(f"rank {rank} failed:\n{value}")
    return value


def _be_rank(
    pipe: connection.Connection,
    place: tuple[str, str],
    rank: int,
    world_size: int,
    store: str,
    args: tuple[Any, ...],
) -> None:
    try:
        # The loopback interface spares gloo a look-up of the host's name.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size
        )
        result = _load(*place)(rank, *args)
        dist.barrier()
        pipe.send((True, result))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    finally:
        pipe.close()
        # Nothing of the group needs an orderly end, and its threads would make one slow.
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._clear()
        os._exit(0)


def _load(file: str, qualname: str) -> Callable[..., Any]:
    """Return a function of a test file without asking how pytest named its module."""
    spec = importlib.util.spec_from_file_location("ranked_test", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ranked_test"] = module
    spec.loader.exec_module(module)
    fn: Callable[..., Any] = getattr(module, qualname)
    return fn
