"""What the operator can do in the cluster: data, made by reconcile() and carried out by apply.py.

Each is harmless when repeated, and may be the last before the operator dies.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from .observed import Object


class SetFinalizer(msgspec.Struct, frozen=True):
    """Add our finalizer to the TrainingRun, or take it away."""

    present: bool


class ApplyObject(msgspec.Struct, frozen=True):
    """Apply an object by server-side apply. is_there: whether it was seen to exist."""

    body: Object
    is_there: bool = True


class MakeToken(msgspec.Struct, frozen=True):
    """Create a Secret with a new token; one that is there stays as it is."""

    body: Object


class RemoveCluster(msgspec.Struct, frozen=True):
    """Delete the RayCluster with this uid."""

    name: str
    uid: str


class RemovePod(msgspec.Struct, frozen=True):
    """Delete the pod with this uid. is_forced: without waiting for a kubelet that is gone."""

    name: str
    uid: str
    is_forced: bool = False


class Cordon(msgspec.Struct, frozen=True):
    """Cordon a node in the name of the run, or take that cordon back."""

    node: str
    by: str
    is_on: bool = True


class StartController(msgspec.Struct, frozen=True):
    """Submit the Ray job that puts the controller on the cluster; an id taken is a job started.

    brings_tokens: its environment holds the tokens of the API, which no pod mounts there.
    spec: digest of the run spec that it brings.
    """

    id: str
    entrypoint: str
    env: dict[str, str]
    brings_tokens: bool = False
    spec: str = ""


class StopController(msgspec.Struct, frozen=True):
    """End the Ray job that serves a run on a cluster that is not its own."""

    id: str


class Ask(msgspec.Struct, frozen=True):
    """Lay a request before the run. for_object: the Intervention whose request it is."""

    request: dict[str, Any]
    is_dry_run: bool = False
    for_object: str = ""


class Tell(msgspec.Struct, frozen=True):
    """Tell of a transition by a Kubernetes Event. about: the object, None for the TrainingRun."""

    reason: str
    message: str
    action: str = "Reconcile"
    type: Literal["Normal", "Warning"] = "Normal"
    about: Object | None = None


class SetRunStatus(msgspec.Struct, frozen=True):
    """Write the status of the TrainingRun, and tell of what changed by it once it is written."""

    status: Object
    tells: tuple[Tell, ...] = ()


class SetInterventionStatus(msgspec.Struct, frozen=True):
    """Write the status of an Intervention."""

    name: str
    status: Object


class LabelIntervention(msgspec.Struct, frozen=True):
    """Put labels on an Intervention."""

    name: str
    labels: dict[str, str]


class CreateIntervention(msgspec.Struct, frozen=True):
    """Record what the controller did by itself; a name taken is a record made."""

    body: Object


class RemoveIntervention(msgspec.Struct, frozen=True):
    """Delete an Intervention that was settled long ago."""

    name: str
    uid: str


Action = (
    SetFinalizer
    | ApplyObject
    | MakeToken
    | RemoveCluster
    | RemovePod
    | Cordon
    | StartController
    | StopController
    | Ask
    | SetRunStatus
    | SetInterventionStatus
    | LabelIntervention
    | CreateIntervention
    | RemoveIntervention
    | Tell
)
