"""What the cluster already knows about a node, as findings."""

from __future__ import annotations

import pytest
from midwatch.health.nodes.evidence import EvidenceRule, Sign, SignSource, weigh_signs
from midwatch.health.nodes.verdicts import Action
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.findings import Severity

C, T = SignSource.CONDITION, SignSource.TAINT

SIGNS = [
    (Sign(C, "Ready", "False"), "node-lost", "evict"),
    (Sign(C, "Ready", "Unknown"), "node-lost", "evict"),
    (Sign(C, "GpuMemWatch", "True"), "ecc", "evict"),
    (Sign(C, "GpuNvlinkWatch", "True"), "nvlink", "evict"),
    (Sign(C, "GpuThermalWatch", "True"), "thermal", "drain"),
    (Sign(C, "SysLogsGPUFallenOff", "True"), "gpu-lost", "evict"),
    (Sign(C, "NVSwitchFatalError", "True"), "nvlink", "evict"),
    (Sign(C, "KernelDeadlock", "True"), "host-hang", "drain"),
    (Sign(C, "ReadonlyFilesystem", "True"), "storage", "drain"),
    (Sign(C, "MemoryPressure", "True"), "host-pressure", "watch"),
    (Sign(T, "node.kubernetes.io/unreachable", ":NoExecute"), "node-lost", "evict"),
    (Sign(T, "cloud.google.com/impending-node-termination", ":NoSchedule"), "preemption", "evict"),
    (Sign(SignSource.CORDON, "unschedulable", "True"), "cordon", "drain"),
    (Sign(SignSource.GPUD, "accelerator-nvidia-error-xid", "Unhealthy"), "gpu", "drain"),
    (Sign(SignSource.GPUD, "cpu", "Degraded"), "host", "watch"),
    (Sign(SignSource.DCGM, "DCGM_FI_DEV_ROW_REMAP_FAILURE", "1"), "row-remap", "evict"),
    (Sign(SignSource.DCGM, "DCGM_FI_DEV_XID_ERRORS", "79.0"), "xid", "evict"),
    (Sign(SignSource.DCGM, "DCGM_FI_DEV_XID_ERRORS", "31"), "xid", "watch"),
]

SILENT = [
    Sign(C, "Ready", "True"),
    Sign(C, "GpuMemWatch", "False"),
    Sign(C, "SomethingOfOurs", "True"),
    Sign(T, "nvidia.com/gpu", "present:NoSchedule"),
    Sign(T, "dedicated", "training:NoSchedule"),
    Sign(SignSource.CORDON, "unschedulable", "False"),
    Sign(SignSource.GPUD, "accelerator-nvidia-error-xid", "Healthy"),
    Sign(SignSource.DCGM, "DCGM_FI_DEV_XID_ERRORS", "0"),
]


@pytest.mark.parametrize(("sign", "kind", "action"), SIGNS)
def test_a_sign_of_trouble_becomes_a_finding(sign: Sign, kind: str, action: str) -> None:
    (finding,) = weigh_signs([sign], node="n7", step=3)
    assert (finding.kind, finding.action, finding.node) == (kind, action, "n7")
    takes_node = action in ("drain", "evict")
    assert finding.severity is (Severity.WARN if takes_node else Severity.OBSERVE)


@pytest.mark.parametrize("sign", SILENT)
def test_an_ordinary_sign_is_silent(sign: Sign) -> None:
    assert weigh_signs([sign]) == []


@pytest.mark.parametrize(
    ("advice", "action"),
    [
        ("RESTART_BM", "evict"),
        ("NONE", "watch"),
        ("CONTACT_SUPPORT", "drain"),
        ("NEW_WORD", "drain"),
    ],
)
def test_a_recommendation_in_the_message_beats_the_table(advice: str, action: str) -> None:
    sign = Sign(C, "SysLogsXIDError", "True", f"ErrorCode:79 RecommendedAction={advice};")
    (finding,) = weigh_signs([sign])
    assert finding.action == action


def test_the_table_is_the_clusters_own() -> None:
    rules = [EvidenceRule(C, "example.com/.*", "True", "odd", Action.DRAIN, "our own watcher")]
    (finding,) = weigh_signs([Sign(C, "example.com/Odd", "True")], rules)
    assert "our own watcher" in finding.message
    assert weigh_signs([Sign(C, "Ready", "False")], rules) == []


def test_a_table_that_cannot_be_read_is_refused() -> None:
    rules = [EvidenceRule(C, "(", "True", "odd", Action.DRAIN, "x")]
    with pytest.raises(ConfigError) as caught:
        weigh_signs([], rules)
    assert caught.value.code == "evidence-rule-invalid"


def test_a_long_message_is_cut() -> None:
    (finding,) = weigh_signs([Sign(C, "Ready", "False", "x" * 5000)])
    assert len(finding.message) <= 1024
