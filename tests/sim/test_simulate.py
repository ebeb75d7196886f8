"""Whole simulated runs: the same seed, the same bytes; what figures say; what people do."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.fold import evolve
from midwatch.logbook.ledger import build_ledger
from midwatch.logbook.reader import read
from midwatch.logbook.state import RunState
from midwatch.operator.simulation import failure_models as fm
from midwatch.operator.simulation.figures import detection_times_s, mean_of
from midwatch.operator.simulation.from_journal import model_of
from midwatch.operator.simulation.nature import Strike
from midwatch.operator.simulation.scenario import Size, sized_scenario, with_spares
from midwatch.operator.simulation.simulate import Simulation, simulate
from midwatch.operator.simulation.sweep import parse_axis, plot_sweep, rank, sweep
from midwatch.operator.simulation.tables import figures_table
from msgspec.structs import replace
from rich.console import Console

HOUR_S = 3600.0
STORMY = fm.FailureModel(
    name="stormy",
    source="these tests",
    causes=tuple(
        fm.Cause(effect, effect, 0.006)
        for effect in (fm.GPU, fm.SOFTWARE, fm.HOST, fm.NETWORK, fm.HANG, fm.CORRUPTION, fm.SSD)
    ),
    per_hour_groups=0.02,
    per_hour_store=0.1,
    per_gpu_hour_slow=0.002,
    infant_frac=0.1,
    lemon_frac=0.2,
    lemon_multiple=3.0,
    divergences_per_1000_steps=0.5,
)


def stormy(gpus: int = 32, days: float = 1.0) -> Simulation:
    size = Size(gpus=gpus, days=days, spares=3, interval_steps=50)
    return Simulation(sized_scenario(size, STORMY), seed=4)


def test_a_stormy_day_is_survived_and_every_second_of_every_gpu_accounted_for() -> None:
    simulation = stormy()
    found = simulation.play().figures
    struck = {strike.cause for strike in simulation.nature.strikes}
    assert struck >= {fm.GPU, fm.SOFTWARE, fm.HOST, fm.NETWORK, "storage outage"}
    assert found.failures > 5
    assert found.restarts >= 5
    assert 0.2 < found.ettr_frac < 1.0
    assert sum(found.gpu_hours.values()) == pytest.approx((32 + 3 * 8) * 24, rel=1e-3)
    assert found.mttd_s is not None
    assert found.mttd_s < HOUR_S


def test_the_same_seed_gives_the_same_journal_byte_for_byte(tmp_path: Path) -> None:
    size = Size(gpus=32, days=0.2, spares=3, interval_steps=50)
    for name in ("one", "two"):
        Simulation(sized_scenario(size, STORMY), 4, tmp_path / name).play()
    one, two = (sorted((tmp_path / name / "journal").glob("*.jsonl")) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two] != []
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_what_is_journaled_is_what_the_figures_are_made_of(tmp_path: Path) -> None:
    size = Size(gpus=32, days=0.2, spares=3, interval_steps=50)
    scenario = sized_scenario(size, STORMY)
    kept = Simulation(scenario, 4, tmp_path)
    outcome = kept.play()
    records = list(read(tmp_path / "journal", ev.Event))
    state = RunState()
    for record in records:
        state = evolve(state, record.event, seq=record.seq, time_s=record.time_s)
    assert state == outcome.state
    assert state.end is not None
    now_s = kept.timeline.now_s()
    assert build_ledger(records).totals(now_s) == pytest.approx(kept.booked.ledger.totals(now_s))
    assert (tmp_path / "notes" / "inc-0001.md").is_file()
    # Without a journal the same is decided.
    assert Simulation(scenario, 4).play().figures == outcome.figures


def test_the_ledger_of_a_healthy_run_says_what_ettr_says() -> None:
    size = Size(gpus=32, days=0.5, spares=0, interval_steps=100)
    scenario = sized_scenario(size, fm.exponential_model(1e9, 32))
    scenario = replace(scenario, times=replace(scenario.times, memory_copy_s=2.0, blocked_s=4.0))
    found = simulate(scenario, 1, seed=2)[0].figures
    assert found.restarts == 0
    assert found.gpu_hours["checkpoint"] > 0.01 * sum(found.gpu_hours.values())
    productive = found.gpu_hours["productive"] * HOUR_S / (32 * found.wall_s)
    # The step that is under way at the end is in the one and not in the other.
    assert productive == pytest.approx(found.ettr_frac, abs=1e-3)


def test_memory_gives_back_nearly_everything_and_the_disk_what_was_saved() -> None:
    model = fm.exponential_model(1.0, 32)
    size = Size(gpus=32, days=0.5, spares=2, interval_steps=100)
    scenario = sized_scenario(size, model)
    without = replace(scenario, times=replace(scenario.times, memory_copy_s=None))
    kept, lost = (simulate(each, 1, seed=2)[0].figures for each in (scenario, without))
    assert kept.restarts > 3
    assert kept.steps_lost <= 2 * kept.restarts
    assert kept.loaded_bytes == 0
    assert lost.steps_lost > 10 * kept.restarts
    assert lost.loaded_bytes > 0
    assert kept.ettr_frac > lost.ettr_frac


def test_without_a_spare_the_run_waits_for_people_and_a_spare_saves_that() -> None:
    model = fm.FailureModel("hosts", "these tests", (fm.Cause("host", fm.HOST, 0.02),))
    scenario = sized_scenario(Size(gpus=16, days=1.0, spares=0), model)
    axis = parse_axis("spares=0,2")
    cells = sweep(scenario, [axis], runs=1, seed=1)
    assert cells[0].pages.value >= 1
    waited = [cell.figures[0].gpu_hours["provision"] for cell in cells]
    assert waited[0] > waited[1]
    assert cells[1].ettr.value > cells[0].ettr.value + 0.05
    assert "spares" in plot_sweep([axis], cells, "hosts")
    assert with_spares(scenario, 2).spec.nodes.spares == 2


def test_rates_of_a_journal_are_those_that_it_was_made_with() -> None:
    model = fm.exponential_model(0.5, 16)
    simulation = Simulation(sized_scenario(Size(gpus=16, days=1.0), model), seed=3)
    outcome = simulation.play()
    found = model_of(outcome.state, simulation.timeline.now_s())
    assert [cause.effect for cause in found.causes] == [fm.KILL]
    assert found.per_gpu_hour == pytest.approx(model.per_gpu_hour, rel=0.35)
    quiet = Simulation(sized_scenario(Size(gpus=16, days=0.05), "none"), seed=3)
    with pytest.raises(ConfigError) as caught:
        model_of(quiet.play().state, quiet.timeline.now_s())
    assert caught.value.code == "no-failures"


@pytest.mark.parametrize("effect", [fm.GPU, fm.SOFTWARE, fm.HOST, fm.HANG, fm.KILL, fm.CORRUPTION])
def test_one_failure_comes_back_from_the_journal_as_one_of_its_kind(effect: str) -> None:
    simulation = Simulation(sized_scenario(Size(gpus=32, days=1.0, spares=2), "none"), seed=1)
    simulation.run_until(lambda state: state.step > 60, 2 * HOUR_S)
    node = simulation.state.attempt.plan.nodes[1]  # type: ignore[union-attr]
    simulation.nature.strike(effect, effect, node)
    assert simulation.run_until(lambda s: s.num_attempts == 2 and s.step > 80, HOUR_S)
    simulation.run_until(lambda state: False, 300.0)
    found = model_of(simulation.state, simulation.timeline.now_s())
    assert [cause.effect for cause in found.causes] == [effect]
    assert "1 failures in" in found.source


def test_hosts_lost_at_once_come_back_from_the_journal_as_a_group() -> None:
    simulation = Simulation(sized_scenario(Size(gpus=32, days=1.0, spares=3), "none"), seed=1)
    simulation.run_until(lambda state: state.step > 60, 2 * HOUR_S)
    for node in simulation.state.attempt.plan.nodes[:3]:  # type: ignore[union-attr]
        simulation.nature.strike("rack", fm.HOST, node)
    assert simulation.run_until(lambda s: s.num_attempts > 1 and s.step > 80, HOUR_S)
    found = model_of(simulation.state, simulation.timeline.now_s())
    assert not found.causes
    assert found.group_max == 3
    hours = simulation.timeline.elapsed_s / HOUR_S
    assert found.per_hour_groups == pytest.approx(1 / hours, rel=0.05)


def test_published_rates_are_those_of_their_sources() -> None:
    # Mean times between failures as the papers and our own facts have them, in hours.
    known = {("llama3", 16_384): 3.09, ("rsc1", 16_384): 1.80, ("rsc2", 16_384): 5.0}
    known[("opt", 992)] = 12.0
    for (name, gpus), hours in known.items():
        assert fm.model_named(name).mtbf_s(gpus) / HOUR_S == pytest.approx(hours, rel=0.02)
    with pytest.raises(ConfigError) as caught:
        fm.model_named("titanic")
    assert caught.value.code == "unknown-failure-model"


BAD_AXES = (
    "spares", "spares=", "wings=1..2", "spares=3..1", "spares=a..b", "spares=-1", "spares=0.5",
    "spares=65", "interval=0", "interval=1..inf", "interval=nan", "respond-minutes=nan",
    "replace-hours=-1", "spares=0..4..0", "spares=0..4..1..1",
)  # fmt: skip


@pytest.mark.parametrize("text", BAD_AXES)
def test_a_sweep_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_axis(text)
    assert caught.value.code == "bad-sweep"


def test_a_sweep_takes_ranges_steps_and_lists() -> None:
    assert parse_axis("spares=0..3").values == (0.0, 1.0, 2.0, 3.0)
    assert parse_axis("interval=50..150..50").values == (50.0, 100.0, 150.0)
    assert parse_axis("interval=10,1000").values == (10.0, 1000.0)


def test_an_idle_spare_is_paid_for_and_too_many_are_not_the_best() -> None:
    scenario = sized_scenario(Size(gpus=32, days=0.1), "none")
    cells = sweep(scenario, [parse_axis("spares=2,40")], runs=2)
    assert cells[0].ettr.value == pytest.approx(cells[1].ettr.value, rel=1e-4)
    ranking = rank(cells)
    assert ranking.is_clear
    assert ranking.best.at == (2.0,)
    assert ranking.best.paid.value == pytest.approx(cells[0].ettr.value * 32 / 48, rel=0.02)


def test_the_interval_of_a_mean_is_students() -> None:
    mean = mean_of([1.0, 2.0, 3.0, 4.0])
    assert mean.value == 2.5
    assert mean.half == pytest.approx(3.182 * 1.2909944 / 2, rel=1e-6)
    assert mean_of([7.0]).half == float("inf")


@pytest.mark.parametrize(
    ("effect", "fault", "within_s", "leaves"),
    [
        (fm.KILL, "worker-killed", 5.0, False),
        (fm.GPU, "xid-79", 5.0, True),
        (fm.SOFTWARE, "worker-failed", 5.0, False),
        (fm.HOST, "node-lost", 5.0, True),
        (fm.NETWORK, "node-lost", 15.0, True),
        (fm.HANG, "hang", 250.0, False),
        (fm.CORRUPTION, "cross-rank-outlier", 650.0, True),
    ],
)
def test_each_cause_is_seen_for_what_it_is_and_answered(
    effect: str, fault: str, within_s: float, leaves: bool
) -> None:
    simulation = Simulation(sized_scenario(Size(gpus=32, days=1.0, spares=2), "none"), seed=1)
    simulation.run_until(lambda state: state.step > 100, 2 * HOUR_S)
    attempt = simulation.state.attempt
    assert attempt is not None
    node = attempt.plan.nodes[1]
    simulation.nature.strike(effect, effect, node)
    struck_s = simulation.timeline.now_s()
    assert simulation.run_until(lambda s: s.num_attempts == 2 and s.step > 140, HOUR_S)
    drafts = [i.draft for i in simulation.state.incidents.values() if i.attempt_after is not None]
    found = [draft for draft in drafts if (draft.fault, draft.node) == (fault, node)]
    assert found, drafts
    assert found[0].seen_s - struck_s < within_s
    after = simulation.state.attempt
    assert after is not None
    assert (node not in after.plan.nodes) is leaves


@pytest.mark.parametrize("effect", [fm.HOST, fm.NETWORK, fm.GPU, fm.HANG, fm.CORRUPTION])
def test_a_failure_hurts_only_where_ranks_are(effect: str) -> None:
    simulation = Simulation(sized_scenario(Size(gpus=32, days=1.0, spares=2), "none"), seed=1)
    simulation.run_until(lambda state: state.step > 100, 2 * HOUR_S)
    at_work = simulation.state.attempt.plan.nodes  # type: ignore[union-attr]
    spare = next(node for node in simulation.state.nodes if node not in at_work)
    simulation.nature.strike("spare", effect, spare)
    simulation.nature.strike("at work", effect, at_work[0])
    assert [strike.hurts for strike in simulation.nature.strikes] == [False, True]


def test_a_failure_that_nothing_tells_of_is_counted_as_never_seen() -> None:
    strikes = [Strike(10.0, "gpu", "node-0", True), Strike(20.0, "gpu", "node-1", True)]
    strikes.append(Strike(30.0, "gpu", "node-5", False))
    assert detection_times_s(strikes, []) == []
    size = Size(gpus=32, days=0.1, spares=2)
    simulation = Simulation(sized_scenario(size, "none"), seed=1)
    simulation.nature.strikes += strikes
    found = simulation.play().figures
    assert (found.failures, found.unseen, found.mttd_s) == (2, 2, None)
    shown = Console(width=200, record=True, file=StringIO())
    shown.print(figures_table([found]))
    assert "never seen" in shown.export_text()


def test_a_slow_node_is_found_and_left_out() -> None:
    simulation = Simulation(sized_scenario(Size(gpus=32, days=1.0, spares=2), "none"), seed=1)
    simulation.run_until(lambda state: state.step > 100, 2 * HOUR_S)
    attempt = simulation.state.attempt
    assert attempt is not None
    node = attempt.plan.nodes[1]
    simulation.world.slow_down(node, 2.0)
    assert simulation.run_until(lambda state: state.num_attempts == 2, 6 * HOUR_S)
    assert "straggler" in {i.draft.fault for i in simulation.state.incidents.values()}
    assert node not in simulation.state.attempt.plan.nodes  # type: ignore[union-attr]


def test_nodes_that_were_cut_off_or_whose_controller_was_lost_are_met_again() -> None:
    scenario = sized_scenario(Size(gpus=32, days=1.0, spares=1), "none")
    simulation = Simulation(scenario, seed=1)
    simulation.run_until(lambda state: state.step > 20, HOUR_S)
    lost = simulation.state.attempt.plan.nodes[1]  # type: ignore[union-attr]
    simulation.nature.strike("cut", fm.NETWORK, lost)
    assert simulation.run_until(lambda state: bool(state.nodes[lost].quarantined), HOUR_S)
    assert simulation.run_until(lambda state: state.nodes[lost].is_usable, 24 * HOUR_S)
    simulation.crash()
    other = simulation.state.attempt.plan.nodes[0]  # type: ignore[union-attr]
    simulation.run_until(lambda state: state.epoch == 2, HOUR_S)
    simulation.nature.strike("dead", fm.HOST, other)
    attempts = simulation.state.num_attempts
    assert simulation.run_until(
        lambda state: state.num_attempts > attempts and state.step > 100, HOUR_S
    )
