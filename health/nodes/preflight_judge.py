"""From what every rank found in a preflight to a table of results and the nodes to blame.

A rank can say by itself that its memory lost a bit or its disk is full. That its product differs
from everybody else's, that its clock is off, or that it is the one at whose touch collectives fail
is seen only here, where all reports lie side by side. Pure.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ...logbook.preflight import (
    AWAY_CHECK,
    REACH_CHECK,
    SCRATCH_CHECK,
    CheckResult,
    GroupResult,
    PreflightDone,
    PreflightOrder,
)
from .grouping import (
    Group,
    GroupOutcome,
    GroupVerdict,
    judge_groups,
    odd_ones_out,
    reference_bandwidth,
)

DETECTOR = "preflight"
_KINDS = ("all-gather", "all-reduce")
STORE_CHECK = "store-write"
_EVICT = "Take it out of service and have it repaired; do not train on it."
_COMPARE = "Run again with another node beside them: two that disagree cannot be told apart."


class Silence(msgspec.Struct, frozen=True):
    """Why a rank sent no report. is_own: not merely because another rank could not be reached."""

    message: str
    is_own: bool = True


_UNEXPLAINED = Silence("no report before the deadline")


class PreflightVerdict(msgspec.Struct, frozen=True):
    """The outcome of one preflight.

    results: ordered by check, then rank. bad_nodes: certainly to blame for a failed check.
    suspect_nodes: one of them is, but the results cannot say which. doubtful: the failed results
    that are not certainly the fault of the node they name, be it a bad one by others.
    """

    results: tuple[CheckResult, ...]
    bad_nodes: tuple[str, ...] = ()
    suspect_nodes: tuple[str, ...] = ()
    doubtful: tuple[CheckResult, ...] = ()

    @property
    def is_ok(self) -> bool:
        """Whether every check passed."""
        return all(result.ok for result in self.results)


@dataclass(frozen=True)
class _Row:
    """A result, and whether a failed one is certainly its node's fault."""

    result: CheckResult
    is_certain: bool = True


@dataclass(frozen=True)
class _Tried:
    """One group as all of its ranks saw it. speeds: by kind, bytes/s of its slowest rank."""

    units: Group
    problem: str
    speeds: Mapping[str, float]


def judge_preflight(
    order: PreflightOrder,
    nodes: Sequence[str],
    reports: Mapping[int, PreflightDone],
    silent: Mapping[int, Silence],
) -> PreflightVerdict:
    """Return all results of a preflight and who is to blame for the failed ones.

    nodes: of every rank that was started, by rank. silent: what is known of ranks without a report.
    """
    rows = [_Row(result) for rank in sorted(reports) for result in reports[rank].results]
    rows = _not_the_node(rows)
    rows += _silent_rows(nodes, reports, silent)
    rows += _agreement_rows(reports)
    rows += _clock_rows(order, reports)
    rows += _group_rows(order, nodes, reports)
    failed = [row for row in rows if not row.result.ok]
    bad = {row.result.node for row in failed if row.is_certain}
    doubtful = [row.result for row in failed if not row.is_certain]
    suspects = {result.node for result in doubtful if result.name != SCRATCH_CHECK} - bad
    order_of = {node: index for index, node in reversed(list(enumerate(nodes)))}
    return PreflightVerdict(
        results=tuple(row.result for row in rows),
        bad_nodes=tuple(sorted(bad, key=order_of.__getitem__)),
        suspect_nodes=tuple(sorted(suspects, key=order_of.__getitem__)),
        doubtful=tuple(doubtful),
    )


def _not_the_node(rows: list[_Row]) -> list[_Row]:
    """A node is to blame for the store, which all share, only where most others could write to it.

    Two at least: one may have written before the store failed. A node alone proves nothing, nor
    does a store that only did not answer. A scratch folder that cannot be one is whoever named
    it's.
    """
    proves_nothing = {SCRATCH_CHECK, AWAY_CHECK}
    for check in (STORE_CHECK, REACH_CHECK):
        failed = {r.result.node for r in rows if r.result.name == check and not r.result.ok}
        wrote = {r.result.node for r in rows if r.result.name == check} - failed
        if len(wrote) <= max(len(failed), 1):
            proves_nothing.add(check)
    return [_Row(r.result, r.is_certain and r.result.name not in proves_nothing) for r in rows]


def _silent_rows(
    nodes: Sequence[str], reports: Mapping[int, PreflightDone], silent: Mapping[int, Silence]
) -> Iterable[_Row]:
    for rank, node in enumerate(nodes):
        if rank not in reports:
            why = silent.get(rank, _UNEXPLAINED)
            yield _Row(
                CheckResult(
                    name="answer",
                    node=node,
                    rank=rank,
                    ok=False,
                    quantity="reports_total",
                    value=0.0,
                    limit=1.0,
                    message=why.message,
                    remedy="Read its log; then look at the node's driver, memory and network.",
                ),
                is_certain=why.is_own,
            )


