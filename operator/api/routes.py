"""The addresses of the API (docs/api.md): each asks the service one question."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Depends, Header, Path, Query
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ...logbook.record import to_json
from .documents import REFUSALS, json_answer, request_body, text_answer
from .refusal import Refusal
from .run_view import PLOT
from .service import Service
from .stream import EventStream
from .tokens import Role

SEQ_MAX = 2**53
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_QUERIES = {
    ("GET", "/v1/events"): ("after", "limit"),
    ("GET", "/v1/events/stream"): ("after", "stay"),
    ("POST", "/v1/interventions"): ("dry_run",),
}
_Name = Path(max_length=200)
_Limit = Query(1000, ge=1, le=100_000, description="Records at most; the server may give fewer.")
_After = Query(0, ge=0, le=SEQ_MAX, description="Only records behind this sequence number.")
_Stay = Query(False, description="Stay when the run comes to rest: it may be resumed.")
_LastId = Header(None, alias="Last-Event-ID", pattern="^[0-9]{1,15}$")
_Dry = Query(False, description="Tell what would be decided, and change nothing.")


def make_router(service: Service) -> APIRouter:
    """Return every address below /v1, and /metrics."""

    async def viewer(request: Request) -> None:
        headers = request.headers
        found = await service.role_of(headers.get("authorization"), headers.get("host", ""))
        request.state.role = found
        _refuse_unknown(request)

    router = APIRouter(
        dependencies=[Depends(viewer)], responses=REFUSALS, default_response_class=Response
    )
    _add_readings(router, service)
    _add_incidents(router, service)
    _add_interventions(router, service)
    return router


def _add_readings(router: APIRouter, service: Service) -> None:
    view, offload = service.view, service.offload

    @router.get("/v1/status", responses=json_answer("RunStatus"))
    async def status() -> Response:
        """How the run stands: what it is doing and why, and its figures."""
        return _json(await offload(view.status))

    @router.get("/v1/state", responses=json_answer("RunState"))
    async def state() -> Response:
        """Everything known about the run after its newest event."""
        return Response(await offload(view.state_json), media_type="application/json")

    @router.get("/v1/events", responses=json_answer("Record", is_list=True))
    async def events(after: int = _After, limit: int = _Limit) -> Response:
        """Records of the journal, oldest first; none when there is none behind `after`."""
        found = await offload(view.events, after, limit)
        return Response(b"[" + b",".join(found) + b"]", media_type="application/json")

    @router.get("/v1/events/stream", responses=text_answer("text/event-stream"))
    async def stream(
        after: int = _After, stay: bool = _Stay, last_event_id: str | None = _LastId
    ) -> Response:
        """Records as they happen, as server-sent events whose ids are sequence numbers.

        `Last-Event-ID` goes before `after`. Ends with `rest` when the run is at rest and all is
        told, or with `rewound` when records already told were withdrawn.
        """
        begin = int(last_event_id) if last_event_id is not None else after
        await service.pulse.admit()
        told = EventStream(view.run_dir / "journal", service.pulse, begin, to_rest=not stay)
        return _Streaming(told.frames(offload, service.bounds.heartbeat_s))

    @router.get("/v1/checkpoints/places", responses=json_answer("Places"))
    async def places() -> Response:
        """In which tiers each checkpoint lies, as far as it is seen from the server."""
        return _json(await offload(view.places))

    @router.get("/metrics", responses=text_answer("text/plain"))
    async def metrics() -> Response:
        """The numbers of the run as Prometheus reads them."""
        return Response(await offload(view.metrics), media_type=METRICS_TYPE)


def _add_incidents(router: APIRouter, service: Service) -> None:
    view, offload = service.view, service.offload

    @router.get("/v1/incidents", responses=json_answer("IncidentRow", is_list=True))
    async def incidents() -> Response:
        """Every incident in figures, oldest first."""
        return _json(await offload(view.incidents))

    @router.get("/v1/incidents/{name}", responses=json_answer("Incident"))
    async def incident(name: str = _Name) -> Response:
        """One incident: its decisions, what it cost, its remarks."""
        return _json(await offload(view.incident, name))

    @router.get("/v1/incidents/{name}/note", responses=text_answer("text/markdown"))
    async def note(name: str = _Name) -> Response:
        """The note of an incident, as Markdown."""
        return Response(await offload(view.note, name), media_type="text/markdown")

    @router.get(PLOT, responses=text_answer("image/svg+xml"))
    async def plot(name: str = _Name) -> Response:
        """The numbers around an incident, drawn as its note shows them."""
        return Response(await offload(view.plot, name), media_type="image/svg+xml")

    @router.post(
        "/v1/incidents/{name}/remarks",
        responses=json_answer("RemarkReceipt", 202),
        status_code=202,
        openapi_extra=request_body("RemarkAsked"),
    )
    async def remark(request: Request, name: str = _Name) -> Response:
        """Add to the note of an incident."""
        signer = _signer(request, service)
        body = await _body(request, service.bounds.body_bytes)
        return _json(await offload(service.intake.remark, name, body, signer), 202)


def _add_interventions(router: APIRouter, service: Service) -> None:
    view, offload, intake = service.view, service.offload, service.intake

    @router.get("/v1/interventions", responses=json_answer("Intervention", is_list=True))
    async def interventions() -> Response:
        """Every change asked for and how far it got; those that no controller has taken last."""
        return _json(await offload(view.interventions))

    @router.get("/v1/interventions/{name:path}", responses=json_answer("Intervention"))
    async def intervention(name: str = _Name) -> Response:
        """One change asked for and how far it got."""
        return _json(await offload(view.intervention, name))

    @router.post(
        "/v1/interventions",
        responses=json_answer("Decision", 200, is_list=True) | json_answer("Receipt", 202),
        status_code=202,
        openapi_extra=request_body("InterventionAsked"),
    )
    async def intervene(request: Request, dry_run: bool = _Dry) -> Response:
        """Ask for a change: 202 once it lies on the desk; the controller decides about it.

        Where the run is over, it is done before the answer, or refused with 409.
        With `dry_run` 200 and what would be decided, an empty list where it would have to wait.
        """
        signer = _signer(request, service)
        body = await _body(request, service.bounds.body_bytes)
        if dry_run:
            return _json(await offload(intake.try_out, body, signer))
        return _json(await offload(intake.ask, body, signer), 202)


def _refuse_unknown(request: Request) -> None:
    """A misspelt `dry_run` must not make the change that was only to be tried out."""
    known = _QUERIES.get((request.method, request.scope["route"].path), ())
    unknown = sorted({name for name in request.query_params if name not in known})
    if unknown:
        raise Refusal(
            422,
            "value-invalid",
            f"there is no parameter {', '.join(unknown)!r:.200} here.",
            remedy=f"Known: {', '.join(known) or 'none'}.",
        )


class _Streaming(StreamingResponse):
    """A stream whose generator is over when it is, however it ends."""

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__(frames, media_type="text/event-stream")
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._frames.aclose()


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")


def _signer(request: Request, service: Service) -> str:
    """Return who signs a change. Raises: Refusal[role-too-low]."""
    role: Role = request.state.role
    if role is not Role.OPERATOR:
        raise Refusal(
            403,
            "role-too-low",
            f"a {role} may read; this needs the token of an operator.",
            remedy="Show the operator's token, or ask somebody who has it.",
        )
    return service.signer(role)


async def _body(request: Request, most: int) -> bytes:
    """Return a request's body. Raises: Refusal[body-too-large, body-not-json, body-cut-off]."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A form on somebody's web page cannot send this, so no page can steer a run.
        raise Refusal(
            415,
            "body-not-json",
            f"the body is declared as {kind!r:.80}.",
            remedy="Send `Content-Type: application/json`.",
        )
    declared = request.headers.get("content-length", "0")
    size = int(declared) if declared.isdecimal() else 0
    body = bytearray()
    if size <= most:
        try:
            async for piece in request.stream():
                body += piece
                size = len(body)
                if size > most:
                    break
        except ClientDisconnect:
            raise Refusal(400, "body-cut-off", "the body was not sent to its end.") from None
    if size > most:
        raise Refusal(
            413, "body-too-large", f"the body has {size} bytes or more, of {most} at most."
        )
    return bytes(body)
