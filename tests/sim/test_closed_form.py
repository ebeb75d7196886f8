"""Simulated runs against the exact formula: exponential failures, fixed costs, real controller.

Steps are as long as a save's interval, or a few go into it: the formula knows nothing of steps. A
node stands for a quarter of the GPUs: all that the formula knows of them is how often one fails.
"""

from __future__ import annotations

import pytest
from midwatch.checkpoints.interval import expected_ettr_frac, optimal_interval_s
from midwatch.operator.simulation.conditions import Times
from midwatch.operator.simulation.drive import Turning
from midwatch.operator.simulation.failure_models import exponential_model, model_named
from midwatch.operator.simulation.figures import mean_of
from midwatch.operator.simulation.scenario import Scenario
from midwatch.operator.simulation.simulate import simulate
from midwatch.operator.simulation.sweep import Axis, rank, sweep
from midwatch.operator.simulation.training import train_config
from midwatch.tests.support.builders import make_spec

HOUR_S = 3600.0
STEPS = 10**8
ORDERS_S = 0.35
"""What lies between a death and the new workers besides what the scenario fixes: the wire, the
turn of the wheel, the fork."""
# (GPUs, what a save costs, what a load takes, steps between saves, failures expected a seed)
POINTS = (
    (8, 150.0, 1200.0, 1, 4),
    (64, 600.0, 1200.0, 1, 10),
    (512, 300.0, 600.0, 1, 14),
    (1024, 120.0, 300.0, 1, 20),
    (4096, 60.0, 120.0, 2, 16),
    (16_384, 20.0, 60.0, 2, 20),
    (32_768, 10.0, 60.0, 2, 20),
    (131_072, 5.0, 30.0, 2, 30),
)
SEEDS = 5
JOINTLY = 5.21 / 2.776
"""Eight intervals hold together at 95 % where each holds at 99.4 %: Student's t with SEEDS - 1
degrees of freedom at that level, over the one that a single interval is made with."""


def scenario_of(
    mtbf_s: float,
    step_s: float,
    stall_s: float,
    load_s: float,
    *,
    span: float,
    every: int = 1,
    nodes: int = 4,
    per_node: int = 1,
) -> Scenario:
    """A run of some nodes that fails every mtbf_s, watched for span times that."""
    # More than anything lasts here: no deadline has a say in it.
    ever_s = 10.0 * max(step_s, load_s)
    spec = make_spec(
        mesh={"dp_shard": nodes, "tp": per_node},
        nodes={"ranks_per_node": per_node, "spares": 0},
        trainer={"steps": STEPS, "interval_steps": every},
        restart={
            "max_restarts_per_hour": 1000,
            "max_barren_attempts": 100,
            "start_deadline_s": 86_400.0,
            "hang_max_s": 86_400.0,
            "hang_min_s": min(ever_s, 86_400.0),
        },
        checkpoints={"memory": {"mode": "off"}},
    )
    times = Times(
        step_s=step_s,
        load_s=load_s,
        save_s=stall_s,
        blocked_s=stall_s,
        peer_exit_s=1.0,
        status_s=None,
    )
    return Scenario(
        spec=spec,
        config=train_config(STEPS, every),
        model=exponential_model(mtbf_s / HOUR_S, spec.world_size),
        horizon_s=span * mtbf_s,
        times=times,
        turning=Turning(tick_s=0.25, calm_s=60.0 * HOUR_S, restart_s=1.0),
    )


@pytest.mark.parametrize(("gpus", "stall_s", "load_s", "every", "span"), POINTS)
def test_ettr_agrees_with_the_exact_formula(
    gpus: int, stall_s: float, load_s: float, every: int, span: int
) -> None:
    mtbf_s = model_named("llama3").mtbf_s(gpus)
    interval_s = optimal_interval_s(stall_s, mtbf_s)
    scenario = scenario_of(mtbf_s, interval_s / every, stall_s, load_s, span=span, every=every)
    figures = [outcome.figures for outcome in simulate(scenario, SEEDS, seed=gpus)]
    restart_s = load_s + ORDERS_S
    expected = expected_ettr_frac(interval_s, stall_s, mtbf_s, restart_s=restart_s)
    found = mean_of([each.ettr_frac for each in figures])
    half = found.half * JOINTLY
    assert sum(each.restarts for each in figures) > 2 * span, "it must have failed"
    assert all(each.pages == 0 for each in figures), "nobody was to be waited for"
    assert abs(found.value - expected) <= half, f"expected {expected:.5f}, found {found}"
    assert half < 0.6 * (1.0 - expected), "the interval must say something"


def test_ettr_agrees_with_the_exact_formula_where_every_gpu_has_its_rank() -> None:
    gpus, stall_s, load_s = 512, 300.0, 600.0
    mtbf_s = model_named("llama3").mtbf_s(gpus)
    interval_s = optimal_interval_s(stall_s, mtbf_s)
    scenario = scenario_of(
        mtbf_s, interval_s, stall_s, load_s, span=14, nodes=gpus // 8, per_node=8
    )
    assert scenario.spec.world_size == gpus
    figures = [outcome.figures for outcome in simulate(scenario, SEEDS, seed=1)]
    expected = expected_ettr_frac(interval_s, stall_s, mtbf_s, restart_s=load_s + ORDERS_S)
    found = mean_of([each.ettr_frac for each in figures])
    assert sum(each.restarts for each in figures) > 2 * 14, "it must have failed"
    assert abs(found.value - expected) <= found.half, f"expected {expected:.5f}, found {found}"
    assert found.half < 0.6 * (1.0 - expected), "the interval must say something"


def test_the_best_interval_of_a_sweep_is_the_formulas() -> None:
    mtbf_s, stall_s = 10_000.0, 100.0
    best_s = optimal_interval_s(stall_s, mtbf_s)
    scenario = scenario_of(mtbf_s, best_s / 3, stall_s, 60.0, span=50)
    axis = Axis("interval", (1.0, 3.0, 9.0))
    cells = sweep(scenario, [axis], runs=3, seed=5)
    assert rank(cells).best.at == (3.0,)
    for cell in cells:
        interval_s = cell.at[0] * best_s / 3
        expected = expected_ettr_frac(interval_s, stall_s, mtbf_s, restart_s=60.0 + ORDERS_S)
        assert abs(cell.ettr.value - expected) < max(cell.ettr.half, 0.02)
