"""The HTTP APIs inside the cluster: the run's own, and Ray's job server. Bounded in time and size.

Neither is trusted to answer: a slow one costs a look its deadline, no more.
"""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from ...logbook.errors import Fatal, MidwatchError, Retryable
from ..ray_words import NO_AGENT, gist
from . import names
from .actions import StartController
from .observed import JobSight, RunSight

TIMEOUT_S = 5.0
BODY_BYTES_MAX = 64 << 20


class Remote:
    """One HTTP server with a bearer token. Errors: [remote-unreachable], [remote-refused].

    A refusal carries what the server said: code and message of its JSON. token: "" where none is
    asked for.
    """

    def __init__(self, http: httpx.AsyncClient, base_url: str, token: str) -> None:
        self._http, self._base_url, self._token = http, base_url.rstrip("/"), token

    async def ask(self, method: str, path: str, body: Any = None, **params: str) -> Any:
        """Return the decoded answer."""
        content = msgspec.json.encode(body) if body is not None else None
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = self._http.build_request(
            method, f"{self._base_url}{path}", content=content, headers=headers, params=params
        )
        try:
            answer = await self._http.send(request, stream=True)
            try:
                data = await _read(answer)
            finally:
                await answer.aclose()
        except httpx.HTTPError as error:
            raise Retryable(
                "remote-unreachable",
                f"{self._base_url} does not answer ({type(error).__name__}).",
                delay_s=5.0,
            ) from error
        if answer.is_error:
            raise _refusal(answer.status_code, path, data)
        try:
            return msgspec.json.decode(data) if data else {}
        except msgspec.DecodeError as error:
            raise Fatal("remote-refused", f"{path} did not answer in JSON: {error}.") from error


async def _read(answer: httpx.Response) -> bytes:
    parts, size = [], 0
    async for part in answer.aiter_bytes():
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise Fatal("remote-refused", f"an answer of more than {BODY_BYTES_MAX} bytes.")
        parts.append(part)
    return b"".join(parts)


class Refused(Fatal):
    """The server answered, and will not do it. status: of HTTP; told: its own code."""

    def __init__(self, status: int, told: str, message: str) -> None:
        super().__init__("remote-refused", message)
        self.status, self.told = status, told


def _refusal(status: int, path: str, data: bytes) -> MidwatchError:
    try:
        body = msgspec.json.decode(data)
    except msgspec.DecodeError:
        body = None
    said = body if isinstance(body, dict) else {}
    text = data.decode("utf-8", errors="replace")
    message = str(said.get("message") or gist(text)[:300])
    if status in (429, 502, 503, 504) or NO_AGENT in message:
        return Retryable("remote-unreachable", f"{path}: {status} {message}", delay_s=5.0)
    return Refused(status, str(said.get("code", "")), f"{path}: {status} {message}"[:900])


async def see_run(remote: Remote) -> RunSight:
    """Return the run as its API tells it."""
    status = await remote.ask("GET", "/v1/status")
    # The desk first: what is taken from it meanwhile is found in the state then.
    asked = await remote.ask("GET", "/v1/interventions")
    state = await remote.ask("GET", "/v1/state")
    try:
        known = state.get("interventions") or {}
        waiting = {str(each["request"]["id"]): each for each in asked}
        return RunSight(
            doing=str(status["doing"]),
            seq=int(status["seq"]),
            summary=dict(status["summary"]),
            state=dict(state),
            waiting={name: each for name, each in waiting.items() if name not in known},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Fatal("remote-refused", f"the run's API told something else: {error!r}.") from error


async def lay_request(remote: Remote, request: dict[str, Any], *, is_dry_run: bool) -> Any:
    """Lay a request before the run. Its id makes it idempotent."""
    params = {"dry_run": "true"} if is_dry_run else {}
    return await remote.ask("POST", "/v1/interventions", request, **params)


async def see_jobs(remote: Remote, prefix: str) -> tuple[JobSight, ...]:
    """Return the jobs whose id begins with prefix, as Ray's job server tells them."""
    found = await remote.ask("GET", "/api/jobs/")
    jobs = []
    for each in found if isinstance(found, list) else ():
        name = str(each.get("submission_id") or "")
        number = name.removeprefix(prefix)
        if name.startswith(prefix) and number.isdecimal():
            begun_s, ended_s = (float(each.get(k) or 0) / 1e3 for k in ("start_time", "end_time"))
            status = str(each.get("status", ""))
            message = str(each.get("message") or "")[:500]
            spec = str((each.get("metadata") or {}).get(names.SPEC_DIGEST, ""))
            jobs.append(JobSight(name, int(number), status, message, begun_s, ended_s, spec))
    return tuple(sorted(jobs, key=lambda job: job.number))


async def start_job(remote: Remote, job: StartController, env: dict[str, str]) -> None:
    """Submit a job; one with this id that is there already is the one that was meant."""
    body = {
        "submission_id": job.id,
        "entrypoint": job.entrypoint,
        "runtime_env": {"env_vars": env},
        "metadata": {names.SPEC_DIGEST: job.spec},
    }
    try:
        await remote.ask("POST", "/api/jobs/", body)
    except Refused as error:
        if "already exists" not in error.message:
            raise


async def stop_job(remote: Remote, name: str) -> None:
    """Stop a job; one that is not there is stopped."""
    try:
        await remote.ask("POST", f"/api/jobs/{name}/stop")
    except Refused as error:
        if error.status != 404:
            raise
