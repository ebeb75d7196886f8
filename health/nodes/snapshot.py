"""What one look at a node's GPUs found: the words the NVML probe and its judge share."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ProbeStatus(StrEnum):
    """Whether a look at the GPUs succeeded, and if not, why.

    OK         the driver answered.
    NO_NVML    no NVML library on this host: there is no NVIDIA GPU to watch.
    NO_DRIVER  the library is there, the driver does not answer (not loaded, versions differ).
    STUCK      a driver call did not return before the deadline.
    DIED       the probe process ended; its driver call may have crashed it.
    """

    OK = "ok"
    NO_NVML = "no-nvml"
    NO_DRIVER = "no-driver"
    STUCK = "stuck"
    DIED = "died"


class GpuSnapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """One GPU at one moment. None: this GPU or driver does not tell.

    Identity is uuid (and the board's serial, where it has one), never index or PCI address, which
    move when a GPU falls off. *_total count since the driver was loaded (volatile) or since the
    board was made (aggregate); they only grow.

    lost:               the driver says the GPU is gone.
    reset_required:     the driver refuses work until the GPU is reset.
    nvlink_down:        numbers of the links that exist and are not active.
    nvlink_errors_total: CRC, replay and recovery errors of all links together.
    throttle:           why clocks are held down: "sw-power", "hw-slowdown", "sw-thermal",
                        "hw-thermal", "power-brake", "idle", "sync-boost", "user", "display".
    recovery_action:    what the driver asks for, as in xid.RECOVERY_ACTIONS.
    failed_calls:       driver functions that failed in a way that is not merely "not supported".
    """

    index: int
    uuid: str
    serial: str = ""
    name: str = ""
    pci_address: str = ""
    lost: bool = False
    reset_required: bool = False
    ecc_corrected_volatile_total: int | None = None
    ecc_uncorrected_volatile_total: int | None = None
    ecc_corrected_aggregate_total: int | None = None
    ecc_uncorrected_aggregate_total: int | None = None
    remapped_corrected_total: int | None = None
    remapped_uncorrected_total: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    retired_pages_total: int | None = None
    retirement_pending: bool | None = None
    nvlink_active: int | None = None
    nvlink_down: tuple[int, ...] = ()
    nvlink_errors_total: int | None = None
    throttle: tuple[str, ...] = ()
    temperature_celsius: int | None = None
    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    pcie_replays_total: int | None = None
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    pcie_lanes_max: int | None = None
    recovery_action: int | None = None
    failed_calls: tuple[str, ...] = ()


class XidSeen(msgspec.Struct, frozen=True):
    """An XID that the driver reported through NVML. uuid "" when the GPU could not be named."""

    code: int
    uuid: str


class ProbeReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one look found.

    took_s:        how long the driver needed for it.
    failed_before: looks right before it that failed alike, as nvml_judge.carry counts them.
    """

    status: ProbeStatus
    detail: str = ""
    driver_version: str = ""
    gpus: tuple[GpuSnapshot, ...] = ()
    xids: tuple[XidSeen, ...] = ()
    took_s: float = 0.0
    failed_before: int = 0
