"""The definitions: written from the models, structural as Kubernetes wants it, true to both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.interventions import FORMS
from midwatch.operator.k8s import crd, names
from midwatch.operator.k8s.interventions import ACTIONS
from midwatch.operator.k8s.model import TrainingRunSpec, read_spec
from midwatch.operator.k8s.raycluster import Owner, build_cluster
from midwatch.operator.k8s.structural import structural_schema
from midwatch.operator.spec import RunSpec
from midwatch.tests.support.kube_run import make_intervention, make_run
from pydantic import BaseModel

DEFINITIONS = crd.definitions()
RUN = "trainingruns.midwatch.dev.yaml"
INTERVENTION = "interventions.midwatch.dev.yaml"
# What apiextensions/v1 JSONSchemaProps has, as far as a structural schema may use it.
ALLOWED = frozenset(
    {
        "type", "description", "enum", "pattern", "format", "minimum", "maximum", "minLength",
        "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "required",
        "exclusiveMinimum", "exclusiveMaximum", "nullable", "default", "properties", "items",
        "additionalProperties", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys", "x-kubernetes-validations",
    }
)  # fmt: skip


def schema_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = DEFINITIONS[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def nodes_of(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes_of(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes_of(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes_of(schema["additionalProperties"], f"{path}.*")


def as_json_schema(node: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI 3.0 said in JSON Schema, unknown fields refused as kubectl does."""
    found = {k: v for k, v in node.items() if not k.startswith("x-") and k != "nullable"}
    for flag, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if found.pop(flag, False):
            found[flag] = found.pop(bound)
    if "properties" in found:
        children = found["properties"].items()
        found["properties"] = {name: as_json_schema(child) for name, child in children}
        found["additionalProperties"] = False
    elif isinstance(found.get("additionalProperties"), dict):
        found["additionalProperties"] = as_json_schema(found["additionalProperties"])
    if "items" in found:
        found["items"] = as_json_schema(found["items"])
    return {"anyOf": [found, {"type": "null"}]} if node.get("nullable") else found


def defaulted(value: Any, schema: dict[str, Any]) -> Any:
    """value with the defaults of a structural schema filled in, as the API server does."""
    if isinstance(value, dict) and "properties" in schema:
        value = dict(value)
        for name, child in schema["properties"].items():
            if name not in value and "default" in child:
                value[name] = child["default"]
            if name in value:
                value[name] = defaulted(value[name], child)
    return value


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_the_files_are_what_the_models_say(name: str) -> None:
    written = (crd.TARGET / name).read_text(encoding="utf-8")
    assert written == crd.render(DEFINITIONS[name]), "run `make crds`"
    assert yaml.safe_load(written) == DEFINITIONS[name]


def test_there_is_a_file_for_every_definition_and_no_other() -> None:
    assert {path.name for path in crd.TARGET.glob("*.midwatch.dev.yaml")} == set(DEFINITIONS)


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_the_schemas_are_structural(name: str) -> None:
    for path, node in nodes_of(schema_of(name)):
        assert set(node) <= ALLOWED, path
        assert node.get("type") in ("object", "array", "string", "integer", "number", "boolean"), (
            path
        )
        assert not ("properties" in node and "additionalProperties" in node), path
        assert (node["type"] == "array") == ("items" in node), path
        assert isinstance(node.get("exclusiveMinimum", True), bool), path
        if node["type"] == "object":
            is_open = "x-kubernetes-preserve-unknown-fields" in node
            is_known = "properties" in node or "additionalProperties" in node
            assert is_open or is_known or path == ".metadata", path
        if "pattern" in node:
            # Kubernetes compiles it as RE2, which looks neither ahead nor behind.
            assert not re.search(r"\(\?[=!<]|\\[1-9]", node["pattern"]), path
        for rule in node.get("x-kubernetes-validations", ()):
            assert len(rule["message"]) <= 2048
            assert "\n" not in rule["rule"]


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_every_default_is_valid_where_it_stands(name: str) -> None:
    num_defaults = 0
    for _, node in nodes_of(schema_of(name)["properties"]["spec"]):
        if "default" in node:
            num_defaults += 1
            value = defaulted(node["default"], node)
            jsonschema.validate(value, as_json_schema(node))
    assert num_defaults >= (100 if name == RUN else 0)


