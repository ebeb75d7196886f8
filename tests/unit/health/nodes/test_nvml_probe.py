"""The NVML probe in its own process, against a stand-in driver and, where there is one, a real GPU.

The stand-in is a small C library that the real pynvml loads; its faults are set while it runs.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from midwatch.health.nodes.nvml_judge import carry, judge
from midwatch.health.nodes.probe import NvmlProbe, ProbeSettings
from midwatch.health.nodes.snapshot import GpuSnapshot, ProbeReport, ProbeStatus, XidSeen
from midwatch.tests.support.nvml_stub import NvmlStub, build, uuid_of

PATIENT = ProbeSettings(deadline_s=20.0, first_deadline_s=60.0, retry_delay_s=0.0)
HASTY = ProbeSettings(deadline_s=0.3, first_deadline_s=60.0, retry_delay_s=0.0)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler for the stand-in")
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def stub(library: Path, tmp_path: Path) -> NvmlStub:
    return NvmlStub(library, tmp_path / "control")


@pytest.fixture
def probe(stub: NvmlStub) -> Iterator[NvmlProbe]:
    probe = NvmlProbe(PATIENT, stub.environment)
    yield probe
    probe.close()


def actions(before: ProbeReport, after: ProbeReport) -> dict[tuple[str, str], str]:
    return {(f.kind, f.device): f.action for f in judge(before, after)}


@pytest.fixture(params=["stand-in", "real"])
def driver(request: pytest.FixtureRequest) -> Iterator[NvmlProbe]:
    """A probe on the stand-in, and one on this host's own driver where it has one."""
    if request.param == "stand-in":
        probe = NvmlProbe(PATIENT, request.getfixturevalue("stub").environment)
    else:
        probe = NvmlProbe(PATIENT)
        report = probe.sample()
        if report.status is not ProbeStatus.OK or not report.gpus:
            probe.close()
            pytest.skip(f"no NVIDIA GPU here: {report.status} {report.detail}")
    yield probe
    probe.close()


def test_a_healthy_driver_gives_whole_snapshots(driver: NvmlProbe) -> None:
    report = driver.sample()
    assert report.status is ProbeStatus.OK
    assert report.driver_version
    assert len({gpu.uuid for gpu in report.gpus}) == len(report.gpus) > 0
    for gpu in report.gpus:
        assert gpu.uuid.startswith("GPU-")
        assert gpu.name
        assert gpu.pci_address
        assert not gpu.lost
        assert gpu.failed_calls == ()
        assert gpu.temperature_celsius is not None
        assert 0 < gpu.temperature_celsius < 120
        assert gpu.power_w is not None
        assert gpu.power_w < 5000
        assert gpu.pcie_lanes is not None


def test_two_looks_at_a_healthy_driver_agree(driver: NvmlProbe) -> None:
    first, second = driver.sample(), driver.sample()
    assert [gpu.uuid for gpu in first.gpus] == [gpu.uuid for gpu in second.gpus]
    for before, after in zip(first.gpus, second.gpus, strict=True):
        if before.energy_j is not None and after.energy_j is not None:
            assert after.energy_j >= before.energy_j
    assert not [f for f in judge(first, second) if f.action in ("drain", "evict")]


def test_every_counter_is_read(stub: NvmlStub, probe: NvmlProbe) -> None:
    stub.set(
        "1.ecc_corrected_volatile 5", "1.ecc_uncorrected_volatile 1", "1.ecc_corrected_aggregate 9",
        "1.ecc_uncorrected_aggregate 2", "1.remapped_corrected 3", "1.remapped_uncorrected 4",
        "1.remap_pending 1", "1.remap_failed 1", "1.retired_single 2", "1.retired_double 1",
        "1.retirement_pending 1", "link_down 1 3", "1.nvlink_crc 7", "1.nvlink_replay 20",
        "1.nvlink_recovery 100", "1.throttle 68", "1.temperature 88", "1.sm_clock 345",
        "1.memory_clock 2619", "1.power_milliwatts 654321", "1.energy_millijoules 123456789",
        "1.pcie_replays 17", "1.pcie_lanes 8", "1.pcie_generation 4", "1.recovery_action 1",
    )  # fmt: skip
    assert probe.sample().gpus[1] == GpuSnapshot(
        index=1,
        uuid=uuid_of(1),
        serial="1650000000002",
        name="Stub GPU",
        pci_address="00000000:02:00.0",
        ecc_corrected_volatile_total=5,
        ecc_uncorrected_volatile_total=1,
        ecc_corrected_aggregate_total=9,
        ecc_uncorrected_aggregate_total=2,
        remapped_corrected_total=3,
        remapped_uncorrected_total=4,
        remap_pending=True,
        remap_failed=True,
        retired_pages_total=3,
        retirement_pending=True,
        nvlink_active=3,
        nvlink_down=(3,),
        nvlink_errors_total=127,
        throttle=("sw-power", "hw-thermal"),
        temperature_celsius=88,
        sm_clock_mhz=345,
        sm_clock_max_mhz=1980,
        memory_clock_mhz=2619,
        power_w=654.321,
        power_limit_w=700.0,
        energy_j=123456.789,
        pcie_replays_total=17,
        pcie_generation=4,
        pcie_lanes=8,
        pcie_lanes_max=16,
        recovery_action=1,
    )


