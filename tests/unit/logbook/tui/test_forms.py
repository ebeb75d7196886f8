"""Every intervention has its key, its form, its dry run and its confirmation."""

from __future__ import annotations

from typing import Any

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.interventions import FORMS, FieldKind, Form
from midwatch.logbook.tui.confirm_screen import ConfirmScreen
from midwatch.logbook.tui.form_screen import FormScreen
from midwatch.tests.support.screens import (
    RecordingControls,
    drive,
    text_on,
    until,
    watch_app,
    watching,
)
from midwatch.tests.support.synthetic_run import SyntheticRun
from textual.widgets import Input

GOOD = {
    FieldKind.NUMBER: "0.5",
    FieldKind.NODE: "n002",
    FieldKind.CHECKPOINT: "step-00000050.a0001",
    FieldKind.SWITCH: "creep=shadow",
}
REASON = "because"


def keys_of(text: str) -> list[str]:
    names = {"-": "minus", "=": "equals_sign", ".": "full_stop", " ": "space"}
    return [names.get(char, char) for char in text]


def is_on(pilot: Any, screen: type) -> bool:
    return isinstance(pilot.app.screen, screen)


@pytest.mark.parametrize("form", FORMS, ids=[form.action for form in FORMS])
def test_a_form_is_filled_in_tried_out_and_sent(night: SyntheticRun, form: Form) -> None:
    controls = RecordingControls()

    async def scenario() -> None:
        async with watching(night, (80, 24), controls) as pilot:
            await pilot.press(form.key)
            assert form.title in text_on(pilot)
            for field in form.fields:
                await pilot.press(*keys_of(GOOD[field.kind]), "down")
            await pilot.press(*keys_of(REASON), "enter")
            await until(pilot, lambda: is_on(pilot, ConfirmScreen))
            assert f"would decide send-command: {REASON}" in text_on(pilot)
            assert not controls.submitted
            await pilot.press("n")
            await until(pilot, lambda: is_on(pilot, FormScreen))
            await pilot.press("enter")
            await until(pilot, lambda: is_on(pilot, ConfirmScreen))
            await pilot.press("y")
            await until(pilot, lambda: not is_on(pilot, ConfirmScreen | FormScreen))

    drive(scenario())
    (ask,) = controls.submitted
    numbers = [f for f in form.fields if f.kind is FieldKind.NUMBER]
    targets = [GOOD[f.kind] for f in form.fields if f.kind is not FieldKind.NUMBER]
    assert ask.form is form
    assert ask.reason == REASON
    assert ask.answers.value == (0.5 if numbers else 0.0)
    assert ask.answers.target == (targets[0] if targets else "")
    assert ask.expect_attempt == (3 if form.is_guarded else None)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        (["L", "enter"], "rate is missing"),
        (["L", *"2", "enter"], "rate 2 is outside 1e-08 to 1"),
        (["L", *"fast", "enter"], "rate 'fast' is not a number"),
        (["F", *"n", *"a", *"n", "enter"], "factor nan is outside 0.01 to 100"),
        (["Q", *"n999", "enter"], "there is no node 'n999'"),
        (["S", "enter"], "every change needs a reason"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_sent(
    night: SyntheticRun, keys: list[str], complaint: str
) -> None:
    controls = RecordingControls()

    async def scenario() -> None:
        async with watching(night, (80, 24), controls) as pilot:
            await pilot.press(*keys)
            await until(pilot, lambda: complaint in text_on(pilot))
            await pilot.press("escape")
            assert not is_on(pilot, FormScreen)

    drive(scenario())
    assert not controls.previewed


def test_the_node_under_the_cursor_is_filled_in(night: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(night, (120, 40), RecordingControls()) as pilot:
            await pilot.press("2", "n", "U")
            assert pilot.app.screen.query_one("#field-0", Input).value == "n001"
            await pilot.press("escape", "5", "P")
            assert pilot.app.screen.query_one("#field-0", Input).value == "step-00000400.a0003"

    drive(scenario())


def test_a_request_that_cannot_be_laid_down_says_so(night: SyntheticRun) -> None:
    async def scenario() -> None:
        controls = RecordingControls(refusal="the folder is gone.")
        async with watching(night, (80, 24), controls) as pilot:
            await pilot.press("S", *keys_of(REASON), "enter")
            await until(pilot, lambda: is_on(pilot, ConfirmScreen))
            await pilot.press("y")
            await until(pilot, lambda: "[no-such-run] the folder is gone." in text_on(pilot))

    drive(scenario())


def test_without_controls_the_screen_only_watches(night: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(night) as pilot:
            await pilot.press("S")
            assert not is_on(pilot, FormScreen)
            await until(pilot, lambda: "only watches" in text_on(pilot))

    drive(scenario())


def test_what_came_of_a_request_is_told(small_run: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(small_run, (120, 40), RecordingControls()) as pilot:
            await pilot.press("S", *keys_of(REASON), "enter")
            await until(pilot, lambda: is_on(pilot, ConfirmScreen))
            await pilot.press("y")
            await until(pilot, lambda: "stop-1" in watch_app(pilot)._awaited)
            small_run.refuse(ev.InterventionRequested("stop-1", "stop", "ann", REASON))
            await until(pilot, lambda: "stop-1 rejected: not now" in text_on(pilot))

    drive(scenario())
