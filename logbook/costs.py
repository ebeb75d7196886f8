"""What GPU time costs: energy, CO2e and, where a price is set, money.

kWh = GPU-hours x kW x PUE; CO2e = kWh x intensity of the grid, plus what idle GPUs draw, plus the
embodied share. What GPUs measured and what their declared power amounts to are kept apart.
Source: the accounting of OPT-175B (arXiv 2205.01068) and BLOOM (arXiv 2211.02001).
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from .state import Incident, RunState

JOULES_PER_KWH = 3.6e6
HOUR_S = 3600.0
# Fields of a Tariff and what the accounting section of a spec calls them.
_DECLARED = {
    "idle_watts": "gpu_idle_watts",
    "pue": "pue",
    "grid_g_per_kwh": "grid_g_per_kwh",
    "embodied_g_per_gpu_hour": "embodied_g_per_gpu_hour",
    "price_per_gpu_hour": "price_per_gpu_hour",
    "currency": "currency",
}


class Tariff(msgspec.Struct, frozen=True):
    """What a GPU-hour costs, as far as the spec says; 0 and None: not declared.

    gpu_watts, idle_watts: power of one GPU at work and at rest. pue: of the data centre.
    """

    gpu_watts: float = 0.0
    idle_watts: float = 0.0
    pue: float = 1.0
    grid_g_per_kwh: float | None = None
    embodied_g_per_gpu_hour: float = 0.0
    price_per_gpu_hour: float | None = None
    currency: str = "USD"


class Bill(msgspec.Struct, frozen=True):
    """What some GPU time cost. energy_kwh is at the meter of the data centre, PUE included.

    co2e_kg: None without an intensity of the grid. price: None without a price.
    """

    gpu_hours: float
    energy_kwh: float | None = None
    co2e_kg: float | None = None
    price: float | None = None


def tariff_of(spec: dict[str, Any]) -> Tariff:
    """Return what a run's spec declares; journals older than a field lack it."""
    nodes, accounting = spec.get("nodes") or {}, spec.get("accounting") or {}
    known = {name: accounting[key] for name, key in _DECLARED.items() if key in accounting}
    return Tariff(**{**known, "gpu_watts": float(nodes.get("gpu_watts") or 0.0)})


def bill_of(busy_gpu_s: float, idle_gpu_s: float, tariff: Tariff) -> Bill:
    """Return what GPU time costs by declared power."""
    joules = None
    if tariff.gpu_watts > 0:
        joules = busy_gpu_s * tariff.gpu_watts + idle_gpu_s * tariff.idle_watts
    return _bill((busy_gpu_s + idle_gpu_s) / HOUR_S, joules, tariff)


def measured_bill(state: RunState, gpu_s: float, tariff: Tariff) -> Bill | None:
    """Return what a run's GPUs measured, priced alike; None where they measured nothing."""
    joules = measured_j(state)
    return _bill(gpu_s / HOUR_S, joules, tariff) if joules is not None else None


def measured_j(state: RunState) -> float | None:
    """Return the energy that GPUs reported by NVML, None where none did."""
    return state.energy.measured_j if state.energy.nodes else None


def incident_gpu_s(state: RunState, incident: Incident) -> float:
    """Return the GPU-seconds lost to an incident, so far while it is not recovered.

    From the first sign to the first new step all ranks stood still; and the steps that were lost
    are trained again, at the median healthy step time.
    """
    if incident.is_watched or (incident.attempt_after is None and not incident.is_open):
        return 0.0
    until_s = incident.recovered_s
    if until_s is None:
        until_s = incident.closed_s if incident.closed_s is not None else state.time_s
    step_s = state.step_median.value or 0.0
    # Steps made in spite of the first sign are among those trained again.
    made = max(incident.step_before - incident.draft.step, 0) if incident.steps_lost else 0
    still_s = max(until_s - incident.draft.seen_s - made * step_s, 0.0)
    again_s = incident.steps_lost * step_s
    total_s = still_s + again_s
    return total_s * num_ranks(state) if math.isfinite(total_s) else 0.0


def num_ranks(state: RunState) -> int:
    """Return how many ranks the run has: of its attempt, else as its spec asks for."""
    if state.attempt is not None:
        return state.attempt.plan.mesh.world_size
    mesh = state.spec.get("mesh") or {}
    return int(mesh.get("dp_shard") or 0) * int(mesh.get("tp") or 1)


def bill_rows(bill: Bill, tariff: Tariff) -> list[tuple[str, str]]:
    """Return (what, amount) for people; what is not known is left out."""
    rows = [("GPU-hours", f"{bill.gpu_hours:,.4g}")]
    if bill.energy_kwh is not None:
        rows.append(("energy", f"{bill.energy_kwh:,.4g} kWh"))
    if bill.co2e_kg is not None:
        rows.append(("CO2e", f"{bill.co2e_kg:,.4g} kg"))
    if bill.price is not None:
        rows.append(("money", f"{money_text(bill.price)} {tariff.currency}"))
    return rows


def money_text(price: float) -> str:
    """Return an amount of money, to the cent, or to two digits where it is less than one."""
    return f"{price:,.2f}" if price >= 1 or not price else f"{price:.2g}"


def _bill(gpu_hours: float, joules: float | None, tariff: Tariff) -> Bill:
    price = tariff.price_per_gpu_hour
    kwh = joules / JOULES_PER_KWH * tariff.pue if joules is not None else None
    co2e_kg = None
    if kwh is not None and tariff.grid_g_per_kwh is not None:
        embodied_g = gpu_hours * tariff.embodied_g_per_gpu_hour
        co2e_kg = (kwh * tariff.grid_g_per_kwh + embodied_g) / 1000.0
    return Bill(gpu_hours, kwh, co2e_kg, gpu_hours * price if price is not None else None)
