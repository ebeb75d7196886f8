"""Two witnesses, one judgement: GPUs by one name, events said once, GPUs of others left out."""

from __future__ import annotations

import msgspec
from midwatch.health.nodes.node_judge import NodeJudge, Repeats, plain_pci, visible_gpus
from midwatch.health.nodes.snapshot import GpuSnapshot, ProbeReport, ProbeStatus, XidSeen
from midwatch.logbook.findings import Finding, Severity

XID_31 = "NVRM: Xid (PCI:0000:b3:00): 31, pid=1234, Ch 00000008, MMU Fault"
XID_79 = "NVRM: Xid (PCI:0000:b3:00): 79, pid=1234, GPU has fallen off the bus."


def report(*xids: XidSeen) -> ProbeReport:
    gpus = (
        GpuSnapshot(0, "GPU-a", "1", pci_address="00000000:B2:00.0"),
        GpuSnapshot(1, "GPU-b", "2", pci_address="00000000:B3:00.0"),
    )
    return ProbeReport(ProbeStatus.OK, gpus=gpus, xids=xids)


def test_both_witnesses_name_the_same_gpu_and_one_finding_remains() -> None:
    judge, repeats = NodeJudge(), Repeats()
    judge.look(report())
    (by_driver,) = judge.look(report(XidSeen(79, "GPU-b")))
    (by_kernel,) = judge.read([XID_79])
    assert by_driver.device == by_kernel.device == "GPU-b"
    assert by_driver.kind == by_kernel.kind == "xid"
    assert by_driver.value == by_kernel.value == 79.0
    assert by_kernel.action == "evict"
    assert repeats.is_new("node-0", by_driver, 100.0)
    assert not repeats.is_new("node-0", by_kernel, 100.4)
    assert repeats.is_new("node-1", by_kernel, 100.4)
    assert repeats.is_new("node-0", by_kernel, 200.0)


def test_a_word_that_asks_for_more_is_no_repeat() -> None:
    repeats = Repeats()
    assert repeats.is_new("n", finding("watch"), 0.0)
    assert repeats.is_new("n", finding("evict"), 0.1)
    assert not repeats.is_new("n", finding("drain"), 0.2)


def test_what_was_said_is_remembered_within_bounds() -> None:
    repeats = Repeats(keys_max=3)
    assert all(repeats.is_new(f"n{index}", finding("watch"), 0.0) for index in range(5))
    assert not repeats.is_new("n4", finding("watch"), 0.0)
    assert repeats.is_new("n0", finding("watch"), 0.0)


def test_gpus_of_others_on_the_machine_are_left_out() -> None:
    judge = NodeJudge(visible_gpus("0"))
    assert judge.look(report(XidSeen(79, "GPU-b"))) == []
    assert judge.read([XID_79]) == []
    assert [gpu.uuid for gpu in judge.gpus] == ["GPU-a"]
    assert [f.device for f in judge.read([XID_79.replace("b3", "b2")])] == ["GPU-a"]


def test_a_gpu_that_has_fallen_off_the_bus_stays_the_nodes_own() -> None:
    judge = NodeJudge()
    both = report()
    judge.look(both)
    judge.look(ProbeReport(ProbeStatus.OK, gpus=both.gpus[:1]))
    assert [gpu.uuid for gpu in judge.gpus] == ["GPU-a", "GPU-b"]


def test_ordinary_kernel_lines_say_nothing() -> None:
    assert NodeJudge().read(["usb 1-1: new high-speed device", "NVRM: loading driver"]) == []


def on_bus(line: str, bus: int) -> str:
    return line.replace("b3", f"{bus:02x}")


def test_one_event_in_a_thousand_lines_is_one_finding() -> None:
    assert len(NodeJudge().read([XID_79] * 5000)) == 1


def test_a_flood_is_cut_and_what_asks_for_most_is_kept() -> None:
    judge = NodeJudge()
    flood = [on_bus(XID_31, bus) for bus in range(200)]
    found = judge.read([*flood, on_bus(XID_79, 201), on_bus(XID_79, 202)])
    assert len(found) == 64
    assert [f.device for f in found if f.action == "evict"] == ["0000:c9:00", "0000:ca:00"]
    assert {f.action for f in found[2:]} == {"watch"}


def test_an_eviction_in_a_storm_of_lesser_events_is_not_cut_off() -> None:
    """What a look left out would never be said again: the fault is standing by the next one."""
    judge = NodeJudge()
    before = report()
    judge.look(before)
    lost = msgspec.structs.replace(before.gpus[1], lost=True)
    notes = [XidSeen(code, gpu.uuid) for gpu in before.gpus for code in (31, 45, 43)]
    storm = tuple(notes) * 20 + (XidSeen(79, "GPU-b"),)
    found = judge.look(ProbeReport(ProbeStatus.OK, gpus=(before.gpus[0], lost), xids=storm))
    said = {(f.kind, f.value, f.device, f.action) for f in found}
    assert {("xid", 79.0, "GPU-b", "evict"), ("gpu-lost", 1.0, "GPU-b", "evict")} <= said
    assert "ignore" not in {f.action for f in found}


def test_a_look_with_too_much_in_it_keeps_what_asks_for_most() -> None:
    judge = NodeJudge()
    gpus = tuple(GpuSnapshot(index, f"GPU-{index}") for index in range(80))
    judge.look(ProbeReport(ProbeStatus.OK, gpus=gpus))
    hot = [msgspec.structs.replace(gpu, throttle=("hw-thermal",)) for gpu in gpus[:-1]]
    lost = msgspec.structs.replace(gpus[-1], lost=True)
    found = judge.look(ProbeReport(ProbeStatus.OK, gpus=(*hot, lost)))
    assert len(found) == 64
    assert (found[0].kind, found[0].device) == ("gpu-lost", "GPU-79")


def test_visible_gpus_and_addresses_are_read_in_every_spelling() -> None:
    assert visible_gpus(None) is None
    assert visible_gpus("") is None
    assert visible_gpus("0, 3") == frozenset({"0", "3"})
    assert visible_gpus("MIG-1,MIG-2") is None
    assert plain_pci("00000000:B3:00.0") == plain_pci("0000:b3:00") == "0000:b3:00"
    assert plain_pci("eth0") == "eth0"


def finding(action: str) -> Finding:
    return Finding("nvml", "ecc", Severity.WARN, 0, 0, 1.0, 0.0, "", device="GPU-a", action=action)
