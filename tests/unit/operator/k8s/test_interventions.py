"""Interventions: what reaches the run, what does not and why, and what is shown of the outcome."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.record import to_json
from midwatch.logbook.state import Intervention, RunState
from midwatch.logbook.wire import Command
from midwatch.operator.k8s import actions as act
from midwatch.operator.k8s.automatic import plan_automatic
from midwatch.operator.k8s.intervention_status import laid, previewed, refused
from midwatch.operator.k8s.interventions import (
    plan_interventions,
    plan_orphans,
    released_nodes,
    to_request,
)
from midwatch.operator.k8s.model import InterventionPolicy
from midwatch.operator.k8s.observed import Observed, Reach, time_text
from midwatch.operator.policy.requests import plan_answer
from midwatch.tests.support.builders import decided, fold, make_sample, make_spec, started
from midwatch.tests.support.kube import Object
from midwatch.tests.support.kube_run import make_intervention
from midwatch.tests.support.kube_sights import NOW_S, look, of_kind, seen_run

POLICY = InterventionPolicy()


def asked(name: str, action: str, age_s: float = 60.0, **spec: Any) -> Object:
    body = make_intervention(name, action, **spec)
    body["metadata"] |= {
        "uid": f"uid-{name}",
        "generation": 1,
        "creationTimestamp": time_text(NOW_S - age_s),
        "labels": {
            "midwatch.dev/run": "night",
            "midwatch.dev/run-uid": "run-uid",
            "midwatch.dev/origin": "person",
        },
    }
    return body


def trained() -> RunState:
    return fold([ev.AttemptResumed(1, 0, "", 0.1), ev.StepDone(1, make_sample(5))], started())


def seen(*interventions: Object, state: RunState | None = None, **changes: Any) -> Observed:
    return look(sight=seen_run(state or trained()), interventions=interventions, **changes)


def outcome(observed: Observed, policy: InterventionPolicy = POLICY) -> Object:
    (written,) = of_kind(plan_interventions(observed, policy), act.SetInterventionStatus)
    return dict(written.status)


def said(status: Object, name: str) -> tuple[str, str]:
    found = next(c for c in status["conditions"] if c["type"] == name)
    return found["status"], found["reason"]


def test_a_request_says_what_the_object_says_and_no_more() -> None:
    full = asked(
        "a",
        "SetLearningRate",
        params={"value": "3e-4"},
        expect={"attempt": 3, "learningRate": "1e-3", "seq": 40},
        atStep=100,
        forSteps=50,
    )
    assert to_request(full) == {
        "id": "uid-a",
        "action": "lr",
        "reason": "because",
        "by": "ann",
        "value": 3e-4,
        "expect_attempt": 3,
        "expect_value": 1e-3,
        "seen_seq": 40,
        "at_step": 100,
        "for_steps": 50,
    }
    bare = to_request(asked("b", "Stop"))
    assert set(bare) == {"id", "action", "reason", "by"}
    assert msgspec.convert(bare, ev.InterventionRequested).action == "stop"
    tuned = to_request(asked("c", "SetOptimizer", params={"values": {"beta2": "0.98"}}))
    assert tuned["values"] == {"beta2": 0.98}


def test_a_request_is_laid_before_the_run_until_the_run_knows_it() -> None:
    each = asked("a", "Checkpoint")
    (ask,) = plan_interventions(seen(each), POLICY)
    assert isinstance(ask, act.Ask)
    assert (ask.request["id"], ask.for_object) == ("uid-a", "a")
    known = fold([msgspec.convert(ask.request, ev.InterventionRequested)], trained())
    status = outcome(seen(each, state=known))
    assert said(status, "Accepted") == ("Unknown", "Requested")
    assert not of_kind(plan_interventions(seen(each, state=known), POLICY), act.Ask)
    each["status"] = status
    assert plan_interventions(seen(each, state=known), POLICY) == []


AWAY: dict[str, Any] = {"sight": None, "reach": Reach(api="it does not answer")}
GONE: dict[str, Any] = {
    "sight": None,
    "cluster": None,
    "pods": (),
    "jobs": (),
    "status": {"finishedAt": time_text(NOW_S), "run": {"status": "completed", "seq": 9}},
}


@pytest.mark.parametrize("unseen", [{"sight": seen_run(trained())}, AWAY, GONE])
@pytest.mark.parametrize("stage", ["requested", "applied"])
def test_what_was_laid_before_the_run_is_judged_by_the_run_alone(
    stage: str, unseen: dict[str, Any]
) -> None:
    spec = {"params": {"multiplier": "0.5"}, "expect": {"learningRate": "0.7"}, "forSteps": 10}
    each = asked("a", "SetLearningRate", expiresAt=time_text(NOW_S - 1.0), **spec)
    each["status"] = laid(each, NOW_S - 5.0).status
    if stage == "applied":
        short = asked("a", "SetLearningRate", params={"multiplier": "0.5"})
        each["status"] = outcome(seen(each, state=applied(trained(), short)))
    assert each["status"]["stage"] == stage
    assert plan_interventions(look(interventions=(each,), **unseen), POLICY) == []
    (kept,) = plan_orphans([each], (), NOW_S)
    assert isinstance(kept, act.SetInterventionStatus)
    assert kept.status == {**each["status"], "settledAt": time_text(NOW_S)}


def test_a_release_that_was_laid_before_the_run_holds_when_its_time_is_over() -> None:
    each = asked("a", "ReleaseNode", params={"target": "k-0"}, expiresAt=time_text(NOW_S - 1.0))
    assert released_nodes(seen(each), POLICY) == ()
    each["status"] = laid(each, NOW_S - 5.0).status
    assert released_nodes(seen(each), POLICY) == ("k-0",)


def test_what_lies_on_the_desk_still_is_shown_as_requested() -> None:
    each = asked("a", "Checkpoint", expiresAt=time_text(NOW_S - 1.0))
    request = msgspec.convert(to_request(each), ev.InterventionRequested)
    waiting = {"uid-a": msgspec.json.decode(to_json(Intervention(request, NOW_S - 5.0)))}
    sight = msgspec.structs.replace(seen_run(trained()), waiting=waiting)
    status = outcome(look(sight=sight, interventions=(each,)))
    assert status["stage"] == "requested"
    assert said(status, "Accepted") == ("Unknown", "Requested")


def applied(state: RunState, request: Object) -> RunState:
    event = msgspec.convert(to_request(request), ev.InterventionRequested)
    state = fold([event], state)
    command = Command(state.next_command, event.action, event.value, event.id)
    state = fold([decided(state, d.SendCommand(command, event.id))], state)
    done = [
        ev.CommandApplied(1, command.seq, node, ranks, 7, {"lr": 5e-4}, {"lr": 1e-3})
        for node, ranks in (("n0", (0, 1)), ("n1", (2, 3)))
    ]
    return fold(done, state)


def test_what_the_ranks_read_back_is_shown() -> None:
    each = asked("a", "SetLearningRate", params={"multiplier": "0.5"})
    status = outcome(seen(each, state=applied(trained(), each)))
    assert said(status, "Accepted") == ("True", "Accepted")
    assert said(status, "Applied") == ("True", "Applied")
    assert (status["acks"], status["appliedAtStep"]) == ("4/4", 7)
    assert status["previous"] == {"lr": "0.001"}
    assert status["current"] == {"lr": "0.0005"}
    assert status["settledAt"]


def test_a_change_for_a_while_is_not_settled_before_it_is_over() -> None:
    each = asked("a", "SetLearningRate", params={"multiplier": "0.5"}, forSteps=10)
    short = asked("a", "SetLearningRate", params={"multiplier": "0.5"})
    status = outcome(seen(each, state=applied(trained(), short)))
    assert said(status, "Reverted") == ("False", "InForce")
    assert "settledAt" not in status


def test_what_the_run_rejects_is_settled_with_its_reason() -> None:
    each = asked("a", "Stop")
    known = fold([msgspec.convert(to_request(each), ev.InterventionRequested)], trained())
    known = fold([decided(known, d.RejectIntervention("uid-a"))], known)
    status = outcome(seen(each, state=known))
    assert said(status, "Accepted")[0] == "False"
    assert status["settledAt"]


@pytest.mark.parametrize(
    ("changes", "policy", "reason"),
    [
        ({"runRef": {"name": "night", "uid": "older"}}, {}, "OtherRun"),
        ({}, {"allowed": ("Checkpoint",)}, "NotAllowed"),
        ({"expiresAt": time_text(NOW_S - 1)}, {}, "Expired"),
        ({"params": {"value": "0.5"}}, {"learning_rate_max": "1e-2"}, "OutOfBounds"),
        ({"params": {"multiplier": "100"}}, {"learning_rate_max": "1e-2"}, "OutOfBounds"),
        ({"params": {"value": "1e-9"}}, {"learning_rate_min": "1e-6"}, "OutOfBounds"),
        (
            {"params": {"multiplier": "0.5"}, "expect": {"learningRate": "2e-3"}},
            {},
            "Conflict",
        ),
    ],
)
def test_what_is_not_allowed_never_reaches_the_run(
    changes: Object, policy: dict[str, Any], reason: str
) -> None:
    each = asked("a", "SetLearningRate", **{"params": {"value": "1e-3"}, **changes})
    observed = seen(each)
    status = outcome(observed, InterventionPolicy(**policy))
    assert said(status, "Accepted") == ("False", reason)
    assert status["settledAt"]
    assert not of_kind(plan_interventions(observed, InterventionPolicy(**policy)), act.Ask)


def test_an_expected_rate_that_holds_lets_the_request_through() -> None:
    for expected in ("1e-3", "1.009e-3"):
        each = asked("a", "Checkpoint", expect={"learningRate": expected})
        (ask,) = of_kind(plan_interventions(seen(each), POLICY), act.Ask)
        # The run would compare it with what the action changes.
        assert "expect_value" not in ask.request


def test_what_its_author_expected_is_judged_by_the_run_when_it_decides() -> None:
    rate = asked("a", "SetLearningRate", params={"value": "5e-4"}, expect={"learningRate": "2e-3"})
    late = asked("b", "SetLearningRate", params={"multiplier": "0.5"}, expect={"seq": 1})
    other = asked("c", "SetLearningRate", params={"multiplier": "0.9"})
    spec = make_spec()
    for each, state, why in (
        (rate, trained(), "lr was expected to be 0.002, it is 0.001"),
        (late, applied(trained(), other), "was changed by ann"),
    ):
        (ask,) = of_kind(plan_interventions(seen(each, state=state), POLICY), act.Ask)
        request = msgspec.convert(ask.request, ev.InterventionRequested)
        decision = plan_answer(state, spec, request, NOW_S)
        assert decision is not None
        assert isinstance(decision.action, d.RejectIntervention)
        assert why in decision.reason
        assert decision.reason.startswith("conflict")


def test_too_many_in_an_hour_are_refused_the_oldest_first_let_through() -> None:
    many = [asked(f"a{index}", "Checkpoint", age_s=100.0 - index) for index in range(4)]
    planned = plan_interventions(seen(*many), InterventionPolicy(max_per_hour=2))
    assert [a.for_object for a in of_kind(planned, act.Ask)] == ["a0", "a1"]
    refusals = of_kind(planned, act.SetInterventionStatus)
    assert [said(dict(r.status), "Accepted")[1] for r in refusals] == ["TooMany", "TooMany"]


def approval(by: str, decision: str = "Approve", uid: str = "uid-a") -> Object:
    return {
        "metadata": {"name": f"by-{by}", "uid": f"approval-{by}"},
        "spec": {
            "interventionRef": {"name": "a", "uid": uid},
            "decision": decision,
            "approvedBy": by,
            "reason": "seen",
        },
    }


def test_two_people_are_needed_where_the_policy_says_so() -> None:
    policy = InterventionPolicy(require_approval=("Stop",))
    each = asked("a", "Stop")
    assert said(outcome(seen(each), policy), "Approved") == ("Unknown", "Awaiting")
    own = seen(each, approvals=(approval("ann"),))
    assert "own author" in outcome(own, policy)["message"]
    assert not of_kind(plan_interventions(own, policy), act.Ask)
    other_object = seen(each, approvals=(approval("bob", uid="another"),))
    assert not of_kind(plan_interventions(other_object, policy), act.Ask)
    approved = seen(each, approvals=(approval("ann"), approval("bob")))
    assert of_kind(plan_interventions(approved, policy), act.Ask)
    rejected = seen(each, approvals=(approval("bob", "Reject"),))
    status = outcome(rejected, policy)
    assert said(status, "Approved") == ("False", "Rejected")
    assert status["settledAt"]


def test_a_request_waits_while_the_run_is_away() -> None:
    each = asked("a", "Checkpoint")
    away = look(sight=None, interventions=(each,))
    assert said(outcome(away), "Accepted") == ("Unknown", "RunAway")


def test_a_refusal_of_the_api_and_a_dry_run_settle_the_object() -> None:
    each = asked("a", "Checkpoint", dryRun=True)
    (ask,) = plan_interventions(seen(each), POLICY)
    assert isinstance(ask, act.Ask)
    assert ask.is_dry_run
    shown = previewed(each, "it would save", NOW_S).status
    assert (shown["stage"], said(shown, "Applied")) == ("previewed", ("False", "DryRun"))
    no = refused(each, "run-over", "the run is over", NOW_S).status
    assert said(no, "Accepted") == ("False", "RunOver")
    each["status"] = no
    assert plan_interventions(seen(each), POLICY) == []


def test_settled_objects_are_kept_for_their_time_and_labels_are_put_on() -> None:
    each = asked("a", "Checkpoint")
    each["status"] = {"settledAt": time_text(NOW_S - 7200)}
    short = InterventionPolicy(retention_seconds=3600)
    assert plan_interventions(seen(each), short) == [act.RemoveIntervention("a", "uid-a")]
    assert plan_interventions(seen(each), POLICY) == []
    bare = asked("b", "Checkpoint")
    del bare["metadata"]["labels"]
    (label,) = of_kind(plan_interventions(seen(bare), POLICY), act.LabelIntervention)
    assert label.labels["midwatch.dev/origin"] == "person"


def test_what_is_asked_of_a_run_that_is_not_there_is_answered_and_goes_one_day() -> None:
    each = asked("a", "Checkpoint", age_s=300.0)
    assert plan_orphans([each], {"night"}, NOW_S) == []
    assert plan_orphans([asked("b", "Checkpoint", age_s=1.0)], {"day"}, NOW_S) == []
    (said_no,) = plan_orphans([each], {"day"}, NOW_S)
    assert isinstance(said_no, act.SetInterventionStatus)
    assert said(dict(said_no.status), "Accepted") == ("False", "NoSuchRun")
    each["status"] = said_no.status
    assert plan_orphans([each], {"day"}, NOW_S) == []
    later = NOW_S + 3e6
    assert plan_orphans([each], {"day"}, later) == [act.RemoveIntervention("a", "uid-a")]


def test_what_the_controller_decided_is_recorded_once_and_followed_to_its_end() -> None:
    draft = d.IncidentDraft("inc-0001", "divergence", "loss rises", 5, NOW_S - 5, 5)
    state = trained()
    plan = state.attempt
    assert plan is not None
    action = d.StartAttempt(
        msgspec.structs.replace(plan.plan, attempt=2, checkpoints=("step-4",)),
        rollback_onset=5,
        lr_factor=0.9,
    )
    made = d.Decision("1/9", action, "it diverged", opens=draft, incident="inc-0001")
    recent = msgspec.structs.replace(state, time_s=NOW_S - 5)
    state = fold([ev.DecisionMade(made)], recent)
    observed = seen(state=state)
    (create,) = plan_automatic(observed, POLICY)
    assert isinstance(create, act.CreateIntervention)
    spec = create.body["spec"]
    assert (spec["action"], spec["requestedBy"]) == ("Rollback", "operator")
    assert spec["params"] == {"target": "step-4", "values": {"lr-factor": "0.9"}}
    assert "inc-0001" in spec["reason"]
    there = {**create.body, "metadata": {**create.body["metadata"], "uid": "x", "generation": 1}}
    (pending,) = plan_automatic(seen(there, state=state), POLICY)
    assert isinstance(pending, act.SetInterventionStatus)
    assert "settledAt" not in pending.status
    done = fold([ev.ActionDone("1/9")], state)
    (settled,) = plan_automatic(seen(there, state=done), POLICY)
    assert isinstance(settled, act.SetInterventionStatus)
    assert settled.status["settledAt"]
    there["status"] = settled.status
    assert plan_automatic(seen(there, state=done), POLICY) == []
    assert plan_interventions(seen(there, state=done), POLICY) == []
