"""How everything that belongs to a run is named in the cluster, and which labels it carries."""

from __future__ import annotations

import re

GROUP = "midwatch.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

TRAINING_RUN = "TrainingRun"
INTERVENTION = "Intervention"
APPROVAL = "InterventionApproval"

FINALIZER = f"{GROUP}/finalizer"
FIELD_MANAGER = "midwatch-operator"
STATUS_MANAGER = "midwatch-status"
LEASE = "midwatch-operator"

RUN_LABEL = f"{GROUP}/run"
RUN_UID_LABEL = f"{GROUP}/run-uid"
ORIGIN_LABEL = f"{GROUP}/origin"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
CORDONED_BY = f"{GROUP}/cordoned-by"
EXCLUDED = f"{GROUP}/excluded-nodes"
PERSON, AUTOMATIC = "person", "automatic"

RAY_CLUSTER_LABEL = "ray.io/cluster"
RAY_GROUP_LABEL = "ray.io/group"
RAY_NODE_TYPE_LABEL = "ray.io/node-type"
WORKER_GROUP, SPARE_GROUP = "worker", "spare"

DASHBOARD_PORT = 8265
API_PORT = 8470
API_PORT_NAME = "api"
VIEWER, OPERATOR = "viewer", "operator"
TOKEN_KEY = "token"
RAY_TOKEN_KEY = "auth_token"
SPEC_DIGEST = "midwatch-spec"
TOKEN_DIR = "/etc/midwatch-api"

NAME_CHARS_MAX = 40
"""KubeRay puts suffixes behind the name of a cluster, and a label holds 63 characters."""


def api_name(run: str) -> str:
    """Return the name of the Service at which a run's HTTP API answers."""
    return f"{run}-midwatch"


def token_secret_name(run: str, role: str) -> str:
    """Return the name of the Secret that holds the token of a role for a run's HTTP API.

    One a role: who may read a Secret may read all of it.
    """
    return f"{run}-midwatch-{role}"


def token_variable(role: str) -> str:
    """Return the environment variable in which a job that serves the API finds a role's token."""
    return f"MIDWATCH_{role.upper()}_TOKEN"


def head_service_name(cluster: str) -> str:
    """Return the name that KubeRay gives to the Service of a cluster's head."""
    return f"{cluster}-head-svc"


def job_prefix(uid: str) -> str:
    """Return what the Ray jobs that start the controller of one TrainingRun begin with."""
    return f"midwatch-{uid}-"


def request_id(*parts: str) -> str:
    """Return an id under which the operator asks for something, as the run's API takes it."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(("k8s", *parts)))[:128]


def run_dir(mount: str, namespace: str, run: str) -> str:
    """Return the folder of a run on the storage that all its pods share."""
    return f"{mount.rstrip('/')}/{namespace}/{run}"


def labels_of(run: str, uid: str) -> dict[str, str]:
    """Return the labels that everything made for a run carries."""
    return {RUN_LABEL: run, RUN_UID_LABEL: uid, MANAGED_BY_LABEL: "midwatch"}
