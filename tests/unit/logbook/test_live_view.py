"""What a run says of itself in two lines: what it does, and why."""

from __future__ import annotations

from pathlib import Path

from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.live_view import doing_text, why_text
from midwatch.logbook.state import RunState
from midwatch.tests.support.synthetic_run import SyntheticRun


def test_why_is_the_last_answer_to_trouble_for_as_long_as_that_goes_on(
    small_run: SyntheticRun,
) -> None:
    assert why_text(small_run.state) == ""
    small_run.crash(rank=3)
    assert why_text(small_run.state).startswith("n001 lost a GPU to ECC [")
    small_run.start("the spare takes over", incident="inc-0001")
    assert why_text(small_run.state).startswith("the spare takes over [")
    small_run.decide(d.CloseIncident("inc-0001", "recovered"), "50 steps past it")
    assert why_text(small_run.state) == ""


def test_a_run_that_is_over_says_why_it_ended(small_run: SyntheticRun) -> None:
    small_run.crash(rank=3)
    small_run.decide(d.EndRun(stopped=True, step=60), "ann asked: enough")
    assert doing_text(small_run.state) == "the run is stopped at step 60"
    assert why_text(small_run.state) == "ann asked: enough"
    small_run.decide(d.ResumeRun(), "bob asked: on")
    assert "ann asked" not in why_text(small_run.state)


def test_a_paused_run_says_so_once(small_run: SyntheticRun) -> None:
    small_run.crash(rank=3)
    small_run.decide(d.PauseRun("restart-budget-spent"), "three restarts in an hour")
    assert doing_text(small_run.state).endswith("three restarts in an hour")
    assert why_text(small_run.state) == ""


def test_a_run_that_waits_says_for_how_many_nodes(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", nodes=4, spares=0, slots=2)
    assert doing_text(run.state) == "waiting for nodes: 4 of 4 ready"
    run.tell(ev.NodeLost("n002", "1", "silent"))
    assert doing_text(run.state) == "waiting for nodes: 3 of 4 ready"
    run.close()
    assert doing_text(RunState()) == "waiting for nodes: 0 ready"
