"""The custom resource definitions, made from the models: python -m midwatch.operator.k8s.crd

`make crds` writes manifests/crds; a test compares them with what this would write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..spec import RunSpec
from . import names
from .model import TrainingRunSpec
from .model_objects import ApprovalSpec, InterventionSpec, InterventionStatus, TrainingRunStatus
from .structural import Schema, structural_schema

TARGET = Path(__file__).resolve().parents[2] / "manifests" / "crds"
HEADER = "# Written from the models of operator/k8s by `make crds`; a test holds it to them.\n"

_IMMUTABLE = "self == oldSelf"
_GANG_HAS_A_SCHEDULER = (
    "!self.scheduling.gang || self.scheduling.batchScheduler != 'None' || "
    "self.scheduling.queueName != ''"
)
_RUN_RULES = (
    (
        "(self.mesh.dp_shard * self.mesh.tp) % self.nodes.ranks_per_node == 0",
        "mesh.dp_shard * mesh.tp must be a multiple of nodes.ranks_per_node",
    ),
    (
        "self.nodes.ranks_per_node == oldSelf.nodes.ranks_per_node",
        "nodes.ranks_per_node is immutable: delete the run and apply it anew",
    ),
    (
        # KubeRay takes the first pods of a group that shrinks, whether they carry ranks or not.
        "self.nodes.spares == oldSelf.nodes.spares",
        "nodes.spares is immutable: delete the run and apply it anew",
    ),
)
_SPEC_RULES = (
    (
        "has(self.clusterSelector) || (self.image != '' && self.storage.claimName != '')",
        "give image and storage.claimName, or a clusterSelector",
    ),
    (
        "has(self.clusterSelector) == has(oldSelf.clusterSelector)",
        "clusterSelector can be neither added nor taken away",
    ),
    ("self.storage == oldSelf.storage", "storage is immutable: the run folder lies there"),
    (
        "self.faultTolerance.mode != 'Redis' || self.faultTolerance.redisAddress != ''",
        "faultTolerance.mode Redis needs redisAddress",
    ),
    (
        _GANG_HAS_A_SCHEDULER,
        "scheduling.gang needs a batchScheduler or a queueName",
    ),
)
_INTERVENTION_RULES = (
    (_IMMUTABLE, "an Intervention is written once: create another one"),
    (
        "self.action != 'SetLearningRate' || has(self.params.value) != has(self.params.multiplier)",
        "SetLearningRate needs exactly one of params.value and params.multiplier",
    ),
    (
        "self.action == 'SetLearningRate' || !has(self.params.multiplier)",
        "params.multiplier is for SetLearningRate alone",
    ),
)


def _column(name: str, path: str, kind: str = "string", *, wide: bool = False) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path}
    return {**column, "priority": 1} if wide else column


def _condition(name: str, what: str = "status") -> str:
    return f'.status.conditions[?(@.type=="{name}")].{what}'


_AGE = _column("Age", ".metadata.creationTimestamp", "date")
_RUN_COLUMNS = [
    _column("Ready", _condition("Ready")),
    _column("Step", ".status.run.step", "integer"),
    _column("Loss", ".status.run.loss"),
    _column("LR", ".status.run.learningRate"),
    _column("Goodput", ".status.run.goodput"),
    _column("Restarts", ".status.run.restarts", "integer"),
    _AGE,
    _column("Reason", _condition("Ready", "reason"), wide=True),
    _column("Attempt", ".status.run.attempt", "integer", wide=True),
    _column("LastGood", ".status.run.lastGood", wide=True),
    _column("Nodes", ".status.run.nodes", "integer", wide=True),
]
_INTERVENTION_COLUMNS = [
    _column("Run", ".spec.runRef.name"),
    _column("Action", ".spec.action"),
    _column("Applied", _condition("Applied")),
    _column("Step", ".status.appliedAtStep", "integer"),
    _column("By", ".spec.requestedBy"),
    _AGE,
    _column("Stage", ".status.stage", wide=True),
    _column("Reason", ".spec.reason", wide=True),
]
_APPROVAL_COLUMNS = [
    _column("Intervention", ".spec.interventionRef.name"),
    _column("Decision", ".spec.decision"),
    _column("By", ".spec.approvedBy"),
    _AGE,
]


def definitions() -> dict[str, Schema]:
    """Return every custom resource definition by the name of its file."""
    found = [
        _definition("TrainingRun", "trun", _training_run(), _RUN_COLUMNS),
        _definition("Intervention", "intv", _intervention(), _INTERVENTION_COLUMNS),
        _definition(
            "InterventionApproval", "intvapp", _approval(), _APPROVAL_COLUMNS, has_status=False
        ),
    ]
    return {f"{each['metadata']['name']}.yaml": each for each in found}


def render(definition: Schema) -> str:
    """Return the text of a definition's file."""
    text = yaml.safe_dump(definition, sort_keys=False, width=100, allow_unicode=True)
    return HEADER + text


def _training_run() -> Schema:
    spec = structural_schema(TrainingRunSpec)
    run = structural_schema(RunSpec, leave_out=frozenset({"name", "run_dir"}))
    run["description"] = spec["properties"]["run"]["description"]
    for name in ("mesh", "entry_points"):
        _add_rules(run["properties"][name], ((_IMMUTABLE, f"{name} is immutable"),))
    _add_rules(run, _RUN_RULES)
    spec["properties"]["run"] = run
    _add_rules(spec, _SPEC_RULES)
    whole = _whole(spec, _status(TrainingRunStatus))
    limit = names.NAME_CHARS_MAX
    rule = (f"size(self.metadata.name) <= {limit}", f"the name may have {limit} characters at most")
    _add_rules(whole, (rule,))
    return whole


def _intervention() -> Schema:
    spec = structural_schema(InterventionSpec)
    _add_rules(spec, _INTERVENTION_RULES)
    return _whole(spec, _status(InterventionStatus))


def _approval() -> Schema:
    spec = structural_schema(ApprovalSpec)
    _add_rules(spec, ((_IMMUTABLE, "an InterventionApproval is written once"),))
    return _whole(spec)


def _status(model: Any) -> Schema:
    """A status is written by the operator alone: nothing in it has a default."""
    schema = structural_schema(model)
    _drop_defaults(schema)
    conditions = schema["properties"]["conditions"]
    conditions["x-kubernetes-list-type"] = "map"
    conditions["x-kubernetes-list-map-keys"] = ["type"]
    return schema


def _drop_defaults(schema: Schema) -> None:
    schema.pop("default", None)
    for child in schema.get("properties", {}).values():
        _drop_defaults(child)
    if "items" in schema:
        _drop_defaults(schema["items"])


def _whole(spec: Schema, status: Schema | None = None) -> Schema:
    properties: Schema = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": spec,
    }
    if status is not None:
        properties["status"] = status
    return {
        "type": "object",
        "description": spec["description"],
        "required": ["spec"],
        "properties": properties,
    }


def _add_rules(schema: Schema, rules: tuple[tuple[str, str], ...]) -> None:
    found = schema.setdefault("x-kubernetes-validations", [])
    found.extend({"rule": rule, "message": message} for rule, message in rules)


def _definition(
    kind: str, short: str, schema: Schema, columns: list[Schema], *, has_status: bool = True
) -> Schema:
    plural = f"{kind.lower()}s"
    version: Schema = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": schema},
    }
    if has_status:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["midwatch"],
            },
            "versions": [version],
        },
    }


def main() -> None:
    """Write every definition where it belongs."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, definition in definitions().items():
        (TARGET / name).write_text(render(definition), encoding="utf-8")


if __name__ == "__main__":
    main()
