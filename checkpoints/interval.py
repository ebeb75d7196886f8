"""How often to save: closed forms for exponentially distributed failures.

Symbols: M mtbf_s, mean time between failures of the whole job; d stall_s, what one save costs the
loop; tau, the time between the end of one save and the start of the next; D downtime_s before a
restart begins; R restart_s, from then until training goes on. All in seconds.
Source: the exact form follows from E[T_segment] = (M + D) e^(R/M) (e^((tau + d)/M) - 1); Young
1974; Daly 2006.
"""

from __future__ import annotations

import math

_NEWTON_STEPS = 64


def optimal_interval_s(stall_s: float, mtbf_s: float) -> float:
    """Return tau* = M (1 + W0(-exp(-d/M - 1))), which loses least time to saves and failures.

    W0 is the principal branch of Lambert's W. Its argument lies next to the branch point -1/e for
    every realistic d/M, where W0 itself loses half its digits, so x = tau/M is solved for directly:
    the definition turns into x + log(1 - x) = -d/M with x in (0, 1).
    Raises: ValueError unless stall_s >= 0 and mtbf_s > 0.
    """
    _check(stall_s, mtbf_s)
    if stall_s == 0.0:
        return 0.0
    ratio = stall_s / mtbf_s
    # Young's form is the root's leading term; past d = M the root creeps up to 1.
    x = min(math.sqrt(2.0 * ratio), -math.expm1(-ratio - 1.0))
    for _ in range(_NEWTON_STEPS):
        gap = x + math.log1p(-x) + ratio
        following = min(max(x + gap * (1.0 - x) / x, x / 2.0), (1.0 + x) / 2.0)
        if abs(following - x) <= 1e-15 * x:
            break
        x = following
    return mtbf_s * x


def young_interval_s(stall_s: float, mtbf_s: float) -> float:
    """Return sqrt(2 d M), Young's first-order optimum."""
    _check(stall_s, mtbf_s)
    return math.sqrt(2.0 * stall_s * mtbf_s)


def daly_interval_s(stall_s: float, mtbf_s: float) -> float:
    """Return sqrt(2 d M) - d, Daly's first-order optimum."""
    return young_interval_s(stall_s, mtbf_s) - stall_s


def daly_higher_order_interval_s(stall_s: float, mtbf_s: float) -> float:
    """Return Daly's higher-order optimum; M itself from d = 2 M on."""
    _check(stall_s, mtbf_s)
    if stall_s >= 2.0 * mtbf_s:
        return mtbf_s
    half = stall_s / (2.0 * mtbf_s)
    series = 1.0 + math.sqrt(half) / 3.0 + half / 9.0
    return math.sqrt(2.0 * stall_s * mtbf_s) * series - stall_s


def expected_ettr_frac(
    interval_s: float,
    stall_s: float,
    mtbf_s: float,
    *,
    restart_s: float = 0.0,
    downtime_s: float = 0.0,
) -> float:
    """Return tau / E[T_segment], the share of wall time that ends up in the final lineage."""
    _check(stall_s, mtbf_s)
    if interval_s <= 0.0:
        return 0.0
    per_segment = (mtbf_s + downtime_s) * math.exp(restart_s / mtbf_s)
    return interval_s / (per_segment * math.expm1((interval_s + stall_s) / mtbf_s))


def _check(stall_s: float, mtbf_s: float) -> None:
    if not (stall_s >= 0.0 and mtbf_s > 0.0):
        raise ValueError(f"stall_s {stall_s} must be >= 0 and mtbf_s {mtbf_s} must be > 0")