def test_an_xid_is_reported_once_with_its_gpu(stub: NvmlStub, probe: NvmlProbe) -> None:
    before = probe.sample()
    stub.send_xid(1, 79)
    stub.send_xid(0, 31)
    after = probe.sample()
    assert after.xids == (XidSeen(79, uuid_of(1)), XidSeen(31, uuid_of(0)))
    assert actions(before, after) == {("xid", uuid_of(1)): "evict", ("xid", uuid_of(0)): "watch"}
    assert probe.sample().xids == ()


def test_a_lost_gpu_keeps_its_name_and_the_others_their_health(
    stub: NvmlStub, probe: NvmlProbe
) -> None:
    before = probe.sample()
    stub.set("lost 0")
    after = probe.sample()
    assert after.gpus[0].lost
    assert after.gpus[0].uuid == uuid_of(0)
    assert not after.gpus[1].lost
    assert actions(before, after) == {("gpu-lost", uuid_of(0)): "evict"}
    assert actions(after, probe.sample()) == {}


def test_a_gpu_lost_before_the_driver_was_opened_is_missed_by_name(
    stub: NvmlStub, probe: NvmlProbe
) -> None:
    before = probe.sample()
    stub.set("lost 0")
    probe.close()
    after = probe.sample()
    assert after.gpus[0].lost
    assert after.gpus[0].uuid == ""
    assert actions(before, after)[("gpu-lost", uuid_of(0))] == "evict"


def test_a_gpu_that_this_process_may_not_open_is_no_lost_one(
    stub: NvmlStub, probe: NvmlProbe
) -> None:
    """The driver counts the GPUs of other containers too, and refuses to open them."""
    stub.set("0.fail nvmlDeviceGetHandleByIndex_v2 4")
    report = probe.sample()
    assert [(gpu.index, gpu.uuid) for gpu in report.gpus] == [(1, uuid_of(1))]
    assert judge(None, report) == []
    stub.add("lost 1")
    assert actions(report, probe.sample()) == {("gpu-lost", uuid_of(1)): "evict"}


def test_a_gpu_that_cannot_be_opened_says_why_and_is_not_called_lost(
    stub: NvmlStub, probe: NvmlProbe
) -> None:
    stub.set(
        "0.fail nvmlDeviceGetHandleByIndex_v2 16",
        "1.fail nvmlDeviceGetHandleByIndex_v2 18",
    )
    report = probe.sample()
    assert not any(gpu.lost for gpu in report.gpus)
    assert [gpu.reset_required for gpu in report.gpus] == [True, False]
    assert report.gpus[1].failed_calls == ("nvmlDeviceGetHandleByIndex",)
    found = [(f.kind, f.action) for f in judge(None, report)]
    assert found == [("gpu-reset", "evict"), ("gpu-unopened", "watch")]


def test_a_gpu_that_opens_late_is_watched_from_then_on(stub: NvmlStub, probe: NvmlProbe) -> None:
    stub.set("1.fail nvmlDeviceGetHandleByIndex_v2 18")
    first, still = probe.sample(), probe.sample()
    assert [gpu.uuid for gpu in still.gpus] == [uuid_of(0), ""]
    assert actions(first, still) == {}
    stub.set()
    opened = probe.sample()
    assert [gpu.uuid for gpu in opened.gpus] == [uuid_of(0), uuid_of(1)]
    assert opened.gpus[1].failed_calls == ()
    assert actions(still, opened) == {}
    stub.send_xid(1, 79)
    assert probe.sample().xids == (XidSeen(79, uuid_of(1)),)


def test_a_gpu_that_turns_out_to_be_somebody_elses_is_left_out(
    stub: NvmlStub, probe: NvmlProbe
) -> None:
    stub.set("1.fail nvmlDeviceGetHandleByIndex_v2 18")
    before = probe.sample()
    assert len(before.gpus) == 2
    stub.set("1.fail nvmlDeviceGetHandleByIndex_v2 4")
    after = probe.sample()
    assert [gpu.uuid for gpu in after.gpus] == [uuid_of(0)]
    assert judge(before, after) == []


