"""Cross-rank outliers: a rank that is wrong again and again, not one with an odd batch."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest
from midwatch.health.numerics.cross_rank import RankPoint
from midwatch.health.numerics.panel import Panel
from midwatch.logbook.findings import Finding, Severity


def step_of(step: int, ranks: int = 8, seed: int = 0) -> list[RankPoint]:
    """Ranks with their own batches, and shards whose gradients differ in size for good."""
    rng = random.Random(f"{seed}/{step}")
    return [
        RankPoint(
            rank,
            loss=2.2 * math.exp(rng.gauss(0, 0.03)),
            grad_norm=(0.1 + 0.3 * rank) * math.exp(rng.gauss(0, 0.05)),
            node=f"node-{rank // 2}",
        )
        for rank in range(ranks)
    ]


def watched(
    steps: int, spoil: Mapping[int, tuple[int, float]], ranks: int = 8, metric: str = "loss"
) -> list[Finding]:
    """Findings over so many steps; spoil: step -> (rank, factor on its metric)."""
    panel = Panel()
    findings = []
    for step in range(1, steps + 1):
        points = step_of(step, ranks)
        if step in spoil:
            rank, factor = spoil[step]
            setattr(points[rank], metric, getattr(points[rank], metric) * factor)
        findings += panel.update_ranks(step, points)
    return findings


def test_ranks_with_batches_of_their_own_are_healthy() -> None:
    assert watched(400, {}) == []


def test_one_odd_batch_is_a_note() -> None:
    findings = watched(300, {200: (3, 1.8)})
    assert [(f.rank, f.node, f.severity) for f in findings] == [(3, "node-1", Severity.OBSERVE)]


def test_odd_batches_on_different_ranks_stay_notes() -> None:
    findings = watched(300, {200: (3, 1.8), 201: (5, 1.8), 203: (1, 0.5)})
    assert {finding.severity for finding in findings} == {Severity.OBSERVE}


def test_a_gradient_that_is_wrong_again_and_again_is_suspected() -> None:
    findings = watched(300, {200: (3, 2.8), 203: (3, 3.1), 206: (3, 0.2)}, metric="grad_norm")
    call = findings[-1]
    assert (call.kind, call.rank, call.node) == ("cross-rank-outlier", 3, "node-1")
    assert (call.severity, call.onset_step, call.step) == (Severity.ROLLBACK, 200, 206)


@pytest.mark.parametrize("factor", [0.5, 1.6, 2.0])
def test_one_long_unusual_document_is_a_note(factor: float) -> None:
    findings = watched(300, dict.fromkeys(range(200, 220), (3, factor)))
    assert [(f.severity, f.onset_step) for f in findings] == [(Severity.OBSERVE, 200)]


def test_unusual_data_that_moves_the_gradient_too_is_a_note() -> None:
    panel = Panel()
    findings = []
    for step in range(1, 300):
        points = step_of(step)
        if 200 <= step < 220:
            points[3] = RankPoint(3, loss=4.4, grad_norm=4.0, node="node-1")
        findings += panel.update_ranks(step, points)
    assert [finding.severity for finding in findings] == [Severity.OBSERVE]


def test_a_loss_that_stays_out_of_place_is_warned_of_and_no_more() -> None:
    findings = watched(600, dict.fromkeys(range(200, 600), (3, 1.8)))
    assert [f.severity for f in findings] == [Severity.OBSERVE, Severity.WARN]
    assert findings[-1].onset_step == 200
    assert findings[-1].step <= 230


@pytest.mark.parametrize("factor", [math.nan, 0.0])
def test_a_batch_without_a_label_is_missing_data(factor: float) -> None:
    spoil = {step: (step % 8, factor) for step in range(50, 1000, 3)}
    assert watched(1000, spoil) == []


@pytest.mark.parametrize("factor", [math.nan, 0.0])
def test_a_rank_that_never_has_a_label_again_is_warned_of(factor: float) -> None:
    findings = watched(300, dict.fromkeys(range(200, 300), (6, factor)))
    assert [(f.rank, f.severity) for f in findings] == [(6, Severity.WARN)]


@pytest.mark.parametrize("factor", [math.inf, 1e6, 1e-6])
def test_a_value_that_no_batch_explains_is_warned_of_in_the_same_step(factor: float) -> None:
    findings = watched(300, {200: (6, factor)})
    assert [(f.rank, f.severity, f.step) for f in findings] == [(6, Severity.WARN, 200)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_rank_s_gradients_that_are_not_finite_are_no_data_s_doing(value: float) -> None:
    panel = Panel()
    findings = []
    for step in range(1, 40):
        points = step_of(step)
        if step > 30:
            points[2].loss, points[2].grad_norm = math.nan, value
        findings += panel.update_ranks(step, points)
    assert [(f.rank, f.severity, f.step) for f in findings] == [
        (2, Severity.WARN, 31),
        (2, Severity.ROLLBACK, 33),
    ]


def test_when_half_of_the_ranks_disagree_nobody_is_blamed() -> None:
    panel = Panel()
    findings = []
    for step in range(1, 300):
        points = step_of(step, ranks=4)
        for rank in (2, 3):
            if step > 200:
                points[rank].loss = 9.0
        findings += panel.update_ranks(step, points)
    assert findings == []


def test_nan_on_every_rank_is_nobody_s_fault() -> None:
    panel = Panel()
    findings = []
    for step in range(1, 60):
        points = step_of(step)
        for point in points:
            point.loss = math.nan if step > 50 else point.loss
        findings += panel.update_ranks(step, points)
    assert findings == []


def test_two_ranks_have_no_majority() -> None:
    assert watched(300, dict.fromkeys(range(200, 220), (0, 5.0)), ranks=2) == []
