"""Builders of specs, samples, events and states: tests name what matters and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.fold import evolve
from midwatch.logbook.plan import AttemptPlan, Placement
from midwatch.logbook.state import RunState
from midwatch.logbook.wire import CheckpointTags, Hyper, Mesh, StepSample
from midwatch.operator.spec import RunSpec

START_S = 1_700_000_000.0


def make_spec(**sections: Any) -> RunSpec:
    """A run of 4 ranks on two nodes and a spare; sections are merged over the defaults."""
    data: dict[str, Any] = {
        "name": "night",
        "mesh": {"dp_shard": 2, "tp": 2},
        "nodes": {"ranks_per_node": 2, "spares": 1, "preflight": "off"},
        "trainer": {"steps": 120, "interval_steps": 10},
        "restart": {},
        "numeric": {"rollback_margin_steps": 5},
        "retention": {},
    }
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section} if isinstance(section, dict) else section
    return RunSpec.model_validate(data)


def make_sample(step: int, **fields: Any) -> StepSample:
    """A healthy step."""
    values: dict[str, Any] = {
        "step": step,
        "time_s": START_S + step,
        "loss": 4.0,
        "grad_norm": 0.5,
        "lr": 1e-3,
        "activation_norm": 100.0 - 0.01 * step,
        "found_inf": False,
        "skipped": False,
        "loss_scale": 64.0,
        "tokens": 4096,
        "data_step": step - 1,
        "step_s": 0.5,
        "tokens_per_s": 8192.0,
        "model_tflops_per_device": 0.1,
    }
    return StepSample(**{**values, **fields})


def make_tags(**fields: Any) -> CheckpointTags:
    """Health tags of a sound checkpoint."""
    values: dict[str, Any] = {
        "loss": 4.0,
        "grad_norm": 0.5,
        "activation_norm": 100.0,
        "loss_scale": 64.0,
        "lr": 1e-3,
    }
    return CheckpointTags(**{**values, **fields})


def fold(
    events: Iterable[ev.Event], state: RunState | None = None, every_s: float = 1.0
) -> RunState:
    """Fold events, every_s apart, on top of a state."""
    state = state or RunState()
    for event in events:
        time_s = (state.time_s or START_S) + every_s
        state = evolve(state, event, seq=state.seq + 1, time_s=time_s)
    return state


def decided(state: RunState, action: d.Action, **more: Any) -> ev.DecisionMade:
    """The next decision of a state, as the journal would have it."""
    opens = more.get("opens")
    incident = opens.id if opens is not None else more.pop("incident", None)
    name = f"{state.num_attempts}/{state.num_decisions + 1}"
    return ev.DecisionMade(d.Decision(name, action, "because", incident=incident, **more))


def started(num_nodes: int = 3, hyper: Hyper | None = None) -> RunState:
    """A run whose first attempt was just started on n0 and n1."""
    names = [f"n{index}" for index in range(num_nodes)]
    joined = [ev.NodeJoined(name, "1", "host", 2) for name in names]
    state = fold([ev.RunSubmitted("night", {}, "", 1, "", "ann"), *joined])
    placements = (Placement("n0", 0, 2), Placement("n1", 2, 2))
    plan = AttemptPlan(1, Mesh(2, 2), placements, (), 0, hyper or Hyper())
    return fold([decided(state, d.StartAttempt(plan))], state)
