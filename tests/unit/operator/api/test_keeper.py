"""The process that serves a run: kept alive, taken over, replaced, and gone when its time is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.operator.api import keeper as keeper_module
from midwatch.operator.api.endpoint import Endpoint, read_endpoint, write_endpoint
from midwatch.operator.api.keeper import Keeper
from midwatch.operator.api.order import order_of
from midwatch.operator.api.tokens import Role
from midwatch.operator.spec_api import ApiSpec
from midwatch.tests.support.api_server import ApiServer, wait_gone
from midwatch.tests.support.live_run import wait_until
from midwatch.tests.support.synthetic_run import SyntheticRun
from msgspec.structs import replace

DEADLINE_S = 60.0


class Kept:
    """A keeper and everything it has told."""

    def __init__(self, run_dir: Path, while_pid: int = 0, **api: Any) -> None:
        spec = ApiSpec.model_validate({"enabled": True, **api})
        self.run_dir = run_dir
        self.keeper = Keeper(order_of(spec, str(run_dir), while_pid=while_pid))
        self.told: list[ev.Event] = []

    def until(self, holds: Callable[[ev.Event], bool]) -> ev.Event:
        """Return the first new event for which something holds."""
        found: list[ev.Event] = []

        def look() -> bool:
            new = self.keeper.news()
            self.told += new
            found.extend(filter(holds, new))
            return bool(found)

        wait_until(look, f"it was never told: {self.told}", DEADLINE_S)
        return found[0]

    def served(self) -> ev.ApiServed:
        event = self.until(lambda event: isinstance(event, ev.ApiServed))
        assert isinstance(event, ev.ApiServed)
        return event


@contextmanager
def kept(run_dir: Path, **options: Any) -> Iterator[Kept]:
    """Keep a server; it is ended behind it, as no node of its controller ends here."""
    keeping = Kept(run_dir, **options)
    try:
        yield keeping
    finally:
        keeping.keeper.close()
        endpoint = read_endpoint(run_dir)
        if endpoint is not None and endpoint.is_alive:
            os.kill(endpoint.pid, signal.SIGKILL)
            wait_gone(endpoint.pid)


def test_a_server_that_dies_is_replaced_at_the_same_address(small_run: SyntheticRun) -> None:
    with kept(small_run.folder) as keeping:
        first = keeping.served()
        os.kill(first.pid, signal.SIGKILL)
        failed = keeping.until(lambda event: isinstance(event, ev.ApiFailed))
        assert isinstance(failed, ev.ApiFailed)
        assert failed.code == "api-ended"
        assert f"process {first.pid} has ended with status -9" in failed.message
        second = keeping.served()
        assert second.url == first.url
        assert second.pid != first.pid


def test_the_next_controller_takes_a_server_over_as_it_is(small_run: SyntheticRun) -> None:
    with kept(small_run.folder) as keeping:
        first = keeping.served()
        keeping.keeper.close()
        with kept(small_run.folder) as after:
            second = after.served()
            assert second == ev.ApiServed(first.url, first.pid, is_taken_over=True)


def test_a_server_of_another_spec_is_replaced(small_run: SyntheticRun) -> None:
    with kept(small_run.folder) as keeping:
        first = keeping.served()
        keeping.keeper.close()
        with kept(small_run.folder, auth="off") as after:
            second = after.served()
            assert second.pid != first.pid
            assert not second.is_taken_over
            wait_gone(first.pid)


def test_a_port_that_is_taken_is_told_once_and_tried_until_it_is_free(
    small_run: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "FIRST_DELAY_S", 0.05)
    with ApiServer(small_run.folder) as other:
        port = other.endpoint.port
        with kept(small_run.folder, port=port) as keeping:
            failed = keeping.until(lambda event: isinstance(event, ev.ApiFailed))
            assert isinstance(failed, ev.ApiFailed)
            assert failed.code == "api-port-taken"
            assert f"127.0.0.1:{port}" in failed.message
            other.process.terminate()
            assert keeping.served().url.endswith(f":{port}")
            failures = [event for event in keeping.told if isinstance(event, ev.ApiFailed)]
            assert len(failures) == 1


@pytest.mark.parametrize(
    ("api", "code"),
    [
        ({"tls": {"cert": "/nowhere/cert", "key": "/nowhere/key"}}, "tls-invalid"),
        ({"host": "no.such.host.invalid"}, "api-port-taken"),
        (
            {"tokens": {"viewer": {"file": "/nowhere"}, "operator": {"file": "/nowhere"}}},
            "secret-missing",
        ),
    ],
)
def test_what_cannot_be_served_is_told_with_the_cure(
    small_run: SyntheticRun, api: dict[str, Any], code: str
) -> None:
    with kept(small_run.folder, **api) as keeping:
        failed = keeping.until(lambda event: isinstance(event, ev.ApiFailed))
        assert isinstance(failed, ev.ApiFailed)
        assert failed.code == code


def test_a_server_ends_with_its_node_and_leaves_when_another_takes_its_place(
    small_run: SyntheticRun,
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as node:
        with kept(small_run.folder, while_pid=node.pid) as keeping:
            pid = keeping.served().pid
            keeping.keeper.close()
            node.kill()
            wait_gone(pid)
        assert read_endpoint(small_run.folder) is None
    with kept(small_run.folder) as keeping:
        served = keeping.served()
        mine = read_endpoint(small_run.folder)
        assert isinstance(mine, Endpoint)
        assert mine.url == served.url
        keeping.keeper.close()
        write_endpoint(small_run.folder, replace(mine, place="elsewhere/pid:[1]"))
        wait_gone(served.pid)
        # What another one wrote is not taken away.
        assert read_endpoint(small_run.folder) is not None


def test_a_run_that_is_long_over_is_served_no_more(small_run: SyntheticRun) -> None:
    small_run.decide(d.EndRun(stopped=True, step=12), "ann asked")
    with kept(small_run.folder, linger_s=0) as keeping:
        wait_gone(keeping.served().pid)
        keeping.keeper.close()


def test_a_server_started_by_hand_leaves_the_controllers_alone(small_run: SyntheticRun) -> None:
    with kept(small_run.folder) as keeping:
        served = keeping.served()
        with ApiServer(small_run.folder) as by_hand:
            assert by_hand.endpoint.url != served.url
            assert by_hand.client(Role.VIEWER).status().seq == small_run.state.seq
        known = read_endpoint(small_run.folder)
        assert known is not None
        assert known.url == served.url
