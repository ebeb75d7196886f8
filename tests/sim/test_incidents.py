"""Recorded incidents, played: each as its own row says, and what is decided about it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from midwatch.logbook.errors import ConfigError
from midwatch.operator.cli.incidents import total_text
from midwatch.operator.simulation.incidents import Row, play_incidents, read_incidents
from midwatch.operator.simulation.recorded_curves import (
    Curve,
    lineages,
    read_gaps_hours,
    read_panels,
    usual_gap_hours,
)
from midwatch.operator.simulation.staging import Recorded, cure_of, physics_of, stage_of
from midwatch.tests.support.recorded import recorded

HEAD = (
    "id,run,kind,step,human_action,rollback_steps,lr_factor,outcome_class,symptom,outcome,date,"
    "gpus,step_s,gap_hours\n"
)
BARE = "id,run,kind,step,human_action,rollback_steps,lr_factor,outcome_class\n"
KNOWN = ",,,992,20,10\n"
TABLE = (
    HEAD + "a,A 1,divergence,~7010,rollback,800,1,failed,loss 6.4 -> 10.2 over 40 it" + KNOWN
    + "b,B 1,loss_scale_collapse,37k,restart,400,1,failed,scale collapses" + KNOWN
    + "c,C 1,spike,29050,none (watched),,1,recovered,loss 2.8 -> 3.7,in ~13 it,,992,20,10\n"
    + "d,D 1,hardware,,replace node,,1,resumed,ECC" + KNOWN
    + "e,E 1,hardware,,wait for nodes,,1,resumed,5 hosts down together and a buffer of 4"
    + KNOWN
    + "f,F 1,hardware,,AUTOMATIC recovery,,1,resumed,4 hardware failures,,2021-12-25..26"
    + ",992,20,10\n"
    + "g,G 2,divergence,900,new runs,,0.5,failed,loss 3 -> 5,,,,,\n"
    + "h,H 3,slow_divergence,900,rollback,,1,failed,loss drifts up from ~2.85 to 3.1 over ~1000"
    " it,,,992,20,\n"
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    path = tmp_path_factory.mktemp("incidents") / "table.csv"
    path.write_text(TABLE)
    return {row.incident.id: row for row in play_incidents(read_incidents(path))}


def test_each_row_has_its_own_answer(rows: dict[str, Row]) -> None:
    for name in ("a", "b"):
        assert rows[name].decided.startswith("rollback")
        assert rows[name].lr_factor < 1.0
        assert rows[name].recovered
        assert rows[name].lag_steps is not None
        assert 0 < rows[name].lag_steps < 60
    assert rows["c"].decided.startswith("noted")
    assert rows["c"].lr_factor == 1.0
    assert rows["c"].recovered
    assert rows["d"].decided == "restart: xid-79"
    assert rows["e"].decided == "restart: node-lost"
    assert rows["e"].stage.hosts == 5
    assert rows["f"].decided == "restart: xid-79 (x4)"


def test_what_the_record_says_no_lower_rate_cured_is_not_cured(rows: dict[str, Row]) -> None:
    assert not rows["g"].recovered
    assert "(x" in rows["g"].decided
    assert rows["g"].gpu_hours is None
    assert not rows["g"].is_assumed


def test_a_drift_over_a_thousand_steps_is_played_as_one(rows: dict[str, Row]) -> None:
    slow, fast = rows["h"].lag_steps, rows["a"].lag_steps
    assert slow is not None
    assert fast is not None
    assert slow > 10 * fast


def test_what_is_saved_is_what_people_lost_less_what_is_lost_now(rows: dict[str, Row]) -> None:
    collapse = rows["b"]
    assert collapse.incident.step == 37_000
    assert collapse.people_gpu_hours == pytest.approx((10.0 + 400 * 20 / 3600) * 992)
    assert collapse.gpu_hours is not None
    assert 0 < collapse.gpu_hours < collapse.people_gpu_hours
    assert rows["c"].people_gpu_hours == 0.0
    # A spike that heals costs nothing: what the start and the saves took is not charged to it.
    assert rows["c"].gpu_hours == pytest.approx(0.0, abs=992 * 40 / 3600)
    assert rows["f"].people_gpu_hours == 0.0
    assert rows["f"].saved_gpu_hours == 0.0
    # Of these runs GPUs, step or gap are not known.
    assert rows["g"].saved_gpu_hours is rows["h"].saved_gpu_hours is None


def test_the_total_says_what_it_rests_on(rows: dict[str, Row]) -> None:
    text = total_text(list(rows.values()))
    assert (
        "8 incidents: 7 recovered in the simulation, 3 of them only if a lower rate cures" in text
    )
    assert "1 did not recover" in text
    assert "saved in the 6 whose" in text


def told(**fields: str) -> Recorded:
    known = {"id": "x", "run": "m 1", "kind": "spike", "action": "", "lr_factor": "1"}
    return Recorded(step=10, rollback_steps=None, **{"outcome": "failed", **known, **fields})  # type: ignore[arg-type]


def test_a_spike_is_as_high_and_heals_as_slowly_as_it_did() -> None:
    symptom = "loss 2.77 -> 7.3 -> 8.7; loss scale 65536 -> 4096"
    spike = told(symptom=symptom, story="RECOVERED by itself in ~500 iterations")
    physics = physics_of(stage_of(spike, [spike]))
    assert physics.bumps == ((700, pytest.approx(5.93)),)
    assert physics.heal**500 == pytest.approx(0.01)
    assert math.isinf(physics.no_return)
    three = told(symptom="3 earlier loss spikes", story="RECOVERED quickly")
    stage = stage_of(three, [three])
    assert len(physics_of(stage).bumps) == 3
    assert {"height", "healing"} <= set(stage.assumed)


def test_what_is_known_of_a_lower_rate_is_taken_from_the_row_its_step_and_its_family() -> None:
    tried = told(kind="divergence", lr_factor="0.8", outcome="recovered")
    same_step = told(kind="divergence", run="m 2")
    record = [tried, same_step]
    assert cure_of(tried, record).bearable == pytest.approx(0.81)
    assert cure_of(same_step, record).source == "recorded"
    failed = told(kind="divergence", run="n 1", lr_factor="1,0.5", outcome="failed")
    kin = told(kind="divergence", run="n 2")
    assert cure_of(kin, [failed, kin]).bearable == 0.0
    assert cure_of(told(kind="divergence", run="o 1"), record).source == "assumed"


def test_a_curve_speaks_for_its_own_run_and_says_so_where_nothing_is_called(
    tmp_path: Path,
) -> None:
    assert lineages("OPT-175B 12.43->12.44") == {"12"}
    assert lineages("OPT-175B 12.x") == {"12"}
    assert not lineages("tr8b-104B emb-norm-1")
    rows = "".join(f"ppl,run12.3,{step},20\n" for step in range(100, 3000, 10))
    rows += "".join(
        f"loss_scale,run12.3,{s},{1.0 if s < 2500 else 0.1}\n" for s in (100, 2000, 2500)
    )
    (tmp_path / "curve.csv").write_text("panel,run,step,value_mid\n" + rows)
    curve = read_panels(tmp_path / "curve.csv")
    assert curve.shows("OPT-175B 12.3", 2000)
    assert not curve.shows("OPT-175B 11.3", 2000)
    assert not curve.shows("OPT-175B 12.3", 4000)
    table = (
        BARE
        + "a,OPT-175B 12.3,hardware,2400,,,1,resumed\nb,OPT-175B 12.3,hardware,500,,,1,resumed\n"
        "c,BLOOM 1,hardware,500,,,1,resumed\n"
    )
    (tmp_path / "table.csv").write_text(table)
    near, far, other = play_incidents(read_incidents(tmp_path / "table.csv"), curve)
    assert (near.curve_call, near.curve_lag_steps) == ("warn: scaler-collapse", 100)
    assert (far.curve_call, far.curve_lag_steps) == ("not called", None)
    assert other.curve_call is None


def test_the_recorded_incidents_of_real_runs_all_have_an_answer() -> None:
    folder = recorded("policy_incidents")
    curves = recorded("opt175b_digitised")
    incidents = read_incidents(folder / "incidents.csv")
    curve = read_panels(curves / "opt175b_run12.12-12.42.csv")
    hours = usual_gap_hours(curves / "opt175b_run12_active_intervals.csv")
    assert hours == pytest.approx(12.1)
    chosen = [incidents[index] for index in (1, 3, 5, 8, 11, 21)]
    found = play_incidents(chosen, curve, hours)
    assert [row.decided.partition(":")[0] for row in found] == [
        "rollback", "rollback", "rollback", "restart", "rollback", "rollback",
    ]  # fmt: skip
    assert [row.recovered for row in found] == [False, True, True, True, False, True]
    # The collapse of the loss scale at 37,400 is warned of on the run's own curve.
    assert [row.curve_lag_steps for row in found] == [None, -107, -107, None, None, None]
    assert [row.saved_gpu_hours is not None for row in found] == [
        False, True, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", HEAD, "id,run\n1,2\n", BARE.strip() + ",gpus\na,b,c,,,,,,-1\n"]
)
def test_what_is_no_table_of_incidents_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_incidents(path)
    assert caught.value.code == "incidents-unreadable"


def test_what_are_no_gaps_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gaps.csv").write_text("gap_hours_to_next\n\n")
    with pytest.raises(ConfigError) as caught:
        read_gaps_hours(tmp_path / "gaps.csv")
    assert caught.value.code == "gaps-unreadable"
    assert not Curve(frozenset(), ()).shows("a 1.2", 5)
