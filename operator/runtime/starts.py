"""The start orders of worker processes, by node: of an attempt, and of a preflight."""

from __future__ import annotations

from ...logbook.plan import AttemptPlan, PreflightPlan
from ...logbook.wire import Mesh, WorkerStart
from ..spec import RunSpec


def worker_starts(
    spec: RunSpec, run_dir: str, plan: AttemptPlan, host: str, port: int
) -> dict[str, list[WorkerStart]]:
    """Return the start orders of an attempt by node."""
    mesh = Mesh(plan.mesh.dp_shard, plan.mesh.tp)
    return {
        place.node: [
            WorkerStart(
                run=spec.name,
                run_dir=run_dir,
                attempt=plan.attempt,
                rank=place.first_rank + local_rank,
                local_rank=local_rank,
                world_size=mesh.world_size,
                node=place.node,
                mesh=mesh,
                rendezvous_host=host,
                rendezvous_port=port,
                trainer=spec.trainer,
                hyper=plan.hyper,
                checkpoints=plan.checkpoints,
                first_command=plan.first_command,
            )
            for local_rank in range(place.num_ranks)
        ]
        for place in plan.placements
    }


def preflight_starts(
    spec: RunSpec, run_dir: str, plan: PreflightPlan, host: str, port: int
) -> dict[str, list[WorkerStart]]:
    """Return the start orders of a preflight by node."""
    starts: dict[str, list[WorkerStart]] = {}
    for rank, node in enumerate(plan.rank_nodes):
        start = WorkerStart(
            run=spec.name,
            run_dir=run_dir,
            attempt=plan.attempt,
            rank=rank,
            local_rank=rank % plan.ranks_per_node,
            world_size=plan.world_size,
            node=node,
            mesh=Mesh(plan.world_size, 1),
            rendezvous_host=host,
            rendezvous_port=port,
            trainer=spec.trainer,
        )
        starts.setdefault(node, []).append(start)
    return starts
