"""Seeded nights: a storm of faults, then calm, in which the run must come to its end.

A failing seed is named with the command that plays it again, decision by decision.
"""

from __future__ import annotations

import pytest
from midwatch.logbook.state import Status
from msgspec.structs import replace

from .checkers import canonical
from .faults import ASKS, CHECKPOINT_ASKS, DRAWN, plan_of, play
from .plans import Fault, decode, encode, kept_nights
from .replay import command

KEPT = kept_nights()


@pytest.mark.parametrize("name", sorted(KEPT))
def test_a_night_that_once_failed(name: str) -> None:
    play(KEPT[name])


def test_a_kept_night_is_the_night_that_it_was() -> None:
    assert KEPT
    plan = plan_of(12)
    kept = decode(encode(plan))
    assert kept == plan
    assert play(kept).journal.lines == play(plan).journal.lines  # type: ignore[union-attr]


def test_older_seeds_draw_what_they_drew() -> None:
    # Whoever adds a kind of fault or a request to these turns every older seed into another night.
    assert (len(DRAWN), len(ASKS), len(CHECKPOINT_ASKS)) == (25, 19, 6)
    first = plan_of(7, with_disk=False).faults[0]
    assert (first.kind, first.index) == ("failing-start", 0)
    assert first.at_s == pytest.approx(11.22772080901143)


def test_a_controller_that_cannot_write_ends_and_the_next_one_goes_on() -> None:
    plan = plan_of(3, with_disk=False)
    faults = (Fault(20.0, "journal-fails", amount=0.9), Fault(30.0, "kill-worker"))
    night = play(replace(plan, faults=(*faults, Fault(30.0, "notes-fail", amount=0.9))))
    assert night.disk.num_failed > 2
    assert night.num_crashes == night.disk.num_failed
    assert night.state.end is Status.COMPLETED


def test_disk_faults_are_drawn_beside_the_others() -> None:
    drawn = {fault.kind for seed in range(30) for fault in plan_of(seed).faults}
    assert {"journal-fails", "notes-fail"} <= drawn


@pytest.mark.parametrize("seed", range(60))
def test_a_night(seed: int) -> None:
    try:
        play(plan_of(seed))
    except AssertionError as error:
        raise AssertionError(f"{error}\nto play it again: {command(seed)}") from error


def test_the_same_seed_gives_the_same_night_byte_for_byte() -> None:
    nights = [play(plan_of(11)) for _ in range(2)]
    first, second = (night.journal.lines for night in nights)  # type: ignore[union-attr]
    assert first == second
    assert canonical(nights[0].state) == canonical(nights[1].state)
