"""What people are told of a run, derived from its state: pure, so nothing is told twice or lost.

Each notice has a key that names it for ever (incident and kind, or the moment of a change of the
run). Whoever remembers which keys were told knows what is yet to be told, whatever happened since.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ..logbook.action_phrases import action_text
from ..logbook.clock import span_text
from ..logbook.decisions import ON_REQUEST, CloseIncident, Decision, Observe
from ..logbook.state import Incident, RunState

MAX_CHARS = 1200
UNSAVED_AFTER = 2
"""Saves that must fail in a row before people are woken: one may be a store's bad moment."""


class Notice(msgspec.Struct, frozen=True):
    """One message. topic: as in the spec's notify.topics."""

    key: str
    topic: str
    text: str


def notices_of(state: RunState) -> list[Notice]:
    """Return everything there is to tell of a run so far, in the order of its happening."""
    found = [
        *_of_run(state),
        *_of_saves(state),
        *(n for i in state.incidents.values() for n in _of_incident(state, i)),
    ]
    return [notice for _, notice in sorted(found, key=lambda pair: pair[0])]


def is_news(state: RunState, known: RunState) -> bool:
    """Whether a state may have more to tell than one that is known: cheap, at every look."""
    return state.incidents is not known.incidents or (
        state.paused,
        state.resumed_s,
        state.ended_s,
        state.save_trouble,
    ) != (known.paused, known.resumed_s, known.ended_s, known.save_trouble)


def slack_text(text: str) -> str:
    """Return text as Slack takes it: what a worker wrote can neither link nor call anybody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_Timed = Iterator[tuple[float, Notice]]


def _of_incident(state: RunState, incident: Incident) -> _Timed:
    draft = incident.draft
    head = f"[{state.run}] {draft.id}"
    opened = f"{head} {draft.fault}: {draft.title} (step {draft.step})"
    answers = [d for d in incident.decisions if not isinstance(d.action, CloseIncident)]
    if answers:
        opened = f"{opened}\nDecided: {_answer(answers[0])}."
    yield incident.opened_s, _notice(draft.id, "opened", opened)
    if answers and isinstance(answers[0].action, Observe):
        # Watched at first, then something was done after all: that is news of its own.
        done = next((d for d in answers if not isinstance(d.action, Observe)), None)
        if done is not None:
            text = f"{head} {draft.fault} is answered: {_answer(done)}."
            yield incident.opened_s, _notice(draft.id, "answered", text)
    if incident.recovered_s is not None:
        took = span_text(incident.recovered_s - draft.seen_s)
        text = f"{head} {draft.fault}: training again after {took}"
        yield incident.recovered_s, _notice(draft.id, "recovered", text)
    if incident.closed_s is not None:
        text = f"{head} {draft.fault} closed: {incident.outcome}"
        yield incident.closed_s, _notice(draft.id, "closed", text)


def _answer(decision: Decision) -> str:
    is_watched = isinstance(decision.action, Observe)
    return f"{'watched' if is_watched else action_text(decision.action)}: {decision.reason}"


def _of_run(state: RunState) -> _Timed:
    name = f"[{state.run}]"
    if state.resumed_s:
        key = f"run-{state.resumed_s:.3f}"
        yield state.resumed_s, _notice(key, "resumed", f"{name} goes on at step {state.step}")
    if state.paused:
        needs = "" if state.paused == ON_REQUEST else " and needs a person"
        text = f"{name} is PAUSED{needs} ({state.paused}): {state.pause_reason}"
        yield state.idle_s, _notice(f"run-{state.idle_s:.3f}", "paused", text)
    if state.ended_s is not None:
        text = f"{name} is {state.status} at step {state.step}"
        yield state.ended_s, _notice(f"run-{state.ended_s:.3f}", "ended", text)


def _of_saves(state: RunState) -> _Timed:
    trouble = state.save_trouble
    if trouble is None or trouble.num < UNSAVED_AFTER:
        return
    key = f"saves-{trouble.since_s:.3f}"
    saves = f"[{state.run}] {trouble.num} saves in a row"
    known = (c for c in state.checkpoints.values() if not c.abandoned)
    stands = [c.step for c in known if c.time_s <= trouble.since_s]
    newest = f"the newest checkpoint is of step {max(stands)}" if stands else "nothing is saved"
    text = f"{saves} have FAILED, the last of step {trouble.step}: {trouble.error}. "
    yield trouble.since_s, _notice(key, "unsaved", f"{text}Training goes on; {newest}.")
    if trouble.over_s is not None:
        yield trouble.over_s, _notice(key, "saved", f"{saves} had failed; it is saved again")


def _notice(of: str, topic: str, text: str) -> Notice:
    if len(text) > MAX_CHARS:
        text = text[: MAX_CHARS - 4] + " ..."
    return Notice(f"{of}/{topic}", topic, text)
