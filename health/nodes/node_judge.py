"""One judgement about a node from its two witnesses: NVML and the kernel log.

Both name GPUs in their own way, so devices are brought to one name, the GPU's UUID, and GPUs that
belong to somebody else on the same machine are left out. Pure: the caller does the looking.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from ...logbook.findings import Finding, Severity
from .kernel_log import KernelEvent, parse_line
from .lemons import GpuIdentity
from .nvml_judge import NodeRules, carry, judge
from .snapshot import GpuSnapshot, ProbeReport, ProbeStatus
from .verdicts import Action

KERNEL = "kernel-log"
FINDINGS_MAX = 64
_PCI = re.compile(r"^(?P<domain>[0-9a-f]+):(?P<rest>[0-9a-f]{2}:[0-9a-f]{2})(?:\.[0-9a-f])?$")


class NodeJudge:
    """Turns what was seen on one node into findings, each standing fault once.

    visible: UUIDs or indices of the GPUs that are this node's; None means all of the machine's.
    """

    def __init__(self, visible: frozenset[str] | None = None, rules: NodeRules | None = None):
        self._visible = visible
        self._rules = rules
        self._previous: ProbeReport | None = None
        self._gpus: tuple[GpuIdentity, ...] = ()
        self._uuids: dict[str, str] = {}
        self._foreign: frozenset[str] = frozenset()

    @property
    def gpus(self) -> tuple[GpuIdentity, ...]:
        """Every GPU that was seen on this node: one that has fallen off the bus stays its own."""
        return self._gpus

    def look(self, report: ProbeReport) -> list[Finding]:
        """Take one look of the probe; return what it shows that the one before did not.

        At most FINDINGS_MAX of it, the weightiest: what is left out is not said at the next look.
        """
        report = self.own(report)
        findings = judge(self._previous, report, self._rules)
        self._previous = carry(self._previous, report)
        seen = {gpu.uuid: GpuIdentity(gpu.uuid, gpu.serial) for gpu in report.gpus if gpu.uuid}
        known = {gpu.uuid: gpu for gpu in self._gpus}
        if not seen.keys() <= known.keys():
            # In one go: another thread may be asking.
            self._gpus = tuple((known | seen).values())
        return _weightiest(findings)

    def read(self, lines: Iterable[str]) -> list[Finding]:
        """Take new lines of the kernel log; return what matters, the weightiest FINDINGS_MAX."""
        findings: list[Finding] = []
        for line in lines:
            event = parse_line(line)
            if event is None or event.action is Action.IGNORE:
                continue
            device = self._uuids.get(plain_pci(event.device), event.device)
            if device not in self._foreign:
                findings.append(_finding(event, device))
        return _weightiest(findings)

    def own(self, report: ProbeReport) -> ProbeReport:
        """Return a look without the GPUs that are not this node's."""
        if report.status is not ProbeStatus.OK:
            return report
        for gpu in report.gpus:
            if gpu.uuid and gpu.pci_address:
                self._uuids[plain_pci(gpu.pci_address)] = gpu.uuid
        if self._visible is None:
            return report
        mine = tuple(gpu for gpu in report.gpus if self._is_mine(gpu))
        self._foreign = frozenset(g.uuid for g in report.gpus if g.uuid and not self._is_mine(g))
        xids = tuple(seen for seen in report.xids if seen.uuid not in self._foreign)
        return msgspec.structs.replace(report, gpus=mine, xids=xids)

    def _is_mine(self, gpu: GpuSnapshot) -> bool:
        assert self._visible is not None
        return gpu.uuid in self._visible or str(gpu.index) in self._visible


class Repeats:
    """Knows what was said lately, so that two witnesses to one event make one finding.

    A finding is a repeat when the same node, device and code were named within window_s; one that
    asks for more than the last is none. Memory is bounded.
    """

    def __init__(self, window_s: float = 60.0, keys_max: int = 4096) -> None:
        self._window_s = window_s
        self._keys_max = keys_max
        self._said: OrderedDict[tuple[str, str, str, float], tuple[float, int]] = OrderedDict()

    def is_new(self, node: str, finding: Finding, time_s: float) -> bool:
        """Note a finding; return whether it says anything that was not said."""
        key = (node, *_subject(finding))
        weight = _WEIGHTS.get(finding.action, 0)
        last = self._said.get(key)
        if last is not None and abs(time_s - last[0]) < self._window_s and weight <= last[1]:
            return False
        self._said[key] = (time_s, weight)
        self._said.move_to_end(key)
        if len(self._said) > self._keys_max:
            self._said.popitem(last=False)
        return True


def visible_gpus(variable: str | None) -> frozenset[str] | None:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names; None where it does not tell them apart."""
    names = [name.strip() for name in (variable or "").split(",") if name.strip()]
    if not names or any(name.startswith("MIG-") for name in names):
        return None
    return frozenset(names)


def plain_pci(address: str) -> str:
    """Return a PCI address as domain:bus:device in one spelling; anything else as it is."""
    found = _PCI.match(address.strip().lower())
    return f"{int(found['domain'], 16):04x}:{found['rest']}" if found else address


_WEIGHTS = {"watch": 1, "drain": 2, "evict": 3}
_KINDS = {"gpu_xid": "xid", "nvswitch": "sxid"}


def _subject(finding: Finding) -> tuple[str, str, float]:
    """Return the device, kind and code of a finding: what two of one event have in common."""
    code = finding.value if finding.kind in ("xid", "sxid") else 0.0
    return finding.device, finding.kind, code


def _weightiest(findings: Iterable[Finding]) -> list[Finding]:
    """Return each thing once, in order; where there is too much, what asks for most."""
    each: dict[tuple[object, ...], Finding] = {}
    for finding in findings:
        each.setdefault((finding.action, *_subject(finding)), finding)
    found = list(each.values())
    if len(found) <= FINDINGS_MAX:
        return found
    return sorted(found, key=lambda f: -_WEIGHTS.get(f.action, 0))[:FINDINGS_MAX]


def _finding(event: KernelEvent, device: str) -> Finding:
    takes_node = event.action in (Action.DRAIN, Action.EVICT)
    has_code = event.code is not None
    name = f"{'XID' if event.component == 'gpu_xid' else 'SXid'} {event.code}: " if has_code else ""
    return Finding(
        detector=KERNEL,
        kind=_KINDS.get(event.component, event.component) if has_code else event.component,
        severity=Severity.WARN if takes_node else Severity.OBSERVE,
        step=0,
        onset_step=0,
        value=float(event.code) if event.code is not None else 1.0,
        reference=0.0,
        message=f"{name}{event.name} ({event.line.strip()[-240:]})",
        device=device,
        action=event.action.value,
    )
