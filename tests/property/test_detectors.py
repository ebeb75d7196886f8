"""Whatever is fed to the panel: it answers, in bounded memory, and keeps its promises."""

from __future__ import annotations

import math
import pickle

from hypothesis import given, settings
from hypothesis import strategies as st
from midwatch.health.numerics.panel import Panel
from midwatch.health.numerics.point import Point
from midwatch.logbook.findings import Finding, Severity
from midwatch.tests.support.curves import (
    found,
    healthy,
    raised,
    rollbacks,
    severe,
    shift,
    spike,
    with_scaler,
)

anything = st.one_of(st.none(), st.floats())
points = st.lists(
    st.builds(
        Point,
        step=st.integers(0, 3000),
        loss=anything,
        grad_norm=anything,
        loss_scale=anything,
        activation_norm=anything,
        lr=anything,
        skipped=st.integers(0, 10),
    ),
    max_size=150,
)
RANK = {Severity.OBSERVE: 1, Severity.WARN: 2, Severity.ROLLBACK: 3}


def key(finding: Finding) -> tuple[object, ...]:
    """Compare findings with NaN equal to itself."""
    return (finding.detector, finding.severity, finding.step, finding.onset_step, finding.message)


@given(points)
@settings(max_examples=150, deadline=None)
def test_any_input_is_answered_the_same_way_twice(run: list[Point]) -> None:
    first = [key(finding) for finding in found(run)]
    assert first == [key(finding) for finding in found(run)]


@given(points)
@settings(max_examples=100, deadline=None)
def test_a_finding_never_begins_after_it_is_made(run: list[Point]) -> None:
    for point in (panel := Panel()) and run:
        for finding in panel.update(point):
            assert finding.onset_step <= finding.step == point.step
            assert finding.message


@given(st.integers(0, 10_000), st.sampled_from([0.003, 0.01, 0.03]), st.sampled_from([1, 20, 400]))
@settings(max_examples=40, deadline=None)
def test_healthy_runs_are_left_alone(seed: int, noise: float, every: int) -> None:
    run = healthy(700, seed=seed, noise_frac=noise, every=every, outlier_frac=0.005)
    assert severe(found(run)) == []


@given(
    st.integers(0, 10_000),
    st.integers(150, 500),
    st.floats(0.12, 20.0),
    st.sampled_from([1, 20, 400]),
)
@settings(max_examples=40, deadline=None)
def test_every_lasting_shift_is_rolled_back_within_ten_points(
    seed: int, first: int, height: float, every: int
) -> None:
    run = raised(healthy(first + 30, seed=seed, every=every), first, shift(height))
    calls = rollbacks(found(run))
    assert len(calls) == 1
    assert abs(calls[0].onset_step - (first + 1) * every) <= every
    assert calls[0].step <= (first + 10) * every


@given(st.integers(0, 10_000), st.integers(150, 500), st.floats(0.05, 20.0))
@settings(max_examples=40, deadline=None)
def test_no_single_spike_is_rolled_back(seed: int, first: int, height: float) -> None:
    run = raised(healthy(first + 60, seed=seed), first, spike(height, 1))
    assert severe(found(run)) == []


@given(st.integers(0, 10_000), st.integers(20, 400), st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_restarts_anywhere_cost_no_false_alarm(seed: int, crash: int, back: int) -> None:
    back = min(back, crash - 1)
    run = with_scaler(healthy(crash + 200, seed=seed))
    panel = Panel()
    findings = found(run[:crash], panel)
    panel.restarted(crash - back)
    findings += found(run[crash - back :], panel)
    assert severe(findings) == []


def test_memory_is_constant() -> None:
    panel = Panel()
    run = healthy(12_000, seed=3, outlier_frac=0.01)
    for index, point in enumerate(run):
        point.loss_scale, point.lr = 1024.0, 1e-4
        point.skipped = int(index % 500 == 0)
    found(run[:3000], panel)
    early = len(pickle.dumps(panel.__dict__))
    found(run[3000:], panel)
    assert len(pickle.dumps(panel.__dict__)) < 1.2 * early
    assert math.isfinite(early)
