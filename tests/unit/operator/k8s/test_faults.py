"""What the operator survives: refusals, silence, cut watches, slow servers, its own death."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import aiohttp
import kmock
import msgspec
import pytest
from midwatch.logbook.errors import Fatal
from midwatch.operator.k8s.lease import LeaseTimes
from midwatch.operator.k8s.service import Operator
from midwatch.tests.support.kube_operator import Stage, stage
from midwatch.tests.support.kube_run import make_intervention, make_run

pytestmark = pytest.mark.asyncio
RUNS, PODS = "midwatch.dev/v1alpha1/trainingruns", "v1/pods"
INTERVENTIONS = "midwatch.dev/v1alpha1/interventions"


@pytest.mark.parametrize("status", [0, 409, 429, 500, 503])
async def test_a_write_that_is_refused_is_made_later(status: int) -> None:
    async with stage() as st:
        faults = [st.server.fail("PATCH", "trainingruns", status, times=2)]
        faults += [st.server.fail("PATCH", "rayclusters", status, times=2)]
        faults += [st.server.fail("POST", "secrets", status, times=1)]
        async with st.operator():
            await st.submit(make_run())
            await st.bring_up()
        assert [fault.struck for fault in faults] == [2, 2, 1]


@pytest.mark.parametrize("plural", ["trainingruns", "rayclusters", "secrets", "services"])
async def test_a_write_that_was_made_and_yet_refused_is_made_once(plural: str) -> None:
    async with stage() as st:
        method = "POST" if plural == "secrets" else "PATCH"
        fault = st.server.fail(method, plural, 500, after=True)
        async with st.operator():
            await st.submit(make_run())
            await st.bring_up()
        assert fault.struck == 1
        assert len(st.run.jobs) == 1
        assert len(st.server.all("v1/secrets")) == 3


async def test_an_outage_of_the_api_server_is_waited_for() -> None:
    async with stage() as st, st.operator() as operator:
        await st.submit(make_run())
        await st.bring_up()
        outage = st.server.fail("GET", "", 503, times=40)
        await st.until(lambda: outage.struck >= 20, "it was felt")
        outage.times = 0
        made = make_intervention("save", "Checkpoint")
        await st.server.put(INTERVENTIONS, made)
        await st.until(lambda: any(a["action"] == "checkpoint" for a in st.run.asked))
        await st.until(lambda: operator.health().trouble == "")


async def test_a_watch_that_is_too_old_or_silent_costs_no_change() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        await st.server.cut_watches(410)
        # From here on no watch tells anything: what is listed is all there is to know.
        st.server.mute = True
        await st.server.put(INTERVENTIONS, make_intervention("save", "Checkpoint"))
        await st.until(lambda: any(a["action"] == "checkpoint" for a in st.run.asked))


async def test_what_was_deleted_unseen_is_forgotten() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        st.server.mute = True
        await st.server.drop("ray.io/v1/rayclusters", "ml", "night")
        await st.until(lambda: st.cluster() is not None, "the cluster is made again")


async def test_an_event_told_again_and_again_asks_once() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        made = await st.server.put(INTERVENTIONS, make_intervention("save", "Checkpoint"))
        for _ in range(20):
            await st.server._publish(kmock.resource(INTERVENTIONS), "MODIFIED", made)
            await asyncio.sleep(0)
        await st.until(lambda: any(a["action"] == "checkpoint" for a in st.run.asked))
        await st.until(lambda: st.intervention("save", "Accepted")[1] == "Requested")
        assert sum(a["action"] == "checkpoint" for a in st.run.asked) == 1


async def test_a_slow_api_server_is_borne() -> None:
    async with stage() as st:
        st.server.delay_s = 0.03
        async with st.operator():
            await st.submit(make_run())
            await st.bring_up()


async def test_a_run_that_is_away_keeps_its_figures_and_is_said_to_be_away() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        st.run.is_away = True
        await st.until(lambda: st.condition("Degraded") == ("True", "ApiUnreachable"))
        assert st.condition("Ready")[0] == "False"
        run = st.training_run()
        assert run is not None
        assert run["status"]["run"]["step"] == 10
        st.run.is_away = False
        await st.until(lambda: st.condition("Ready")[0] == "True")
        assert len(st.run.jobs) == 1


async def test_an_operator_killed_after_any_write_is_followed_by_one_that_ends_alike() -> None:
    # Each operator lives for one more write than the one before it, until one is not killed.
    for deaths in range(1, 40):
        async with stage() as st:
            await st.submit(make_run())
            is_killed = await _live_for(st, deaths)
            async with st.operator():
                await st.bring_up()
                await st.until(lambda st=st: len(st.server.all("v1/secrets")) == 3)
            assert len(st.run.jobs) == 1, f"killed after {deaths} writes"
            assert len(st.server.all("ray.io/v1/rayclusters")) == 1
            assert len(st.server.all("v1/services")) == 1
        if not is_killed:
            break
    assert deaths > 5


async def _live_for(st: Stage, writes: int) -> bool:
    """Run an operator until it has written so often; return whether it came to that."""

    def has_written() -> bool:
        own = [w for w in st.server.writes if w[1] not in ("leases", "events")]
        return len(own) >= writes or bool(st.run.jobs)

    async with st.operator():
        await st.until(has_written)
    return not st.run.jobs


async def test_only_one_of_two_operators_acts_and_the_other_follows_it() -> None:
    async with stage() as st:
        async with st.operator() as first:
            await st.until(lambda: first.health().note == "ok" and first._lease.is_held)
            async with st.operator() as second:
                await st.submit(make_run())
                await st.bring_up()
                await st.until(lambda: second.health().note == "standby: operator-1 leads")
                assert second.health().trouble == ""
                assert not second._lease.is_held
        async with st.operator() as third:
            await st.until(lambda: third._lease.is_held)
            assert third._lease.transitions >= 1


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_operator_that_may_not_touch_its_lease_does_not_say_that_it_stands_by(
    method: str,
) -> None:
    async with stage() as st:
        fault = st.server.fail(method, "leases", 403, times=10**6)
        async with st.operator() as operator:
            await st.until(lambda: "403" in operator.health().trouble)
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{operator.probe_port}/readyz") as answer,
            ):
                assert answer.status == 503
                assert "midwatch-operator" in await answer.text()
            fault.times = 0
            await st.until(lambda: operator._lease.is_held)
            await st.until(lambda: operator.health().trouble == "")


async def test_an_operator_that_cannot_renew_its_lease_ends_and_writes_nothing_more() -> None:
    async with stage() as st:
        times = LeaseTimes(duration_s=3.0, renew_s=2.0, retry_s=0.1)
        setting = msgspec.structs.replace(st.setting, lease_times=times)
        operator = Operator(st.access(), setting, "fated")
        task = asyncio.create_task(operator.run())
        try:
            await st.submit(make_run())
            await st.until(lambda: st.cluster() is not None)
            st.server.fail("PUT", "leases", 503, times=10_000)
            with pytest.raises(Fatal) as raised:
                await asyncio.wait_for(task, 20.0)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Fatal):
                await task
        assert raised.value.code == "lease-lost"
        with pytest.raises(Fatal):
            operator._lease.guard()


@pytest.mark.parametrize("is_away", [False, True])
async def test_an_operator_without_a_run_is_alive(is_away: bool) -> None:
    async with stage() as st, st.operator() as operator:
        await st.until(lambda: operator._runs is not None and operator.health().trouble == "")
        if is_away:
            outage = st.server.fail("GET", "", 503, times=10_000)
            await st.until(lambda: outage.struck)
        runs = operator._runs
        assert runs is not None
        # One turn may have been under way: that there are two more is what keeps it alive.
        for _ in range(2):
            before_s = runs.turned_s
            await st.until(lambda before_s=before_s: runs.turned_s > before_s)
        assert operator.health().is_alive


async def test_a_missing_definition_is_an_alarm_until_it_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with stage() as st:
        st.server.serve(RUNS, INTERVENTIONS)
        with caplog.at_level(logging.ERROR):
            async with st.operator() as operator:
                await st.until(lambda: "[crd-missing]" in operator.health().trouble)
                url = f"http://127.0.0.1:{operator.probe_port}"
                async with aiohttp.ClientSession() as session:
                    async with session.get(f"{url}/readyz") as answer:
                        assert answer.status == 503
                        assert "trainingruns" in await answer.text()
                    async with session.get(f"{url}/healthz") as answer:
                        assert answer.status == 200
                assert "crd-missing" in caplog.text
                st.server.serve()
                await st.submit(make_run())
                await st.bring_up()
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"{url}/readyz") as answer,
                ):
                    assert answer.status == 200


async def test_without_kuberay_the_run_says_so_and_the_operator_starts_anew_once_it_is_there() -> (
    None
):
    async with stage() as st:
        st.server.serve("ray.io/v1/rayclusters")
        operator = Operator(st.access(), st.setting, "first")
        task = asyncio.create_task(operator.run())
        await st.submit(make_run())
        await st.until(lambda: st.condition("Ready") == ("False", "KubeRayMissing"))
        assert st.condition("Stalled")[0] == "True"
        st.server.serve()
        with pytest.raises(Fatal) as raised:
            await asyncio.wait_for(task, 20.0)
        assert raised.value.code == "served-kinds-changed"
        async with st.operator():
            await st.bring_up()


@pytest.mark.parametrize("status", [403, 422, 500])
async def test_a_refusal_that_lasts_reaches_the_object_once_and_goes_with_its_cause(
    status: int,
) -> None:
    """500 is what a KubeRay that does not know a field makes of a server-side apply."""
    async with stage() as st:
        fault = st.server.fail("PATCH", "rayclusters", status, times=10**6)
        async with st.operator():
            await st.submit(make_run())
            await st.until(lambda: st.condition("Stalled") == ("True", "ApplyRefused"))
            assert st.condition("Degraded") == ("True", "ApplyRefused")
            assert st.condition("Ready") == ("False", "ApplyRefused")
            run = st.training_run()
            assert run is not None
            (told,) = (c for c in run["status"]["conditions"] if c["type"] == "Stalled")
            assert str(status) in told["message"]
            assert "rayclusters" in told["message"]
            await st.until(lambda: st.events().count("ApplyRefused") == 1)
            fault.times = 0
            await st.bring_up()
            assert st.condition("Degraded")[0] == st.condition("Stalled")[0] == "False"
        assert st.events().count("ApplyRefused") == 1


async def test_secrets_that_may_not_be_read_are_said_to_be_the_trouble() -> None:
    async with stage() as st:
        st.server.fail("GET", "secrets", 403, times=10**6)
        async with st.operator():
            await st.submit(make_run())
            await st.until(lambda: st.condition("Stalled") == ("True", "SecretsForbidden"))
            await st.until(lambda: st.events().count("SecretsForbidden") == 1)


async def test_a_status_is_not_written_more_often_than_it_may_be() -> None:
    async with stage() as st, st.operator(status_every_s=3600.0):
        await st.submit(make_run())
        await st.until(lambda: st.run.jobs)
        st.run.train()
        told = st.run.num_requests
        await st.until(lambda: st.run.num_requests > told + 10)
        own = [w for w in st.server.writes if w[1] == "trainingruns" and w[3] == "status"]
        assert len(own) == 1
