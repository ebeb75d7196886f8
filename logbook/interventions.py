"""What people may ask of a run: one table, from which forms, help and commands are made.

An entry says what to ask for, not what comes of it: the policy judges every request again.
"""

from __future__ import annotations

from .form_fields import AFTER_STEP as AFTER_STEP
from .form_fields import AT_STEP as AT_STEP
from .form_fields import FOR_STEPS as FOR_STEPS
from .form_fields import WHOLE as WHOLE
from .form_fields import Answers as Answers
from .form_fields import Field as Field
from .form_fields import FieldKind as FieldKind
from .form_fields import Form as Form
from .form_fields import answers_of as answers_of
from .form_fields import choices_of as choices_of
from .form_fields import fault_of as fault_of
from .form_fields import fault_of_all as fault_of_all
from .form_fields import number as number
from .form_fields import range_text as range_text
from .parameters import Bound as Bound

_NODE = Field("node", FieldKind.NODE, "name of the node")
_CHECKPOINT = Field("checkpoint", FieldKind.CHECKPOINT, "id of the checkpoint")

FORMS: tuple[Form, ...] = (
    Form(
        "lr",
        "L",
        "Set the learning rate",
        "Scales the remaining schedule so that the rate of that step is this value.",
        (number("lr"), AT_STEP, FOR_STEPS),
    ),
    Form(
        "lr-factor",
        "F",
        "Scale the learning rate",
        "Multiplies the remaining schedule, on top of the factors in force.",
        (number("lr-factor"), AT_STEP, FOR_STEPS),
    ),
    Form(
        "grad-clip",
        "C",
        "Clip gradients",
        "The largest global gradient norm that reaches the optimizer.",
        (number("grad-clip"), AT_STEP, FOR_STEPS),
    ),
    Form(
        "scaler",
        "Z",
        "Reset the loss scaler",
        "fp16 only. What is left empty stays as it is.",
        (number("loss-scale"), number("loss-scale-floor"), AT_STEP, FOR_STEPS),
    ),
    Form(
        "optimizer",
        "O",
        "Change the optimizer",
        "Adam's own values. What is left empty stays as it is.",
        (
            number("beta1"),
            number("beta2"),
            number("eps"),
            number("weight-decay"),
            AT_STEP,
            FOR_STEPS,
        ),
    ),
    Form(
        "skip",
        "J",
        "Leave out data",
        "Data steps that are still to come are not trained on.",
        (
            Field(
                "data steps", FieldKind.RANGE, "FIRST:LAST, LAST not included; samples FIRST:LAST"
            ),
        ),
    ),
    Form(
        "revert",
        "T",
        "Take a change back",
        "A change that waits, is scheduled or in force is so no longer.",
        (Field("change", FieldKind.CHANGE, "id of the change"),),
    ),
    Form("checkpoint", "W", "Save now", "Saves the state without waiting.", (AFTER_STEP,)),
    Form(
        "rollback",
        "B",
        "Roll back",
        "Goes on from an earlier state; the steps since are given up, changes stay in force.",
        (_CHECKPOINT,),
    ),
    Form(
        "pause",
        "H",
        "Pause the run",
        "Finishes the step, saves, and ends the workers until it is resumed.",
        (AFTER_STEP,),
    ),
    Form("stop", "S", "Stop the run", "Finishes the step, saves, and ends the run.", (AFTER_STEP,)),
    Form(
        "resume",
        "R",
        "Resume the run",
        "Sets a paused or stopped run going again; spent budgets start anew.",
        is_guarded=False,
    ),
    Form(
        "ack",
        "A",
        "Acknowledge an incident",
        "Its note says who has taken note of it, and what they said.",
        (Field("incident", FieldKind.INCIDENT, "id of the incident"),),
        is_guarded=False,
    ),
    Form(
        "quarantine",
        "Q",
        "Quarantine a node",
        "Places nothing on the node from the next attempt on, until it is released.",
        (_NODE,),
    ),
    Form(
        "release",
        "U",
        "Release a node",
        "A quarantined node may be used again.",
        (_NODE,),
        is_guarded=False,
    ),
    Form(
        "detector",
        "D",
        "Switch a detector",
        "act: its findings count; shadow: they are recorded only; off.",
        (Field("detector=mode", FieldKind.SWITCH, "as in creep=shadow"),),
    ),
    Form(
        "pin",
        "P",
        "Pin a checkpoint",
        "Keeps it, whatever retention says.",
        (_CHECKPOINT,),
        is_guarded=False,
    ),
    Form(
        "unpin",
        "N",
        "Unpin a checkpoint",
        "Leaves it to retention again.",
        (_CHECKPOINT,),
        is_guarded=False,
    ),
    Form(
        "verify",
        "V",
        "Verify a checkpoint",
        "Has the run read every byte back.",
        (_CHECKPOINT,),
        is_guarded=False,
    ),
    Form(
        "quarantine-checkpoint",
        "K",
        "Quarantine a checkpoint",
        "The run resumes from it no more, until it is released.",
        (_CHECKPOINT,),
        is_guarded=False,
    ),
    Form(
        "release-checkpoint",
        "G",
        "Release a checkpoint",
        "A quarantined checkpoint may be resumed from again.",
        (_CHECKPOINT,),
        is_guarded=False,
    ),
    Form(
        "prune",
        "X",
        "Prune checkpoints",
        "Deletes now what retention no longer keeps.",
        is_guarded=False,
    ),
)
