"""The table of interventions is sound, and every entry is an action that the policy knows."""

from __future__ import annotations

import pytest
from midwatch.logbook.decisions import RejectIntervention
from midwatch.logbook.events import InterventionRequested
from midwatch.logbook.interventions import (
    FORMS,
    Answers,
    Field,
    FieldKind,
    answers_of,
    choices_of,
    fault_of,
    fault_of_all,
    range_text,
)
from midwatch.logbook.parameters import PARAMETERS
from midwatch.operator.cli.steer import plan_request, plan_text
from midwatch.operator.spec_file import spec_data
from midwatch.tests.support.builders import decided, fold, make_spec, started
from msgspec.structs import replace

BY_ACTION = {form.action: form for form in FORMS}


def test_actions_and_keys_are_unique() -> None:
    assert len(BY_ACTION) == len({form.key for form in FORMS}) == len(FORMS)


@pytest.mark.parametrize("action", list(BY_ACTION))
def test_the_policy_knows_every_action(action: str) -> None:
    state = replace(started(), spec=spec_data(make_spec()))
    request = InterventionRequested("x-1", action, "ann", "why", value=0.5, target="n0")
    assert "unknown action" not in plan_text(request, plan_request(state, request, state.time_s))


def test_limits_are_those_of_the_spec() -> None:
    rate, factor = BY_ACTION["lr"].fields[0], BY_ACTION["lr-factor"].fields[0]
    spec = spec_data(make_spec(limits={"lr_min": 1e-6, "lr_max": 0.01, "lr_factor_max": 4}))
    assert range_text(rate, spec) == "1e-06 to 0.01"
    assert range_text(factor, spec) == "0.25 to 4"
    assert fault_of(rate, "0.02", spec, ()) == "rate 0.02 is outside 1e-06 to 0.01"
    assert fault_of(factor, " 0.25 ", spec, ()) == ""
    assert range_text(rate, {}) == "1e-08 to 1"


@pytest.mark.parametrize("text", ["", "  ", "abc", "nan", "inf", "-1", "1e9"])
def test_no_nonsense_passes_for_a_number(text: str) -> None:
    assert fault_of(BY_ACTION["lr"].fields[0], text, {}, ())


def test_a_name_must_be_one_of_the_choices() -> None:
    field = Field("node", FieldKind.NODE, "")
    assert fault_of(field, "n1", {}, ("n0",)) == "there is no node 'n1'"
    assert fault_of(field, " n0 ", {}, ("n0",)) == ""


def test_a_change_can_be_chosen_for_undoing_as_soon_as_it_was_asked_for() -> None:
    request = InterventionRequested("lr-1", "lr-factor", "ann", "why", value=0.5)
    state = fold([request], started())
    assert choices_of(BY_ACTION["revert"].fields[0], state, ()) == ("lr-1",)
    refused = fold([decided(state, RejectIntervention("lr-1"))], state)
    assert choices_of(BY_ACTION["revert"].fields[0], refused, ()) == ()


def test_answers_go_where_the_request_wants_them() -> None:
    lr, pin = (
        answers_of(BY_ACTION["lr"], ("2e-4", "", "")),
        answers_of(BY_ACTION["pin"], (" c-1 ",)),
    )
    assert lr == Answers(value=2e-4)
    assert pin == Answers(target="c-1")
    timed = answers_of(BY_ACTION["grad-clip"], ("0.3", " 120 ", "20"))
    assert timed == Answers(value=0.3, at_step=120, for_steps=20)
    adam = answers_of(BY_ACTION["optimizer"], ("", "0.98", "", "0.1", "", ""))
    assert adam == Answers(values={"beta2": 0.98, "weight-decay": 0.1})
    assert answers_of(BY_ACTION["skip"], ("120:130",)) == Answers(target="120:130")


def test_a_form_of_which_nothing_is_filled_in_asks_for_nothing() -> None:
    optimizer = BY_ACTION["optimizer"]
    empty = ("", " ", "", "", "120", "")
    assert [fault_of(f, t, {}, ()) for f, t in zip(optimizer.fields, empty, strict=True)] == [
        ""
    ] * 6
    assert fault_of_all(optimizer, empty).startswith("nothing is asked for: fill in beta1 or")
    assert fault_of_all(optimizer, ("", "0.98", "", "", "", "")) == ""
    assert fault_of_all(BY_ACTION["stop"], ("",)) == ""


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "soon", "1e3"])
def test_steps_are_whole_numbers(text: str) -> None:
    at_step, for_steps = BY_ACTION["lr"].fields[1:]
    assert fault_of(at_step, text, {}, ())
    assert fault_of(for_steps, text, {}, ())


@pytest.mark.parametrize(
    ("text", "is_sound"),
    [("120:130", True), ("samples 8:16", True), ("130:120", False), ("120", False), ("a:b", False)],
)
def test_a_range_has_two_ends_in_order(text: str, is_sound: bool) -> None:
    assert (fault_of(BY_ACTION["skip"].fields[0], text, {}, ()) == "") is is_sound


def test_every_parameter_can_be_asked_for_and_has_its_limits_in_the_spec() -> None:
    asked = [f.parameter for form in FORMS for f in form.fields if f.kind is FieldKind.NUMBER]
    assert sorted(asked) == sorted(PARAMETERS)
    limits = spec_data(make_spec())["limits"]
    for parameter in PARAMETERS.values():
        for bound in (parameter.low, parameter.high):
            section, name = bound.path.split(".")
            assert section == "limits"
            assert name in limits, f"{parameter.name} is bound by {bound.path}"
            assert limits[name] == bound.value
