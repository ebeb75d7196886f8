"""What GPU time costs, counted by hand, and what of it a spec declares."""

from __future__ import annotations

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.chronicle import Chronicle
from midwatch.logbook.costs import (
    Tariff,
    bill_of,
    bill_rows,
    incident_gpu_s,
    measured_bill,
    measured_j,
    tariff_of,
)
from midwatch.logbook.document import to_markdown
from midwatch.logbook.energy import AttemptEnergy, Energy
from midwatch.logbook.report import render_report
from midwatch.logbook.state import RunState
from midwatch.operator.spec_file import spec_data
from midwatch.tests.sim.night import Night
from midwatch.tests.support.builders import fold, make_spec


def test_energy_is_gpu_hours_times_power_times_pue() -> None:
    tariff = Tariff(400.0, 60.0, 1.5, 231.0, 10.0, 2.5)
    bill = bill_of(7200.0 * 100, 3600.0 * 100, tariff)
    assert bill.gpu_hours == pytest.approx(300.0)
    assert bill.energy_kwh == pytest.approx((200 * 0.4 + 100 * 0.06) * 1.5)
    assert bill.energy_kwh is not None
    assert bill.co2e_kg == pytest.approx((bill.energy_kwh * 231.0 + 300 * 10.0) / 1000)
    assert bill.price == pytest.approx(750.0)


def test_the_figure_published_for_opt_175b_comes_out() -> None:
    bill = bill_of(811_000 * 3600.0, 0.0, Tariff(gpu_watts=400.0))
    assert bill.energy_kwh == pytest.approx(324e3, rel=0.01)


def test_what_is_not_declared_is_not_told() -> None:
    assert [what for what, _ in bill_rows(bill_of(3600.0, 0.0, Tariff()), Tariff())] == [
        "GPU-hours"
    ]
    no_grid = bill_of(3600.0, 0.0, Tariff(gpu_watts=400.0))
    assert (no_grid.co2e_kg, no_grid.price) == (None, None)


def test_a_spec_declares_and_an_old_one_does_not() -> None:
    spec = make_spec(
        nodes={"gpu_watts": 400.0},
        accounting={"pue": 1.1, "grid_g_per_kwh": 57, "price_per_gpu_hour": 2, "currency": "EUR"},
    )
    expected = Tariff(400.0, 0.0, 1.1, 57.0, 0.0, 2.0, "EUR")
    assert tariff_of(spec_data(spec)) == expected
    assert tariff_of({}) == Tariff()


def test_a_run_whose_gpus_measure_nothing_has_no_measured_energy() -> None:
    state = fold([ev.RunSubmitted("night", {}, "", 1, "", "ann")])
    assert measured_j(state) is None
    assert measured_bill(state, 3600.0, Tariff()) is None


MEASURED = RunState(run="night", energy=Energy().add(1, AttemptEnergy(10.0, 7.2e6), "n0"))


def test_what_gpus_measured_is_told_beside_what_was_declared() -> None:
    bill = measured_bill(MEASURED, 3600.0, Tariff(400.0, pue=1.5, grid_g_per_kwh=100))
    assert bill is not None
    assert bill.energy_kwh == pytest.approx(2.0 * 1.5)
    assert bill.co2e_kg == pytest.approx(0.3)
    chronicle = Chronicle()
    chronicle.state = MEASURED
    title, blocks = render_report(chronicle, 0.0)
    assert "measured by the GPUs" in to_markdown(title, blocks, "figures")


def test_an_incident_costs_the_standstill_and_the_steps_trained_again() -> None:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(1)
    state = night.run_to_end()
    [incident] = state.incidents.values()
    assert incident.recovered_s is not None
    still_s = incident.recovered_s - incident.draft.seen_s
    step_s = state.step_median.value
    assert step_s is not None
    expected = (still_s + 3 * step_s) * night.spec.world_size
    assert incident_gpu_s(state, incident) == pytest.approx(expected)


def test_an_open_incident_costs_more_as_time_goes_by() -> None:
    night = Night(make_spec(nodes={"spares": 0}))
    night.run_to_step(43)
    night.world.absent["node-0"] = 1e9
    night.world.kill_agent("node-0", known_after_s=0.1)
    state = night.run(lambda s: bool(s.incidents))
    name = next(iter(state.incidents))

    def cost(state: RunState) -> float:
        return incident_gpu_s(state, state.incidents[name])

    early = cost(state)
    later = night.run_for(30.0)
    assert cost(later) >= early
