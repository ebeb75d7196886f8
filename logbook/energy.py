"""How much energy a run has used, attempt by attempt and node by node; joules throughout.

What GPUs say of themselves is kept apart from what a declared power per GPU amounts to: the one is
measured and may be missing, the other is always there and only as good as the declaration.
Source: facts behind OPT-175B and BLOOM (arXiv 2211.02001), which count GPU-hours times 0.4 kW.
"""

from __future__ import annotations

import msgspec

MAX_ATTEMPTS_KEPT = 256
EARLIER = 0
"""The number under which attempts too old to be kept apart are added up, and what was used before
the first."""


class AttemptEnergy(msgspec.Struct, frozen=True):
    """One attempt. rank_s: ranks times seconds, of the time until it ended; measured_j: by GPUs."""

    rank_s: float = 0.0
    measured_j: float = 0.0

    def plus(self, other: AttemptEnergy) -> AttemptEnergy:
        return AttemptEnergy(self.rank_s + other.rank_s, self.measured_j + other.measured_j)


class Energy(msgspec.Struct, frozen=True):
    """The energy account of a run. nodes: measured joules by node."""

    attempts: dict[int, AttemptEnergy] = {}
    nodes: dict[str, float] = {}

    @property
    def measured_j(self) -> float:
        return sum(self.nodes.values())

    @property
    def rank_s(self) -> float:
        return sum(each.rank_s for each in self.attempts.values())

    def add(self, attempt: int, more: AttemptEnergy, node: str = "") -> Energy:
        """Return the account with more in it; the oldest attempts are added up in the end."""
        known = self.attempts.get(attempt, AttemptEnergy())
        attempts = {**self.attempts, attempt: known.plus(more)}
        while len(attempts) > MAX_ATTEMPTS_KEPT:
            oldest = min(number for number in attempts if number != EARLIER)
            earlier = attempts.get(EARLIER, AttemptEnergy()).plus(attempts.pop(oldest))
            attempts[EARLIER] = earlier
        nodes = self.nodes
        if node:
            nodes = {**nodes, node: nodes.get(node, 0.0) + more.measured_j}
        return Energy(attempts, nodes)


class EnergySummary(msgspec.Struct, frozen=True):
    """Energy in figures. None where GPUs did not say, or no power was declared.

    declared_j: of ranks only, while they were at work; a spare's idling is not in it.
    by_attempt: (attempt, measured, declared) in joules; attempt 0 stands for EARLIER.
    by_node: measured joules, spares included.
    """

    measured_j: float | None = None
    declared_j: float | None = None
    by_attempt: tuple[tuple[int, float | None, float | None], ...] = ()
    by_node: dict[str, float] = {}


def summarize_energy(energy: Energy, gpu_watts: float) -> EnergySummary:
    """Return the account in figures. gpu_watts: declared power of one GPU, 0 when it is unknown."""
    is_measured = bool(energy.nodes)
    rows = tuple(
        (
            number,
            each.measured_j if is_measured else None,
            each.rank_s * gpu_watts if gpu_watts > 0 else None,
        )
        for number, each in sorted(energy.attempts.items())
    )
    if not is_measured and gpu_watts <= 0:
        return EnergySummary()
    return EnergySummary(
        measured_j=energy.measured_j if is_measured else None,
        declared_j=energy.rank_s * gpu_watts if gpu_watts > 0 else None,
        by_attempt=rows,
        by_node=dict(sorted(energy.nodes.items())),
    )


def energy_text(joules: float | None) -> str:
    """Return an amount in the unit a person would use, "-" where it is not known."""
    if joules is None:
        return "-"
    if joules < 3.6e5:
        return f"{joules:,.0f} J"
    return f"{joules / 3.6e6:,.3g} kWh" if joules < 3.6e9 else f"{joules / 3.6e9:,.4g} MWh"