def _agreement_rows(reports: Mapping[int, PreflightDone]) -> Iterable[_Row]:
    kinds: dict[str, dict[int, str]] = {}
    for rank in sorted(reports):
        kinds.setdefault(reports[rank].kind, {})[rank] = reports[rank].checksum
    for checksums in kinds.values():
        if len(checksums) < 2:
            continue
        odd_ranks, is_certain = odd_ones_out(checksums)
        odd, counts = frozenset(odd_ranks), Counter(checksums.values())
        for rank, checksum in checksums.items():
            others = len(checksums) - counts[checksum]
            is_odd = rank in odd
            said = f"{others} of {len(checksums) - 1} other ranks of its kind have another product"
            result = CheckResult(
                name="matmul-agreement",
                node=reports[rank].node,
                rank=rank,
                ok=not is_odd,
                quantity="differing_ranks_total",
                value=float(others),
                limit=0.0,
                message=said if others else "",
                remedy="" if not is_odd else _EVICT if is_certain else _COMPARE,
            )
            # Ranks that agree with most are not to blame for those that do not.
            yield _Row(result, is_certain)


def _clock_rows(order: PreflightOrder, reports: Mapping[int, PreflightDone]) -> Iterable[_Row]:
    known = [r for rank, r in sorted(reports.items()) if r.clock_offset_s is not None]
    if len(known) < 2:
        return
    offsets = [report.clock_offset_s or 0.0 for report in known]
    # Between two clocks nobody can say which is right; among more the middle one is believed.
    middle = statistics.median(offsets) if len(known) > 2 else 0.0
    limit_s = order.limits.clock_skew_s_max
    for report, offset_s in zip(known, offsets, strict=True):
        skew_s = max(abs(offset_s - middle) - report.clock_error_s, 0.0)
        ok = skew_s <= limit_s
        reference = "the median node" if len(known) > 2 else f"{known[0].node} (or that one is off)"
        direction = "ahead of" if offset_s < middle else "behind"
        result = CheckResult(
            name="clock-skew",
            node=report.node,
            rank=None,
            ok=ok,
            quantity="skew_s",
            value=skew_s,
            limit=limit_s,
            message="" if ok else f"{skew_s:.3f} s {direction} {reference}",
            remedy="" if ok else "Start its time service (chrony, ntpd) and let it settle.",
        )
        yield _Row(result, is_certain=len(known) > 2)


# --- groups --------------------------------------------------------------------------------------


def _group_rows(
    order: PreflightOrder, nodes: Sequence[str], reports: Mapping[int, PreflightDone]
) -> list[_Row]:
    """Judge correctness and both speeds apart, so that noise in one never adds to another's."""
    looked_at = [
        _tried(order, reports, number, units)
        for number, groups in enumerate(order.rounds)
        for units in groups
    ]
    tried = [t for t in looked_at if t is not None]
    num_units = len(nodes) // order.ranks_per_unit
    names = [_name_of(order, nodes, unit) for unit in range(num_units)]
    sound = [GroupOutcome(t.units, not t.problem) for t in tried]
    verdict = judge_groups(num_units, sound)
    of_unit: list[list[_Tried]] = [[] for _ in range(num_units)]
    for one in tried:
        for unit in one.units:
            of_unit[unit].append(one)
    rows = [
        row for unit in range(num_units) for row in _exchange_rows(unit, names, of_unit, verdict)
    ]
    for kind in _KINDS:
        rows += _bandwidth_rows(order, kind, names, tried)
    return rows + [_link_row(names, units, tried) for units in verdict.links]


@dataclass(frozen=True)
class _Name:
    """What a unit is called: a node, or a rank of a node that has several units."""

    node: str
    rank: int | None

    @property
    def text(self) -> str:
        return self.node if self.rank is None else f"rank {self.rank}"


def _name_of(order: PreflightOrder, nodes: Sequence[str], unit: int) -> _Name:
    node = nodes[unit * order.ranks_per_unit]
    is_rank = order.ranks_per_unit == 1 and nodes.count(node) > 1
    return _Name(node, unit if is_rank else None)


