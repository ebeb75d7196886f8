"""The sections of the run spec that say what others are told of a run, and what GPU time costs."""

from __future__ import annotations

from pydantic import Field

from .spec_base import Section


class AccountingSpec(Section):
    """What GPU time costs. With nodes.gpu_watts, energy is reckoned from it."""

    gpu_idle_watts: float = Field(default=0.0, ge=0, le=10_000)
    """Power of one GPU that does nothing (about 60 for an A100); 0: not reckoned."""
    pue: float = Field(default=1.0, ge=1, le=5)
    """Power usage effectiveness of the data centre: what its meter shows over what machines use."""
    grid_g_per_kwh: float | None = Field(default=None, ge=0, le=2000)
    """Grams of CO2e per kWh of the grid (57 for BLOOM, 231 for OPT-175B); null: not reckoned."""
    embodied_g_per_gpu_hour: float = Field(default=0.0, ge=0, le=10_000)
    """Grams of CO2e that making the machines adds to each GPU-hour."""
    price_per_gpu_hour: float | None = Field(default=None, ge=0, le=10_000)
    """Money per GPU-hour; null: costs are not told in money."""
    currency: str = Field(default="USD", min_length=1, max_length=8, pattern=r"^[A-Za-z]+$")
    """What price_per_gpu_hour is in."""
