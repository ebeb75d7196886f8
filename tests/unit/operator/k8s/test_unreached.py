"""Interventions for a run that is not there to be asked: over, at rest, or its nodes unseen."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.record import to_json
from midwatch.logbook.state import Intervention
from midwatch.operator.k8s import actions as act
from midwatch.operator.k8s.intervention_status import laid
from midwatch.operator.k8s.interventions import plan_interventions, to_request
from midwatch.operator.k8s.model import InterventionPolicy
from midwatch.operator.k8s.observed import Object, Observed, Reach, time_text
from midwatch.operator.k8s.reconcile import reconcile
from midwatch.tests.support.builders import decided, fold
from midwatch.tests.support.kube_sights import NOW_S, look, make_cluster, of_kind, seen_run

from .test_bad_nodes import excluded, running
from .test_interventions import asked, outcome, said, trained

GONE: dict[str, Any] = {"cluster": None, "pods": (), "jobs": ()}
BLIND = Reach(nodes="nodes are not read")


@pytest.mark.parametrize("ended", ["completed", "stopped"])
def test_what_is_asked_of_a_run_that_is_over_is_rejected_and_one_day_removed(ended: str) -> None:
    each = asked("slower", "SetLearningRate", params={"value": "1e-4"})
    status = {"finishedAt": time_text(NOW_S - 4000), "run": {"status": ended, "seq": 10}}
    written = outcome(look(status=status, interventions=(each,), **GONE))
    assert said(written, "Accepted") == ("False", "RunFinished")
    assert written["settledAt"]
    each["status"] = {**written, "settledAt": time_text(NOW_S - 40 * 86_400)}
    planned = plan_interventions(
        look(status=status, interventions=(each,), **GONE), InterventionPolicy()
    )
    assert of_kind(planned, act.RemoveIntervention)


def test_a_completed_run_is_not_brought_back() -> None:
    status = {"finishedAt": time_text(NOW_S - 4000), "run": {"status": "completed", "seq": 10}}
    written = outcome(look(status=status, interventions=(asked("go", "Resume"),), **GONE))
    assert said(written, "Accepted") == ("False", "Completed")


def test_a_resumption_on_the_desk_of_a_run_without_a_controller_brings_it_back() -> None:
    state = trained()
    paused = fold([decided(state, d.PauseRun("restart-budget"))], state)
    each = asked("go", "Resume", expiresAt=time_text(NOW_S - 1.0))
    request = msgspec.convert(to_request(each), ev.InterventionRequested)
    waiting = {"uid-go": msgspec.json.decode(to_json(Intervention(request, NOW_S)))}
    on_desk = msgspec.structs.replace(seen_run(paused), waiting=waiting)
    in_journal = seen_run(fold([request], paused))
    laid_before = laid(each, NOW_S - 5.0).status
    for sight in (on_desk, in_journal):
        each["status"] = laid_before
        # Where a controller is, or may be, it is the one to judge.
        unseen = look(sight=sight, jobs=(), reach=Reach(jobs="not yet"), interventions=(each,))
        for observed in (unseen, look(sight=sight, interventions=(each,))):
            there = reconcile(observed)
            assert not of_kind(there, act.StartController)
            assert not of_kind(there, act.SetInterventionStatus)
        written = outcome(look(sight=sight, jobs=(), interventions=(each,)))
        assert said(written, "Accepted") == ("True", "BringingBack")
        each["status"] = written
        gone_on = reconcile(look(sight=sight, jobs=(), interventions=(each,)))
        assert of_kind(gone_on, act.StartController)
        # What the controller that came says of it holds.
        known = msgspec.structs.replace(Intervention(request, NOW_S), stage="applied")
        resumed = fold([decided(paused, d.ResumeRun())], paused)
        resumed = msgspec.structs.replace(resumed, interventions={"uid-go": known})
        done = outcome(look(sight=seen_run(resumed), interventions=(each,)))
        assert (done["stage"], said(done, "Applied")[0]) == ("applied", "True")
        assert done["settledAt"]


def test_what_is_asked_of_a_suspended_run_says_what_it_waits_for() -> None:
    each = asked("slower", "SetLearningRate", params={"value": "1e-4"})
    written = outcome(look(spec={"suspend": True}, interventions=(each,), **GONE))
    assert (written["stage"], said(written, "Accepted")) == ("pending", ("Unknown", "Suspended"))
    away = outcome(look(interventions=(each,)))
    assert said(away, "Accepted") == ("Unknown", "RunAway")


def test_a_release_that_took_a_node_off_the_list_is_done_although_no_nodes_are_read() -> None:
    row = {"node": "k-7", "reason": "x", "since": time_text(NOW_S - 99)}
    cluster = make_cluster(annotations={"midwatch.dev/excluded-nodes": _noted(row)})
    each = asked("back", "ReleaseNode", params={"target": "k-7"})

    def at(cluster: Object) -> Observed:
        sight = seen_run(running())
        return look(sight=sight, reach=BLIND, cluster=cluster, interventions=(each,))

    first = reconcile(at(cluster))
    assert excluded(first) == []
    (noted,) = of_kind(first, act.SetInterventionStatus)
    assert "settledAt" not in noted.status
    each["status"] = noted.status
    (done,) = of_kind(reconcile(at(_applied(first))), act.SetInterventionStatus)
    assert (done.status["stage"], said(done.status, "Applied")) == ("applied", ("True", "Released"))
    # Where nothing was taken off, it is for the run to say that it knows no such node.
    each["status"] = {}
    assert of_kind(reconcile(at(_applied(first))), act.Ask)


def _noted(*rows: dict[str, str]) -> str:
    return msgspec.json.encode(rows).decode()


def _applied(actions: list[act.Action]) -> Object:
    """Return the RayCluster as actions have left it."""
    bodies = [each.body for each in of_kind(actions, act.ApplyObject)]
    (cluster,) = (body for body in bodies if body["kind"] == "RayCluster")
    return make_cluster(annotations=cluster["metadata"]["annotations"])
