"""Which checkpoints may go: a pure plan, and a deletion that a crash cannot leave half done.

Kept whatever the counts say: last_good, the newest verified one, the newest of all, pinned ones,
and those that a restart under way may load. Garbage (a directory whose save never finished) goes
only when its attempt is older than the current one: a younger one may still be being written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from .manifest import parse_checkpoint_id
from .store import CheckpointStore

HOUR_S = 3600.0


class Retained(msgspec.Struct, frozen=True, kw_only=True):
    """One committed checkpoint as retention sees it. verified as in last_good.Candidate.

    age_s: since its commit.
    """

    id: str
    step: int
    attempt: int
    age_s: float = 0.0
    verified: bool | None = None
    abandoned: bool = False


class RetentionRules(msgspec.Struct, frozen=True, kw_only=True):
    """keep_newest: that many of the current lineage; keep_every_steps: 0 keeps no milestones.

    A milestone is the first checkpoint at or after each multiple of keep_every_steps, of the
    current lineage. max_age_s: neither rule keeps what is older; None: age does not matter.
    """

    keep_newest: int = 3
    keep_every_steps: int = 0
    max_age_s: float | None = None


class Protected(msgspec.Struct, frozen=True, kw_only=True):
    """Checkpoints that must stay, whatever the rules say.

    in_use: candidates named in the start command of an attempt that has not resumed yet.
    wanted: (id, reason) of what else is needed.
    """

    last_good: str | None = None
    pins: Collection[str] = ()
    in_use: Collection[str] = ()
    wanted: Mapping[str, str] = {}


class RetentionPlan(msgspec.Struct, frozen=True):
    """(id, reason) of what goes, oldest first, and of what stays, newest first."""

    delete: tuple[tuple[str, str], ...]
    keep: tuple[tuple[str, str], ...]

    @property
    def delete_ids(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.delete)


def plan_retention(
    candidates: Sequence[Retained],
    rules: RetentionRules,
    protected: Protected,
    *,
    current_attempt: int,
    garbage: Collection[str] = (),
) -> RetentionPlan:
    """Return what to delete and what to keep, each with its reason.

    candidates: every committed checkpoint. garbage: names of directories without a manifest.
    current_attempt: checkpoints and garbage of a younger attempt are never touched; whoever plans
        here is out of date.
    """
    newest_first = sorted(candidates, key=lambda c: (c.step, c.attempt), reverse=True)
    kept = _reasons_to_keep(newest_first, rules, protected, current_attempt)
    delete = [(c.id, _reason_to_go(c, rules)) for c in reversed(newest_first) if c.id not in kept]
    delete += [
        (name, "its save never finished")
        for name in sorted(set(garbage).difference(c.id for c in candidates))
        if (parsed := parse_checkpoint_id(name)) is not None and parsed[1] < current_attempt
    ]
    return RetentionPlan(
        delete=tuple(delete),
        keep=tuple((c.id, kept[c.id]) for c in newest_first if c.id in kept),
    )


def _reason_to_go(candidate: Retained, rules: RetentionRules) -> str:
    if candidate.verified is False:
        return "failed verification"
    if candidate.abandoned:
        return "of an abandoned lineage"
    if _is_too_old(candidate, rules):
        return f"{candidate.age_s / HOUR_S:.1f} hours old"
    return f"past the newest {rules.keep_newest}"


def _is_too_old(candidate: Retained, rules: RetentionRules) -> bool:
    return rules.max_age_s is not None and candidate.age_s > rules.max_age_s


def _reasons_to_keep(
    newest_first: list[Retained], rules: RetentionRules, protected: Protected, current_attempt: int
) -> dict[str, str]:
    lineage = [c for c in newest_first if not c.abandoned and c.verified is not False]
    verified = [c for c in lineage if c.verified]
    kept: dict[str, str] = {}
    for c in newest_first:
        if c.id == protected.last_good:
            kept[c.id] = "last good"
        elif c.id in protected.pins:
            kept[c.id] = "pinned"
        elif c.id in protected.in_use:
            kept[c.id] = "a restart may load it"
        elif c.id in protected.wanted:
            kept[c.id] = protected.wanted[c.id]
        elif c.attempt > current_attempt:
            kept[c.id] = f"of attempt {c.attempt}, newer than {current_attempt}"
    among, milestones = lineage[: rules.keep_newest], _milestones(lineage, rules)
    for reason, chosen in (
        ("newest verified", verified[:1]),
        ("newest", lineage[:1] or newest_first[:1]),
        (f"among the newest {rules.keep_newest}", _of_age(among, rules)),
        (f"milestone of {rules.keep_every_steps} steps", _of_age(milestones, rules)),
    ):
        for c in chosen:
            kept.setdefault(c.id, reason)
    return kept


def _of_age(candidates: list[Retained], rules: RetentionRules) -> list[Retained]:
    return [c for c in candidates if not _is_too_old(c, rules)]


def _milestones(lineage: list[Retained], rules: RetentionRules) -> list[Retained]:
    every = rules.keep_every_steps
    if every <= 0:
        return []
    first: dict[int, Retained] = {}
    for c in reversed(lineage):
        first.setdefault(-(-c.step // every), c)
    return [c for window, c in first.items() if window > 0]


def plan_local(newest_first: Sequence[tuple[str, bool]], keep: int) -> tuple[str, ...]:
    """Return the checkpoints of which a node need no longer keep its part on its own disk.

    newest_first: (id, whether the store has the whole of it). What is not uploaded stays, whatever
        its age: there is no other copy. Of the others the newest keep stay, to be read quickly.
    """
    uploaded = [name for name, is_uploaded in newest_first if is_uploaded]
    return tuple(uploaded[max(keep, 0) :])


def apply_retention(plan: RetentionPlan, store: CheckpointStore) -> tuple[str, ...]:
    """Delete what the plan says, oldest first, and return the ids that are gone.

    One that cannot be deleted now does not hold up the others; the next plan names it again.
    """
    gone = []
    for name in plan.delete_ids:
        try:
            store.delete(name)
        except OSError:
            continue
        gone.append(name)
    return tuple(gone)


def collect_garbage(store: CheckpointStore, current_attempt: int) -> tuple[str, ...]:
    """Remove what dead attempts left unfinished, and deletions cut short; return what is gone."""
    listing = store.listing()
    plan = plan_retention(
        (), RetentionRules(), Protected(), current_attempt=current_attempt, garbage=listing.garbage
    )
    halves = tuple((name, "its deletion was interrupted") for name in listing.deleting)
    return apply_retention(RetentionPlan(delete=(*halves, *plan.delete), keep=()), store)
