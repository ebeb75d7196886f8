"""What changed between two looks at the GPUs, on plain reports."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from midwatch.health.nodes.nvml_judge import NodeRules, carry, judge
from midwatch.health.nodes.snapshot import GpuSnapshot, ProbeReport, ProbeStatus
from midwatch.logbook.findings import Severity

HEALTHY = GpuSnapshot(
    index=0,
    uuid="GPU-a",
    ecc_corrected_volatile_total=10,
    ecc_uncorrected_volatile_total=1,
    remap_pending=False,
    remap_failed=False,
    retirement_pending=False,
    nvlink_active=18,
    nvlink_errors_total=5,
    temperature_celsius=60,
    sm_clock_mhz=1900,
    sm_clock_max_mhz=1980,
    power_w=600.0,
    pcie_replays_total=3,
    pcie_lanes=16,
    pcie_lanes_max=16,
    recovery_action=0,
)


def report(*gpus: GpuSnapshot) -> ProbeReport:
    return ProbeReport(ProbeStatus.OK, gpus=gpus)


def changed(**fields: Any) -> GpuSnapshot:
    return msgspec.structs.replace(HEALTHY, **fields)


CHANGES: list[tuple[dict[str, Any], str, str]] = [
    ({"ecc_uncorrected_volatile_total": 2}, "ecc", "drain"),
    ({"ecc_corrected_volatile_total": 200}, "ecc", "watch"),
    ({"remap_pending": True}, "row-remap", "drain"),
    ({"remap_failed": True}, "row-remap", "evict"),
    ({"retirement_pending": True}, "page-retirement", "drain"),
    ({"nvlink_down": (4,), "nvlink_active": 17}, "nvlink", "evict"),
    ({"nvlink_errors_total": 900}, "nvlink", "watch"),
    ({"pcie_replays_total": 500}, "pcie", "watch"),
    ({"pcie_lanes": 8}, "pcie", "drain"),
    ({"temperature_celsius": 96}, "thermal", "drain"),
    ({"throttle": ("hw-thermal",)}, "thermal", "watch"),
    ({"throttle": ("power-brake",)}, "power", "watch"),
    ({"sm_clock_mhz": 345}, "clock", "watch"),
    ({"lost": True}, "gpu-lost", "evict"),
    ({"reset_required": True}, "gpu-reset", "evict"),
    ({"recovery_action": 4}, "gpu-reset", "drain"),
]


@pytest.mark.parametrize(("fields", "kind", "action"), CHANGES)
def test_a_fault_is_said_once_and_named(fields: dict[str, Any], kind: str, action: str) -> None:
    before, after = report(HEALTHY), report(changed(**fields))
    (finding,) = judge(before, after, node="n7", step=12)
    assert (finding.kind, finding.action) == (kind, action)
    assert (finding.device, finding.node, finding.step) == ("GPU-a", "n7", 12)
    assert finding.severity is (Severity.WARN if action in ("drain", "evict") else Severity.OBSERVE)
    assert judge(after, after) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"ecc_corrected_volatile_total": 50},
        {"nvlink_errors_total": 50},
        {"pcie_replays_total": 50},
        {"temperature_celsius": 90},
        {"throttle": ("sw-power",)},
        {"throttle": ("idle",), "sm_clock_mhz": 345},
        {"ecc_uncorrected_volatile_total": 0},
        {"ecc_uncorrected_volatile_total": None},
        {"power_w": None, "energy_j": 5.0},
    ],
)
def test_ordinary_wear_is_no_finding(fields: dict[str, Any]) -> None:
    assert judge(report(HEALTHY), report(changed(**fields))) == []


def test_the_first_look_tells_standing_faults_but_no_old_counts() -> None:
    assert judge(None, report(HEALTHY)) == []
    found = judge(None, report(changed(remap_pending=True, pcie_lanes=8)))
    assert {(f.kind, f.action) for f in found} == {("row-remap", "drain"), ("pcie", "watch")}


def test_a_gpu_that_is_not_listed_any_more_is_lost() -> None:
    (finding,) = judge(report(HEALTHY, GpuSnapshot(1, "GPU-b")), report(HEALTHY))
    assert (finding.kind, finding.device, finding.action) == ("gpu-lost", "GPU-b", "evict")


def test_a_known_gpu_that_does_not_open_in_a_new_process_is_not_lost() -> None:
    stuck = ProbeReport(ProbeStatus.STUCK, "no answer")
    known = report(HEALTHY, GpuSnapshot(1, "GPU-b"), GpuSnapshot(2, "GPU-c"))
    unopened = GpuSnapshot(1, "", failed_calls=("nvmlDeviceGetHandleByIndex",))
    found = judge(carry(known, stuck), report(HEALTHY, unopened))
    assert [(f.kind, f.device, f.action) for f in found] == [
        ("gpu-lost", "GPU-c", "evict"),
        ("gpu-unopened", "", "watch"),
    ]


def test_gpus_are_told_apart_by_uuid_not_by_index() -> None:
    other = msgspec.structs.replace(HEALTHY, index=1, uuid="GPU-b")
    moved = msgspec.structs.replace(HEALTHY, index=1)
    swapped = msgspec.structs.replace(other, index=0)
    assert judge(report(HEALTHY, other), report(swapped, moved)) == []


def test_a_stuck_driver_is_watched_and_drained_when_it_stays() -> None:
    stuck = ProbeReport(ProbeStatus.STUCK, "no answer")
    (first,) = judge(report(HEALTHY), stuck)
    (second,) = judge(carry(report(HEALTHY), stuck), stuck)
    assert (first.kind, first.action) == ("driver-stuck", "watch")
    assert (second.kind, second.action) == ("driver-stuck", "drain")


def test_a_driver_that_goes_away_takes_the_node() -> None:
    gone = ProbeReport(ProbeStatus.NO_DRIVER, "not loaded")
    assert [f.action for f in judge(report(HEALTHY), gone)] == ["evict"]
    assert judge(None, gone) == []


@pytest.mark.parametrize(
    ("looks", "actions"),
    [
        ([ProbeStatus.NO_DRIVER] * 9, ["evict"]),
        ([ProbeStatus.NO_DRIVER, ProbeStatus.NO_NVML] * 3, ["evict"]),
        ([ProbeStatus.STUCK] * 9, ["watch", "drain"]),
        ([ProbeStatus.STUCK, ProbeStatus.DIED] * 3, ["watch", "drain"]),
        ([ProbeStatus.NO_DRIVER, ProbeStatus.OK, ProbeStatus.NO_DRIVER], ["evict", "evict"]),
        ([ProbeStatus.DIED, ProbeStatus.OK, ProbeStatus.DIED], ["watch", "watch"]),
    ],
)
def test_a_driver_that_stays_away_is_said_once(
    looks: list[ProbeStatus], actions: list[str]
) -> None:
    found = []
    previous = report(HEALTHY)
    for status in looks:
        look = report(HEALTHY) if status is ProbeStatus.OK else ProbeReport(status, "no answer")
        found += judge(previous, look)
        previous = carry(previous, look)
    assert [f.action for f in found] == actions


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"lost": True}, "gpu-lost"),
        ({"reset_required": True}, "gpu-reset"),
        ({"failed_calls": ("nvmlDeviceGetHandleByIndex",)}, "gpu-unopened"),
    ],
)
def test_a_standing_fault_of_a_gpu_without_a_name_is_said_once(
    fault: dict[str, Any], kind: str
) -> None:
    nameless = GpuSnapshot(1, "", **fault)
    first = report(HEALTHY, nameless)
    assert [f.kind for f in judge(None, first)] == [kind]
    assert judge(first, first) == []
    beside_another = report(HEALTHY, nameless, GpuSnapshot(2, "", **fault))
    assert [f.kind for f in judge(first, beside_another)] == [kind]


def test_a_gpu_that_gets_its_name_was_not_lost() -> None:
    nameless = GpuSnapshot(1, "", failed_calls=("nvmlDeviceGetHandleByIndex",))
    assert judge(report(HEALTHY, nameless), report(HEALTHY, GpuSnapshot(1, "GPU-b"))) == []


def test_a_host_without_gpus_is_silent() -> None:
    none = ProbeReport(ProbeStatus.NO_NVML, "not found")
    assert judge(None, none) == []
    assert judge(carry(none, none), none) == []


def test_the_thresholds_are_the_users() -> None:
    strict = NodeRules(temperature_celsius_max=55, corrected_growth_min=1)
    warm = changed(ecc_corrected_volatile_total=11)
    before = changed(temperature_celsius=50)
    assert {f.kind for f in judge(report(before), report(warm), strict)} == {"thermal", "ecc"}
