"""Recorded failures and failure models as data: read, refused, and struck as they are written."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from midwatch.logbook.errors import ConfigError
from midwatch.operator.runtime.names import node_names
from midwatch.operator.simulation import failure_models as fm
from midwatch.operator.simulation.opt_run import OPT_RESTARTS, opt_scenario, opt_trace
from midwatch.operator.simulation.scenario import Size, sized_scenario
from midwatch.operator.simulation.simulate import Simulation
from midwatch.operator.simulation.traces import CLUSTER, lay_out, read_trace
from msgspec.structs import replace

HOUR_S = 3600.0
NAMES = node_names(4, 2)
TRACE = "hours,effect,node,hosts,for_hours\n2,host,,2,\n0.5,gpu,node-1,,\n1,,,,\n3,cluster,,,0.5\n"


def trace_file(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_what_a_trace_says_is_struck_and_what_it_leaves_out_is_drawn(tmp_path: Path) -> None:
    trace = read_trace(trace_file(tmp_path, TRACE), NAMES)
    one, again, other = (lay_out(trace, NAMES, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert [entry.at_s / HOUR_S for entry in one] == [0.5, 1.0, 2.0, 2.0, 3.0]
    assert (one[0].effect, one[0].node) == (fm.GPU, "node-1")
    assert one[1].effect in fm.EFFECT_NAMES
    assert len({one[2].node, one[3].node}) == 2
    assert (one[4].effect, one[4].for_s) == (CLUSTER, 0.5 * HOUR_S)
    scenario = replace(sized_scenario(Size(32, 0.2, 2), "none"), trace=trace)
    simulation = Simulation(scenario, 1)
    simulation.play()
    start_s = simulation.timeline.now_s() - simulation.timeline.elapsed_s
    struck = [(s.time_s - start_s, s.node) for s in simulation.nature.strikes]
    assert struck == [(pytest.approx(entry.at_s), entry.node) for entry in one]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hours\n",
        "effect\ngpu\n",
        "hours,effect\n1,flood\n",
        "hours,effect,node\n1,gpu,node-77\n",
        "hours,effect\n-1,gpu\n",
        "hours,effect\nnan,gpu\n",
        "hours,effect,node,hosts\n1,host,,9\n",
        "hours,effect\n1,cluster\n",
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(trace_file(tmp_path, text), NAMES)
    assert caught.value.code == "trace-unreadable"


def test_opts_restarts_are_ninety_however_many_of_them_are_drawn() -> None:
    trace, names = opt_trace(), node_names(124, 8)
    laid = lay_out(trace, names, 3)
    # Five hosts are one restart, and three more are divergences.
    assert len(laid) - 4 + len(trace.fragile) == OPT_RESTARTS
    assert opt_scenario().setting(0).physics.fragile == trace.fragile


def test_every_published_model_reads_back_from_its_own_json(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    for model in fm.MODELS.values():
        path.write_bytes(msgspec.json.encode(model))
        assert fm.read_model(path) == model


@pytest.mark.parametrize(
    "change",
    [
        {"causes": [{"name": "x", "effect": "flood", "per_gpu_hour": 0.1}]},
        {"causes": [{"name": "x", "effect": "gpu", "per_gpu_hour": -0.1}]},
        {"lemon_frac": 2.0},
        {"infant_frac": 0.1},
        {"slow_factor": 0.5},
        {"per_hour_store": -1.0},
        {"per_hour_floods": 1.0},
    ],
)
def test_a_model_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(msgspec.json.encode({"name": "m", "source": "s", "causes": [], **change}))
    with pytest.raises(ConfigError) as caught:
        fm.read_model(path)
    assert caught.value.code == "bad-failure-model"
