"""What decisions and commands do, in a person's words."""

from __future__ import annotations

import msgspec

from . import decisions as de
from .hyper import Command
from .parameters import PARAMETERS, values_of
from .words import some_of, steps_text


def action_text(action: de.Action) -> str:
    """Return what a decision resolves to do, in a few words."""
    match action:
        case de.StartAttempt(plan, _, factor, quarantines):
            start = f"from step {plan.resume_step}" if plan.checkpoints else "afresh"
            if plan.memory_since is not None and plan.attempt > 1:
                start = f"from memory, or else {start}"
            lr = f", LR x{factor:.3g}" if factor != 1.0 else ""
            avoid = f", never again {some_of(quarantines)}" if quarantines else ""
            return f"start attempt {plan.attempt} on {some_of(plan.nodes)} {start}{lr}{avoid}"
        case de.RunPreflight(plan):
            gate = "before they train" if plan.is_gate else "while training goes on"
            return f"try out {some_of(plan.nodes)} ({plan.thoroughness}) {gate}"
        case de.EndPreflight(number):
            return f"end preflight {number}"
        case de.QuarantineNode(node):
            return f"quarantine {node}"
        case de.ReleaseNode(node):
            return f"release {node}"
        case de.PauseRun(code):
            return f"pause the run ({code})"
        case de.EndRun(stopped, step):
            return f"end the run, {'stopped' if stopped else 'completed'} at step {step}"
        case de.SendCommand(command, _):
            return f"send {_command_text(command)} as command {command.seq}"
        case (
            de.VerifyCheckpoint(name)
            | de.PinCheckpoint(name)
            | de.UnpinCheckpoint(name)
            | de.QuarantineCheckpoint(name)
            | de.ReleaseCheckpoint(name)
        ):
            return f"{_tag(action).split('-')[0]} {name}"
        case de.PruneCheckpoints(checkpoints):
            return f"delete {some_of(checkpoints)}"
        case de.CloseIncident(incident, outcome):
            return f"close {incident}: {outcome}"
        case de.SetDetector(detector, mode):
            return f"switch {detector} to {mode}"
        case de.AcknowledgeIncident(incident, by):
            return f"acknowledge {incident} for {by}"
        case (
            de.RejectIntervention(intervention)
            | de.CompleteIntervention(intervention)
            | de.ExpireIntervention(intervention)
        ):
            return f"{_tag(action).split('-')[0]} {intervention}"
    return _tag(action).replace("-", " ")


def _command_text(command: Command) -> str:
    words = [] if command.kind in PARAMETERS else [command.kind]
    numbers = values_of(command.kind, command.value, command.values)
    words += [f"{name} {value:g}" for name, value in numbers.items()]
    words += [f"{command.value:g}"] if command.kind == "save-interval" else []
    words += [command.target] if command.target else []
    words += [f"at step {command.at_step}"] if command.at_step else []
    words += [f"for {steps_text(command.for_steps)}"] if command.for_steps else []
    return " ".join(words)


def _tag(struct: msgspec.Struct) -> str:
    return str(struct.__struct_config__.tag)
