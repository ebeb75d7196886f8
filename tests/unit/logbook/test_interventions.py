"""The table of interventions is sound, and every entry is an action that the policy knows."""

from __future__ import annotations

import pytest
from midwatch.logbook.events import InterventionRequested
from midwatch.logbook.interventions import (
    FORMS,
    Field,
    FieldKind,
    answers_of,
    fault_of,
    range_text,
)
from midwatch.operator.cli.steer import plan_request, plan_text
from midwatch.operator.spec_file import spec_data
from midwatch.tests.support.builders import make_spec, started
from msgspec.structs import replace

BY_ACTION = {form.action: form for form in FORMS}


def test_actions_and_keys_are_unique() -> None:
    assert len(BY_ACTION) == len({form.key for form in FORMS}) == len(FORMS)


@pytest.mark.parametrize("action", list(BY_ACTION))
def test_the_policy_knows_every_action(action: str) -> None:
    state = replace(started(), spec=spec_data(make_spec()))
    request = InterventionRequested("x-1", action, "ann", "why", value=0.5, target="n0")
    assert "unknown action" not in plan_text(plan_request(state, request, state.time_s))


def test_limits_are_those_of_the_spec() -> None:
    (rate,), (factor,) = BY_ACTION["lr"].fields, BY_ACTION["lr-factor"].fields
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


def test_answers_go_where_the_request_wants_them() -> None:
    lr, pin = answers_of(BY_ACTION["lr"], ("2e-4",)), answers_of(BY_ACTION["pin"], (" c-1 ",))
    assert (lr.value, lr.target) == (2e-4, "")
    assert (pin.value, pin.target) == (0.0, "c-1")