def test_every_text_that_a_rule_compares_is_bounded() -> None:
    # The cost of a rule is estimated from these bounds; without them the server refuses it.
    spec = schema_of(INTERVENTION)["properties"]["spec"]
    for path, node in nodes_of(spec):
        if node["type"] == "string" and "enum" not in node and "format" not in node:
            assert "maxLength" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_the_defaults_of_the_schema_are_those_of_the_models() -> None:
    run = make_run()
    whole = defaulted(run["spec"], schema_of(RUN)["properties"]["spec"])
    by_schema = TrainingRunSpec.model_validate(whole)
    by_model = TrainingRunSpec.model_validate(run["spec"])
    assert by_schema.model_copy(update={"run": {}}) == by_model.model_copy(update={"run": {}})
    more = {"name": "night", "run_dir": "/x"}
    assert RunSpec.model_validate({**by_schema.run, **more}) == RunSpec.model_validate(
        {**run["spec"]["run"], **more}
    )


def test_nothing_that_sizes_a_group_of_pods_can_be_changed() -> None:
    """KubeRay takes the first pods of a group that shrinks, whatever they carry."""
    schema = schema_of(RUN)["properties"]["spec"]["properties"]["run"]
    rules = [r["rule"] for r in schema["x-kubernetes-validations"]]
    assert [r["rule"] for r in schema["properties"]["mesh"]["x-kubernetes-validations"]] == [
        "self == oldSelf"
    ]
    nodes = make_run()["spec"]["run"]["nodes"]
    for field in ("ranks_per_node", "spares"):
        assert _group_sizes(nodes) != _group_sizes({**nodes, field: 4}), field
        assert f"self.nodes.{field} == oldSelf.nodes.{field}" in rules
    for field in ("when_short", "preflight"):
        assert f"self.nodes.{field} == oldSelf.nodes.{field}" not in rules


def _group_sizes(nodes: dict[str, Any]) -> list[tuple[str, int]]:
    run = make_run()
    run["metadata"]["uid"] = "uid"
    run["spec"]["run"] |= {"mesh": {"dp_shard": 4, "tp": 2}, "nodes": nodes}
    cluster = build_cluster(Owner(run), *read_spec(run["spec"], "night", "ml"), ())
    return [(g["groupName"], g["replicas"]) for g in cluster["spec"]["workerGroupSpecs"]]


def test_samples_are_valid_and_mistakes_are_not() -> None:
    schema = as_json_schema(schema_of(RUN)["properties"]["spec"])
    run = make_run()["spec"]
    jsonschema.validate(defaulted(run, schema_of(RUN)["properties"]["spec"]), schema)
    for wrong in (
        {**run, "imagee": "x"},
        {**run, "placement": {"unreachableSeconds": -1}},
        {**run, "run": {**run["run"], "mesh": {"dp_shard": 0}}},
        {**run, "run": {key: value for key, value in run["run"].items() if key != "nodes"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    asked = make_intervention("a", "SetLearningRate", params={"value": "3e-4"})["spec"]
    jsonschema.validate(asked, as_json_schema(schema_of(INTERVENTION)["properties"]["spec"]))


def test_columns_and_conditions_are_what_people_look_for() -> None:
    version = DEFINITIONS[RUN]["spec"]["versions"][0]
    shown = [c["name"] for c in version["additionalPrinterColumns"] if not c.get("priority")]
    assert shown == ["Ready", "Step", "Loss", "LR", "Goodput", "Restarts", "Age"]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    assert next(iter(status)) == "conditions"
    assert status["conditions"]["x-kubernetes-list-map-keys"] == ["type"]
    assert "phase" not in status
    assert "observedGeneration" in status


def test_every_thing_people_may_ask_for_has_an_action() -> None:
    said = {*ACTIONS.values(), "lr-factor"}
    assert {form.action for form in FORMS} <= said
    spec = schema_of(INTERVENTION)["properties"]["spec"]["properties"]
    assert set(ACTIONS) <= set(spec["action"]["enum"])


def test_what_cannot_be_said_is_refused() -> None:
    class Odd(BaseModel):
        value: int | list[str]

    with pytest.raises(ConfigError) as raised:
        structural_schema(Odd)
    assert raised.value.code == "schema-not-structural"


def test_names_stay_within_what_kubernetes_allows() -> None:
    run = "r" * names.NAME_CHARS_MAX
    for name in (
        names.api_name(run),
        names.token_secret_name(run, names.OPERATOR),
        names.head_service_name(run),
    ):
        assert len(name) <= 63
