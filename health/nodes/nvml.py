"""Read a node's GPUs through NVML (pynvml): everything in a GpuSnapshot, and the XIDs since.

Every call here may block for ever in the driver. Nothing but the probe's own process may use it.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import pynvml

from .snapshot import GpuSnapshot, ProbeReport, ProbeStatus, XidSeen

XIDS_PER_READ_MAX = 256

# Throttle reasons by bit, newest names of nvml.h (nvmlClocksEventReason*).
_THROTTLE = (
    (0x1, "idle"),
    (0x2, "user"),
    (0x4, "sw-power"),
    (0x8, "hw-slowdown"),
    (0x10, "sync-boost"),
    (0x20, "sw-thermal"),
    (0x40, "hw-thermal"),
    (0x80, "power-brake"),
    (0x100, "display"),
)
_MISSING = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_NO_DATA,
        pynvml.NVML_ERROR_DEPRECATED,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    }
)
_GONE = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_GPU_NOT_FOUND})
_UNLOADED = frozenset({pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED})
# Error counts of all links together (Volta to Hopper), then per link (Blackwell on).
_ALL_LINK_ERRORS = (
    pynvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
    pynvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
    pynvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
)
_LINK_ERRORS = (
    pynvml.NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS,
    pynvml.NVML_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS,
    pynvml.NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS,
)


class _Lost(Exception):
    """The driver says that this GPU is gone."""


class _Calls:
    """Calls NVML functions for one GPU and sorts their failures."""

    def __init__(self) -> None:
        self.reset_required = False
        self.failed: list[str] = []

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the answer, or None when there is none. Raises _Lost when the GPU is gone."""
        try:
            return function(*arguments)
        except pynvml.NVMLError as error:
            code = error.value
            if code in _GONE:
                raise _Lost from None
            if code in _UNLOADED:
                raise
            if code == pynvml.NVML_ERROR_RESET_REQUIRED:
                self.reset_required = True
            elif code not in _MISSING:
                self.failed.append(function.__name__)
            return None


class _Gpu:
    """A GPU as found when the driver was opened; its identity outlives its loss.

    handle: None when it is lost, or when the driver would not give one.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.uuid = self.serial = self.name = self.pci_address = ""
        self.handle: Any = None
        self.is_lost = False
        self.opening = calls = _Calls()
        try:
            self.handle = calls.ask(pynvml.nvmlDeviceGetHandleByIndex, index)
            if self.handle is None:
                return
            self.uuid = calls.ask(pynvml.nvmlDeviceGetUUID, self.handle) or ""
            self.serial = calls.ask(pynvml.nvmlDeviceGetSerial, self.handle) or ""
            self.name = calls.ask(pynvml.nvmlDeviceGetName, self.handle) or ""
            pci = calls.ask(pynvml.nvmlDeviceGetPciInfo, self.handle)
            self.pci_address = _text(pci.busId) if pci is not None else ""
        except _Lost:
            self.handle = None
            self.is_lost = True

    @property
    def is_foreign(self) -> bool:
        """Whether this process may not open it: the driver counts those of other containers too."""
        has_failed = self.is_lost or self.opening.reset_required or bool(self.opening.failed)
        return self.handle is None and not has_failed

    @property
    def is_unopened(self) -> bool:
        """Whether the driver would not give a handle this time, and may give one the next."""
        return self.handle is None and not self.is_lost

    @property
    def address(self) -> int:
        """The driver's own name of the handle, by which events point to their GPU."""
        return _address(self.handle) if self.handle is not None else 0

    def identity(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "uuid": self.uuid,
            "serial": self.serial,
            "name": self.name,
            "pci_address": self.pci_address,
        }


