"""Where ranks stand in their collectives: read from the real recorder while they are blocked."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from midwatch.health.nodes.liveness import RankProgress, blame
from midwatch.logbook.wire import CollectiveMark, CollectiveTrace, Phase
from midwatch.trainer.flight import read_dump, take_trace
from torch.distributed.distributed_c10d import _get_default_store

from tests.support.ranks import run_ranks

LATE = 2


def _meet(store: Any, key: str, world_size: int) -> None:
    store.add(key, 1)
    while store.add(key, 0) < world_size:
        time.sleep(0.002)


def _traced(rank: int, world_size: int) -> CollectiveTrace:
    """All ranks but one wait in a collective; a thread of each says where it stands."""
    group = dist.new_group(list(range(world_size)), group_desc="dp_shard")
    x = torch.ones(8)
    for _ in range(3):
        dist.all_reduce(x)
    dist.all_reduce(x, group=group)
    store = _get_default_store()
    found: list[CollectiveTrace] = []

    def look() -> None:
        # A rank counts itself in right before it calls; whoever waits must then be in the call.
        while store.add("called", 0) < world_size - 1:
            time.sleep(0.002)
        while rank != LATE:
            found[:] = [take_trace(rank, "gloo")]
            marks = [m for m in found[0].marks if "dp_shard" in m.group]
            if marks and marks[0].enqueued == 2:
                break
            time.sleep(0.002)
        if rank == LATE:
            # It may not know yet that what all have called before has ended: nobody waits for that.
            found[:] = [take_trace(rank, "gloo")]
        _meet(store, "traced", world_size)

    thread = threading.Thread(target=look)
    thread.start()
    if rank == LATE:
        thread.join()
    else:
        store.add("called", 1)
    dist.all_reduce(x, group=group)
    thread.join()
    return found[0]


def test_the_rank_that_has_not_called_is_named_while_all_others_wait() -> None:
    traces = run_ranks(_traced, 4, 4)
    rows = [RankProgress(t.rank, 7, Phase.FORWARD, 5.0, "S", True, t.marks) for t in traces]
    rank, why = blame(rows)
    assert rank == LATE
    assert "has not called gloo:all_reduce 2 of group" in why
    assert "dp_shard" in why
    assert "3 ranks wait" in why


def nccl_dump(enqueued: int, completed: int) -> dict[str, Any]:
    """A dump as NCCL's recorder writes it (version 2.x), cut to what there is to say."""
    entry = {
        "record_id": 411,
        "pg_id": 2,
        "process_group": ["5", "mesh_dp_shard"],
        "collective_seq_id": enqueued,
        "p2p_seq_id": 0,
        "op_id": enqueued,
        "profiling_name": "nccl:_reduce_scatter_base",
        "input_sizes": [[1024, 1024]],
        "output_sizes": [[128, 1024]],
        "state": "started",
        "time_discovered_completed_ns": None,
        "retired": False,
        "is_p2p": False,
    }
    older = {**entry, "collective_seq_id": enqueued - 1, "profiling_name": "nccl:all_gather"}
    p2p = {
        **entry,
        "collective_seq_id": enqueued + 5,
        "profiling_name": "nccl:send",
        "is_p2p": True,
    }
    return {
        "version": "2.10",
        "pg_config": {"5": {"name": "5", "desc": "mesh_dp_shard", "ranks": "[0, 8, 16]"}},
        "pg_status": {
            "2": {
                "last_enqueued_collective": enqueued,
                "last_started_collective": enqueued,
                "last_completed_collective": completed,
            },
            "0": {
                "last_enqueued_collective": -1,
                "last_started_collective": -1,
                "last_completed_collective": -1,
            },
        },
        "entries": [older, entry, p2p],
    }


def test_a_dump_of_nccl_is_read() -> None:
    marks = read_dump(json.dumps(nccl_dump(412, 411)))
    assert marks == (
        CollectiveMark("0", -1, -1),
        CollectiveMark("5 (mesh_dp_shard)", 412, 411, "nccl:_reduce_scatter_base"),
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pg_status": 3, "entries": []}', "nonsense"])
def test_what_is_no_dump_is_refused(text: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        read_dump(text)


@pytest.mark.skipif(dist.is_nccl_available(), reason="this build has NCCL")
def test_a_build_without_the_backend_says_so() -> None:
    trace = take_trace(0, "nccl")
    assert trace.marks == ()
    assert "_dump_nccl_trace_json" in trace.error
