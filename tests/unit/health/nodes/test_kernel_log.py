"""Kernel log lines: what is seen in them, and what must not be."""

from __future__ import annotations

import pytest
from midwatch.health.nodes.kernel_log import parse_line, parse_quoted_xid
from midwatch.health.nodes.verdicts import Action, Blame
from midwatch.tests.support.recorded import recorded, recorded_rows

PREFIXES = (
    "",
    "[ 8123456.123456] ",
    "[Tue Apr  2 11:09:43 2024] ",
    "kern  :err   : 2025-02-10T16:28:06,502716+00:00 ",
    "Oct 16 20:47:19 gpu-07 kernel: ",
    "<4>[12.5] ",
)

# (line, component, action, device)
SEEN = [
    ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", "gpu_xid", "evict",
     "0000:3b:00"),
    ("NVRM: Xid (0000:03:00): 31, Ch 00000008, intr 10000000.", "gpu_xid", "watch", "0000:03:00"),
    ("NVRM: GPU 0000:29:00.0: GPU has fallen off the bus.", "gpu", "evict", "0000:29:00.0"),
    ("NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x22:0x56)", "gpu", "evict", "0000:01:00.0"),
    ("nvidia-nvswitch0: SXid (PCI:0000:00:00.0): 20034, Fatal, Link 30", "nvswitch", "evict",
     "0000:00:00.0"),
    ("nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32", "nvswitch", "watch",
     "0000:05:00.0"),
    ("pcieport 0000:16:02.0: AER: Uncorrected (Fatal) error received: 0000:16:02.0", "pcie",
     "evict", "0000:16:02.0"),
    ("pcieport 0000:16:02.0: PCIe Bus Error: severity=Corrected, type=Physical Layer", "pcie",
     "watch", "0000:16:02.0"),
    ("pcieport 0000:16:02.0: pciehp: Slot(7): Link Down", "pcie", "evict", "7"),
    ("EDAC MC0: 1 CE memory read error on CPU_SrcID#0", "host_mce", "watch", ""),
    ("EDAC MC1: 1 UE memory scrubbing error", "host_mce", "evict", ""),
    ("mce: [Hardware Error]: Machine check events logged", "host_mce", "watch", ""),
    ("CPU12: Package temperature above threshold, cpu clock throttled", "host_thermal", "watch",
     ""),
    ("watchdog: BUG: soft lockup - CPU#57 stuck for 23s! [kworker/57:1:88121]", "host_cpu_hang",
     "drain", "57"),
    ("INFO: task python3:1362 blocked for more than 241 seconds.", "host_cpu_hang", "watch",
     "python3:1362"),
    ("Kernel panic - not syncing: Fatal exception", "host_kernel_panic", "evict", ""),
    ("python3 invoked oom-killer: gfp_mask=0x140cca, order=0, oom_score_adj=985", "oom_host",
     "watch", "python3"),
    ("Out of memory: Killed process 40211 (python3) total-vm:1kB", "oom_host", "watch", "python3"),
    ("pt_main[25364]: segfault at 7f79 ip 00007f sp 00007f error 4 in libnccl.so.2[7f+d3]",
     "nccl_segfault", "watch", "pt_main[25364]"),
    ("python3[99]: segfault at 0 ip 00007f sp 00007f error 4 in libtorch_cpu.so[7f+d3]",
     "process_segfault", "watch", "python3[99]"),
    ("mlx5_core 0000:9a:00.0 ibp154s0: Link down", "network_ib", "watch", "0000:9a:00.0"),
    ("mlx5_core 0000:9a:00.0: device's health compromised - reached miss count", "network_ib",
     "evict", "0000:9a:00.0"),
    ("mlx5_core 0000:5c:00.0: Port module event[error]: module 2, Cable error, Cable is shorted",
     "network_ib", "watch", "0000:5c:00.0"),
    ("NETDEV WATCHDOG: ens1f0 (ice): transmit queue 3 timed out", "network_link", "watch",
     "ens1f0"),
    ("EXT4-fs (nvme0n1p1): Remounting filesystem read-only", "storage", "drain", "nvme0n1p1"),
    ("blk_update_request: I/O error, dev sda, sector 2048", "storage", "drain", "sda"),
    ("nvme nvme2: I/O 731 QID 12 timeout, reset controller", "storage", "drain", "nvme2"),
    ("nfs: server 10.0.0.5 not responding, still trying", "storage", "watch", "10.0.0.5"),
    ("LustreError: 11-0: fs0-OST0001: operation ost_write failed with -5", "storage", "watch", ""),
]  # fmt: skip

