"""Recorded failures: what struck when, as data that a run can be put under in the place of draws.

What a record does not say of a failure (its kind, its node, its time) is drawn from the seed.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ...logbook.errors import ConfigError
from . import failure_models as fm
from .training import Fragility

HOUR_S = 3600.0
CLUSTER = "cluster"
# Of what most runs report, a GPU or its host is the most.
_USUAL = (fm.GPU, fm.GPU, fm.GPU, fm.HOST, fm.SOFTWARE, fm.NETWORK)


class TraceEntry(msgspec.Struct, frozen=True):
    """A failure at a virtual second; effect as in strikes.EFFECTS, or "cluster" for all machines.

    effect, node: "" where they are to be drawn. hosts: nodes that it strikes at once. for_s: how
    long the cluster is away.
    """

    at_s: float
    effect: str = ""
    node: str = ""
    hosts: int = 1
    for_s: float = 0.0


class Trace(msgspec.Struct, frozen=True):
    """What struck a run. num_drawn: failures of which only the count is known, spread over span_s.

    fragile: stretches in which the rate was more than the run bore.
    """

    name: str
    source: str
    entries: tuple[TraceEntry, ...]
    num_drawn: int = 0
    span_s: float = 0.0
    fragile: tuple[Fragility, ...] = ()


def lay_out(trace: Trace, names: Sequence[str], seed: int) -> list[TraceEntry]:
    """Return every failure of a trace with its effect and node, in order; one entry a node."""
    rng = random.Random(f"{seed}/trace")
    drawn = [TraceEntry(rng.uniform(0.0, trace.span_s)) for _ in range(trace.num_drawn)]
    found: list[TraceEntry] = []
    for entry in (*trace.entries, *drawn):
        effect = entry.effect or rng.choice(_USUAL)
        if effect == CLUSTER:
            found.append(entry)
            continue
        nodes = [entry.node] if entry.node else rng.sample(list(names), entry.hosts)
        found += [TraceEntry(entry.at_s, effect, node) for node in nodes]
    return sorted(found, key=lambda entry: entry.at_s)


def read_trace(path: Path, names: Sequence[str]) -> Trace:
    """Return the failures of a CSV with the columns hours, effect, node; hosts, for_hours.

    Only hours since the start is needed; what else is left empty is drawn. names: of the nodes that
    the run has. Raises: ConfigError[trace-unreadable].
    """
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            entries = tuple(_entry(row, names) for row in csv.DictReader(lines))
        if not entries:
            raise ValueError("it has no row")
    except (OSError, UnicodeDecodeError, KeyError, ValueError, csv.Error) as error:
        raise ConfigError(
            "trace-unreadable",
            f"{path} holds no trace of failures: {error!r}.",
            remedy="Give a CSV with the column hours, since the start, and where they are known "
            f"effect ({', '.join((*fm.EFFECT_NAMES, CLUSTER))}), node ({names[0]} to {names[-1]}), "
            "hosts and for_hours.",
        ) from error
    return Trace(path.stem, f"{len(entries)} failures of {path.name}", entries)


def _entry(row: dict[str, str], names: Sequence[str]) -> TraceEntry:
    effect, node = (row.get(column) or "" for column in ("effect", "node"))
    if effect and effect not in (*fm.EFFECT_NAMES, CLUSTER):
        raise ValueError(f"effect {effect!r} is unknown")
    if node and node not in names:
        raise ValueError(f"node {node!r} is not of this run")
    hosts = int(row.get("hosts") or 1)
    if not 1 <= hosts <= len(names):
        raise ValueError(f"{hosts} hosts of {len(names)}")
    at_s, for_s = (_hours_s(row.get(column) or "0") for column in ("hours", "for_hours"))
    if not row["hours"].strip() or (effect == CLUSTER and not for_s):
        raise ValueError("hours, or for_hours of a cluster, is empty")
    return TraceEntry(at_s, effect, node, hosts, for_s)


def _hours_s(text: str) -> float:
    hours = float(text)
    if not 0.0 <= hours < math.inf:
        raise ValueError(f"{text} hours")
    return hours * HOUR_S