def test_a_function_the_driver_lacks_leaves_only_its_own_field_empty(
    stub: NvmlStub, probe: NvmlProbe
) -> None:
    stub.set("fail nvmlDeviceGetRemappedRows 3", "fail nvmlDeviceGetTemperature 999")
    gpu = probe.sample().gpus[0]
    assert gpu.remap_pending is None
    assert gpu.temperature_celsius is None
    assert gpu.failed_calls == ("nvmlDeviceGetTemperature",)
    assert gpu.ecc_corrected_volatile_total == 0


def test_a_gpu_that_wants_a_reset_says_so(stub: NvmlStub, probe: NvmlProbe) -> None:
    before = probe.sample()
    stub.set("fail nvmlDeviceGetTotalEccErrors 16")
    after = probe.sample()
    assert after.gpus[0].reset_required
    assert actions(before, after)[("gpu-reset", uuid_of(0))] == "evict"


def test_a_stuck_driver_call_is_cut_off_and_the_next_child_works(
    stub: NvmlStub, probe: NvmlProbe
) -> None:
    hasty = NvmlProbe(HASTY, stub.environment)
    before = hasty.sample()
    stuck_pid = hasty.pid
    assert stuck_pid is not None
    stub.set("block nvmlDeviceGetTemperature")
    stuck = hasty.sample()
    assert stuck.status is ProbeStatus.STUCK
    assert [f.action for f in judge(before, stuck)] == ["watch"]
    stub.set("lost 1")
    previous = carry(before, stuck)
    after = hasty.sample()
    hasty.close()
    assert after.status is ProbeStatus.OK
    assert ("gpu-lost", uuid_of(1)) in actions(previous, after)
    assert not _is_alive(stuck_pid)


def test_a_driver_stuck_from_the_first_call_on_is_seen(stub: NvmlStub) -> None:
    stub.set("block nvmlInitWithFlags")
    hasty = NvmlProbe(
        ProbeSettings(deadline_s=0.2, first_deadline_s=0.2, retry_delay_s=0.0), stub.environment
    )
    first, second = hasty.sample(), hasty.sample()
    hasty.close()
    assert first.status is second.status is ProbeStatus.STUCK
    assert [f.action for f in judge(first, second)] == ["drain"]


def test_after_a_failure_the_next_child_waits(stub: NvmlStub) -> None:
    now_s = [100.0]
    stub.set("crash nvmlInitWithFlags")
    probe = NvmlProbe(
        ProbeSettings(first_deadline_s=60.0, retry_delay_s=5.0), stub.environment, lambda: now_s[0]
    )
    assert probe.sample().status is ProbeStatus.DIED
    stub.set()
    assert probe.sample().status is ProbeStatus.DIED
    assert probe.pid is None
    now_s[0] += 5.0
    assert probe.sample().status is ProbeStatus.OK
    probe.close()


def test_a_child_that_is_killed_is_replaced(probe: NvmlProbe) -> None:
    assert probe.sample().status is ProbeStatus.OK
    assert probe.pid is not None
    os.kill(probe.pid, signal.SIGKILL)
    assert probe.sample().status is ProbeStatus.DIED
    assert probe.sample().status is ProbeStatus.OK


def test_a_driver_that_is_not_loaded_is_not_an_absent_library(
    stub: NvmlStub, probe: NvmlProbe
) -> None:
    stub.set("init 9")
    assert probe.sample().status is ProbeStatus.NO_DRIVER
    stub.set()
    assert probe.sample().status is ProbeStatus.OK


def test_a_host_without_nvml_is_told_apart(tmp_path: Path) -> None:
    """An empty file stands where the library would be, so a real one cannot be found either."""
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    probe = NvmlProbe(PATIENT, {"LD_LIBRARY_PATH": str(tmp_path)})
    report = probe.sample()
    probe.close()
    if report.status is ProbeStatus.OK:
        pytest.skip("the loader found this host's own driver past the empty file")
    assert report.status is ProbeStatus.NO_NVML
    assert judge(None, report) == []


def test_the_child_ends_with_its_parent_even_while_stuck(stub: NvmlStub) -> None:
    stub.set("block nvmlInitWithFlags")
    probe = NvmlProbe(HASTY, stub.environment)
    child = probe._start()
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.close()
    assert child.wait(timeout=60) == 0
    if child.stdout is not None:
        child.stdout.close()
    probe._child = None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
