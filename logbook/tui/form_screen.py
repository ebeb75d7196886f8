"""The form of one intervention: what is asked for, why, and what would come of it."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.suggester import SuggestFromList
from textual.widgets import Input, Static

from ..errors import MidwatchError
from ..interventions import (
    WHOLE,
    Field,
    FieldKind,
    Form,
    answers_of,
    choices_of,
    fault_of,
    fault_of_all,
    range_text,
)
from ..state import RunState
from .confirm_screen import ConfirmScreen
from .controls import Ask, Controls

SHOWN_CHOICES = 6


class FormScreen(ModalScreen[str | None]):
    """Fields, a reason, a dry run, a confirmation. Dismissed with the id of the request made.

    state is the run as its author saw it: the request names the newest event of that moment, and
    a guarded one the attempt.
    """

    # With priority they act before the next key is handed to a field: a slow connection brings
    # several at once, and what is typed behind one of these belongs to where it leads.
    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "leave", "Leave"),
        Binding("down,tab", "app.focus_next", show=False, priority=True),
        Binding("up,shift+tab", "app.focus_previous", show=False, priority=True),
    ]
    DEFAULT_CSS = """
    FormScreen { align: center middle; }
    FormScreen > VerticalScroll {
        width: 90%; max-width: 80; height: auto; max-height: 95%;
        border: round $accent; padding: 0 1; background: $panel; scrollbar-size-vertical: 1;
    }
    FormScreen Static { height: auto; }
    FormScreen Input, FormScreen Input:focus { height: 1; border: none; padding: 0 1; }
    FormScreen Input { background: $surface; }
    FormScreen Input:focus { background: $primary-muted; }
    FormScreen #fault { color: $error; text-style: bold; }
    """

    def __init__(self, form: Form, state: RunState, controls: Controls, chosen: str = "") -> None:
        super().__init__()
        self.form = form
        self._state = state
        self._controls = controls
        self._chosen = chosen
        switches = controls.switches(state)
        self._choices = [choices_of(field, state, switches) for field in form.fields]

    def compose(self) -> ComposeResult:
        with VerticalScroll() as body:
            body.border_title = self.form.title
            body.can_focus = False
            yield Static(Text(self.form.help))
            numbered = list(enumerate(self.form.fields))
            for number, field in numbered:
                if field.kind not in WHOLE:
                    yield from self._row(number, field)
            yield Static(Text.assemble(("reason", "bold"), "  why; it goes into the record"))
            yield _input("reason")
            # Seldom wanted, so below what always is.
            for number, field in numbered:
                if field.kind in WHOLE:
                    yield from self._row(number, field)
            yield Static(id="fault")
            yield Static(Text("enter: dry run   esc: leave", style="dim"))

    def on_mount(self) -> None:
        empty = next((field for field in self.query(Input) if not field.value), None)
        if empty is not None:
            empty.focus()

    async def on_input_submitted(self, message: Input.Submitted) -> None:
        message.stop()
        await self._take_in()
        if (ask := self._ask()) is not None:
            self.run_worker(self._try_out(ask), exclusive=True)

    def action_leave(self) -> None:
        self.dismiss(None)

    async def _take_in(self) -> None:
        """Return once every field has taken in the keys that were handed to it."""
        for field in self.query(Input):
            is_idle = asyncio.Event()
            field.call_later(is_idle.set)
            await is_idle.wait()

    def _row(self, number: int, field: Field) -> ComposeResult:
        yield Static(self._label(number, field))
        choices = self._choices[number]
        value = self._chosen if self._chosen in choices else ""
        yield _input(f"field-{number}", value, choices)

    def _label(self, number: int, field: Field) -> Text:
        hint = field.help
        if field.kind is FieldKind.NUMBER:
            limits = range_text(field, self._state.spec)
            hint += f"; {limits}" if limits else ""
        elif choices := self._choices[number]:
            more = len(choices) - SHOWN_CHOICES
            hint += f": {', '.join(choices[:SHOWN_CHOICES])}" + (f" and {more} more" * (more > 0))
        return Text.assemble((field.label, "bold"), f"  {hint}")

    def _ask(self) -> Ask | None:
        """Return the request, or None after saying what is wrong and going to that field."""
        form, spec = self.form, self._state.spec
        texts = []
        for number, field in enumerate(form.fields):
            text = self.query_one(f"#field-{number}", Input).value
            fault = fault_of(field, text, spec, self._choices[number])
            if fault:
                self._say(fault, f"#field-{number}")
                return None
            texts.append(text)
        fault = fault_of_all(form, tuple(texts))
        if fault:
            self._say(fault, "#field-0")
            return None
        reason = self.query_one("#reason", Input).value.strip()
        if not reason:
            self._say("every change needs a reason", "#reason")
            return None
        self._say("", None)
        expected = self._state.num_attempts if form.is_guarded else None
        return Ask(form, answers_of(form, tuple(texts)), reason, expected, self._state.seq)

    def _say(self, fault: str, field: str | None) -> None:
        self.query_one("#fault", Static).update(Text(fault))
        if field is not None:
            self.query_one(field, Input).focus()

    async def _try_out(self, ask: Ask) -> None:
        try:
            preview = await asyncio.to_thread(self._controls.preview, self._state, ask)
            confirm = ConfirmScreen(self.form.title, preview)
            if not await self.app.push_screen_wait(confirm):
                return
            name = await asyncio.to_thread(self._controls.submit, ask)
        except MidwatchError as error:
            self._say(str(error), None)
            return
        self.dismiss(name)


def _input(name: str, value: str = "", choices: tuple[str, ...] = ()) -> Input:
    suggester = SuggestFromList(choices) if choices else None
    field = Input(value=value, id=name, suggester=suggester, select_on_focus=False)
    # A cursor that blinks repaints a line over a slow connection for ever.
    field.cursor_blink = False
    return field