class NvmlReader:
    """An open driver. open() and read() never raise for anything the driver may answer."""

    def __init__(self) -> None:
        self._gpus: list[_Gpu] = []
        self._events: Any = None
        self._driver_version = ""
        self._is_open = False

    def read(self) -> ProbeReport:
        """Return a report of every GPU, opening the driver first if need be."""
        started_s = time.monotonic()
        try:
            if not self._is_open:
                self._open()
            else:
                self._open_again()
            xids = self._read_xids()
            gpus = tuple(_read_gpu(gpu) for gpu in self._gpus)
        except pynvml.NVMLError as error:
            self._close()
            return ProbeReport(_status_of(error), detail=str(error), took_s=_since(started_s))
        return ProbeReport(
            ProbeStatus.OK, "", self._driver_version, gpus, xids, took_s=_since(started_s)
        )

    def _open(self) -> None:
        pynvml.nvmlInit()
        self._is_open = True
        self._driver_version = _Calls().ask(pynvml.nvmlSystemGetDriverVersion) or ""
        self._events = _Calls().ask(pynvml.nvmlEventSetCreate)
        counted = [self._open_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
        self._gpus = [gpu for gpu in counted if not gpu.is_foreign]

    def _open_again(self) -> None:
        """Try once more what could not be opened: the driver may only have been slow."""
        gpus = [self._open_gpu(gpu.index) if gpu.is_unopened else gpu for gpu in self._gpus]
        self._gpus = [gpu for gpu in gpus if not gpu.is_foreign]

    def _open_gpu(self, index: int) -> _Gpu:
        gpu = _Gpu(index)
        if self._events is not None and gpu.handle is not None:
            _register_xids(gpu.handle, self._events)
        return gpu

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._gpus, self._events = [], None
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError:
                # Already gone; the next open finds out how things stand.
                return

    def _read_xids(self) -> tuple[XidSeen, ...]:
        """Return the XIDs that wait in the event set, without waiting for more."""
        seen: list[XidSeen] = []
        if self._events is None:
            return ()
        uuids = {gpu.address: gpu.uuid for gpu in self._gpus}
        while len(seen) < XIDS_PER_READ_MAX:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
            except pynvml.NVMLError as error:
                if error.value in _UNLOADED:
                    raise
                # A timeout means that nothing waits; a lost GPU makes the wait itself fail, and
                # its snapshot says so.
                break
            if event.eventType & pynvml.nvmlEventTypeXidCriticalError:
                seen.append(XidSeen(int(event.eventData), uuids.get(_address(event.device), "")))
        return tuple(seen)


def _register_xids(handle: Any, events: Any) -> None:
    try:
        pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
    except pynvml.NVMLError:
        # Without events the kernel log still tells of XIDs.
        return


def _read_gpu(gpu: _Gpu) -> GpuSnapshot:
    if gpu.is_lost:
        return GpuSnapshot(**gpu.identity(), lost=True)
    if gpu.handle is None:
        return _snapshot(gpu, gpu.opening, {})
    calls = _Calls()
    try:
        fields = {
            **_read_memory_health(calls, gpu.handle),
            **_read_links(calls, gpu.handle),
            **_read_clocks(calls, gpu.handle),
            **_read_power(calls, gpu.handle),
            **_read_bus(calls, gpu.handle),
        }
    except _Lost:
        return GpuSnapshot(**gpu.identity(), lost=True)
    return _snapshot(gpu, calls, fields)


def _snapshot(gpu: _Gpu, calls: _Calls, fields: dict[str, Any]) -> GpuSnapshot:
    return GpuSnapshot(
        **gpu.identity(),
        **fields,
        reset_required=calls.reset_required,
        failed_calls=tuple(dict.fromkeys(calls.failed)),
    )


def _read_memory_health(calls: _Calls, handle: Any) -> dict[str, Any]:
    def ecc(kind: int, counter: int) -> Any:
        return calls.ask(pynvml.nvmlDeviceGetTotalEccErrors, handle, kind, counter)

    corrected = pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED
    uncorrected = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    rows = calls.ask(pynvml.nvmlDeviceGetRemappedRows, handle)
    retired = [
        calls.ask(pynvml.nvmlDeviceGetRetiredPages, handle, cause)
        for cause in (
            pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
            pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
        )
    ]
    pending = calls.ask(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
    return {
        "ecc_corrected_volatile_total": ecc(corrected, pynvml.NVML_VOLATILE_ECC),
        "ecc_uncorrected_volatile_total": ecc(uncorrected, pynvml.NVML_VOLATILE_ECC),
        "ecc_corrected_aggregate_total": ecc(corrected, pynvml.NVML_AGGREGATE_ECC),
        "ecc_uncorrected_aggregate_total": ecc(uncorrected, pynvml.NVML_AGGREGATE_ECC),
        "remapped_corrected_total": None if rows is None else rows[0],
        "remapped_uncorrected_total": None if rows is None else rows[1],
        "remap_pending": None if rows is None else bool(rows[2]),
        "remap_failed": None if rows is None else bool(rows[3]),
        "retired_pages_total": sum(map(len, retired)) if None not in retired else None,
        "retirement_pending": None if pending is None else bool(pending),
    }


def _read_links(calls: _Calls, handle: Any) -> dict[str, Any]:
    """Walk the links until the driver knows no more."""
    active: list[int] = []
    down: list[int] = []
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        state = calls.ask(pynvml.nvmlDeviceGetNvLinkState, handle, link)
        if state is None:
            break
        (active if state else down).append(link)
    if not active and not down:
        return {}
    errors = _sum_fields(calls, handle, list(_ALL_LINK_ERRORS))
    if errors is None:
        per_link = [(field, link) for link in active for field in _LINK_ERRORS]
        errors = _sum_fields(calls, handle, per_link) if per_link else None
    return {
        "nvlink_active": len(active),
        "nvlink_down": tuple(down),
        "nvlink_errors_total": errors,
    }


def _sum_fields(calls: _Calls, handle: Any, fields: list[Any]) -> int | None:
    """Return the sum of the fields this GPU has; None when it has none of them."""
    values = calls.ask(pynvml.nvmlDeviceGetFieldValues, handle, fields)
    known = [value for value in values or () if value.nvmlReturn == pynvml.NVML_SUCCESS]
    return sum(int(value.value.ullVal) for value in known) if known else None


def _read_clocks(calls: _Calls, handle: Any) -> dict[str, Any]:
    reasons = calls.ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if reasons is None:
        # The name that drivers before 535 know it by.
        reasons = calls.ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return {
        "throttle": tuple(name for bit, name in _THROTTLE if (reasons or 0) & bit),
        "temperature_celsius": calls.ask(
            pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU
        ),
        "sm_clock_mhz": calls.ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        "sm_clock_max_mhz": calls.ask(
            pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM
        ),
        "memory_clock_mhz": calls.ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
    }


def _read_power(calls: _Calls, handle: Any) -> dict[str, Any]:
    """NVML speaks in milliwatts and millijoules."""
    power = calls.ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    limit = calls.ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    energy = calls.ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return {
        "power_w": None if power is None else power / 1000,
        "power_limit_w": None if limit is None else limit / 1000,
        "energy_j": None if energy is None else energy / 1000,
    }


def _read_bus(calls: _Calls, handle: Any) -> dict[str, Any]:
    return {
        "pcie_replays_total": calls.ask(pynvml.nvmlDeviceGetPcieReplayCounter, handle),
        "pcie_generation": calls.ask(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
        "pcie_lanes": calls.ask(pynvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        "pcie_lanes_max": calls.ask(pynvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
        "recovery_action": _read_recovery(calls, handle),
    }


def _read_recovery(calls: _Calls, handle: Any) -> int | None:
    values = calls.ask(
        pynvml.nvmlDeviceGetFieldValues, handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]
    )
    if values is None or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    return int(values[0].value.uiVal)


def _status_of(error: Any) -> ProbeStatus:
    if error.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
        return ProbeStatus.NO_NVML
    return ProbeStatus.NO_DRIVER


def _address(handle: Any) -> int:
    return int(ctypes.cast(handle, ctypes.c_void_p).value or 0)


def _text(value: bytes | str) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def _since(started_s: float) -> float:
    return round(time.monotonic() - started_s, 6)
