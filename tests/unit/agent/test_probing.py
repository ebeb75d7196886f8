"""A real agent looks at its node: a stand-in driver, a kernel log, and faults it must report."""

from __future__ import annotations

import logging
import shutil
import socket
import threading
from pathlib import Path

import pytest
from midwatch.health.nodes.probe import ProbeSettings
from midwatch.logbook.findings import Finding
from midwatch.operator.agent.probing import DRIVER_SIGNS, ProbeConfig
from midwatch.operator.agent.reports import EnergyUsed, NodeFindings
from midwatch.tests.support.agents import Site, site, wait_until
from midwatch.tests.support.nvml_stub import NvmlStub, build, uuid_of
from msgspec.structs import replace

XID_48 = "[12.5] NVRM: Xid (PCI:0000:01:00): 48, pid=77, An uncorrectable double bit error (DBE)\n"
PATIENT = ProbeSettings(deadline_s=20.0, first_deadline_s=60.0, retry_delay_s=0.1)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler for the stand-in")
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def stub(library: Path, tmp_path: Path) -> NvmlStub:
    return NvmlStub(library, tmp_path / "control")


def watching(stub: NvmlStub, kernel_log: str = "off") -> ProbeConfig:
    return ProbeConfig(
        gpus="on", kernel_log=kernel_log, period_s=0.1, env=stub.environment, settings=PATIENT
    )


def wait_finding(agent: Site, kind: str, detector: str) -> Finding:
    def has_it(report: NodeFindings) -> bool:
        return any(f.kind == kind and f.detector == detector for f in report.findings)

    found = agent.recorder.wait(NodeFindings, has_it)
    return next(f for f in found.findings if f.kind == kind)


def test_an_xid_becomes_a_report_of_the_agent(stub: NvmlStub, tmp_path: Path) -> None:
    with site(tmp_path, probe=watching(stub)) as agent:
        machine = agent.supervisor.machine(60.0)
        assert [gpu.uuid for gpu in machine.gpus] == [uuid_of(0), uuid_of(1)]
        stub.send_xid(1, 79)
        finding = wait_finding(agent, "xid", "nvml")
    assert (finding.value, finding.device, finding.action) == (79.0, uuid_of(1), "evict")


def test_energy_is_reported_once_a_period_and_put_down_to_its_attempt(
    stub: NvmlStub, tmp_path: Path
) -> None:
    stub.set("0.energy_millijoules 1000000", "1.energy_millijoules 2000000")
    probe = replace(watching(stub), energy_period_s=3600.0)
    with site(tmp_path, probe=probe) as agent:
        agent.supervisor.machine(60.0)
        agent.supervisor.start(agent.plan(4, ranks=()))
        # Nothing was used before this attempt began, as far as anybody has looked.
        before = agent.recorder.wait(EnergyUsed)
        assert (before.attempt, before.use.joules, before.use.num_gpus) == (-1, 0.0, 2)
        stub.set("0.energy_millijoules 1500000", "1.energy_millijoules 2250000")
        agent.supervisor.start(agent.plan(5, ranks=()))
        used = agent.recorder.wait(EnergyUsed, lambda report: report.attempt == 4)
    rest = [r.use.joules for r in agent.recorder.all_of(EnergyUsed) if r.attempt == 5]
    assert used.use.joules + sum(rest) == 750.0


def test_an_ecc_error_becomes_a_report_of_the_agent(stub: NvmlStub, tmp_path: Path) -> None:
    with site(tmp_path, probe=watching(stub)) as agent:
        agent.supervisor.machine(60.0)
        stub.set("0.ecc_uncorrected_volatile 1")
        finding = wait_finding(agent, "ecc", "nvml")
    assert (finding.device, finding.action) == (uuid_of(0), "drain")


def test_the_kernel_log_names_the_gpu_as_nvml_does(stub: NvmlStub, tmp_path: Path) -> None:
    log = tmp_path / "kern.log"
    log.write_text(XID_48)
    with site(tmp_path, probe=watching(stub, str(log))) as agent:
        agent.supervisor.machine(60.0)
        with log.open("a") as stream:
            stream.write(XID_48)
        finding = wait_finding(agent, "xid", "kernel-log")
        # What stood there before the agent came is no news.
        assert len(agent.recorder.all_of(NodeFindings)) == 1
    assert (finding.value, finding.device, finding.action) == (48.0, uuid_of(0), "evict")


@pytest.mark.parametrize("how", ["socket", "loop"])
def test_a_kernel_log_that_cannot_be_read_hides_no_gpu(
    stub: NvmlStub, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    log = tmp_path / "kern.log"
    log.write_text(XID_48)

    def is_said(words: str) -> bool:
        return any(words in r.getMessage() for r in caplog.records if "probing" in r.name)

    with site(tmp_path, probe=watching(stub, str(log))) as agent:
        agent.supervisor.machine(60.0)
        log.unlink()
        # Neither can be opened, by root either.
        if how == "socket":
            with socket.socket(socket.AF_UNIX) as blocking:
                blocking.bind(str(log))
        else:
            log.symlink_to(log)
        wait_until(lambda: is_said("the kernel log cannot be followed"), "the trouble is noticed")
        stub.set("0.ecc_uncorrected_volatile 1")
        assert wait_finding(agent, "ecc", "nvml").device == uuid_of(0)
        log.unlink()
        log.write_text(XID_48)
        assert wait_finding(agent, "xid", "kernel-log").device == uuid_of(0)
        assert is_said("the kernel log is followed again")


def test_a_stuck_driver_blocks_nobody(stub: NvmlStub, tmp_path: Path) -> None:
    hasty = ProbeConfig(
        gpus="on",
        kernel_log="off",
        period_s=0.1,
        env=stub.environment,
        settings=ProbeSettings(deadline_s=0.3, first_deadline_s=60.0, retry_delay_s=60.0),
    )
    with site(tmp_path, probe=hasty) as agent:
        agent.supervisor.machine(60.0)
        stub.set("block nvmlDeviceGetTemperature")
        finding = wait_finding(agent, "driver-stuck", "nvml")
        agent.supervisor.start(agent.plan(1, ranks=(0,), mode="sleep"))
        wait_until(lambda: agent.log(1, 0) != "", "a worker is born all the same")
    assert finding.action == "watch"


def test_a_host_without_a_driver_is_said_once_and_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if any(Path(sign).exists() for sign in DRIVER_SIGNS):
        pytest.skip("this host has a driver")
    with caplog.at_level(logging.INFO), site(tmp_path) as agent:
        assert agent.supervisor.machine(60.0).gpus == ()
        assert not any(thread.name.startswith("probe") for thread in threading.enumerate())
    lines = [r.getMessage() for r in caplog.records if "probing" in r.name]
    assert len(lines) == 1
    assert "GPUs are not watched" in lines[0]
    assert "the kernel log is not followed" in lines[0]
