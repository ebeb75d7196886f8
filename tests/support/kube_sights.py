"""Looks at a cluster for tests of what the operator decides: plain values, no cluster."""

from __future__ import annotations

from typing import Any

import msgspec
from midwatch.logbook.record import to_json
from midwatch.logbook.state import RunState
from midwatch.logbook.summary import summarize
from midwatch.operator.k8s.actions import Action, SetRunStatus
from midwatch.operator.k8s.observed import JobSight, Observed, Pod, RunSight

from .kube import Object
from .kube_run import make_run

NOW_S = 1_800_000_000.0


def seen_run(state: RunState) -> RunSight:
    """A run as its API would tell it: through JSON and back."""
    summary = msgspec.json.decode(to_json(summarize(state, NOW_S)))
    return RunSight("at work", state.seq, summary, msgspec.json.decode(to_json(state)))


def make_pods(nodes: int = 3) -> tuple[Pod, ...]:
    """A head and the pods of nodes n0, n1, ..., each on a node of the cluster of its own."""
    head = Pod("head-0", "uid-head", "10.0.0.9", "k-9", "", True, "Running", True)
    workers = [
        Pod(
            f"worker-{index}",
            f"uid-{index}",
            f"10.0.0.{index}",
            f"k-{index}",
            "worker",
            False,
            "Running",
            True,
        )
        for index in range(nodes)
    ]
    return (head, *workers)


def make_cluster(**metadata: Any) -> Object:
    """The RayCluster of the run that look() shows."""
    labels = {"midwatch.dev/run-uid": "run-uid"}
    return {"metadata": {"name": "night", "uid": "cluster-uid", "labels": labels, **metadata}}


def look(**changes: Any) -> Observed:
    """A run of an hour ago whose pods and controller are there; sight is to be given."""
    run: Object = make_run(**changes.pop("spec", {}))
    run["metadata"] |= {
        "uid": "run-uid",
        "generation": 2,
        "finalizers": ["midwatch.dev/finalizer"],
        **changes.pop("metadata", {}),
    }
    run["status"] = changes.pop("status", {})
    defaults: dict[str, Any] = {
        "now_s": NOW_S,
        "run": run,
        "cluster": make_cluster(),
        "pods": make_pods(),
        "jobs": (JobSight("midwatch-run-uid-1", 1, "SUCCEEDED"),),
        "secrets": frozenset({"night-midwatch-viewer", "night-midwatch-operator"}),
        "user": "operator",
    }
    return Observed(**{**defaults, **changes})


def of_kind(actions: list[Action], kind: type) -> list[Any]:
    """Return the actions of one kind."""
    return [action for action in actions if isinstance(action, kind)]


def condition(actions: list[Action], name: str) -> tuple[str, str]:
    """Status and reason of a condition in the status that is to be written."""
    (written,) = of_kind(actions, SetRunStatus)
    found = next(c for c in written.status["conditions"] if c["type"] == name)
    return found["status"], found["reason"]
