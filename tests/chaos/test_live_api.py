"""A live run served beside its controller: steered over HTTP while its controller is killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.state import RunState, Status
from midwatch.operator.api.client import Access, ApiClient
from midwatch.operator.api.endpoint import Endpoint, read_endpoint
from midwatch.operator.api.tokens import Role, token_path
from midwatch.operator.cli.remote import RemoteChannel
from midwatch.operator.cli.steer import make_request, wait_until_settled
from midwatch.operator.runtime.session import Session

from tests.support.live_run import LiveRun, nano_spec, strike_controller, wait_until

pytestmark = pytest.mark.chaos


def endpoint_of(run: LiveRun) -> Endpoint:
    wait_until(lambda: read_endpoint(run.run_dir) is not None, "the run is not served", 60.0)
    found = read_endpoint(run.run_dir)
    assert found is not None
    return found


def test_a_run_is_steered_over_http_while_its_controller_is_killed(
    session: Session, tmp_path: Path, corpus: Path
) -> None:
    spec = nano_spec(
        "served",
        tmp_path / "run",
        corpus,
        trainer={"steps": 4000},
        api={"enabled": True},
    )
    with LiveRun(spec, session) as run:
        run.until(lambda state: state.step >= 5)
        endpoint = endpoint_of(run)
        token = token_path(run.run_dir, Role.OPERATOR).read_text().strip()
        client = ApiClient(Access(endpoint.url, token))
        channel = RemoteChannel(client)
        request = make_request("lr-factor", "too hot", value=0.5)
        channel.post(request)
        known = wait_until_settled(channel, request.id, 60.0)
        assert known.stage == "applied", known
        assert len(known.acks) == 4
        killed: list[int] = []

        def remember(state: RunState) -> bool:
            killed.append(state.controller_pid)
            return True

        strike = strike_controller(remember)
        run.until(lambda state: bool(killed) and state.controller_pid != killed[0], strike)
        # The same process goes on: whoever follows it notices nothing.
        assert endpoint_of(run) == endpoint
        stop = make_request("stop", "enough")
        channel.post(stop)
        state = run.finish()
        assert state.status is Status.STOPPED
        assert client.state().status is Status.STOPPED
        client.close()
        served = [event for event in run.events() if isinstance(event, ev.ApiServed)]
    assert [event.is_taken_over for event in served] == [False, True]
    assert {event.pid for event in served} == {endpoint.pid}
    assert state.interventions[stop.id].request.by.endswith("via api:operator")
