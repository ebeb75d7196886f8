"""The panel: one finding per excursion, one verdict, modes, restarts, determinism."""

from __future__ import annotations

import math

import pytest
from midwatch.health.numerics.baseline import Baseline
from midwatch.health.numerics.config import (
    LevelShiftConfig,
    PanelConfig,
    PlateauConfig,
    SpikeConfig,
)
from midwatch.health.numerics.panel import Panel
from midwatch.health.numerics.point import Point
from midwatch.logbook.findings import Finding, Severity
from midwatch.tests.support.curves import (
    found,
    healthy,
    lr_kick,
    raised,
    rollbacks,
    severe,
    shift,
    spike,
    with_scaler,
)
from pydantic import ValidationError


def test_nothing_is_open_in_a_healthy_run() -> None:
    panel = Panel()
    found(healthy(300, seed=1), panel)
    assert panel.verdict.severity is None
    assert panel.verdict.evidence == ()


def test_the_verdict_follows_an_excursion_and_closes_with_it() -> None:
    panel = Panel()
    run = raised(healthy(900, seed=2), 600, spike(1.0, 30))
    seen: dict[int, Severity | None] = {}
    for point in run:
        panel.update(point)
        seen[point.step] = panel.verdict.severity
        if point.step == 615:
            assert panel.verdict.onset_step == 601
            assert panel.verdict.evidence[0].kind == "spike"
    assert [seen[step] for step in (600, 602, 606, 610)] == [
        None,
        Severity.OBSERVE,
        Severity.WARN,
        Severity.ROLLBACK,
    ]
    assert seen[650] is None


def test_one_excursion_gives_one_rollback_however_long_it_lasts() -> None:
    run = raised(healthy(780, seed=3), 600, shift(0.5))
    for point in run[640:]:
        point.loss = math.nan
    assert len(rollbacks(found(run))) == 1


def test_a_warning_repeated_soon_is_a_note() -> None:
    run = raised(raised(healthy(900, seed=4), 600, spike(1.0, 7)), 680, spike(1.0, 7))
    levels = [finding for finding in found(run) if finding.detector == "level-shift"]
    assert [finding.severity for finding in levels] == [Severity.WARN]


def test_independent_warnings_agree_on_a_rollback() -> None:
    run = with_scaler(healthy(900, seed=5), initial=4.0, fits=lambda i: 3.0 if i < 700 else 0.3)
    for index, point in enumerate(run):
        if index >= 705:
            assert point.activation_norm is not None
            point.activation_norm *= 1.2
    findings = found(run)
    call = rollbacks(findings)
    assert [(f.detector, f.kind) for f in call] == [("agreement", "activation-norm-trend")]
    assert call[0].onset_step == 706
    assert "scaler-collapse and activation-norm" in call[0].message


def test_gradients_and_scaler_alone_do_not_agree_on_a_rollback() -> None:
    run = with_scaler(healthy(900, seed=6), initial=4.0, fits=lambda i: 3.0 if i < 700 else 0.3)
    for index, point in enumerate(run):
        if index >= 705 and point.grad_norm is not None:
            point.grad_norm *= 4.0
    findings = found(run)
    assert {f.detector for f in severe(findings)} == {"scaler-collapse", "grad-norm"}
    assert rollbacks(findings) == []


def test_a_long_standing_warning_does_not_agree_with_a_new_one() -> None:
    run = with_scaler(healthy(900, seed=7), initial=4.0, fits=lambda i: 3.0 if i < 600 else 0.3)
    for index, point in enumerate(run):
        if index >= 750:
            assert point.activation_norm is not None
            point.activation_norm *= 1.2
    findings = found(run)
    assert {f.detector for f in severe(findings)} == {"scaler-collapse", "activation-norm"}
    assert rollbacks(findings) == []


def test_the_same_points_give_the_same_findings() -> None:
    assert found(lr_kick(200, seed=8)) == found(lr_kick(200, seed=8))


def test_after_a_rollback_to_an_early_step_the_higher_loss_there_is_no_excursion() -> None:
    panel = Panel()
    run = lr_kick(150, seed=9)
    assert rollbacks(found(run[:165], panel))
    panel.restarted(30)
    assert severe(found(run[30:150], panel)) == []
    assert panel.verdict.severity is None


def test_after_a_restart_the_same_divergence_is_called_again() -> None:
    panel = Panel()
    run = lr_kick(200, seed=10)
    first = rollbacks(found(run[:215], panel))[0]
    panel.restarted(150)
    second = rollbacks(found(run[150:215], panel))[0]
    assert (second.step, second.onset_step) == (first.step, first.onset_step)


@pytest.mark.parametrize("back", [10, 30, 200, 900])
def test_a_run_that_resumes_sick_is_called_within_ten_points(back: int) -> None:
    panel = Panel()
    run = healthy(1200, seed=16)
    assert severe(found(run, panel)) == []
    at = 1200 - back
    panel.restarted(at)
    findings = found(raised(run[at:], 0, shift(1.5)), panel)
    call = rollbacks(findings)[0]
    assert (call.onset_step, call.reference) == (at + 1, pytest.approx(2.4, rel=0.1))
    assert call.step - at <= 10


def test_a_run_that_resumes_sick_is_called_after_every_rollback() -> None:
    panel = Panel()
    run = healthy(1200, seed=17)
    found(run, panel)
    for at in (800, 600, 600):
        panel.restarted(at, numeric=True)
        sick = raised(healthy(1200, seed=17)[at : at + 60], 0, shift(1.5))
        assert [f.onset_step for f in rollbacks(found(sick, panel))] == [at + 1]


