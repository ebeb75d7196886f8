"""The OpenAPI document: every address, and the shape of everything that comes and goes.

Shapes come from the structs themselves, so what is served and what is said of it cannot part.
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from ... import __version__
from ...logbook.decisions import Decision
from ...logbook.events import Event
from ...logbook.live_status import RunStatus
from ...logbook.record import Record
from ...logbook.state import Incident, Intervention, RunState
from ...logbook.summary import IncidentRow
from ...logbook.tui.controls import Places
from .intake import InterventionAsked, Receipt, RemarkAsked, RemarkReceipt
from .refusal import ErrorDocument

Document = dict[str, Any]

TOLD = (RunStatus, RunState, IncidentRow, Incident, Intervention, Decision, Receipt, Places)
ASKED = (InterventionAsked, RemarkAsked)
_PLACE = "#/components/schemas/{name}"
_NUMBER = {
    "description": "A number; what JSON has no word for is one of three.",
    "anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}],
}
_MEANINGS = {
    400: "The request or its body cannot be read.",
    401: "No token, or none of this run's.",
    403: "The token's role may not do this.",
    404: "There is no such thing.",
    405: "The address takes other methods.",
    409: "It cannot be any more, or was asked for otherwise already.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "A value is not one of those allowed.",
    429: "Too much waits or is open already.",
    500: "A bug of ours.",
    503: "Not now: the run's folder, or the server, is at fault or busy.",
}
REFUSALS: dict[int | str, Document] = {
    status: {
        "description": meaning,
        "content": {"application/json": {"schema": {"$ref": _PLACE.format(name="Error")}}},
    }
    for status, meaning in _MEANINGS.items()
}


def json_answer(
    name: str, status: int = 200, *, is_list: bool = False
) -> dict[int | str, Document]:
    """Return how an answer with a struct of this name, or a list of them, is described."""
    schema: Document = {"$ref": _PLACE.format(name=name)}
    if is_list:
        schema = {"type": "array", "items": schema}
    return {status: {"description": name, "content": {"application/json": {"schema": schema}}}}


def text_answer(kind: str) -> dict[int | str, Document]:
    """Return how an answer in text of this media type is described."""
    return {200: {"description": kind, "content": {kind: {"schema": {"type": "string"}}}}}


def request_body(name: str) -> Document:
    """Return how a body with a struct of this name is described."""
    schema = {"$ref": _PLACE.format(name=name)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def openapi_of(app: FastAPI, *, has_tokens: bool) -> Document:
    """Return the OpenAPI document of the application."""
    found = get_openapi(
        title="Midwatch",
        version=__version__,
        summary="One training run: how it stands, what happened, and what to change.",
        routes=app.routes,
    )
    components = found.setdefault("components", {})
    components["schemas"] = _schemas()
    if has_tokens:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in found["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path == "/healthz" else [{"token": []}]
    return found


def _schemas() -> Document:
    _, told = msgspec.json.schema_components([*TOLD, RemarkReceipt], ref_template=_PLACE)
    (of_record,), records = msgspec.json.schema_components([Record[Event]], ref_template=_PLACE)
    record = records.pop(of_record["$ref"].rpartition("/")[2])
    event = record["properties"].pop("event")
    record["title"], record["description"] = "Record", inspect.cleandoc(Record.__doc__ or "")
    record["properties"]["event"] = {"$ref": _PLACE.format(name="Event")}
    all_told = {**told, **records, "Record": record, "Event": event}
    _, asked = msgspec.json.schema_components(ASKED, ref_template=_PLACE)
    _, error = msgspec.json.schema_components([ErrorDocument], ref_template=_PLACE)
    schemas: Document = {name: _with_numbers(schema) for name, schema in all_told.items()}
    return {**schemas, **asked, "Number": _NUMBER, "Error": error["ErrorDocument"]}


def _with_numbers(schema: Any) -> Any:
    """Return a schema in which a number may be one that JSON has no word for."""
    if isinstance(schema, list):
        return [_with_numbers(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "number":
        rest = {key: value for key, value in schema.items() if key != "type"}
        return {"$ref": _PLACE.format(name="Number"), **rest}
    return {key: _with_numbers(value) for key, value in schema.items()}
