"""The agent's look at its own node: GPUs through NVML once a second, and the kernel log.

It runs on a thread of its own, and the driver is asked from a process of its own with a deadline,
so a driver that never answers delays nothing. On a host without an NVIDIA driver there is nothing
to look at, and one line in the agent's log is all that happens.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from ...health.nodes.energy import EnergyMeter, EnergyUse
from ...health.nodes.identity import read_machine_uuid
from ...health.nodes.kernel_follow import KMSG, KernelLogFollower
from ...health.nodes.lemons import MachineIdentity
from ...health.nodes.node_judge import NodeJudge, visible_gpus
from ...health.nodes.probe import CLOSE_S_MAX, NvmlProbe, ProbeSettings
from ...health.nodes.snapshot import ProbeReport, ProbeStatus
from ...logbook.errors import Fatal
from ...logbook.findings import Finding

# One of these exists wherever an NVIDIA driver is loaded; looking costs no process.
DRIVER_SIGNS = ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/version")
_log = logging.getLogger(__name__)


class ProbeConfig(msgspec.Struct, frozen=True):
    """What an agent looks at.

    gpus:       "auto": through NVML where a driver is loaded; "on": whatever it looks like; "off".
    kernel_log: "auto": /dev/kmsg where GPUs are watched and it may be read; "off"; or a path.
    period_s:   between two looks; energy_period_s: between two reports of energy used.
    env:        for the process that asks the driver, on top of the agent's own.
    is_shared_machine: other nodes of the run live on this machine too (local mode), so that its
        hardware UUID names none of them.
    """

    gpus: str = "auto"
    kernel_log: str = "auto"
    period_s: float = 1.0
    energy_period_s: float = 60.0
    env: dict[str, str] = {}
    settings: ProbeSettings = ProbeSettings()
    is_shared_machine: bool = False


class Listener(Protocol):
    """Who hears of what was seen; called on the prober's thread."""

    @property
    def attempt(self) -> int:
        """The attempt that energy used now is put down to."""
        ...

    def on_findings(self, findings: Sequence[Finding]) -> None:
        """Take findings that name no node yet."""
        ...

    def on_energy(self, attempt: int, use: EnergyUse) -> None:
        """Take what the node's GPUs used while this attempt was the newest."""
        ...


class NodeProber:
    """Looks until closed, and tells its listener."""

    def __init__(self, config: ProbeConfig, node: str, listener: Listener) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._config = config
        self._listener = listener
        self._meter = EnergyMeter()
        self._metered_attempt = listener.attempt
        self._metered_s = time.monotonic()
        self._judge = NodeJudge(visible_gpus(visible))
        self._probe: NvmlProbe | None = None
        self._kernel: KernelLogFollower | None = None
        self._kernel_trouble = ""
        self._last: ProbeReport | None = None
        self._uuid = "" if config.is_shared_machine else read_machine_uuid()
        self._stop = threading.Event()
        self._has_looked = threading.Event()
        gpus_said = self._open_probe(owns_gpus=visible != "")
        kernel_said = self._open_kernel_log()
        _log.info("%s: %s; %s", node, gpus_said, kernel_said)
        self._thread: threading.Thread | None = None
        if self._probe is None and self._kernel is None:
            self._has_looked.set()
        else:
            self._thread = threading.Thread(target=self._run, name=f"probe-{node}", daemon=True)

    def begin(self) -> None:
        """Start looking."""
        if self._thread is not None:
            self._thread.start()

    def machine(self, wait_s: float = 0.0) -> MachineIdentity:
        """Return what this node is, by its hardware; waits that long for the first look.

        Without its GPUs until they have been seen: a driver may take minutes to open.
        """
        self._has_looked.wait(wait_s)
        return MachineIdentity(self._uuid, self._judge.gpus)

    def close(self) -> None:
        """End the looking and the process that asks the driver."""
        self._stop.set()
        if self._thread is not None and self._thread.is_alive():
            # A look that hangs in the driver ends by its own deadline; nobody waits for that long.
            self._thread.join(CLOSE_S_MAX + self._config.settings.deadline_s)

    def _open_probe(self, owns_gpus: bool) -> str:
        wanted = self._config.gpus
        is_there = owns_gpus and any(Path(sign).exists() for sign in DRIVER_SIGNS)
        if wanted == "off" or (wanted == "auto" and not is_there):
            return "GPUs are not watched (" + (
                "switched off)" if wanted == "off" else "no NVIDIA driver or no GPU of its own)"
            )
        self._probe = NvmlProbe(self._config.settings, self._config.env)
        return f"GPUs are watched through NVML every {self._config.period_s:g} s"

    def _open_kernel_log(self) -> str:
        wanted = self._config.kernel_log
        if wanted == "off" or (wanted == "auto" and self._probe is None):
            return "the kernel log is not followed"
        path = KMSG if wanted == "auto" else Path(wanted)
        try:
            self._kernel = KernelLogFollower(path)
        except Fatal as error:
            return f"the kernel log is not followed: {error}"
        return f"the kernel log {path} is followed"

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._look()
                self._has_looked.set()
                self._stop.wait(self._config.period_s)
        finally:
            self._tell_energy(is_last=True)
            if self._probe is not None:
                self._probe.close()
            if self._kernel is not None:
                self._kernel.close()

    def _look(self) -> None:
        """Ask both witnesses; what one has seen is told whatever becomes of the other."""
        for witness in (self._look_at_gpus, self._read_kernel_log):
            try:
                findings = witness()
            except OSError as error:
                _log.warning("a look at the node failed: %s", error)
                continue
            if findings:
                self._listener.on_findings(findings)

    def _tell_energy(self, is_last: bool = False) -> None:
        """Once a period, whenever another attempt begins to use it, and at the end."""
        attempt, now_s = self._listener.attempt, time.monotonic()
        is_due = is_last or now_s - self._metered_s >= self._config.energy_period_s
        if not is_due and attempt == self._metered_attempt:
            return
        use = self._meter.take(now_s)
        if use is not None:
            self._listener.on_energy(self._metered_attempt, use)
        self._metered_attempt, self._metered_s = attempt, now_s

    def _look_at_gpus(self) -> list[Finding]:
        if self._probe is None:
            return []
        report = self._probe.sample()
        if report.status is ProbeStatus.NO_NVML and not self._judge.gpus:
            _log.info("GPUs are not watched after all: %s", report.detail)
            self._probe.close()
            self._probe = None
        if report is self._last:
            # The probe waits before it tries again: its last failure proves nothing a second time.
            return []
        self._last = report
        self._meter.look(self._judge.own(report), time.monotonic())
        self._tell_energy()
        return self._judge.look(report)

    def _read_kernel_log(self) -> list[Finding]:
        if self._kernel is None:
            return []
        try:
            reading = self._kernel.poll()
        except (OSError, Fatal) as error:
            self._say_of_kernel_log(f"cannot be followed, and is tried again: {error}")
            return []
        self._say_of_kernel_log("")
        if reading.lost:
            _log.warning("%d lines of the kernel log were lost", reading.lost)
        return self._judge.read(line.text for line in reading.lines)

    def _say_of_kernel_log(self, trouble: str) -> None:
        """Log a trouble once, and its end."""
        if trouble != self._kernel_trouble:
            self._kernel_trouble = trouble
            _log.warning("the kernel log %s", trouble or "is followed again")
