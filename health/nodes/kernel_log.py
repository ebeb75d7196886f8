"""Read kernel log lines: what happened, on which device, whose fault, what to do.

Pure: following a log is kernel_follow's work.
"""

from __future__ import annotations

import re

import msgspec

from .kernel_table import ROWS
from .labels import UNKNOWN
from .verdicts import Action, Blame
from .xid import XidFact, caused_by, explain, explain_sxid

# A longer line is cut: kernel records end at about a kilobyte, so more is somebody's paste.
LINE_CHARS_MAX = 1024


class KernelEvent(msgspec.Struct, frozen=True):
    """One line that matters.

    component: the part of the machine: "gpu_xid", "nvswitch", "nvlink", "gpu", "gpu_peermem",
               "pcie", "host_mce", "host_thermal", "host_kernel_panic", "host_cpu_hang",
               "oom_host", "nccl_segfault", "process_segfault", "network_ib", "network_link",
               "storage".
    label:     the failure label it stands for, "unknown" where none fits.
    code:      the XID or SXid; None for every other component.
    cause:     the code that an aftermath line names as its cause.
    device:    PCI address, disk, port or process; "" where the line names none.
    """

    component: str
    name: str
    label: str
    action: Action
    blame: Blame
    line: str
    code: int | None = None
    cause: int | None = None
    device: str = ""


_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?(?P<dev>[0-9a-f:.]+)\): (?P<code>\d+)(?:,\s*(?P<rest>.*))?",
    re.IGNORECASE,
)
# Reports and job logs quote codes without the driver's prefix.
_BARE_XID = re.compile(r"\bXid(?: error)?s?[ :=(#]{1,3}(?P<code>\d{1,3})\b(?!:)", re.IGNORECASE)
_SXID = re.compile(
    r"SXid \(PCI:(?P<dev>[0-9a-f:.]+)\): (?P<code>\d+),\s*(?P<rest>.*)", re.IGNORECASE
)
_FATALITY = re.compile(r"^(?:Severity \d+ )?(?P<word>Fatal|Non-?fatal)\b", re.IGNORECASE)
_PCI_ADDRESS = re.compile(
    r"\b[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}(?:\.[0-9a-f])?\b", re.IGNORECASE
)
_ROWS = tuple((re.compile(row.pattern, re.IGNORECASE), row) for row in ROWS)
# No row matches a line without one of these words, and most lines have none.
# No row matches a line without one of these, and most lines have none. Searched in lower case,
# which is several times faster than ignoring case.
_WORTH = re.compile(
    r"nvrm|nvswitch|peermem|pcie|aer|dpc|d3cold|device not ready|machine check|mce:|hardware error|"
    r"hardware memory|edac|memory failure|temperature|thermal|panic|bug: |kernel bug|oops|"
    r"unable to handle|lockup|rcu|blocked|oom|out of memory|killed process|segfault|traps:|mlx|"
    r"\bib|infiniband|rdma|bnxt|irdma|\befa|netdev|link is|link status|md/|-fs|xfs|btrfs|nvme|"
    r"access beyond|i/o error|error, dev|\bata\d|nfs|lustre|ceph|rbd"
)


def parse_line(line: str) -> KernelEvent | None:
    """Return the event on a kernel log line, or None when it is none of our business.

    Any prefix is fine: dmesg with or without readable times, syslog, the journal, a bare message.
    """
    line = line.rstrip()[:LINE_CHARS_MAX]
    lowered = line.lower()
    if not _WORTH.search(lowered):
        return None
    if "xid" in lowered:
        found = _XID.search(line)
        if found is not None:
            return _xid_event(line, found)
        found = _SXID.search(line)
        if found is not None:
            return _sxid_event(line, found)
    for pattern, row in _ROWS:
        match = pattern.search(line)
        if match is not None:
            return KernelEvent(
                row.component,
                row.name,
                row.label,
                row.action,
                row.blame,
                line,
                device=_device(line, match),
            )
    return None


def parse_quoted_xid(line: str) -> KernelEvent | None:
    """Return the event of an XID that a report or a job log mentions in passing ("Xid 79")."""
    found = _BARE_XID.search(line)
    if found is None:
        return None
    return _from_fact("gpu_xid", explain(int(found["code"])), line, "")


def _device(line: str, match: re.Match[str]) -> str:
    """Return what the pattern named, else the first PCI address on the line, else ""."""
    named = next((group for group in match.groupdict().values() if group), None)
    if named is not None:
        return named.strip()
    address = _PCI_ADDRESS.search(line)
    return address[0] if address else ""


def _xid_event(line: str, found: re.Match[str]) -> KernelEvent:
    rest = found["rest"] or ""
    fact = explain(int(found["code"]), rest)
    return _from_fact("gpu_xid", fact, line, found["dev"], cause=caused_by(rest))


def _sxid_event(line: str, found: re.Match[str]) -> KernelEvent:
    word = _FATALITY.search(found["rest"])
    fatal = None if word is None else word["word"].lower() == "fatal"
    return _from_fact("nvswitch", explain_sxid(int(found["code"]), fatal), line, found["dev"])


def _from_fact(
    component: str, fact: XidFact, line: str, device: str, cause: int | None = None
) -> KernelEvent:
    return KernelEvent(
        component=component,
        name=fact.name,
        label=fact.label or UNKNOWN,
        action=fact.action,
        blame=fact.blame,
        line=line,
        code=fact.code,
        cause=cause,
        device=device,
    )