def _tried(
    order: PreflightOrder, reports: Mapping[int, PreflightDone], number: int, units: Group
) -> _Tried | None:
    """Return what a group did, or None when one of its ranks cannot say.

    The others fail with a rank that died, and prove nothing against themselves by that.
    """
    seen: dict[int, GroupResult] = {}
    for rank in order.ranks_of(units):
        found = reports[rank].groups if rank in reports else ()
        own = next((g for g in found if g.round == number and g.units == units), None)
        if own is None:
            return None
        seen[rank] = own
    return _Tried(
        units=units,
        problem="; ".join(_problem(rank, own) for rank, own in seen.items() if not own.is_correct),
        speeds={
            "all-gather": min(own.all_gather_bytes_per_s for own in seen.values()),
            "all-reduce": min(own.all_reduce_bytes_per_s for own in seen.values()),
        },
    )


def _problem(rank: int, group: GroupResult) -> str:
    if group.wrong_from:
        senders = ", ".join(map(str, group.wrong_from))
        return f"rank {rank} received altered data of rank {senders}"
    if not group.is_sum_right:
        return f"rank {rank} received a wrong sum"
    return f"rank {rank}: {group.error}"


def _exchange_rows(
    unit: int, names: Sequence[_Name], of_unit: Sequence[Sequence[_Tried]], verdict: GroupVerdict
) -> Iterable[_Row]:
    mine = of_unit[unit]
    for alone in (t for t in mine if len(t.units) == 1):
        yield _alone_row(names[unit], alone)
    pairs = [t for t in mine if len(t.units) > 1]
    if pairs:
        yield _partner_row(unit, names, pairs, verdict)


def _alone_row(name: _Name, tried: _Tried) -> _Row:
    ok = not tried.problem
    return _Row(
        CheckResult(
            name="collectives-alone",
            node=name.node,
            rank=name.rank,
            ok=ok,
            quantity="failed_groups_total",
            value=float(not ok),
            limit=0.0,
            message=tried.problem,
            remedy="" if ok else _EVICT,
        )
    )


def _partner_row(
    unit: int, names: Sequence[_Name], pairs: Sequence[_Tried], verdict: GroupVerdict
) -> _Row:
    is_bad, is_suspect = unit in verdict.bad, unit in verdict.suspects
    failed = [
        f"with {' and '.join(names[u].text for u in t.units if u != unit)}: {t.problem}"
        for t in pairs
        if t.problem
    ]
    result = CheckResult(
        name="collectives",
        node=names[unit].node,
        rank=names[unit].rank,
        ok=not (is_bad or is_suspect),
        quantity="sound_partners_total",
        value=float(len(pairs) - len(failed)),
        limit=1.0,
        message="; ".join(failed),
        remedy=_EVICT if is_bad else _COMPARE if is_suspect else "",
    )
    return _Row(result, is_certain=is_bad)


def _bandwidth_rows(
    order: PreflightOrder, kind: str, names: Sequence[_Name], tried: Sequence[_Tried]
) -> Iterable[_Row]:
    """One row a unit and size of group: its best, against what groups of that size reach.

    A group without a result is no evidence about speed, and is left out.
    """
    for size, label in ((1, f"{kind}-bandwidth-alone"), (2, f"{kind}-bandwidth")):
        speeds = {t.units: t.speeds[kind] for t in tried if len(t.units) == size and not t.problem}
        reference = reference_bandwidth(speeds.values()) or 0.0
        limit = order.limits.bandwidth_frac_min * reference
        outcomes = [GroupOutcome(units, speed >= limit) for units, speed in speeds.items()]
        verdict = judge_groups(len(names), outcomes)
        best: dict[int, float] = {}
        for units, speed in speeds.items():
            for unit in units:
                best[unit] = max(speed, best.get(unit, 0.0))
        for unit, name in enumerate(names):
            if unit in best:
                slow = unit in verdict.bad or unit in verdict.suspects
                result = _bandwidth(label, name, best[unit], limit, slow)
                yield _Row(result, is_certain=unit in verdict.bad)


def _bandwidth(label: str, name: _Name, value: float, limit: float, slow: bool) -> CheckResult:
    return CheckResult(
        name=label,
        node=name.node,
        rank=name.rank,
        ok=not slow,
        quantity="bandwidth_bytes_per_s",
        value=value,
        limit=limit,
        message="far slower than others, whoever its partner" if slow else "",
        remedy="Look at its network cards, cables and PCIe link." if slow else "",
    )


def _link_row(names: Sequence[_Name], units: Group, tried: Sequence[_Tried]) -> _Row:
    problem = next(t.problem for t in tried if t.units == units)
    ends = " and ".join(names[unit].text for unit in units)
    result = CheckResult(
        name="link",
        node=names[units[0]].node,
        rank=names[units[0]].rank,
        ok=False,
        quantity="failed_groups_total",
        value=1.0,
        limit=0.0,
        message=f"{ends} work with others but not with each other: {problem}",
        remedy="Look at the switch and cables between them.",
    )
    return _Row(result, is_certain=False)
