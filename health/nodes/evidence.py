"""Turn what the cluster already knows about a node into findings.

node-problem-detector, DCGM, NVSentinel and gpud watch nodes too, and leave conditions, taints,
cordons, health states or metrics. Each such sign is looked up in a table that an operator of a
cluster may replace. Pure: whoever reads the cluster turns what it finds into Signs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from ...logbook.errors import ConfigError
from ...logbook.findings import Finding, Severity
from .verdicts import Action
from .xid import explain

DETECTOR = "cluster"


class SignSource(StrEnum):
    """Where a sign was found."""

    CONDITION = "condition"
    TAINT = "taint"
    CORDON = "cordon"
    GPUD = "gpud"
    DCGM = "dcgm"


class Sign(msgspec.Struct, frozen=True):
    """One thing the cluster says about a node.

    key, value by source:
        condition  type, status ("True", "False", "Unknown"); reason and message in message
        taint      key, "value:effect"
        cordon     "unschedulable", "True" or "False"
        gpud       component, health ("Healthy", "Degraded", "Unhealthy")
        dcgm       metric name, its value as text
    device: GPU UUID where the sign names one.
    """

    source: SignSource
    key: str
    value: str
    message: str = ""
    device: str = ""


class EvidenceRule(msgspec.Struct, frozen=True):
    """What a sign means. key and value are regular expressions that must match the whole text."""

    source: SignSource
    key: str
    value: str
    kind: str
    action: Action
    told_by: str


# NVSentinel writes what it recommends into the condition's message, which beats the table.
_RECOMMENDED = re.compile(r"RecommendedAction[=:]\s*(\w+)")
_RECOMMENDATIONS = {
    "NONE": Action.WATCH,
    "COMPONENT_RESET": Action.EVICT,
    "RESTART_VM": Action.EVICT,
    "RESTART_BM": Action.EVICT,
    "REPLACE_VM": Action.EVICT,
    "CONTACT_SUPPORT": Action.DRAIN,
    "RUN_FIELDDIAG": Action.DRAIN,
    "RUN_DCGMEUD": Action.DRAIN,
}

_C, _T, _G, _D = SignSource.CONDITION, SignSource.TAINT, SignSource.GPUD, SignSource.DCGM
_R = EvidenceRule
DEFAULT_RULES: tuple[EvidenceRule, ...] = (
    _R(_C, "Ready", "False|Unknown", "node-lost", Action.EVICT, "kubelet"),
    _R(_C, "MemoryPressure|PIDPressure", "True", "host-pressure", Action.WATCH, "kubelet"),
    _R(_C, "DiskPressure", "True", "storage", Action.WATCH, "kubelet"),
    _R(_C, "NetworkUnavailable", "True", "network", Action.DRAIN, "kubelet"),
    _R(_C, "KernelDeadlock", "True", "host-hang", Action.DRAIN, "node-problem-detector"),
    _R(_C, "ReadonlyFilesystem|XfsShutdown", "True", "storage", Action.DRAIN,
       "node-problem-detector"),
    _R(_C, "CperHardwareErrorFatal", "True", "host-hardware", Action.EVICT,
       "node-problem-detector"),
    _R(_C, r"Frequent\w+Restart", "True", "host-unsteady", Action.WATCH, "node-problem-detector"),
    _R(_C, r"GpuMemWatch|GpuMem\w*", "True", "ecc", Action.EVICT, "NVSentinel"),
    _R(_C, "GpuNvlinkWatch|NVSwitchFatalError", "True", "nvlink", Action.EVICT, "NVSentinel"),
    _R(_C, "GpuPcieWatch", "True", "pcie", Action.DRAIN, "NVSentinel"),
    _R(_C, "GpuThermalWatch", "True", "thermal", Action.DRAIN, "NVSentinel"),
    _R(_C, "SysLogsGPUFallenOff", "True", "gpu-lost", Action.EVICT, "NVSentinel"),
    _R(_C, "SysLogsXIDError", "True", "xid", Action.DRAIN, "NVSentinel"),
    _R(_C, r"(?:Gpu|GPU|NVSwitch|SysLogs|Nic|NIC)\w*", "True", "gpu", Action.WATCH, "NVSentinel"),
    _R(_T, r"node\.kubernetes\.io/(?:unreachable|not-ready|out-of-service)", ".*", "node-lost",
       Action.EVICT, "Kubernetes"),
    _R(_T, r"cloud\.google\.com/impending-node-termination|aws-node-termination-handler/.*|"
       r"ToBeDeletedByClusterAutoscaler|karpenter\.sh/disrupt\w*", ".*", "preemption",
       Action.EVICT, "cloud"),
    _R(_T, r"(?:.*\.)?nvidia\.com/.*(?:unhealthy|error|fault|xid).*|nvsentinel\S*", ".*", "gpu",
       Action.EVICT, "NVSentinel"),
    _R(SignSource.CORDON, "unschedulable", "True", "cordon", Action.DRAIN, "Kubernetes"),
    _R(_G, r".*(?:nvidia|infiniband|nccl|nvlink|xid|sxid|ecc).*", "Unhealthy", "gpu",
       Action.DRAIN, "gpud"),
    _R(_G, ".*", "Unhealthy|Degraded", "host", Action.WATCH, "gpud"),
    _R(_D, "DCGM_FI_DEV_ROW_REMAP_FAILURE", r"[1-9]\S*", "row-remap", Action.EVICT, "DCGM"),
    _R(_D, "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", r"[1-9]\S*", "row-remap", Action.WATCH,
       "DCGM"),
    _R(_D, "DCGM_FI_DEV_XID_ERRORS", r"[1-9]\d*(?:\.0*)?", "xid", Action.WATCH, "DCGM"),
    _R(_D, r"DCGM_FI_DEV_(?:ECC_DBE_\w+|NVLINK_\w*ERROR\w*)", r"[1-9]\S*", "gpu", Action.WATCH,
       "DCGM"),
)  # fmt: skip


def weigh_signs(
    signs: Iterable[Sign],
    rules: Sequence[EvidenceRule] = DEFAULT_RULES,
    *,
    node: str | None = None,
    step: int = 0,
) -> list[Finding]:
    """Return a finding for every sign that a rule knows, by the first rule that does.

    Raises: ConfigError[evidence-rule-invalid] when a rule's expression cannot be read.
    """
    compiled = [(_compile(rule.key), _compile(rule.value), rule) for rule in rules]
    findings = []
    for sign in signs:
        for key, value, rule in compiled:
            if (
                rule.source is sign.source
                and key.fullmatch(sign.key)
                and value.fullmatch(sign.value)
            ):
                findings.append(_to_finding(sign, rule, node, step))
                break
    return findings


def _to_finding(sign: Sign, rule: EvidenceRule, node: str | None, step: int) -> Finding:
    action = _action(sign, rule)
    takes_node = action in (Action.DRAIN, Action.EVICT)
    tail = f": {sign.message}" if sign.message else ""
    return Finding(
        detector=DETECTOR,
        kind=rule.kind,
        severity=Severity.WARN if takes_node else Severity.OBSERVE,
        step=step,
        onset_step=step,
        value=1.0,
        reference=0.0,
        message=f"{rule.told_by} says {sign.key}={sign.value}{tail}"[:1024],
        node=node,
        device=sign.device,
        action=action.value,
    )


def _action(sign: Sign, rule: EvidenceRule) -> Action:
    """Return the rule's action, unless the sign says more: a recommendation, or the XID itself."""
    found = _RECOMMENDED.search(sign.message)
    if found is not None:
        return _RECOMMENDATIONS.get(found[1].upper(), rule.action)
    if sign.source is SignSource.DCGM and rule.kind == "xid":
        return explain(int(float(sign.value))).action
    return rule.action


def _compile(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise ConfigError(
            "evidence-rule-invalid",
            f"Evidence rule {expression!r} is no regular expression: {error}.",
            remedy="Correct it in the cluster's evidence table.",
        ) from error
