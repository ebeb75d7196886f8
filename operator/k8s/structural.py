"""Turn the JSON schema of a pydantic model into a structural schema of Kubernetes. Pure.

Kubernetes takes a subset of OpenAPI 3.0: no references, no unions, a type everywhere, null by
`nullable`, exclusive bounds as flags. What cannot be said in it is an error here, never dropped.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from ...logbook.errors import ConfigError

Schema = dict[str, Any]

_KEPT = frozenset(
    {
        "type", "description", "enum", "pattern", "format", "minimum", "maximum", "minLength",
        "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "required",
    }
)  # fmt: skip
_DROPPED = frozenset({"title", "default", "additionalProperties", "properties", "items", "const"})
_BOUNDS = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}


def structural_schema(model: type[BaseModel], leave_out: frozenset[str] = frozenset()) -> Schema:
    """Return the structural schema of a model, by alias, without the top fields left out.

    Raises: ConfigError[schema-not-structural] for what Kubernetes cannot express.
    """
    whole = model.model_json_schema(by_alias=True)
    definitions = whole.pop("$defs", {})
    for name in leave_out:
        whole["properties"].pop(name)
    whole["required"] = [name for name in whole.get("required", ()) if name not in leave_out]
    return _convert(whole, definitions, model.__name__)


def _convert(node: Schema, definitions: dict[str, Schema], path: str) -> Schema:
    node = _resolve(node, definitions)
    if "anyOf" in node:
        return _convert_union(node, definitions, path)
    found: Schema = {}
    for key, value in node.items():
        if key in _BOUNDS:
            found[_BOUNDS[key]] = value
            found[key] = True
        elif key in _KEPT:
            if value != []:
                found[key] = value
        elif key not in _DROPPED:
            raise _not_structural(path, key)
    if "const" in node:
        found["enum"] = [node["const"]]
    if "description" in found:
        found["description"] = " ".join(found["description"].split())
    if node.get("type") == "object":
        _convert_object(node, found, definitions, path)
    elif node.get("type") == "array":
        found["items"] = _convert(node["items"], definitions, f"{path}[]")
    elif "type" not in node:
        raise _not_structural(path, "no type")
    _set_default(node, found)
    return found


def _resolve(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Put what a reference stands for in its place; what stands beside it wins."""
    while "$ref" in node:
        beside = {key: value for key, value in node.items() if key != "$ref"}
        node = {**definitions[node["$ref"].rsplit("/", 1)[1]], **beside}
    return node


def _convert_union(node: Schema, definitions: dict[str, Schema], path: str) -> Schema:
    options = [_resolve(option, definitions) for option in node["anyOf"]]
    real = [option for option in options if option.get("type") != "null"]
    beside = {key: value for key, value in node.items() if key != "anyOf"}
    if len(real) > 1 and all("enum" in option or "const" in option for option in real):
        values = [v for o in real for v in o.get("enum", [o.get("const")])]
        real = [{"type": "string", "enum": list(dict.fromkeys(values))}]
    if len(real) != 1:
        raise _not_structural(path, "a union")
    found = _convert({**real[0], **beside}, definitions, path)
    if (
        len(options) > 1
        and len(options) != len(real)
        and any(option.get("type") == "null" for option in options)
    ):
        found["nullable"] = True
    return found


def _convert_object(node: Schema, found: Schema, definitions: dict[str, Schema], path: str) -> None:
    properties = node.get("properties")
    if properties is not None:
        found["properties"] = {
            name: _convert(child, definitions, f"{path}.{name}")
            for name, child in properties.items()
        }
        return
    values = node.get("additionalProperties")
    if isinstance(values, dict):
        found["additionalProperties"] = _convert(values, definitions, f"{path}.*")
    else:
        found["x-kubernetes-preserve-unknown-fields"] = True


def _set_default(node: Schema, found: Schema) -> None:
    """A section's default is what differs from the defaults of its own fields."""
    default = node.get("default")
    if default is None:
        return
    found["default"] = _beyond(default, found) if isinstance(default, dict) else default


def _beyond(default: Schema, schema: Schema) -> Schema:
    properties = schema.get("properties", {})
    found: Schema = {}
    for name, value in default.items():
        child = properties.get(name, {})
        if isinstance(value, dict) and "properties" in child:
            inner = _beyond(value, child)
            if inner != child.get("default"):
                found[name] = inner
        elif value is not None and value != child.get("default"):
            found[name] = value
    return found


def _not_structural(path: str, what: str) -> ConfigError:
    return ConfigError(
        "schema-not-structural",
        f"{path}: {what} cannot be said in a structural schema.",
        remedy="Say it with a plain type, an enumeration or a nullable field.",
    )
