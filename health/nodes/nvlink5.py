"""Advice for the NVLink 5 XIDs (144 to 150), which depends on the sub-code in the log line.

A line reads `RLW_REMAP Nonfatal XC0 i0 Link 04 (0x04098082 0x00000001 ...)`: the unit, how bad the
driver thinks it is, the link, then raw words. The first word carries the reason of a link event in
bits 25 to 20; the second is the unit's error status. On most units the status is a set of bits and
several may be up at once; on the NETIR units it is a number.

Source: NVIDIA's XID catalogue of 2025-10-29, its table of NVLink 5 rules (94 rows), regrouped by
what they ask for: a GPU reset E, a reset because packets were lost D, a look at it W or at XID 154,
which follows W, nothing I.
"""

from __future__ import annotations

import re

import msgspec

from .verdicts import Action, strongest

I, W, D, E = Action.IGNORE, Action.WATCH, Action.DRAIN, Action.EVICT  # noqa: E741

_TLW = ((I, 0x1), (W, 0x80000002), (E, 0x4))

# Unit -> (action, every status bit that asks for it).
_BY_BITS: dict[str, tuple[tuple[Action, int], ...]] = {
    "SAW_MVB": ((I, 0x24), (W, 0x9), (E, 0x12)),
    "RLW_CTRL": ((W, 0x80000000),),
    "RLW_REMAP": ((I, 0x300), (W, 0x8000003F), (E, 0xC0)),
    "RLW_RSPCOL": ((I, 0x1), (W, 0x80000000), (E, 0x2)),
    "RLW_RXPIPE": ((W, 0x80000008), (D, 0x7)),
    "RLW_SRC_TRACK": ((I, 0x2), (W, 0x8000000C), (E, 0x31)),
    "RLW_TAGSTATE": ((I, 0x10001), (W, 0x80000000), (E, 0x120002)),
    "TLW_CTRL": _TLW,
    "TLW_RX": _TLW,
    "TLW_TX": _TLW,
    "TREX": ((W, 0x80000001),),
    "NVLPW": ((W, 0x80000000),),
}
# Unit -> status number -> action.
_BY_NUMBER: dict[str, dict[int, Action]] = {
    "NETIR": {0: E},
    "NETIR_BER_EVENT": {0: W, 1: W, 2: W, 3: W},
    "NETIR_MFDE_EVENT": {1: E, 3: I, 4: E, 5: E, 7: E},
    "MSE_WATCHDOG": {0: E},
}
# Reason of a link event -> action, where it is not a reset.
_LINK_REASON = {38: W, 40: D}
_ALIASES = {
    "NETIR_INT": "NETIR",
    "NVLPW_CTRL": "NVLPW",
    "NETIR_LINK_DOWN": "NETIR_LINK_EVT",
    "TLW_RX_PIPE0": "TLW_RX",
    "TLW_RX_PIPE1": "TLW_RX",
    "TLW_TX_PIPE0": "TLW_TX",
    "TLW_TX_PIPE1": "TLW_TX",
}

_DETAIL = re.compile(
    r"\b(?P<unit>[A-Z]{3,}[A-Z0-9_]*)(?:/[A-Z0-9_]+)?\s+(?P<fatal>Fatal|Non-?fatal)\b"
    r"(?:.*?Link\s+(?P<link>-?\d+))?(?:\s*\((?P<words>0x[0-9a-f]+[^)]*))?",
    re.IGNORECASE,
)


class LinkDetail(msgspec.Struct, frozen=True):
    """The sub-code of one NVLink 5 line. link -1: no single link; words: as printed, may be ()."""

    unit: str
    fatal: bool
    link: int
    words: tuple[int, ...]


def parse_detail(text: str) -> LinkDetail | None:
    """Return the sub-code found in the tail of an XID line, or None."""
    found = _DETAIL.search(text)
    if found is None:
        return None
    unit = found["unit"].upper()
    words = tuple(int(word, 16) for word in re.findall(r"0x[0-9a-fA-F]+", found["words"] or ""))
    return LinkDetail(
        unit=_ALIASES.get(unit, unit),
        fatal=found["fatal"].lower() == "fatal",
        link=int(found["link"] or -1),
        words=words,
    )


def advise(detail: LinkDetail) -> Action:
    """Return the action for a sub-code; the driver's own word decides where no rule is known."""
    if detail.unit == "NETIR_LINK_EVT" and detail.words:
        return _LINK_REASON.get((detail.words[0] >> 20) & 0x3F, E)
    status = detail.words[1] if len(detail.words) > 1 else None
    if status is not None and detail.unit in _BY_NUMBER:
        by_number = _BY_NUMBER[detail.unit].get(status)
        if by_number is not None:
            return by_number
    if status is not None and detail.unit in _BY_BITS:
        asked = [action for action, bits in _BY_BITS[detail.unit] if status & bits]
        if asked:
            return strongest(asked)
    return E if detail.fatal else W
