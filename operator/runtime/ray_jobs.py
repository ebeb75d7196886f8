"""Ray's job server, spoken to over HTTP: a run is handed in as a job and followed from outside."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from ...logbook.errors import ConfigError, Fatal, MidwatchError, Retryable
from ..ray_words import NO_AGENT, gist

REQUEST_TIMEOUT_S = 60.0
RETRY_DELAY_S = 2.0
MAX_LOST = 30
# Ray lets either of these silently take the place of the address that it is given.
OVERRIDING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class JobServer(msgspec.Struct, frozen=True):
    """Where jobs are handed in. ca_file: whom to trust beside what the system trusts."""

    address: str
    token: str = ""
    ca_file: str = ""


class JobOrder(msgspec.Struct, frozen=True):
    """One job. folder: its contents become the job's working directory."""

    id: str
    entrypoint: str
    folder: str
    runtime_env: dict[str, Any] = {}
    metadata: dict[str, str] = {}


class JobOutcome(msgspec.Struct, frozen=True):
    """What became of a job. message: Ray's own words."""

    id: str
    status: str
    message: str

    @property
    def is_success(self) -> bool:
        return self.status == JobStatus.SUCCEEDED


class _Client(JobSubmissionClient):
    """Ray's client with an end to its patience: its own requests wait for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=REQUEST_TIMEOUT_S, **options)


def submit_job(server: JobServer, order: JobOrder) -> str:
    """Hand a job in and return its id.

    Raises: Retryable[ray-unreachable, ray-not-ready]; Fatal[ray-unauthorized, job-refused];
        ConfigError[job-exists, runtime-env-invalid].
    """
    client = _connect(server)
    try:
        return str(
            client.submit_job(
                entrypoint=order.entrypoint,
                submission_id=order.id,
                runtime_env={**order.runtime_env, "working_dir": order.folder},
                metadata=order.metadata,
            )
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "runtime-env-invalid",
            f"Ray does not take the runtime environment: {_brief(error)}.",
            remedy="Its fields are those of ray.runtime_env.RuntimeEnv.",
        ) from error
    except Exception as error:
        raise _as_ours(server, error, order.id) from error


def follow_job(server: JobServer, job: str, show: Callable[[str], None]) -> JobOutcome:
    """Show what a job prints until it has ended, and return what became of it.

    A connection that is lost is made again, and nothing is shown twice.
    Raises: as submit_job, once the server has been away for a minute.
    """
    shown, lost = 0, 0

    async def tail(client: JobSubmissionClient) -> None:
        nonlocal shown, lost
        passed = 0
        async for chunk in client.tail_job_logs(job):
            new = chunk[max(0, shown - passed) :]
            passed += len(chunk)
            if new:
                shown, lost = shown + len(new), 0
                show(new)

    while True:
        try:
            client = _connect(server)
            asyncio.run(tail(client))
            details = client.get_job_info(job)
        except Exception as error:
            ours = error if isinstance(error, MidwatchError) else _as_ours(server, error, job)
            lost += 1
            if not isinstance(ours, Retryable) or lost >= MAX_LOST:
                raise ours from error
            time.sleep(RETRY_DELAY_S)
            continue
        if details.status.is_terminal():
            return JobOutcome(job, str(details.status.value), details.message or "")


def _connect(server: JobServer) -> JobSubmissionClient:
    for name in OVERRIDING:
        os.environ.pop(name, None)
    headers = {"Authorization": f"Bearer {server.token}"} if server.token else {}
    try:
        return _Client(server.address, headers=headers, verify=server.ca_file or True)
    except Exception as error:
        raise _as_ours(server, error, "") from error


def _as_ours(server: JobServer, error: Exception, job: str) -> MidwatchError:
    """Ray answers with RuntimeError for whatever its server says; requests' errors are OSErrors."""
    told = str(error)
    if isinstance(error, AuthenticationError):
        return Fatal(
            "ray-unauthorized",
            f"the Ray cluster at {server.address} refuses the token."
            if server.token
            else f"the Ray cluster at {server.address} asks for a token, and none was given.",
            remedy="Pass --token-file, or set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.",
        )
    if "already exists" in told:
        return ConfigError(
            "job-exists",
            f"the cluster has had a job {job} already.",
            remedy="Leave --id out for a new one: a run that is there is found and carried on.",
        )
    if NO_AGENT in told:
        return Retryable(
            "ray-not-ready",
            f"the Ray cluster at {server.address} has no node yet that could take a job.",
            delay_s=RETRY_DELAY_S,
            remedy="Try again in some seconds; ray status shows the nodes.",
        )
    if isinstance(error, OSError) or "WebSocket" in told:
        return Retryable(
            "ray-unreachable",
            f"no Ray dashboard answers at {server.address}: {_brief(error)}.",
            delay_s=RETRY_DELAY_S,
            remedy="Check that it is the dashboard's address (port 8265), and the way there.",
        )
    return Fatal("job-refused", f"Ray at {server.address} did not take it: {_brief(error)}")


def _brief(error: Exception) -> str:
    return gist(str(error))[:300].rstrip(".") or type(error).__name__
