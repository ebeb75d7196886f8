"""What happened, in a person's words: one phrase for each kind of event that has one."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from typing import Any

import msgspec

from . import events as ev
from .action_phrases import action_text
from .clock import clock_text, span_text
from .energy import energy_text
from .parameters import values_of
from .state import Intervention, Touch
from .words import bytes_text, some_of, steps_text


def phrase_of(event: msgspec.Struct) -> str | None:
    """Return the phrase for event, None when its kind has none."""
    phrase = _PHRASES.get(type(event))
    return phrase(event) if phrase is not None else None


def _submitted(e: ev.RunSubmitted) -> str:
    return f"run {e.run} submitted by {e.by}, policy version {e.policy_version}"


def _controller(e: ev.ControllerStarted) -> str:
    return f"controller {e.pid} on {e.host}, epoch {e.epoch}, folded {e.folded_events} events"


def _fault(e: ev.FaultInjected) -> str:
    return f"planned fault {e.fault} on {e.target} at step {e.step}"


def _joined(e: ev.NodeJoined) -> str:
    return f"{e.node} is up on {e.host} with {e.slots} slots (agent {e.incarnation})"


def _identified(e: ev.NodeIdentified) -> str:
    known = [f"machine {e.machine}"] if e.machine else []
    known += [", ".join(uuid for uuid, _ in e.gpus)] if e.gpus else []
    return f"{e.node} has named its hardware: {'; '.join(known)}" + (e.lemon and f" ({e.lemon})")


def _lost(e: ev.NodeLost) -> str:
    return f"{e.node} is gone: {e.reason}"


def _energy(e: ev.EnergyUsed) -> str:
    used = energy_text(e.joules)
    return f"{e.num_gpus} GPUs of {e.node} used {used} within {_span(e.span_s)}"


def _begun(e: ev.PreflightBegun) -> str:
    return f"preflight {e.preflight} is under way on {e.node}"


def _answered(e: ev.PreflightAnswered) -> str:
    said = [f"{len(e.done)} ranks of {e.node} answered preflight {e.preflight}"] if e.done else []
    said += [f"rank {s.rank} on {e.node}: {s.message}" for s in e.silent[:4]]
    return "; ".join(said)


def _judged(e: ev.PreflightJudged) -> str:
    if e.error:
        return f"preflight {e.preflight} proves nothing: {e.error}"
    if not e.failed:
        return f"preflight {e.preflight}: all {e.checks_total} checks passed"
    failed = some_of([f"{r.name} on {r.node}" for r in e.failed])
    bad = f"; to blame: {some_of(e.bad_nodes)}" if e.bad_nodes else ""
    return f"preflight {e.preflight}: failed {failed} of {e.checks_total} checks{bad}"


def _started(e: ev.WorkersStarted) -> str:
    return f"{len(e.pids)} workers born on {e.node}"


def _resumed(e: ev.AttemptResumed) -> str:
    tier = f" in {e.tier}" if e.tier == "memory" else f" on {e.tier}" if e.tier else ""
    loaded = f"from {e.checkpoint}{tier}, loaded in {_span(e.load_s)}"
    source = loaded if e.checkpoint else "afresh"
    passed = "; ".join(f"passed over {checkpoint}: {why}" for checkpoint, why in e.passed_over)
    repaired = "; ".join(f"{name} read from another copy: {why}" for name, why in e.repaired)
    differs = f"differs: {', '.join(e.differs)}" if e.differs else ""
    more = [text for text in (passed, repaired, differs) if text]
    return "; ".join([f"training at step {e.step} {source}", *more])


def _exited(e: ev.WorkerExited) -> str:
    how = f"killed by {_signal_name(e.signal)}" if e.signal else f"exited with {e.exit_code}"
    words = f": [{e.code}] {e.message}" if e.code else f": {e.message}" if e.message else ""
    where = f" ({e.phase})" if e.phase else ""
    return f"rank {e.rank} on {e.node} {how} after step {e.step}{where}{words}"


def _exited_together(e: ev.WorkersExited) -> str:
    ranks = some_of([str(each.rank) for each in e.exits], 8)
    codes = some_of(list(dict.fromkeys(each.code or f"exit {each.exit_code}" for each in e.exits)))
    return f"ranks {ranks} on {e.node} ended too: {codes}"


def _start_failed(e: ev.StartFailed) -> str:
    return f"workers did not start on {e.node}: [{e.code}] {e.message}"


def _hang(e: ev.HangSuspected) -> str:
    rows = some_of([f"rank {r.rank} at step {r.step} in {r.phase}" for r in e.rows])
    stacks = f"; stacks in {e.stacks}" if e.stacks else ""
    return f"no progress on {e.node} within {_span(e.deadline_s)}: {rows}{stacks}"


def _finished(e: ev.RankFinished) -> str:
    return f"rank {e.rank} {'stopped' if e.stopped else 'finished'} at step {e.step}"


def _stale(e: ev.StaleIgnored) -> str:
    return f"{e.what} of attempt {e.attempt} from {e.node} ignored"


def _step(e: ev.StepDone) -> str:
    s = e.sample
    scale = "" if s.loss_scale is None else f" scale {s.loss_scale:g}"
    skipped = " SKIPPED (non-finite gradients)" if s.skipped else ""
    return (
        f"step {s.step} loss {s.loss:.4f} grad {s.grad_norm:.3g} lr {s.lr:.3g}{scale} "
        f"activation {s.activation_norm:.4g} {s.tokens_per_s:,.0f} tokens/s{skipped}"
    )


def _recalled(e: ev.StepsRecalled) -> str:
    if not e.samples:
        return "no step told from memory"
    first, last = e.samples[0], e.samples[-1]
    return f"steps {first.step} to {last.step}, unreported so far, by memory: loss {last.loss:.4f}"


def _times(e: ev.RankTimes) -> str:
    if not e.rows:
        return f"step {e.step} on {e.node}"
    slowest = max(e.rows, key=lambda row: row[1])
    return (
        f"step {e.step} on {e.node}: {len(e.rows)} ranks, slowest rank {slowest[0]} "
        f"took {_span(slowest[1])}, {_span(slowest[5])} of it waiting for others"
    )


def _validating(e: ev.ValidationUnderWay) -> str:
    return f"step {e.step} on held-out text: {e.done} of {e.total} rounds done"


def _validated(e: ev.ValidationDone) -> str:
    return (
        f"step {e.step} on held-out text: perplexity {e.perplexity:.4g} (loss {e.loss:.4f}) over "
        f"{e.sequences} sequences, in {_span(e.spent_s)}"
    )


def _committed(e: ev.CheckpointCommitted) -> str:
    return (
        f"{e.checkpoint} of step {e.step} committed, {bytes_text(e.bytes)}, saved in "
        f"{_span(e.save_s)}, loop blocked {_span(e.blocked_s)}"
    )


def _uploaded(e: ev.CheckpointUploaded) -> str:
    return (
        f"{e.checkpoint} is in the store, {bytes_text(e.bytes)}, {_span(e.upload_s)} after its "
        f"save; completed by {e.node}"
    )


def _upload_failed(e: ev.UploadFailed) -> str:
    return f"uploads of {e.node} do not get on: [{e.code}] {e.message}"


def _save_failed(e: ev.CheckpointFailed) -> str:
    return f"{e.checkpoint} of step {e.step} was not saved: {e.error}"


def _verified(e: ev.CheckpointVerified) -> str:
    return f"{e.checkpoint} " + (f"is NOT sound: {e.error}" if e.error else "is sound")


def _pruned(e: ev.CheckpointsPruned) -> str:
    return f"deleted {some_of(e.checkpoints)}"


def _finding(e: ev.FindingSeen) -> str:
    f = e.finding
    shadow = " (shadow: recorded only)" if f.shadow else ""
    onset = f", began at {f.onset_step}" if f.onset_step != f.step else ""
    return f"{f.severity} {f.kind} by {f.detector} at step {f.step}{onset}: {f.message}{shadow}"


def _decision(e: ev.DecisionMade) -> str:
    d = e.decision
    opened = f" (opens {d.opens.id}: {d.opens.title})" if d.opens else ""
    incident = f" [{d.incident}]" if d.incident and not d.opens else ""
    return f"{d.id} {action_text(d.action)}: {d.reason}{incident}{opened}"


def _done(e: ev.ActionDone) -> str:
    return f"{e.decision} " + (f"failed: {e.error}" if e.error else "done")


def _requested(e: ev.InterventionRequested) -> str:
    return f"{e.id} {e.by} asks for {request_text(e)}: {e.reason}"


def request_text(e: ev.InterventionRequested) -> str:
    """Return what a request asks for, in a few words."""
    numbers = values_of(e.action, e.value, e.values)
    if e.action in numbers:
        words = [f"{e.action} {e.value:g}"]
    else:
        words = [e.action, *(f"{name} {value:g}" for name, value in numbers.items())]
    words += [e.target] if e.target else []
    if e.action == "rollback" and not e.target:
        words.append(f"to step {e.value:g}")
    words += [f"at step {e.at_step}"] if e.at_step is not None else []
    words += [f"for {steps_text(e.for_steps)}"] if e.for_steps is not None else []
    return " ".join(words)


def touch_text(topic: str, touch: Touch) -> str:
    """Return who changed something last, when, and with what."""
    when = clock_text(touch.time_s)[:19]
    return f"{topic} was changed by {touch.by} at {when} with {touch.what}, event {touch.seq}"


def changes_text(known: Intervention) -> str:
    """Return what ranks read back before and under a change, where it differs; "-" for nothing."""
    changed = [
        f"{name} {known.previous[name]:.6g} -> {after:.6g}"
        for name, after in known.readback.items()
        if name in known.previous and known.previous[name] != after
    ]
    return ", ".join(changed) or "-"


_TURNS = {
    "applied": "in force",
    "scheduled": "scheduled",
    "expired": "over",
    "loaded": "read back after the load",
}


def _applied(e: ev.CommandApplied) -> str:
    what = f"command {e.seq}" if e.seq else e.cause or "the state"
    if e.error:
        return f"{what} failed on {e.node}: {e.error}"
    changes = ", ".join(
        f"{name} {_before(e.previous, name)}{value:.6g}" for name, value in e.readback.items()
    )
    until = f" up to {e.until_step - 1}" if e.until_step is not None else ""
    return f"{what} {_TURNS.get(e.phase, e.phase)} on {e.node} from step {e.at_step}{until}" + (
        f": {changes}" if changes else ""
    )


def _before(previous: dict[str, float], name: str) -> str:
    return f"{previous[name]:.6g} -> " if name in previous else ""


def _note(e: ev.NoteAdded) -> str:
    about = f" on {e.incident}" if e.incident else ""
    return f"{e.by}{about}: {e.text}"


def _span(span_s: float) -> str:
    return span_text(span_s) if math.isfinite(span_s) else f"{span_s:g} s"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _api_served(e: ev.ApiServed) -> str:
    still = "still " if e.is_taken_over else ""
    return f"the run is {still}served at {e.url} by process {e.pid}"


def _api_failed(e: ev.ApiFailed) -> str:
    return f"the run is not served over HTTP: {e.message} [{e.code}]"


_PHRASES: dict[type, Callable[[Any], str]] = {
    ev.RunSubmitted: _submitted,
    ev.ControllerStarted: _controller,
    ev.FaultInjected: _fault,
    ev.NodeJoined: _joined,
    ev.NodeLost: _lost,
    ev.EnergyUsed: _energy,
    ev.NodeIdentified: _identified,
    ev.PreflightBegun: _begun,
    ev.PreflightAnswered: _answered,
    ev.PreflightJudged: _judged,
    ev.WorkersStarted: _started,
    ev.AttemptResumed: _resumed,
    ev.WorkerExited: _exited,
    ev.WorkersExited: _exited_together,
    ev.StartFailed: _start_failed,
    ev.HangSuspected: _hang,
    ev.RankFinished: _finished,
    ev.StaleIgnored: _stale,
    ev.StepDone: _step,
    ev.StepsRecalled: _recalled,
    ev.RankTimes: _times,
    ev.ValidationUnderWay: _validating,
    ev.ValidationDone: _validated,
    ev.CheckpointCommitted: _committed,
    ev.CheckpointUploaded: _uploaded,
    ev.UploadFailed: _upload_failed,
    ev.CheckpointFailed: _save_failed,
    ev.CheckpointVerified: _verified,
    ev.CheckpointsPruned: _pruned,
    ev.FindingSeen: _finding,
    ev.DecisionMade: _decision,
    ev.ActionDone: _done,
    ev.InterventionRequested: _requested,
    ev.CommandApplied: _applied,
    ev.NoteAdded: _note,
    ev.ApiServed: _api_served,
    ev.ApiFailed: _api_failed,
}
