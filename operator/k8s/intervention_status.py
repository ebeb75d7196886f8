"""The status of an Intervention: made purely, from what the run tells of the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...logbook.words import steps_text
from .actions import SetInterventionStatus
from .conditions import FALSE, TRUE, UNKNOWN, Conditions
from .observed import Object, Observed, time_text

TYPES = ("Accepted", "Approved", "Applied", "Reverted", "Failed")
_TO_BE_JUDGED = ("Requested", "the run has yet to judge it")
_IN_THE_RUN = ("requested", "sent", "scheduled", "applied")
"""Stages that only the run tells of."""


class StatusOf:
    """The status of one Intervention in the making."""

    def __init__(self, intervention: Object, now_s: float) -> None:
        meta = intervention["metadata"]
        self._name, self._now_s = meta["name"], now_s
        self._before = intervention.get("status") or {}
        generation = int(meta.get("generation", 1))
        known = self._before.get("conditions") or ()
        self.conditions = Conditions(TYPES, known, generation, now_s)
        self._generation = generation
        self.more: Object = {}

    def settle(self, stage: str, message: str) -> SetInterventionStatus:
        """Return it as final."""
        self.more["settledAt"] = time_text(self._now_s)
        return self.write(stage, message)

    def write(self, stage: str, message: str) -> SetInterventionStatus:
        """Return the whole status."""
        status: Object = {
            "conditions": self.conditions.render(),
            "observedGeneration": self._generation,
            "stage": stage,
            "message": message[:1024],
            **self.more,
        }
        return SetInterventionStatus(self._name, status)

    def settle_as_told(self) -> SetInterventionStatus:
        """Return what was told last as final."""
        return SetInterventionStatus(
            self._name, {**self._before, "settledAt": time_text(self._now_s)}
        )

    def is_news(self, written: SetInterventionStatus) -> bool:
        """Whether it says anything that is not written yet."""
        return written.status != self._before


def refused(intervention: Object, code: str, message: str, now_s: float) -> SetInterventionStatus:
    """Return the status of a request that the run's API would not take."""
    status = StatusOf(intervention, now_s)
    status.conditions.set("Accepted", FALSE, _camel(code), message)
    return status.settle("rejected", message)


def laid(intervention: Object, now_s: float) -> SetInterventionStatus:
    """Return the status of a request that was just laid before the run."""
    status = StatusOf(intervention, now_s)
    status.conditions.set("Accepted", UNKNOWN, *_TO_BE_JUDGED)
    return status.write("requested", "")


def is_laid(intervention: Object) -> bool:
    """Whether the run was asked, and has not said yet that this is over: only the run judges it."""
    status = intervention.get("status") or {}
    return status.get("stage") in _IN_THE_RUN and not status.get("settledAt")


def previewed(intervention: Object, answer: str, now_s: float) -> SetInterventionStatus:
    """Return the status of a dry run: what would have been decided."""
    status = StatusOf(intervention, now_s)
    status.conditions.set("Accepted", TRUE, "DryRun", "nothing was asked for")
    status.conditions.set("Applied", FALSE, "DryRun", answer)
    return status.settle("previewed", answer)


def mirrored(
    observed: Observed, each: Object, status: StatusOf, known: Mapping[str, Any]
) -> SetInterventionStatus:
    """Return the status of a request as the run tells it."""
    stage, detail = str(known.get("stage", "")), str(known.get("detail", ""))
    conditions = status.conditions
    acks, world = len(known.get("acks") or ()), _world_size(observed)
    status.more.update(_values(known))
    if acks:
        status.more["acks"] = f"{acks}/{world}"
    if stage == "requested":
        conditions.set("Accepted", UNKNOWN, *_TO_BE_JUDGED)
        return status.write(stage, detail)
    if stage == "rejected":
        conflict = detail.startswith("conflict")
        conditions.set("Accepted", FALSE, "Conflict" if conflict else "Rejected", detail)
        return status.settle(stage, detail)
    conditions.set("Accepted", TRUE, "Accepted", "")
    if stage == "failed":
        conditions.set("Failed", TRUE, "Failed", detail)
        conditions.set("Applied", FALSE, "Failed", detail)
        return status.settle(stage, detail)
    if stage in ("reverted", "expired"):
        conditions.set("Reverted", TRUE, _camel(stage), detail)
        return status.settle(stage, detail)
    if stage != "applied":
        conditions.set(
            "Applied", FALSE, _camel(stage) or "Sent", detail or "on its way to the ranks"
        )
        return status.write(stage, detail)
    at_step = known.get("at_step")
    where = f"at step {at_step}" if at_step is not None else "in force"
    conditions.set("Applied", TRUE, "Applied", f"{where} {detail}".strip())
    conditions.set("Failed", FALSE, "Applied", "")
    if each["spec"].get("forSteps"):
        # It ends by itself: that is yet to come.
        conditions.set("Reverted", FALSE, "InForce", f"for {steps_text(each['spec']['forSteps'])}")
        return status.write(stage, where)
    return status.settle(stage, where)


def _values(known: Mapping[str, Any]) -> Object:
    found: Object = {}
    if known.get("at_step") is not None:
        found["appliedAtStep"] = int(known["at_step"])
    if known.get("seq") is not None:
        found["ledgerSeq"] = int(known["seq"])
    for name, key in (("previous", "previous"), ("current", "readback")):
        values = known.get(key) or {}
        if values:
            found[name] = {str(k): f"{float(v):g}" for k, v in sorted(values.items())}
    return found


def _world_size(observed: Observed) -> int:
    attempt = observed.sight.state.get("attempt") if observed.sight is not None else None
    mesh = ((attempt or {}).get("plan") or {}).get("mesh") or {}
    return int(mesh.get("dp_shard", 0)) * int(mesh.get("tp", 1))


def _camel(code: str) -> str:
    return "".join(word.capitalize() for word in code.replace("_", "-").split("-"))