UNSEEN = [
    "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.183.01",
    "NVRM: NVLink link training completed",
    "NVRM Xid with non-numeric value",
    "nvidia-nvswitch0: SXid (PCI:0000:00:00.0): xyz, Fatal error",
    "EXT4-fs (sda1): mounted filesystem with ordered data mode",
    "nvme nvme0: pci function 0000:01:00.0",
    "nfs: server 7.247.192.16 starting",
    "mlx5_core: ACCESS_REG successful",
    "[<ffffffff8113b5b1>] oom_kill_process+0x201/0x3c0",
    "INFO: task xyz blocked for more than 60 seconds.",
    "mlx5_core 0000:9a:00.0 ibp154s0: Link up",
    "eth0: Link is Up - 100Gbps/Full",
    "",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("line", "component", "action", "device"), SEEN)
def test_a_telling_line_is_read_whatever_its_prefix(
    line: str, component: str, action: str, device: str, prefix: str
) -> None:
    event = parse_line(prefix + line)
    assert event is not None
    assert (event.component, event.action, event.device) == (component, action, device)


@pytest.mark.parametrize("line", UNSEEN)
def test_an_ordinary_line_is_left_alone(line: str) -> None:
    assert parse_line(line) is None


def test_a_line_blamed_on_the_program_costs_no_node() -> None:
    for line, *_ in SEEN:
        event = parse_line(line)
        assert event is not None
        if event.blame is Blame.CODE:
            assert event.action in (Action.IGNORE, Action.WATCH)


def test_a_code_carries_its_cause() -> None:
    event = parse_line("NVRM: Xid (PCI:0000:dc:00): 45, pid=1, Ch 1 caused by previous Xid 149")
    assert event is not None
    assert (event.code, event.cause, event.label) == (45, 149, "nvlink")


def test_a_report_may_quote_a_code_without_the_driver() -> None:
    event = parse_quoted_xid("node gpu-7 drained: Xid 79 on GPU 3")
    assert event is not None
    assert (event.code, event.action) == (79, Action.EVICT)
    assert parse_quoted_xid("XID numbers are explained elsewhere") is None


# What the matcher of each recorded line looks for in it; near misses beside them hold no such text.
_TELLING = {
    "gpu_xid": ("): ", "fallen off"),
    "nvlink": ("Xid (", "Failed to update"),
    "network_ib": ("[error]", "[warning]", "W).", "failed"),
    "nccl_segfault": ("in libnccl",),
    "gpu_peermem": ("ERROR detected invalid context",),
    "nvswitch": ("SXid (PCI:",),
    "host_cpu_hang": ("soft lockup - CPU#",),
    "host_kernel_panic": ("not syncing", "Kernel panic detected - CPU"),
}


def test_recorded_lines_go_to_their_component() -> None:
    rows = recorded_rows("kernel_log_lines", "gpud_fixture_lines.csv")
    same = {"nvlink": {"nvlink", "gpu_xid"}, "gpu_xid": {"gpu_xid", "gpu"}}
    checked = 0
    for row in rows:
        label, line = row["label_by_source_component"], row["line"]
        event = parse_line(line)
        if event is None or label not in _TELLING:
            continue
        if any(word in line for word in _TELLING[label]):
            assert event.component in same.get(label, {label}), line
            checked += 1
    assert checked >= 60


def test_a_recorded_log_tells_its_one_story() -> None:
    log = (recorded("kernel_log_lines") / "dmesg-with-xid-119.log").read_text()
    events = [event for event in map(parse_line, log.splitlines()) if event is not None]
    assert {event.code for event in events} == {119}
    assert {event.action for event in events} == {Action.EVICT}
