"""How far the changes that people ask for have got, and who changed what last.

    requested -> rejected | sent -> scheduled -> applied -> expired
A change that is taken back at any of these stages, or that a later one takes the place of, is
"reverted"; one that the ranks could not carry out, or that the end of the run overtook, is
"failed".
"""

from __future__ import annotations

from msgspec.structs import replace

from . import events as ev
from .hyper import ONCE, Hyper
from .parameters import LASTING, values_of
from .state import AttemptState, Intervention, RunState, Touch

ENDINGS = ("stop", "pause")
"""What ends an attempt: heard by the ranks is not yet done."""
LINEAGE, DATA, LR, STATUS = "lineage", "data", "lr", "status"
OWN = "midwatch"
"""Who asks for the changes that the policy makes by itself."""
RECENT_S = 3600.0
"""Who asks for a change is told what was done to the same thing within this."""
_OF_CHECKPOINTS = ("pin", "unpin", "quarantine-checkpoint", "release-checkpoint")


def topics_of(state: RunState, request: ev.InterventionRequested) -> tuple[str, ...]:
    """Return what a request changes, as the names under which changes are remembered."""
    action, target = request.action, request.target
    if action == "revert":
        known = state.interventions.get(target)
        is_nested = known is None or known.request.action == "revert"
        return () if known is None or is_nested else topics_of(state, known.request)
    if action in ("lr", "lr-factor"):
        return (LR,)
    if action in ("quarantine", "release"):
        return (f"node {target}",)
    if action == "detector":
        return (f"detector {target.partition('=')[0]}",)
    if action in ("skip", "rollback"):
        return (DATA if action == "skip" else LINEAGE,)
    if action in (*ENDINGS, "resume"):
        return (STATUS,)
    if action in _OF_CHECKPOINTS:
        return (about_checkpoint(target),)
    return tuple(values_of(action, request.value, request.values))


def about_checkpoint(name: str) -> str:
    """Return the name under which changes to what is thought of a checkpoint are remembered."""
    return f"checkpoint {name}"


def recent_touches(
    state: RunState, request: ev.InterventionRequested, now_s: float
) -> dict[str, Touch]:
    """Return what changed the same things last, by topic, where that was a short while ago."""
    known = ((topic, state.touched.get(topic)) for topic in topics_of(state, request))
    return {
        topic: touch
        for topic, touch in known
        if touch is not None and now_s - touch.time_s <= RECENT_S
    }


def touched(
    state: RunState, topics: tuple[str, ...], by: str, what: str, time_s: float
) -> RunState:
    """Return the state in which the event at hand is what changed these topics last."""
    if not topics:
        return state
    touch = Touch(seq=state.seq + 1, time_s=time_s, by=by, what=what)
    return replace(state, touched={**state.touched, **dict.fromkeys(topics, touch)})


def touched_as_asked(
    state: RunState,
    topic: str,
    asked: ev.InterventionRequested | None,
    reason: str,
    time_s: float,
) -> RunState:
    """Return the state in which a decision changed a topic: for who asked, or of its own accord."""
    if asked is None:
        return touched(state, (topic,), OWN, reason, time_s)
    return touched(state, (topic,), asked.by, f"{asked.id} ({asked.reason})", time_s)


def staged(state: RunState, name: str, stage: str, detail: str) -> RunState:
    """Return the state with one intervention at a stage."""
    known = state.interventions.get(name)
    if known is None:
        return state
    return _with(state, replace(known, stage=stage, detail=detail))


def is_revocable(state: RunState, known: Intervention) -> bool:
    """Whether a change can be taken back: it waits, is on its way, scheduled or in force."""
    request = known.request
    if is_unheard(state, known):
        return True
    if known.stage == "sent":
        # What is done once and at once is under way; all else its undoing follows in order.
        is_later = request.action in ONCE and request.at_step is not None
        return is_later or request.action in LASTING
    return known.stage in ("scheduled", "applied") and _is_standing(state, request)


def is_unheard(state: RunState, known: Intervention) -> bool:
    """Whether no rank has taken a change that is asked for, or is going to without an order."""
    request = known.request
    if known.stage != "sent" or request.action == "rollback":
        return known.stage == "requested"
    is_gone = state.attempt is None or known.sent_attempt != state.num_attempts
    return is_gone and not known.acks and not _is_standing(state, request)


def _is_standing(state: RunState, request: ev.InterventionRequested) -> bool:
    return state.hyper.stands(request.id, state.step + 1)


def taken_back(state: RunState, name: str, detail: str) -> RunState:
    """Return the state in which a change is no more, by a decision alone."""
    return without_ending(staged(state, name, "reverted", detail), name)


def without_ending(state: RunState, name: str) -> RunState:
    """Return the state in which a request, settled by now, is not what the run stops for."""
    if state.stopping != name:
        return state
    others = [
        other.request.id
        for other in state.interventions.values()
        if other.stage in ("requested", "sent") and _is_ending_at_once(other.request)
    ]
    return replace(state, stopping=others[0] if others else "")


def _is_ending_at_once(request: ev.InterventionRequested) -> bool:
    return request.action in ENDINGS and request.at_step is None


def requested(state: RunState, e: ev.InterventionRequested, time_s: float) -> RunState:
    """Somebody asks for a change."""
    if e.id in state.interventions:
        return state
    is_first = _is_ending_at_once(e) and not state.stopping
    stopping = e.id if is_first else state.stopping
    return _with(replace(state, stopping=stopping), Intervention(request=e, requested_s=time_s))


