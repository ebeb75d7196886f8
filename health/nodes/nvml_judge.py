"""Compare two looks at a node's GPUs and say what went wrong in between.

Pure. A standing fault is said once, when it appears (or on the first look, when it is there
already); a counter is said when it grows. Whoever keeps the findings keeps the history:

    findings = judge(previous, current, rules)
    previous = carry(previous, current)
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ...logbook.findings import Finding, Severity
from .snapshot import GpuSnapshot, ProbeReport, ProbeStatus
from .verdicts import Action
from .xid import explain, recovery_action

DETECTOR = "nvml"
_OPEN = "nvmlDeviceGetHandleByIndex"
_SILENT = (ProbeStatus.STUCK, ProbeStatus.DIED)
_GONE = (ProbeStatus.NO_NVML, ProbeStatus.NO_DRIVER)
_HOT = ("hw-thermal", "sw-thermal")


class NodeRules(msgspec.Struct, frozen=True):
    """Where ordinary wear ends. Growth is between two looks, at 1 Hz a second apart.

    corrected_growth_min:   corrected ECC errors worth a note.
    link_error_growth_min:  NVLink CRC, replay and recovery errors worth a note.
    replay_growth_min:      PCIe replays worth a note.
    temperature_celsius_max: a GPU at or above is too hot to keep.
    slow_clock_frac:        a busy GPU that falls below this part of its highest SM clock is held
                            down.
    """

    corrected_growth_min: int = 100
    link_error_growth_min: int = 100
    replay_growth_min: int = 100
    temperature_celsius_max: int = 95
    slow_clock_frac: float = 0.5


class _Sight(msgspec.Struct, frozen=True):
    """What was seen on one GPU (or on the node), before it becomes a finding."""

    kind: str
    action: Action
    value: float
    reference: float
    message: str
    device: str = ""


def judge(
    previous: ProbeReport | None,
    current: ProbeReport,
    rules: NodeRules | None = None,
    *,
    node: str | None = None,
    step: int = 0,
) -> list[Finding]:
    """Return what current shows that previous did not.

    Returns: findings with device (GPU UUID) and action, never "ignore"; severity WARN for "drain"
        and "evict", OBSERVE for the rest.
    """
    sights = [*_judge_driver(previous, current)]
    if current.status is ProbeStatus.OK:
        limits = rules or NodeRules()
        before = {_key(gpu): gpu for gpu in previous.gpus} if previous else {}
        sights += _judge_missing(before, current)
        sights += _judge_xids(current)
        for gpu in current.gpus:
            sights += _judge_gpu(before.get(_key(gpu)), gpu, limits)
    return [_to_finding(s, node, step) for s in sights if s.action is not Action.IGNORE]


def carry(previous: ProbeReport | None, current: ProbeReport) -> ProbeReport:
    """Return what to hand to the next judge as previous.

    A look that failed saw no GPU; without those of the look before it, a GPU that is lost while
    the driver is stuck would never be missed.
    """
    if current.status is ProbeStatus.OK or previous is None:
        return current
    failed_before = previous.failed_before + 1 if _fail_alike(previous, current) else 0
    return msgspec.structs.replace(current, gpus=previous.gpus, failed_before=failed_before)


def _key(gpu: GpuSnapshot) -> str:
    """Return what tells a GPU from others; one that could not be asked for its name has a place."""
    return gpu.uuid or f"#{gpu.index}"


def _fail_alike(previous: ProbeReport, current: ProbeReport) -> bool:
    return any(previous.status in kind and current.status in kind for kind in (_SILENT, _GONE))


def _to_finding(sight: _Sight, node: str | None, step: int) -> Finding:
    takes_node = sight.action in (Action.DRAIN, Action.EVICT)
    return Finding(
        detector=DETECTOR,
        kind=sight.kind,
        severity=Severity.WARN if takes_node else Severity.OBSERVE,
        step=step,
        onset_step=step,
        value=sight.value,
        reference=sight.reference,
        message=sight.message,
        node=node,
        device=sight.device,
        action=sight.action.value,
    )


def _judge_driver(previous: ProbeReport | None, current: ProbeReport) -> Iterator[_Sight]:
    """A driver that stops answering is watched once and drained when it does not come back."""
    had_gpus = previous is not None and bool(previous.gpus)
    again = previous is not None and _fail_alike(previous, current)
    if current.status in _SILENT:
        action = Action.DRAIN if again else Action.WATCH
        if previous is None or not (again and previous.failed_before):
            yield _Sight("driver-stuck", action, 1.0, 0.0, f"GPU driver: {current.detail}")
    elif had_gpus and current.status in _GONE and not again:
        yield _Sight("driver-gone", Action.EVICT, 1.0, 0.0, f"GPU driver gone: {current.detail}")


def _judge_missing(before: dict[str, GpuSnapshot], current: ProbeReport) -> Iterator[_Sight]:
    """A GPU that was listed and is not any more has fallen off so hard that its name is gone."""
    present = {gpu.uuid for gpu in current.gpus}
    # One that does not open has no name, but it is there: that is said of it, and not both.
    unopened = {gpu.index for gpu in current.gpus if _is_unopened(gpu)}
    for gpu in before.values():
        is_there = gpu.uuid in present or gpu.index in unopened
        if gpu.uuid and not is_there and not gpu.lost:
            message = f"GPU {gpu.index} is not listed any more"
            yield _Sight("gpu-lost", Action.EVICT, 1.0, 0.0, message, gpu.uuid)


def _judge_xids(current: ProbeReport) -> Iterator[_Sight]:
    for seen in current.xids:
        fact = explain(seen.code)
        message = f"XID {seen.code}: {fact.name}"
        yield _Sight("xid", fact.action, float(seen.code), 0.0, message, seen.uuid)


def _judge_gpu(before: GpuSnapshot | None, now: GpuSnapshot, rules: NodeRules) -> Iterator[_Sight]:
    if now.lost:
        if before is None or not before.lost:
            yield _Sight("gpu-lost", Action.EVICT, 1.0, 0.0, f"GPU {now.index} is lost", now.uuid)
        return
    if _is_unopened(now) and not (before and _is_unopened(before)):
        message = f"GPU {now.index} cannot be opened: {_OPEN} failed"
        yield _Sight("gpu-unopened", Action.WATCH, 1.0, 0.0, message)
    yield from _judge_memory(before, now, rules)
    yield from _judge_links(before, now, rules)
    yield from _judge_bus(before, now, rules)
    yield from _judge_heat(before, now, rules)
    yield from _judge_reset(before, now)


def _judge_memory(
    before: GpuSnapshot | None, now: GpuSnapshot, rules: NodeRules
) -> Iterator[_Sight]:
    uncorrected = _growth(before, now, "ecc_uncorrected_volatile_total")
    if uncorrected > 0:
        yield _Sight(
            "ecc", Action.DRAIN, uncorrected, 0.0, "uncorrectable ECC errors appeared", now.uuid
        )
    corrected = _growth(before, now, "ecc_corrected_volatile_total")
    if corrected >= rules.corrected_growth_min:
        yield _Sight(
            "ecc",
            Action.WATCH,
            corrected,
            rules.corrected_growth_min,
            "many corrected ECC errors",
            now.uuid,
        )
    for field, kind, action, message in (
        ("remap_failed", "row-remap", Action.EVICT, "a row could not be remapped"),
        ("remap_pending", "row-remap", Action.DRAIN, "a row remap waits for a GPU reset"),
        ("retirement_pending", "page-retirement", Action.DRAIN, "a page waits for retirement"),
    ):
        if _appeared(before, now, field):
            yield _Sight(kind, action, 1.0, 0.0, message, now.uuid)


def _judge_links(
    before: GpuSnapshot | None, now: GpuSnapshot, rules: NodeRules
) -> Iterator[_Sight]:
    fell = sorted(set(now.nvlink_down) - set(before.nvlink_down)) if before else []
    if fell:
        message = f"NVLink {', '.join(map(str, fell))} went down"
        yield _Sight("nvlink", Action.EVICT, float(len(fell)), 0.0, message, now.uuid)
    errors = _growth(before, now, "nvlink_errors_total")
    if errors >= rules.link_error_growth_min:
        limit = rules.link_error_growth_min
        yield _Sight("nvlink", Action.WATCH, errors, limit, "many NVLink errors", now.uuid)


def _judge_bus(before: GpuSnapshot | None, now: GpuSnapshot, rules: NodeRules) -> Iterator[_Sight]:
    replays = _growth(before, now, "pcie_replays_total")
    if replays >= rules.replay_growth_min:
        limit = rules.replay_growth_min
        yield _Sight("pcie", Action.WATCH, replays, limit, "many PCIe replays", now.uuid)
    lanes, full = now.pcie_lanes, now.pcie_lanes_max
    if lanes is None or full is None or lanes >= full:
        return
    had = before.pcie_lanes if before else None
    if had is None:
        # Narrow from the first look on may be how the board is wired.
        yield _Sight("pcie", Action.WATCH, lanes, full, "PCIe runs on fewer lanes", now.uuid)
    elif lanes < had:
        yield _Sight("pcie", Action.DRAIN, lanes, had, "PCIe lost lanes", now.uuid)


def _judge_heat(before: GpuSnapshot | None, now: GpuSnapshot, rules: NodeRules) -> Iterator[_Sight]:
    limit = rules.temperature_celsius_max
    temperature = now.temperature_celsius
    if temperature is not None and temperature >= limit:
        was = before.temperature_celsius if before else None
        if was is None or was < limit:
            yield _Sight("thermal", Action.DRAIN, temperature, limit, "GPU is too hot", now.uuid)
    for reason in now.throttle:
        if before is not None and reason in before.throttle:
            continue
        if reason in _HOT:
            value = float(temperature or 0)
            message = f"clocks held down: {reason}"
            yield _Sight("thermal", Action.WATCH, value, limit, message, now.uuid)
        elif reason == "power-brake":
            message = "clocks held down by the power supply"
            yield _Sight("power", Action.WATCH, now.power_w or 0.0, 0.0, message, now.uuid)
    if before is not None and not _is_slow(before, rules) and _is_slow(now, rules):
        clock, full = float(now.sm_clock_mhz or 0), float(now.sm_clock_max_mhz or 0)
        yield _Sight("clock", Action.WATCH, clock, full, "SM clock far below its best", now.uuid)


def _judge_reset(before: GpuSnapshot | None, now: GpuSnapshot) -> Iterator[_Sight]:
    if now.reset_required and not (before and before.reset_required):
        yield _Sight("gpu-reset", Action.EVICT, 1.0, 0.0, "GPU refuses work until reset", now.uuid)
    asked = now.recovery_action or 0
    if asked and asked != ((before.recovery_action or 0) if before else 0):
        action = recovery_action(asked)
        yield _Sight("gpu-reset", action, asked, 0.0, "driver asks for a recovery", now.uuid)


def _growth(before: GpuSnapshot | None, now: GpuSnapshot, field: str) -> float:
    """Return by how much a counter grew; 0 on the first look and after the driver was reloaded."""
    was = getattr(before, field) if before else None
    is_now = getattr(now, field)
    if was is None or is_now is None:
        return 0.0
    return max(0.0, float(is_now - was))


def _appeared(before: GpuSnapshot | None, now: GpuSnapshot, field: str) -> bool:
    return bool(getattr(now, field)) and not (before and getattr(before, field))


def _is_unopened(gpu: GpuSnapshot) -> bool:
    return _OPEN in gpu.failed_calls


def _is_slow(gpu: GpuSnapshot, rules: NodeRules) -> bool:
    if not gpu.sm_clock_mhz or not gpu.sm_clock_max_mhz or "idle" in gpu.throttle:
        return False
    return gpu.sm_clock_mhz < rules.slow_clock_frac * gpu.sm_clock_max_mhz
