"""Detectors switched mid-flight: journaled, kept across lives of the controller, and obeyed."""

from __future__ import annotations

import pytest
from midwatch.logbook.events import FindingSeen
from midwatch.logbook.findings import Severity
from midwatch.operator.detector_score import score_shadows
from midwatch.operator.policy.detectors import NODE_DETECTORS, NUMERIC_DETECTORS, modes_now
from midwatch.operator.spec_detectors import NodeDetectors
from midwatch.tests.support.builders import make_spec

from .night import Night
from .test_numeric import SPEC, fragile, rollbacks
from .test_sick_nodes import finding, nodes_of, see


def switch(night: Night, target: str) -> str:
    name = night.ask("detector", target=target, id=f"switch-{target}")
    night.run(lambda s: name in s.interventions and s.interventions[name].stage != "requested")
    return night.state.interventions[name].stage


def findings(night: Night) -> list[FindingSeen]:
    events = [record.event for record in night.journal.records()]
    return [event for event in events if isinstance(event, FindingSeen)]


def test_a_switch_is_applied_and_survives_the_controller() -> None:
    night = Night(seed=61)
    night.run_to_step(20)
    assert switch(night, "creep=shadow") == "applied"
    assert night.state.detectors == {"creep": "shadow"}
    night.crash()
    night.run_to_step(40)
    assert night.num_crashes == 1
    assert night.controller is not None
    assert night.controller._panel.detectors["creep"] == "shadow"
    assert modes_now(night.state, night.spec)["creep"] == "shadow"
    assert switch(night, "creep=act") == "applied"
    assert night.controller._panel.detectors["creep"] == "act"


@pytest.mark.parametrize("target", ["crep=shadow", "creep=loud", "creep", "=shadow", ""])
def test_nonsense_is_refused_with_a_reason(target: str) -> None:
    night = Night(seed=62)
    night.run_to_step(5)
    assert switch(night, target) == "rejected"
    assert night.state.detectors == {}


def test_a_divergence_that_only_shadows_see_is_recorded_and_not_answered() -> None:
    night = Night(SPEC, seed=63, physics=fragile(0.95, 80, 110))
    night.run_to_step(60)
    for name in NUMERIC_DETECTORS:
        assert switch(night, f"{name}=shadow") == "applied"
    night.run_to_step(150)
    assert rollbacks(night) == []
    grave = [f for f in findings(night) if f.finding.severity is Severity.ROLLBACK]
    assert grave
    assert all(f.finding.shadow for f in grave)


def test_the_precision_of_a_shadow_is_counted_from_the_journal() -> None:
    night = Night(SPEC, seed=64, physics=fragile(0.95, 80, 110))
    night.run_to_step(60)
    assert switch(night, "level-shift=shadow") == "applied"
    night.run_to_end()
    assert rollbacks(night), "the others still act"
    tallies = score_shadows(night.journal.records(), 500)
    raised = {name: tally for name, tally in tallies.items() if tally.raised}
    assert set(raised) <= {"level-shift"}
    lonely = score_shadows(night.journal.records(), 1)
    assert set(lonely) == set(tallies)
    for name, tally in tallies.items():
        assert tally.raised == tally.confirmed + tally.refuted
        assert lonely[name].raised == tally.raised


def test_node_detectors_are_switched_too() -> None:
    night = Night(seed=65)
    state = night.run_to_step(20)
    victim = nodes_of(state)[0]
    assert switch(night, "nvml=shadow") == "applied"
    see(night, victim, finding("evict"))
    night.run(lambda s: bool(s.findings))
    assert switch(night, "nvml=off") == "applied"
    see(night, victim, finding("evict", "gpu-lost", 1.0))
    state = night.run_to_end()
    assert state.num_attempts == 1
    assert not state.incidents
    (seen,) = findings(night)
    assert seen.finding.shadow


def test_the_spec_has_a_mode_for_every_node_detector() -> None:
    fields = {name.replace("_", "-") for name in NodeDetectors.model_fields}
    assert fields == set(NODE_DETECTORS)


def test_a_node_detector_can_start_in_shadow_and_be_switched_to_act() -> None:
    night = Night(make_spec(node_detectors={"nvml": "shadow", "straggler": "off"}), seed=66)
    state = night.run_to_step(20)
    modes = modes_now(night.state, night.spec)
    assert (modes["nvml"], modes["straggler"], modes["cluster"]) == ("shadow", "off", "act")
    victim = nodes_of(state)[0]
    see(night, victim, finding("evict"))
    night.run(lambda s: bool(s.findings))
    assert findings(night)[0].finding.shadow
    night.crash()
    night.run_to_step(40)
    assert night.state.num_attempts == 1
    assert switch(night, "nvml=act") == "applied"
    see(night, victim, finding("evict", "gpu-lost", 1.0))
    state = night.run(lambda s: s.num_attempts == 2)
    assert victim not in nodes_of(state)


def test_preflights_switched_off_in_the_spec_are_not_run() -> None:
    spec = make_spec(nodes={"preflight": "quick"}, node_detectors={"preflight": "off"})
    night = Night(spec, seed=67)
    assert night.run_to_step(5).num_preflights == 0
