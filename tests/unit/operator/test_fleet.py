"""Who is up, who is silent, and who only seems so."""

from __future__ import annotations

import msgspec
import pytest
from midwatch.logbook.errors import Retryable
from midwatch.operator.agent.reports import AgentReport, AgentStatus, WorkersStarted
from midwatch.operator.fleet import Fleet, Identity

NODE = Identity("node-0", "agent-1", "host", 2, 10)


def beat(agent: str = "agent-1", forkserver: str = "ready", port: int = 5) -> AgentReport:
    return AgentStatus(
        attempt=0,
        node="node-0",
        agent=agent,
        rows=(),
        pids={},
        forkserver=forkserver,
        forkserver_error="",
        threads=1,
        rendezvous_host="host",
        rendezvous_port=port,
        samples_dropped_total=0,
        reports_dropped_total=0,
        reports_lost_total=0,
    )


def watched() -> Fleet:
    """One agent is up since second 0, looked at every second until 3."""
    fleet = Fleet(10.0)
    fleet.register(NODE, 0.0)
    assert fleet.take(beat(), 0.0) is not None
    for second in range(4):
        assert not fleet.silent(float(second))
    return fleet


def look(fleet: Fleet, first: int, last: int) -> list[int]:
    """Look every second; return the seconds at which somebody was given up."""
    return [second for second in range(first, last + 1) if fleet.silent(float(second))]


def test_an_agent_is_up_once_and_only_when_it_is_ready() -> None:
    fleet = Fleet(10.0)
    fleet.register(NODE, 0.0)
    assert fleet.take(beat(forkserver="starting"), 1.0) is None
    up = fleet.take(beat(), 2.0)
    assert up is not None
    assert (up.node, up.agent, up.slots) == ("node-0", "agent-1", 2)
    assert fleet.take(beat(), 3.0) is None


def test_silence_past_the_deadline_is_told_once() -> None:
    assert look(watched(), 4, 30) == [11]


def test_any_report_breaks_the_silence() -> None:
    fleet = watched()
    assert not look(fleet, 4, 9)
    started = WorkersStarted(attempt=1, node="node-0", agent="agent-1", seq=1, pids={})
    fleet.take(started, 9.0)
    assert look(fleet, 10, 30) == [20]


def test_a_controller_that_slept_holds_nobodys_silence_against_them() -> None:
    fleet = watched()
    assert not fleet.silent(60.0), "nobody was there to hear"
    assert look(fleet, 61, 80) == [71]


def test_an_agent_given_up_for_its_silence_counts_again_when_it_answers() -> None:
    fleet = watched()
    assert look(fleet, 4, 12) == [11]
    assert not fleet.is_present("node-0")
    fleet.register(NODE, 13.0)
    assert fleet.is_present("node-0")
    assert fleet.take(beat(), 13.0) is not None


def test_what_a_former_life_of_an_agent_says_is_not_heard() -> None:
    fleet = watched()
    fleet.register(Identity("node-0", "agent-2", "host", 2, 11), 4.0)
    assert fleet.take(beat("agent-1"), 5.0) is None
    assert fleet.gone("node-0", "agent-1", "died") is None
    assert fleet.take(beat("agent-2"), 5.0) is not None


def test_a_death_is_told_once() -> None:
    fleet = watched()
    assert fleet.gone("node-0", "agent-1", "died") is not None
    assert fleet.gone("node-0", "agent-1", "died") is None
    assert not look(fleet, 4, 30)


def test_an_address_is_used_up_by_the_attempt_that_takes_it() -> None:
    fleet = watched()
    assert fleet.rendezvous("node-0", 1) == ("host", 5)
    with pytest.raises(Retryable) as refused:
        fleet.rendezvous("node-0", 1)
    assert refused.value.code == "no-rendezvous"
    fleet.take(beat(port=6), 4.0)
    assert fleet.rendezvous("node-0", 1) == ("host", 6)


def test_an_attempt_whose_rank_0_serves_already_is_met_where_it_serves() -> None:
    """A controller was lost after it had told this node of attempt 2, and not yet the others."""
    fleet = watched()
    serving = msgspec.structs.replace(beat(port=6), attempt=2, serving_port=5)
    fleet.take(serving, 4.0)
    assert fleet.rendezvous("node-0", 2) == ("host", 5)
    assert fleet.rendezvous("node-0", 3) == ("host", 6)
