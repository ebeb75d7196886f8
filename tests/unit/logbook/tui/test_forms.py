"""Every intervention has its key, its form, its dry run and its confirmation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.interventions import FORMS, WHOLE, Answers, FieldKind, Form
from midwatch.logbook.state import RunState
from midwatch.logbook.tui.confirm_screen import ConfirmScreen
from midwatch.logbook.tui.controls import Ask
from midwatch.logbook.tui.form_screen import FormScreen
from midwatch.operator.cli.watch import FolderControls
from midwatch.tests.support.screens import (
    RecordingControls,
    drive,
    text_on,
    until,
    watch_app,
    watching,
)
from midwatch.tests.support.synthetic_run import SyntheticRun, write_night
from textual.events import Key
from textual.widgets import Input

GOOD = {
    FieldKind.NUMBER: "0.5",
    FieldKind.NODE: "n002",
    FieldKind.CHECKPOINT: "step-00000050.a0001",
    FieldKind.SWITCH: "creep=shadow",
    FieldKind.RANGE: "500:510",
    FieldKind.STEP: "500",
    FieldKind.COUNT: "20",
    FieldKind.INCIDENT: "inc-0002",
    FieldKind.CHANGE: "lr-factor-1",
}
REASON = "because"
FORETOLD = {
    "lr": ("would send lr 0.5 at step 500 for 20 steps", "lr: 0.000105813 -> 0.5"),
    "lr-factor": ("would send lr-factor 0.5 at step 500", "lr-factor: 0.45 -> 0.225"),
    "grad-clip": ("would send grad-clip 0.5 at step 500", "from step: 500 of 2000"),
    "scaler": ("would reject scaler", "cannot be for some steps only"),
    "optimizer": ("would send optimizer beta1 0.5 beta2 0.5", "weight-decay: not read back -> 0.5"),
    "skip": ("would send skip 500:510", "data steps 500 up to 509, 10 in all"),
    "revert": ("would send revert lr-factor-1", "lr-factor: 0.45 -> 0.9"),
    "checkpoint": ("would send checkpoint at step 500", "when: step 500 of 2000 is completed"),
    "rollback": ("would start attempt 4", "355 steps given up"),
    "pause": ("would send pause at step 500", "when: step 500 of 2000 is completed"),
    "stop": ("would send stop at step 500", "when: step 500 of 2000 is completed"),
    "resume": ("would reject resume", "only a paused or stopped run can be resumed"),
    "ack": ("would acknowledge inc-0002", REASON),
    "quarantine": ("would quarantine n002", REASON),
    "release": ("would complete release", "release is in force"),
    "detector": ("would switch creep to shadow", "creep: act -> shadow"),
    "pin": ("would complete pin", "pin is in force"),
    "unpin": ("would unpin step-00000050.a0001", REASON),
    "verify": ("would verify step-00000050.a0001", REASON),
    "quarantine-checkpoint": ("would quarantine step-00000050.a0001", REASON),
    "release-checkpoint": ("would complete release", "is in force"),
    "prune": ("would delete step-00000100.a0001", "step-00000050.a0001: pinned"),
}
"""What the policy foretells of each form as these tests fill it in."""


class TryingControls(RecordingControls):
    """Tries requests out on the run in a folder, as the screen does, and only notes them down."""

    def __init__(self, run: SyntheticRun) -> None:
        super().__init__()
        self._near = FolderControls(run.folder, clock=lambda: run.now_s + 1.0)

    def preview(self, state: RunState, ask: Ask) -> str:
        self.previewed.append(ask)
        return self._near.preview(state, ask)


@pytest.fixture
def steered(tmp_path: Path) -> Iterator[SyntheticRun]:
    """A run with a change in force that can be taken back."""
    run = write_night(tmp_path / "run")
    run.steer("lr-factor-1", "lr-factor", 0.5)
    yield run
    run.close()


def keys_of(text: str) -> list[str]:
    names = {"-": "minus", "=": "equals_sign", ".": "full_stop", " ": "space", ":": "colon"}
    return [names.get(char, char) for char in text]


def is_on(pilot: Any, screen: type) -> bool:
    return isinstance(pilot.app.screen, screen)


@pytest.mark.parametrize("form", FORMS, ids=[form.action for form in FORMS])
def test_a_form_is_filled_in_tried_out_and_sent(steered: SyntheticRun, form: Form) -> None:
    controls = TryingControls(steered)

    async def scenario() -> None:
        async with watching(steered, (80, 24), controls) as pilot:
            await pilot.press(form.key)
            assert form.title in text_on(pilot)
            for field in form.fields:
                if field.kind not in WHOLE:
                    await pilot.press(*keys_of(GOOD[field.kind]), "down")
            await pilot.press(*keys_of(REASON))
            for field in form.fields:
                if field.kind in WHOLE:
                    await pilot.press("down", *keys_of(GOOD[field.kind]))
            await pilot.press("enter")
            await until(pilot, lambda: is_on(pilot, ConfirmScreen))
            headline, figure = FORETOLD[form.action]
            assert headline in text_on(pilot)
            confirm = pilot.app.screen
            assert isinstance(confirm, ConfirmScreen)
            assert figure in confirm.preview
            assert not controls.submitted
            await pilot.press("n")
            await until(pilot, lambda: is_on(pilot, FormScreen))
            await pilot.press("enter")
            await until(pilot, lambda: is_on(pilot, ConfirmScreen))
            await pilot.press("y")
            await until(pilot, lambda: not is_on(pilot, ConfirmScreen | FormScreen))

    drive(scenario())
    (ask,) = controls.submitted
    kinds = [field.kind for field in form.fields]
    numbers = [field for field in form.fields if field.kind is FieldKind.NUMBER]
    targets = [GOOD[kind] for kind in kinds if kind not in (FieldKind.NUMBER, *WHOLE)]
    one_of_many = {field.parameter: 0.5 for field in numbers if field.is_optional}
    assert ask.form is form
    assert ask.reason == REASON
    assert ask.answers == Answers(
        value=0.5 if numbers and not one_of_many else 0.0,
        target=targets[0] if targets else "",
        values=one_of_many,
        at_step=500 if FieldKind.STEP in kinds else None,
        for_steps=20 if FieldKind.COUNT in kinds else None,
    )
    assert ask.seen_seq == steered.state.seq
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
        (["O", "enter"], "nothing is asked for: fill in beta1 or beta2"),
        (
            ["C", *"1", "down", "r", "down", *"soon", "enter"],
            "at step 'soon' is no number of steps",
        ),
        (["J", *"9", "enter"], "data steps '9' is no range FIRST:LAST"),
        (["T", *"lr", "enter"], "there is no change 'lr'"),
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


def type_ahead(pilot: Any, *keys: str) -> None:
    """Hand over keys all at once, as one packet of a slow connection brings them."""
    for key in keys:
        (name,) = keys_of(key) if len(key) == 1 else [key]
        pilot.app.post_message(Key(name, key if len(key) == 1 else None))


@pytest.mark.parametrize("moves", [("tab", "tab"), ("down", "down")])
@pytest.mark.parametrize("clip", ["0.3", "0.3" + 60 * "0"])
def test_keys_that_come_at_once_land_where_they_were_meant(
    night: SyntheticRun, moves: tuple[str, str], clip: str
) -> None:
    controls = RecordingControls()

    async def scenario() -> None:
        async with watching(night, (80, 24), controls) as pilot:
            first, second = moves
            type_ahead(pilot, "C", *clip, first, *"Cool down", second, *"500", "enter")
            await until(pilot, lambda: is_on(pilot, ConfirmScreen))

    drive(scenario())
    (ask,) = controls.previewed
    assert ask.reason == "Cool down"
    assert ask.answers == Answers(value=0.3, at_step=500)


def test_keys_that_come_at_once_go_back_as_well(night: SyntheticRun) -> None:
    async def scenario() -> None:
        async with watching(night, (80, 24), RecordingControls()) as pilot:
            await pilot.press("C")
            type_ahead(pilot, "tab", *"why", "shift+tab", *"0.3", "down", "up", "5")
            field = pilot.app.screen.query_one("#field-0", Input)
            await until(pilot, lambda: field.value == "0.35")
            assert pilot.app.screen.query_one("#reason", Input).value == "why"

    drive(scenario())


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
