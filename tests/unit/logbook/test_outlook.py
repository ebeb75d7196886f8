"""What a note says to watch is about this incident, and about how things stand by now."""

from __future__ import annotations

from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.outlook import outlook_text
from midwatch.tests.support.synthetic_run import SyntheticRun


def told(run: SyntheticRun, name: str) -> str:
    return outlook_text(run.state, run.state.incidents[name])


def test_a_quarantined_node_is_out_and_the_spares_are_counted(small_run: SyntheticRun) -> None:
    small_run.crash(rank=3)
    small_run.start("the spare takes over", incident="inc-0001")
    assert told(small_run, "inc-0001") == (
        "Node n001 is out until somebody releases it: have it tried out before. "
        "0 spare nodes are left."
    )
    small_run.decide(d.ReleaseNode("n001"), "ann asked: a new GPU")
    assert "Node n001 stands by as a spare" in told(small_run, "inc-0001")


def test_a_node_that_is_gone_is_known_by_its_machine(small_run: SyntheticRun) -> None:
    small_run.tell(ev.NodeLost("n002", "1", "silent"))
    draft = d.IncidentDraft(
        "inc-0001", "node-lost", "n002 is gone", 60, small_run.now_s, 60, "n002"
    )
    small_run.decide(d.AwaitNodes(), "a node is missing", opens=draft)
    assert "Node n002 is gone: whether host host-n002 comes back" in told(small_run, "inc-0001")


def test_a_divergence_names_its_onset_and_the_rate_it_was_answered_with(
    small_run: SyntheticRun,
) -> None:
    small_run.train(120, sick_from=100)
    small_run.diverge()
    small_run.decide(d.Observe(), "only once", opens=small_run.numeric_draft())
    assert "past step 100, where it began: nothing was changed" in told(small_run, "inc-0001")
    small_run.start("it stays", step=50, factor=0.9, incident="inc-0001")
    assert "past step 100, where it began, now at x0.9" in told(small_run, "inc-0001")


def test_what_is_laid_to_no_node_is_told_by_its_step(small_run: SyntheticRun) -> None:
    draft = d.IncidentDraft("inc-0001", "worker-error", "a bug", 60, small_run.now_s, 60)
    small_run.decide(d.Observe(), "once", opens=draft)
    assert told(small_run, "inc-0001").startswith("Whether it comes back at step 60")
