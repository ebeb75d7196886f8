"""What is told of a run: once for each incident and kind, in order, harmless as text."""

from __future__ import annotations

import pytest
from midwatch.operator.notices import MAX_CHARS, Notice, is_news, notices_of, slack_text
from midwatch.operator.simulation.training import Fragility, Physics
from midwatch.operator.spec_outward import NotifySpec
from midwatch.tests.sim.night import Night
from midwatch.tests.support.builders import make_spec


def keys(notices: list[Notice]) -> list[str]:
    return [notice.key for notice in notices]


def test_an_incident_is_opened_recovered_and_closed_and_the_run_ends() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(1)
    first = notices_of(night.run(lambda s: bool(s.incidents)))
    assert keys(first) == ["inc-0001/opened"]
    assert "start attempt 2" in first[0].text
    assert "SIGKILL" in first[0].text
    found = notices_of(night.run_to_end())
    assert keys(found)[:3] == ["inc-0001/opened", "inc-0001/recovered", "inc-0001/closed"]
    assert found[-1].topic == "ended"
    assert "completed at step 120" in found[-1].text


def test_a_divergence_is_watched_first_and_its_rollback_is_news() -> None:
    spec = make_spec(trainer={"steps": 200})
    state = Night(spec, physics=Physics(fragile=(Fragility(80, 150, 0.95),))).run_to_end()
    told = [n for n in notices_of(state) if n.key.startswith("inc-0001/")]
    assert [n.topic for n in told] == ["opened", "answered", "recovered", "closed"]
    assert "Decided: watched" in told[0].text
    assert "LR x0.9" in told[1].text


def test_keys_never_change_once_given() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(1)
    given: list[str] = []
    while not night.state.status.is_terminal:
        night.run_for(0.5)
        now = keys(notices_of(night.state))
        assert len(set(now)) == len(now)
        assert [key for key in given if key.startswith("inc-")] == [
            key for key in given if key.startswith("inc-") and key in now
        ]
        given = now


def test_a_pause_asks_for_a_person_and_every_pause_is_news() -> None:
    night = Night(make_spec(nodes={"spares": 0}))
    paused: list[str] = []
    for _ in range(2):
        night.world.trouble.failing_starts["node-0"] = 3
        if paused:
            night.ask("resume")
        state = night.run(lambda s: bool(s.paused) and f"run-{s.idle_s:.3f}/paused" not in paused)
        notice = next(n for n in notices_of(state) if n.topic == "paused")
        assert "needs a person (" in notice.text
        paused.append(notice.key)
    assert len(set(paused)) == 2
    assert "resumed" in [n.topic for n in notices_of(night.state)]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_saves_that_fail_twice_in_a_row_wake_people_and_their_end_is_told(failing: int) -> None:
    night = Night()
    night.run_to_step(35)
    night.world.storage.failing_saves = failing
    told: list[Notice] = []
    while not night.state.status.is_terminal:
        before = night.state
        night.run_for(0.5)
        told += [n for n in notices_of(night.state) if n.key not in keys(told)]
        is_same = keys(notices_of(night.state)) == keys(notices_of(before))
        assert is_same or is_news(night.state, before)
    about = [n for n in told if n.topic in ("unsaved", "saved")]
    assert [n.topic for n in about] == (["unsaved", "saved"] if failing > 1 else [])
    assert all(n.topic in NotifySpec().topics for n in about)
    if failing > 1:
        assert "2 saves in a row have FAILED, the last of step 50: disk-full" in about[0].text
        assert "the newest checkpoint is of step 30" in about[0].text


def test_a_message_can_call_nobody_and_is_cut() -> None:
    assert slack_text("<!channel> & <http://x|y>") == "&lt;!channel&gt; &amp; &lt;http://x|y&gt;"
    night = Night()
    night.run_to_step(43)
    gang = night.world.live_gang
    assert gang is not None
    gang._fail(gang.workers[2], "worker-raised", "x" * 5000)
    assert all(len(n.text) <= MAX_CHARS for n in notices_of(night.run_to_end()))
