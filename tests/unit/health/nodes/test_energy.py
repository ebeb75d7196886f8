"""What GPUs used is added up from their counters, or from their power where they have none."""

from __future__ import annotations

import pytest
from midwatch.health.nodes.energy import EnergyMeter
from midwatch.health.nodes.snapshot import GpuSnapshot, ProbeReport, ProbeStatus


def look(*gpus: GpuSnapshot) -> ProbeReport:
    return ProbeReport(ProbeStatus.OK, gpus=gpus)


def gpu(name: str, energy_j: float | None = None, power_w: float | None = None) -> GpuSnapshot:
    return GpuSnapshot(index=0, uuid=name, energy_j=energy_j, power_w=power_w)


def test_counters_of_all_gpus_are_added_up_since_the_last_report() -> None:
    meter = EnergyMeter()
    meter.look(look(gpu("a", 1000.0), gpu("b", 5.0)), 10.0)
    meter.look(look(gpu("a", 1400.0), gpu("b", 305.0)), 11.0)
    first = meter.take(12.0)
    assert first is not None
    assert (first.joules, first.span_s, first.num_gpus) == (700.0, 2.0, 2)
    meter.look(look(gpu("a", 1500.0), gpu("b", 305.0)), 13.0)
    second = meter.take(14.0)
    assert second is not None
    assert (second.joules, second.span_s) == (100.0, 2.0)


def test_a_counter_that_was_reset_costs_one_gap_and_never_goes_below() -> None:
    meter = EnergyMeter()
    meter.look(look(gpu("a", 1000.0)), 0.0)
    meter.look(look(gpu("a", 3.0)), 1.0)
    meter.look(look(gpu("a", 53.0)), 2.0)
    use = meter.take(2.0)
    assert use is not None
    assert use.joules == 50.0


def test_power_stands_in_for_a_missing_counter_but_not_across_a_long_gap() -> None:
    meter = EnergyMeter()
    meter.look(look(gpu("a", None, 100.0)), 0.0)
    meter.look(look(gpu("a", None, 300.0)), 2.0)
    meter.look(look(gpu("a", None, 300.0)), 62.0)
    use = meter.take(62.0)
    assert use is not None
    assert use.joules == pytest.approx(400.0)


def test_a_gpu_that_vanishes_and_returns_is_counted_where_its_counter_tells() -> None:
    meter = EnergyMeter()
    meter.look(look(gpu("a", 10.0), gpu("b", 10.0)), 0.0)
    meter.look(look(gpu("a", 20.0)), 1.0)
    meter.look(look(gpu("a", 30.0), gpu("b", 90.0)), 2.0)
    use = meter.take(2.0)
    assert use is not None
    assert use.joules == 20.0


def test_a_node_without_meters_has_nothing_to_say() -> None:
    meter = EnergyMeter()
    meter.look(ProbeReport(ProbeStatus.NO_NVML), 0.0)
    meter.look(look(gpu("a")), 1.0)
    assert meter.take(2.0) is None
