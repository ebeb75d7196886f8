"""The start orders of worker processes, by node: of an attempt, and of a preflight."""

from __future__ import annotations

from ...logbook.plan import AttemptPlan, PreflightPlan
from ...logbook.tiers import MemoryOrder
from ...logbook.wire import Mesh, WorkerStart
from ..spec import RunSpec
from ..storage import storage_of


def worker_starts(
    spec: RunSpec, run_dir: str, plan: AttemptPlan, meeting: tuple[str, int], run_id: str
) -> dict[str, list[WorkerStart]]:
    """Return the start orders of an attempt by node. meeting: address of its rendezvous."""
    mesh = Mesh(plan.mesh.dp_shard, plan.mesh.tp)
    memory = memory_order(spec, plan)
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
                rendezvous_host=meeting[0],
                rendezvous_port=meeting[1],
                trainer=spec.trainer,
                hyper=plan.hyper,
                checkpoints=plan.checkpoints,
                first_command=plan.first_command,
                memory=memory,
                storage=storage_of(spec, run_dir, run_id, place.node),
                validated_step=plan.validated_step,
            )
            for local_rank in range(place.num_ranks)
        ]
        for place in plan.placements
    }


def memory_order(spec: RunSpec, plan: AttemptPlan) -> MemoryOrder | None:
    """Return how the ranks of an attempt use the memory tier, None when the run does without."""
    memory = spec.checkpoints.memory
    if memory.mode == "off":
        return None
    return MemoryOrder(
        ranks_per_node=spec.nodes.ranks_per_node,
        # What a rollback left behind was dropped by the agents; this is the second lock.
        since=plan.attempt if plan.memory_since is None else plan.memory_since,
        every_steps=memory.every_steps,
        cost_frac=memory.cost_frac,
    )


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
