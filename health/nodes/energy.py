"""Adds up what the GPUs of one node have used, from look to look of the probe. Pure.

NVML counts energy since the driver was loaded on Volta and later; where it does not, power times
the time between two looks stands in. A counter that fell was reset, and says nothing of that gap.
"""

from __future__ import annotations

import msgspec

from .snapshot import GpuSnapshot, ProbeReport, ProbeStatus

GAP_S_MAX = 10.0
"""Between two looks further apart, power proves nothing about what was used meanwhile."""


class EnergyUse(msgspec.Struct, frozen=True):
    """What the GPUs of a node used within span_s seconds."""

    joules: float
    span_s: float
    num_gpus: int


class EnergyMeter:
    """The meter of one node."""

    def __init__(self) -> None:
        self._joules = 0.0
        self._began_s: float | None = None
        self._looked_s = 0.0
        self._gpus: dict[str, GpuSnapshot] = {}

    def look(self, report: ProbeReport, now_s: float) -> None:
        """Take one look of the probe. Units: now_s in seconds of a clock that never goes back."""
        if report.status is not ProbeStatus.OK:
            return
        gap_s = now_s - self._looked_s
        gpus = {gpu.uuid: gpu for gpu in report.gpus if gpu.uuid and _is_metered(gpu)}
        if self._began_s is None and gpus:
            self._began_s = now_s
        for uuid, gpu in gpus.items():
            before = self._gpus.get(uuid)
            if before is not None:
                self._joules += _used_j(before, gpu, gap_s)
        self._gpus, self._looked_s = gpus, now_s

    def take(self, now_s: float) -> EnergyUse | None:
        """Return what was used since the last call; None where no GPU is metered."""
        if self._began_s is None:
            return None
        use = EnergyUse(self._joules, now_s - self._began_s, len(self._gpus))
        self._joules, self._began_s = 0.0, now_s
        return use


def _is_metered(gpu: GpuSnapshot) -> bool:
    return gpu.energy_j is not None or gpu.power_w is not None


def _used_j(before: GpuSnapshot, now: GpuSnapshot, gap_s: float) -> float:
    if before.energy_j is not None and now.energy_j is not None:
        return max(now.energy_j - before.energy_j, 0.0)
    if before.power_w is None or now.power_w is None or gap_s > GAP_S_MAX:
        return 0.0
    return (before.power_w + now.power_w) / 2 * gap_s