def command_applied(state: RunState, e: ev.CommandApplied, time_s: float) -> RunState:
    """Ranks have carried an order out, or have come to where a change begins or ends."""
    running = state.running(e.attempt)
    if running is None:
        return state
    state = replace(state, attempt=_read_back(running, e))
    found = _find(state, e)
    if found is None or e.phase == "loaded":
        return state
    if e.phase == "scheduled":
        return _scheduled(state, found, e, time_s)
    if e.phase == "expired":
        return _expired(state, running, found, e, time_s)
    return _applied(state, running, found, e, time_s)


def rewound(state: RunState, step: int) -> RunState:
    """Return the state of a run that goes on from a step: what had expired after it holds again."""
    for known in state.interventions.values():
        if known.request.action == "rollback" and known.stage == "sent":
            state = _with(state, replace(known, stage="applied", at_step=step + 1))
        is_over = known.stage == "expired"
        if is_over and state.hyper.stands(known.request.id, step + 1):
            state = _with(state, replace(known, stage="applied", expired_acks=()))
    return state


def _with(state: RunState, known: Intervention) -> RunState:
    return replace(state, interventions={**state.interventions, known.request.id: known})


def _find(state: RunState, e: ev.CommandApplied) -> Intervention | None:
    if e.cause:
        return state.interventions.get(e.cause)
    return next((i for i in state.interventions.values() if e.seq and i.seq == e.seq), None)


def _read_back(running: AttemptState, e: ev.CommandApplied) -> AttemptState:
    if not e.readback:
        return running
    if e.phase != "loaded":
        return replace(running, readback=e.readback)
    if not running.readback:
        return replace(running, readback=e.readback)
    odd = [
        f"{name} is {value:g} on {e.node}, {running.readback[name]:g} on others"
        for name, value in e.readback.items()
        if running.readback.get(name, value) != value
    ]
    said = tuple([*odd, e.error] if e.error else odd)
    return replace(running, differs=(*running.differs, *said)) if said else running


def _scheduled(
    state: RunState, found: Intervention, e: ev.CommandApplied, time_s: float
) -> RunState:
    # All ranks took it at one boundary, so the first word of one is the word of all.
    if found.stage != "sent":
        return state
    stage = "failed" if e.error else "scheduled"
    known = replace(found, stage=stage, at_step=e.at_step, until_step=e.until_step, detail=e.error)
    state = _with(state, known)
    return state if e.hyper is None else _changed(state, known, e.hyper, e.at_step, time_s)


def _applied(
    state: RunState, running: AttemptState, found: Intervention, e: ev.CommandApplied, time_s: float
) -> RunState:
    if found.stage not in ("sent", "scheduled"):
        return state
    if found.request.action in ENDINGS and not e.error:
        # Heard, but done only once the attempt has ended: until then every attempt must be told.
        return state
    acks, first = tuple(sorted({*found.acks, *e.ranks})), not found.acks
    stage = found.stage
    if e.error:
        stage = "failed"
    elif len(acks) >= running.plan.mesh.world_size:
        stage = "applied"
    known = replace(
        found,
        acks=acks,
        stage=stage,
        at_step=e.at_step,
        until_step=e.until_step if first else found.until_step,
        readback=e.readback,
        previous=e.previous if first else found.previous,
        applied_s=time_s if first else found.applied_s,
        detail=e.error,
    )
    if e.error and state.stopping == found.request.id:
        state = replace(state, stopping="")
    state = _with(state, known)
    is_news = first and (not e.error or found.stage == "scheduled")
    if not is_news or e.hyper is None:
        return state
    return _changed(state, known, e.hyper, e.at_step, time_s)


def _expired(
    state: RunState, running: AttemptState, found: Intervention, e: ev.CommandApplied, time_s: float
) -> RunState:
    if found.stage not in ("sent", "scheduled", "applied"):
        return state
    acks = tuple(sorted({*found.expired_acks, *e.ranks}))
    is_over = len(acks) >= running.plan.mesh.world_size
    known = replace(
        found,
        expired_acks=acks,
        after=e.readback,
        stage="expired" if is_over else found.stage,
        detail=f"its last step was {e.at_step - 1}" if is_over else found.detail,
    )
    topics = () if found.expired_acks else topics_of(state, found.request)
    what = f"{found.request.id} expired at step {e.at_step}"
    return touched(_with(state, known), topics, found.request.by, what, time_s)


def _changed(
    state: RunState, known: Intervention, hyper: Hyper, at_step: int, time_s: float
) -> RunState:
    """Other changes are in force; what no longer stands among them has come to its end."""
    request, before = known.request, state.hyper
    state = replace(state, hyper=hyper)
    for other in state.interventions.values():
        name = other.request.id
        is_open = other.stage in ("sent", "scheduled", "applied") and name != request.id
        if is_open and before.stands(name, at_step) and not hyper.stands(name, at_step):
            how = "taken back by" if request.action == "revert" else "superseded by"
            said = f"{how} {request.id} of {request.by} at step {at_step}"
            state = staged(state, name, "reverted", said)
    what = f"{request.id} ({request.reason}) from step {at_step} on"
    return touched(state, topics_of(state, request), request.by, what, time_s)
