"""Recorded incidents, played: what is decided about each kind of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from midwatch.logbook.errors import ConfigError
from midwatch.operator.simulation.incidents import (
    Row,
    play_incidents,
    read_incidents,
    read_panels,
    usual_gap_hours,
)
from midwatch.tests.support.recorded import recorded

HEAD = "id,run,kind,step,human_action,rollback_steps,lr_factor,outcome_class\n"
TABLE = (
    HEAD + "a,run 1,divergence,~7010,rollback,800,1,failed\n"
    "b,run 1,loss_scale_collapse,37k,restart,400,1,failed\n"
    "c,run 1,spike,29050,none (watched),,1,recovered\n"
    "d,run 1,hardware,,replace node,,1,resumed\n"
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    path = tmp_path_factory.mktemp("incidents") / "table.csv"
    path.write_text(TABLE)
    return {row.incident.id: row for row in play_incidents(read_incidents(path), people_hours=10.0)}


def test_each_kind_has_its_own_answer(rows: dict[str, Row]) -> None:
    assert all(row.recovered for row in rows.values())
    for name in ("a", "b"):
        assert rows[name].decided.startswith("rollback")
        assert rows[name].lr_factor < 1.0
        assert rows[name].lag_steps is not None
        assert 0 < rows[name].lag_steps < 60
    assert rows["c"].decided.startswith("noted")
    assert rows["c"].lr_factor == 1.0
    assert rows["d"].decided == "restart: xid-79"


def test_what_is_saved_is_what_people_lost_less_what_is_lost_now(rows: dict[str, Row]) -> None:
    collapse = rows["b"]
    assert collapse.incident.step == 37_000
    assert collapse.people_gpu_hours == pytest.approx((10.0 + 400 * 20 / 3600) * 992)
    assert 0 < collapse.gpu_hours < collapse.people_gpu_hours
    assert rows["c"].people_gpu_hours == 0.0


def test_the_recorded_incidents_of_real_runs_all_have_an_answer() -> None:
    folder = recorded("policy_incidents")
    curves = recorded("opt175b_digitised")
    incidents = read_incidents(folder / "incidents.csv")
    points = read_panels(curves / "opt175b_run12.12-12.42.csv")
    hours = usual_gap_hours(curves / "opt175b_run12_active_intervals.csv")
    assert hours == pytest.approx(12.1)
    found = play_incidents(incidents[:6], points, hours)
    assert [row.decided.partition(":")[0] for row in found] == [
        "rollback", "rollback", "restart", "rollback", "rollback", "rollback",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", HEAD, "id,run\n1,2\n"])
def test_what_is_no_table_of_incidents_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_incidents(path)
    assert caught.value.code == "incidents-unreadable"
