"""The edges alone: cache, Lease, client, the run's API, conditions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp.web
import httpx
import kmock
import pytest
from midwatch.logbook.errors import Fatal, MidwatchError, Retryable
from midwatch.operator.k8s import client as kube
from midwatch.operator.k8s import run_api
from midwatch.operator.k8s.access import Access
from midwatch.operator.k8s.actions import StartController
from midwatch.operator.k8s.cache import Cache
from midwatch.operator.k8s.client import Kube
from midwatch.operator.k8s.conditions import Conditions
from midwatch.operator.k8s.lease import LeaseHeld, LeaseTimes
from midwatch.tests.support.kube import ApiServer, Object
from midwatch.tests.support.kube_run import refusal_of

LEASE = ("ml", "leader")


def body(name: str, version: int, value: str = "") -> Object:
    return {"metadata": {"name": name, "resourceVersion": str(version)}, "value": value}


def test_a_cache_takes_the_newest_word_and_tells_only_of_what_matters() -> None:
    told: list[tuple[tuple[str, str], str]] = []
    cache: Cache[str] = Cache(
        lambda each: each["value"], lambda key, item: told.append((key, item))
    )
    cache.see("ADDED", body("a", 5, "new"))
    cache.see("MODIFIED", body("a", 4, "old"))
    cache.see("MODIFIED", body("a", 6, "new"))
    assert list(cache) == ["new"]
    assert told == [(("", "a"), "new")]


def test_a_listing_forgets_what_is_gone_but_not_what_came_meanwhile() -> None:
    cache: Cache[str] = Cache(lambda each: each["value"])
    cache.see("ADDED", body("ghost", 1, "ghost"))
    cache.see("ADDED", body("dying", 2, "dying"))
    cache.begin_listing()
    cache.see("ADDED", body("late", 9, "late"))
    cache.see("DELETED", body("dying", 9))
    cache.end_listing([body("dying", 2, "dying"), body("b", 3, "b")])
    assert sorted(cache) == ["b", "late"]
    assert cache.is_listed


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    first = Conditions(("Ready",), (), 1, 1000.0)
    first.set("Ready", "False", "Starting")
    known = first.render()
    same = Conditions(("Ready",), known, 2, 2000.0)
    same.set("Ready", "False", "Waiting")
    (later,) = same.render()
    assert later["lastTransitionTime"] == known[0]["lastTransitionTime"]
    assert later["observedGeneration"] == 2
    other = Conditions(("Ready",), known, 2, 2000.0)
    other.set("Ready", "True", "Training")
    assert other.render()[0]["lastTransitionTime"] != known[0]["lastTransitionTime"]
    assert [each["reason"] for each in other.changed()] == ["Training"]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[tuple[ApiServer, Kube]]:
    api = ApiServer()
    api.serve()
    async with api, kmock.Server(api):
        client = Kube(Access(str(api.url).rstrip("/")))
        try:
            yield api, client
        finally:
            await client.close()


@pytest.mark.asyncio
async def test_a_lease_that_is_not_renewed_is_taken_over_only_after_its_time() -> None:
    async with server() as (_, client):
        clock, times = Clock(), LeaseTimes(duration_s=15.0, renew_s=10.0)
        first = LeaseHeld(client, LEASE, "first", times, clock)
        second = LeaseHeld(client, LEASE, "second", times, clock)
        assert await first._try()
        assert not await second._try()
        clock.now_s += 9.9
        assert first.is_held
        clock.now_s += 0.2
        # The holder stops before anybody else may begin.
        assert not first.is_held
        with pytest.raises(Fatal) as raised:
            first.guard()
        assert raised.value.code == "lease-lost"
        assert not await second._try()
        clock.now_s += 5.0
        assert await second._try()
        assert second.transitions == 1
        assert not await first._try()


@pytest.mark.asyncio
async def test_a_lease_that_is_given_back_is_free_at_once_and_two_cannot_both_take_it() -> None:
    async with server() as (_, client):
        clock = Clock()
        first, second, third = (
            LeaseHeld(client, LEASE, name, LeaseTimes(), clock) for name in ("a", "b", "c")
        )
        assert await first._try()
        await first.release()
        assert not first.is_held
        won = await asyncio.gather(second._try(), third._try())
        assert sorted(won) == [False, True]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "kube-forbidden", Fatal),
        (403, "kube-forbidden", Fatal),
        (404, "kube-missing", Fatal),
        (409, "kube-conflict", Retryable),
        (422, "kube-invalid", Fatal),
        (429, "kube-unwilling", Retryable),
        (500, "kube-unwilling", Retryable),
    ],
)
async def test_every_refusal_has_its_meaning(
    status: int, code: str, kind: type[MidwatchError]
) -> None:
    async with server() as (api, client):
        api.fail("GET", "pods", status)
        with pytest.raises(kind) as raised:
            await client.list(kube.PODS, "ml")
        assert raised.value.code == code


@pytest.mark.asyncio
async def test_a_server_that_is_not_there_is_unreachable_and_the_guard_comes_first() -> None:
    def refuse() -> None:
        raise Fatal("lease-lost", "no")

    client = Kube(Access("http://127.0.0.1:9"), refuse)
    with pytest.raises(Retryable) as raised:
        await client.list(kube.PODS, "ml")
    assert raised.value.code == "kube-unreachable"
    with pytest.raises(Fatal):
        await client.delete(kube.PODS, "ml", "a", "uid")
    await client.close()


@pytest.mark.asyncio
async def test_another_object_of_the_same_name_is_never_deleted() -> None:
    async with server() as (api, client):
        made = await api.put("v1/pods", {"metadata": {"name": "a", "namespace": "ml"}})
        await client.delete(kube.PODS, "ml", "a", "another-uid")
        assert api.find("v1/pods", "ml", "a") is not None
        await client.delete(kube.PODS, "ml", "a", made["metadata"]["uid"])
        assert api.find("v1/pods", "ml", "a") is None
        await client.delete(kube.PODS, "ml", "a", made["metadata"]["uid"])


@contextlib.asynccontextmanager
async def answering(handler: object, timeout_s: float = 30.0) -> AsyncIterator[run_api.Remote]:
    app = aiohttp.web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)  # type: ignore[arg-type]
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with httpx.AsyncClient(timeout=timeout_s) as http:
        yield run_api.Remote(http, str(site.name), "secret")
    await runner.cleanup()


@pytest.mark.asyncio
async def test_a_run_that_does_not_answer_or_answers_nonsense_is_told_apart() -> None:
    hold = asyncio.Event()

    async def slow(_: aiohttp.web.Request) -> aiohttp.web.Response:
        await hold.wait()
        return aiohttp.web.Response()

    async with answering(slow, timeout_s=0.3) as remote:
        with pytest.raises(Retryable) as late:
            await run_api.see_run(remote)
        assert late.value.code == "remote-unreachable"
        hold.set()

    async def nonsense(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.json_response([1, 2])

    async with answering(nonsense) as remote:
        with pytest.raises(Fatal) as odd:
            await run_api.see_run(remote)
        assert odd.value.code == "remote-refused"

    async def refuse(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.json_response({"code": "run-over", "message": "over"}, status=409)

    async with answering(refuse) as remote:
        with pytest.raises(run_api.Refused) as refused:
            await run_api.lay_request(remote, {}, is_dry_run=False)
        assert (refused.value.status, refused.value.told) == (409, "run-over")


@pytest.mark.asyncio
async def test_a_job_that_is_there_already_is_the_one_that_was_meant() -> None:
    async def refuse(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(text=refusal_of("job-1"), status=500)

    job = StartController("job-1", "true", {})
    assert len(refusal_of("job-1")) > 300
    async with answering(refuse) as remote:
        await run_api.start_job(remote, job, {})

    async def fail(_: aiohttp.web.Request) -> aiohttp.web.Response:
        told = refusal_of("job-1").replace("already exists", "cannot be")
        return aiohttp.web.Response(text=told, status=500)

    async with answering(fail) as remote:
        with pytest.raises(run_api.Refused) as raised:
            await run_api.start_job(remote, job, {})
        assert "ValueError: Job with submission_id job-1 cannot be" in raised.value.message


@pytest.mark.asyncio
async def test_a_job_server_without_an_agent_is_asked_again() -> None:
    async def wait(_: aiohttp.web.Request) -> aiohttp.web.Response:
        text = "No available agent to submit job, please try again later."
        return aiohttp.web.Response(text=text, status=500)

    async with answering(wait) as remote:
        with pytest.raises(Retryable):
            await run_api.start_job(remote, StartController("job-1", "true", {}), {})


@pytest.mark.asyncio
async def test_an_answer_without_an_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_api, "BODY_BYTES_MAX", 1 << 16)

    async def flood(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        answer = aiohttp.web.StreamResponse()
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await answer.write(b"x" * 8192)
        return answer

    async with answering(flood) as remote:
        with pytest.raises(Fatal) as raised:
            await remote.ask("GET", "/v1/state")
        assert raised.value.code == "remote-refused"
