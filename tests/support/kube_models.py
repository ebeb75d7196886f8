"""Objects of Kubernetes held against its published models: unknown fields, wrong types, gaps."""

from __future__ import annotations

from typing import Any

from kubernetes import client
from pydantic import BaseModel, ValidationError

Object = dict[str, Any]


def is_built_in(known: Object) -> bool:
    """Whether the object is of a kind that Kubernetes itself brings along."""
    group = known["apiVersion"].rpartition("/")[0]
    return "." not in group or (group.endswith(".k8s.io") and _model(known) is not None)


def problems_of(known: Object) -> list[str]:
    """Return what is wrong with an object of a built-in kind, each with its path."""
    model = _model(known)
    if model is None:
        return [f"there is no model of {known['apiVersion']} {known['kind']}"]
    try:
        model.model_validate(known, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        return [f"{'.'.join(map(str, d['loc']))}: {d['msg']}" for d in details]
    return []


def _model(known: Object) -> type[BaseModel] | None:
    version = known["apiVersion"].rpartition("/")[2]
    name = version[0].upper() + version[1:] + known["kind"]
    found = getattr(client, name, None)
    assert found is None or issubclass(found, BaseModel)
    return found
