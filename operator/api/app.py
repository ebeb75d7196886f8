"""The application: addresses, the shape of errors, and its own description."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ...logbook.errors import MidwatchError
from ...logbook.record import to_json
from .documents import openapi_of
from .gate import Gate
from .refusal import Refusal, document_of, status_of
from .routes import make_router
from .service import Service

SWEEP_S = 1.0
_CODES = {404: "no-such-address", 405: "method-not-allowed"}
_log = logging.getLogger(__name__)


def make_app(service: Service) -> Gate:
    """Return the application that serves a run, behind its gate."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(service))
        try:
            yield
        finally:
            sweeping.cancel()

    # A page of documentation would load its program from somebody else's server: there is none.
    app = FastAPI(
        title="Midwatch", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.include_router(make_router(service))

    @app.get("/healthz", response_class=JSONResponse)
    async def healthz() -> dict[str, bool]:
        """Whether the server answers; asks nothing of the run."""
        return {"alive": True}

    document = to_json(openapi_of(app, has_tokens=service.spec.auth != "off"))

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(document, media_type="application/json")

    _shape_errors(app)
    return Gate(app, service.bounds, service.connections)


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(min(SWEEP_S, service.bounds.idle_s / 2))
        service.connections.sweep()


def _shape_errors(app: FastAPI) -> None:
    @app.exception_handler(MidwatchError)
    async def ours(_: Request, error: MidwatchError) -> Response:
        return refused(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors()
        )
        return refused(Refusal(422, "value-invalid", f"{wrong}."))

    @app.exception_handler(HTTPException)
    async def foreign(_: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "refused")
        answer = refused(Refusal(error.status_code, code, f"{error.detail}."))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(OSError)
    async def unreadable(_: Request, error: OSError) -> Response:
        _log.warning("the folder of the run cannot be read: %s", error)
        message = f"the folder of the run cannot be read: {error.strerror}."
        return refused(Refusal(503, "run-unreadable", message))

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:
        return refused(Refusal(500, "internal", f"a bug of ours: {type(error).__name__}."))


def refused(error: MidwatchError) -> Response:
    """Return the answer to a request that failed."""
    status = status_of(error)
    headers = {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status in (429, 503):
        headers["retry-after"] = "1"
    return Response(to_json(document_of(error)), status, headers, "application/json")
