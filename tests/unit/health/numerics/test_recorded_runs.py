"""The bars, on curves recorded in real runs; skipped where the recordings are not at hand."""

from __future__ import annotations

import math
from functools import cache

import pytest
from midwatch.logbook.findings import Severity
from midwatch.tests.support.curves import found, rollbacks, severe
from midwatch.tests.support.recorded_curves import (
    DATA,
    Event,
    Runs,
    Variant,
    algoperf,
    bert,
    find_marks,
    gnmt,
    llama,
    nanogpt,
    noisy,
    opt,
    recorded_marks,
    scaled,
    thinned,
    without_lr,
)

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the recorded runs (../shared/data) are not on this machine"
)


OTHER_LOGS: dict[str, Variant] = {
    "every second point": thinned(2, 1),
    "every fourth point": thinned(4, 2),
    "without a rate": without_lr,
    "a tenth of the loss": scaled(0.1),
    "noisier by 1 %": noisy(0.01),
}


@cache
def events() -> list[Event]:
    made = []
    for run, marks in recorded_marks().items():
        points = algoperf()[run]
        findings = found(points)
        made += [Event(mark, points, findings) for mark in marks]
    return made


def test_the_rule_that_marks_excursions_is_the_recorded_one() -> None:
    found_here = {name: marks for name, run in algoperf().items() if (marks := find_marks(run))}
    assert found_here == recorded_marks()


@pytest.mark.parametrize("collection", [bert, gnmt, llama, nanogpt])
def test_healthy_runs_are_left_alone(collection: object) -> None:
    assert callable(collection)
    runs: Runs = collection()
    findings = {name: severe(found(points)) for name, points in runs.items()}
    assert [f for said in findings.values() for f in rollbacks(said)] == []
    points = sum(len(run) for run in runs.values())
    assert sum(len(said) for said in findings.values()) <= points / 10_000


@pytest.mark.parametrize("name", OTHER_LOGS)
def test_healthy_runs_are_left_alone_in_other_logs_too(name: str) -> None:
    variant = OTHER_LOGS[name]
    points, findings = 0, []
    for collection in (bert, gnmt, llama, nanogpt):
        for run in collection().values():
            for changed in variant(run):
                points += len(changed)
                findings += severe(found(changed))
    assert rollbacks(findings) == []
    assert len(findings) <= points / 10_000


@pytest.mark.parametrize("name", OTHER_LOGS)
def test_excursions_are_called_in_other_logs_too(name: str) -> None:
    variant = OTHER_LOGS[name]
    seen = []
    for run in algoperf().values():
        for changed in variant(run):
            marks = find_marks(changed)
            findings = found(changed) if marks else []
            seen += [Event(mark, changed, findings) for mark in marks]
    lasting = [event for event in seen if event.lasted >= 10]
    assert sum(event.delay <= 10 for event in lasting) >= 0.9 * len(lasting) > 0
    single = [event for event in seen if event.lasted <= 1 and event.left >= 8]
    assert [event.delay for event in single] == [math.inf] * len(single)


def test_lasting_excursions_are_called_within_ten_points() -> None:
    lasting = [event for event in events() if event.lasted >= 10]
    assert len(lasting) > 20
    assert sum(event.delay <= 10 for event in lasting) >= 0.9 * len(lasting)


def test_every_excursion_that_does_not_heal_is_caught() -> None:
    unhealed = [event for event in events() if not event.recovered]
    assert unhealed
    for event in unhealed:
        assert event.seen
        # One that begins in the last points of its log has had no time to heal.
        assert event.delay < math.inf or event.left < 8


def test_spikes_of_a_single_point_are_not_rolled_back() -> None:
    single = [event for event in events() if event.lasted <= 1 and event.left >= 8]
    assert len(single) > 40
    assert [event.delay for event in single] == [math.inf] * len(single)


def test_the_scaler_of_opt_collapses_while_its_perplexity_is_flat() -> None:
    findings = found(opt())
    warned = [f.step for f in findings if f.detector == "scaler-collapse" and f in severe(findings)]
    assert any(35_400 <= step <= 36_300 for step in warned)
    assert any(37_200 <= step <= 37_350 for step in warned)
    about_loss = ("spike", "level-shift", "creep")
    assert [f for f in findings if f.detector in about_loss] == []
    assert all(f.severity is not Severity.ROLLBACK for f in findings if f.step < 36_000)
