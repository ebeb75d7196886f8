"""Explain an XID or SXid: what it is, whose fault, what to do with the node, and who says so."""

from __future__ import annotations

import re

import msgspec

from .labels import NVLINK, UNKNOWN
from .nvlink5 import LinkDetail, advise, parse_detail
from .sxid_table import SXIDS
from .verdicts import Action, Blame
from .xid_table import WHY, XIDS

UNKNOWN_ACTION = Action.WATCH
NVLINK5_CODES = range(144, 151)

_SOURCES = {
    "N": "NVIDIA XID catalogue 2025-10-29",
    "G": "gpud 4a8de33",
    "K": "k8s-device-plugin 1b826ac",
    "D": "open-gpu-kernel-modules df1c9a3",
}
# The recovery a driver asks for, as XID 154 prints it and as NVML reports it (nvml.h,
# nvmlDeviceGpuRecoveryAction_t): none, GPU reset, node reboot, drain peers, drain and reset,
# recover the IMEX domain, bus reset, system reboot.
RECOVERY_ACTIONS = (
    Action.IGNORE,
    Action.EVICT,
    Action.EVICT,
    Action.DRAIN,
    Action.DRAIN,
    Action.DRAIN,
    Action.EVICT,
    Action.EVICT,
)
_RECOVERY_TO = re.compile(r"\bto\s+0x([0-9a-f]+)", re.IGNORECASE)
_CAUSED_BY = re.compile(r"caused by previous Xid (\d+)", re.IGNORECASE)


class XidFact(msgspec.Struct, frozen=True):
    """Everything known about one code.

    action: one of "ignore", "watch", "drain", "evict".
    label:  the failure label that the code stands for; "unknown" where none fits.
    why:    how the action was chosen where the sources disagree; "" where they do not.
    known:  False for a code in no catalogue, which gets UNKNOWN_ACTION.
    """

    code: int
    name: str
    action: Action
    source: str
    blame: Blame
    label: str = UNKNOWN
    why: str = ""
    known: bool = True


class XidAnswer(msgspec.Struct, frozen=True):
    """What `midwatch xid CODE -o json` prints."""

    code: int
    name: str
    action: Action
    source: str


def _spell_out(marks: str) -> str:
    """Turn the table's short marks ("N:reset-gpu G:reboot") into a sentence's worth of sources."""
    parts = (mark.partition(":") for mark in marks.split())
    return "; ".join(f"{_SOURCES[who]} ({advice})" for who, _, advice in parts)


_XIDS: dict[int, XidFact] = {
    code: XidFact(code, name, action, _spell_out(marks), blame, label or UNKNOWN, WHY.get(code, ""))
    for code, name, action, blame, label, marks in XIDS
}
_SXIDS: dict[int, XidFact] = {
    code: XidFact(code, name, action, f"gpud 4a8de33 ({advice})", Blame.NODE, NVLINK)
    for code, name, action, advice in SXIDS
}


def explain(code: int, detail: str = "") -> XidFact:
    """Return what is known about an XID.

    detail is the rest of the log line. With it, 45 takes on the code that caused it, 144 to 150
    follow their sub-code and 154 the recovery action it names.
    Returns: a fact for every integer; an unlisted code is unknown and watched.
    """
    fact = _XIDS.get(code)
    if fact is None:
        return XidFact(
            code, "unknown XID", UNKNOWN_ACTION, "no catalogue lists it", Blame.UNKNOWN, known=False
        )
    return _refine(fact, detail) if detail else fact


def explain_sxid(code: int, fatal: bool | None = None) -> XidFact:
    """Return what is known about an NVSwitch error; fatal: the word on its line, if any."""
    fact = _SXIDS.get(code)
    if fact is None:
        fact = XidFact(
            code,
            "unknown SXid",
            UNKNOWN_ACTION,
            "no catalogue lists it",
            Blame.NODE,
            NVLINK,
            known=False,
        )
    if fatal is None or fact.action is Action.IGNORE:
        return fact
    action = Action.EVICT if fatal else Action.WATCH
    return msgspec.structs.replace(fact, action=action, why="the log line says how bad it was")


def answer(fact: XidFact) -> XidAnswer:
    """Return the part of a fact that the command line prints."""
    return XidAnswer(fact.code, fact.name, fact.action, fact.source)


def recovery_action(number: int) -> Action:
    """Return what a recovery action that the driver asks for means for the node."""
    known = 0 <= number < len(RECOVERY_ACTIONS)
    return RECOVERY_ACTIONS[number] if known else UNKNOWN_ACTION


def caused_by(detail: str) -> int | None:
    """Return the code that a line names as the cause of its own, or None."""
    found = _CAUSED_BY.search(detail)
    return int(found[1]) if found else None


def _refine(fact: XidFact, detail: str) -> XidFact:
    """Sharpen a fact with the rest of its log line."""
    if fact.code == 154:
        return _refine_recovery(fact, detail)
    cause = caused_by(detail)
    if cause is not None and cause != fact.code:
        return _refine_aftermath(fact, explain(cause))
    if fact.code in NVLINK5_CODES:
        sub = parse_detail(detail)
        return fact if sub is None else _refine_link(fact, sub)
    return fact


def _refine_recovery(fact: XidFact, detail: str) -> XidFact:
    found = _RECOVERY_TO.search(detail)
    if found is None:
        return fact
    return msgspec.structs.replace(fact, action=recovery_action(int(found[1], 16)))


def _refine_aftermath(fact: XidFact, cause: XidFact) -> XidFact:
    return msgspec.structs.replace(
        fact,
        name=f"{fact.name}, here {cause.code}: {cause.name}",
        action=cause.action,
        blame=cause.blame,
        label=cause.label,
        source=cause.source,
        why=f"the line names {cause.code} as its cause",
    )


def _refine_link(fact: XidFact, sub: LinkDetail) -> XidFact:
    return msgspec.structs.replace(
        fact,
        name=f"{fact.name} ({sub.unit}{', fatal' if sub.fatal else ''})",
        action=advise(sub),
        why="NVIDIA's NVLink 5 rule for this sub-code",
    )