@pytest.mark.parametrize("at", [0, 10, 40, 150, 600, 1000])
def test_a_run_that_resumes_well_is_left_alone_wherever_it_goes_back_to(at: int) -> None:
    panel = Panel()
    run = healthy(1200, seed=18, noise_frac=0.02)
    found(run, panel)
    panel.restarted(at)
    assert severe(found(run[at:], panel)) == []


def test_what_a_loss_was_is_remembered_from_all_of_a_long_run() -> None:
    baseline = Baseline(16, 64, 12)
    for step in range(1, 20_001):
        baseline.accept(step, 2.0 + 2.0 / step)
    for at in (15_000, 5_000, 400):
        baseline.rewind(at)
        assert baseline.recalled == pytest.approx(2.0 + 2.0 / at, rel=0.01)


def test_a_step_that_goes_back_is_taken_for_a_restart() -> None:
    panel = Panel()
    run = raised(healthy(800, seed=11), 600, shift(0.5))
    assert rollbacks(found(run[:650], panel))
    again = healthy(800, seed=11)[500:]
    assert severe(found(again, panel)) == []


def test_a_shadow_detector_speaks_and_changes_nothing() -> None:
    config = PanelConfig(level_shift=LevelShiftConfig(mode="shadow"))
    panel = Panel(config)
    findings = found(raised(healthy(700, seed=12), 600, shift(0.5)), panel)
    shadows = [finding for finding in findings if finding.shadow]
    assert [finding.severity for finding in shadows] == [Severity.WARN, Severity.ROLLBACK]
    assert {finding.detector for finding in shadows} == {"level-shift"}
    assert rollbacks(f for f in findings if not f.shadow) == []
    assert panel.verdict.severity is Severity.OBSERVE


def test_shadow_findings_are_scored() -> None:
    panel = Panel(PanelConfig(level_shift=LevelShiftConfig(mode="shadow")))
    run = raised(healthy(3000, seed=13), 600, spike(1.0, 30))
    found(run, panel)
    tally = panel.precision("level-shift")
    assert (tally.raised, tally.confirmed, tally.refuted) == (2, 0, 2)
    assert tally.precision == 0.0
    again = raised(healthy(3400, seed=13), 3200, shift(1.0))[3000:3240]
    found(again, panel)
    panel.restarted(3100, numeric=True)
    tally = panel.precision("level-shift")
    assert (tally.raised, tally.confirmed) == (4, 2)
    assert tally.precision == 0.5


def test_a_restart_for_another_reason_confirms_nothing() -> None:
    panel = Panel(PanelConfig(level_shift=LevelShiftConfig(mode="shadow")))
    found(raised(healthy(620, seed=14), 600, shift(1.0)), panel)
    panel.restarted(500)
    tally = panel.precision("level-shift")
    assert (tally.raised, tally.confirmed, tally.precision) == (2, 0, None)


def test_modes_can_be_switched_in_flight() -> None:
    panel = Panel()
    run = raised(healthy(900, seed=15), 600, shift(0.5))
    panel.set_mode("level-shift", "off")
    assert severe(found(run[:700], panel)) == []
    assert panel.detectors["level-shift"] == "off"
    panel.set_mode("level-shift", "act")
    assert rollbacks(found(run[700:], panel))[0].onset_step == 601


def test_an_unknown_detector_cannot_be_switched() -> None:
    with pytest.raises(KeyError):
        Panel().set_mode("astrology", "off")


def test_every_detector_has_a_section_under_its_name() -> None:
    sections = set(PanelConfig.model_fields)
    assert {name.replace("-", "_") for name in Panel().detectors} - {"scaler_collapse"} <= sections
    assert "scaler" in sections


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError):
        PanelConfig.model_validate({"spike": {"open_z": -1}})
    with pytest.raises(ValidationError):
        PanelConfig.model_validate({"spikes": {}})
    assert PanelConfig.model_validate({"spike": {"open_z": 8}}).spike == SpikeConfig(open_z=8)


def test_what_is_not_set_keeps_the_default_of_its_own_section() -> None:
    changed = PanelConfig.model_validate(
        {"activation_norm": {"mode": "shadow", "jump": {"open_z": 9}}}
    ).activation_norm
    default = PanelConfig().activation_norm
    assert changed.warn_rise == default.warn_rise != PanelConfig().grad_norm.warn_rise
    assert changed.jump.min_rise_nats == default.jump.min_rise_nats
    assert (changed.mode, changed.jump.open_z) == ("shadow", 9)


def test_a_plateau_is_a_note_and_ends_with_progress() -> None:
    config = PanelConfig(plateau=PlateauConfig(stall_points=300))
    run = [Point(step=s, loss=3.0 - 0.001 * min(s, 400) + 0.01 * (s % 3)) for s in range(1, 1000)]
    run += [Point(step=s, loss=2.5 - 0.001 * (s - 1000)) for s in range(1000, 1300)]
    panel = Panel(config)
    findings: list[Finding] = []
    for point in run:
        findings += panel.update(point)
        if point.step == 990:
            assert panel.verdict.severity is Severity.OBSERVE
    assert [(f.kind, f.severity) for f in findings] == [("plateau", Severity.OBSERVE)]
    assert 380 <= findings[0].onset_step <= 450
    assert panel.verdict.severity is None


def test_points_without_anything_are_passed_over() -> None:
    panel = Panel()
    assert [panel.update(Point(step=step)) for step in range(200)] == [[]] * 200
