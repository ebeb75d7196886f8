"""What is drawn from a failure model, against its source; and what replacing a machine does."""

from __future__ import annotations

from collections import Counter

import pytest
from midwatch.operator.simulation import failure_models as fm
from midwatch.operator.simulation.nature import SAME_AGAIN
from midwatch.operator.simulation.people import Crew
from midwatch.operator.simulation.scenario import DAY_S, Size, sized_scenario
from midwatch.operator.simulation.simulate import Simulation
from msgspec.structs import replace

HOUR_S = 3600.0
MACHINE = (fm.GPU, fm.HOST, fm.NETWORK, fm.CORRUPTION)


class Counted(Simulation):
    """A fleet without a run: what is struck is counted, and replaced at once."""

    def __init__(self, model: str, seed: int = 0) -> None:
        super().__init__(sized_scenario(Size(gpus=992, days=1.0, spares=8), model), seed)
        self.counts: Counter[str] = Counter()
        nature = self.nature
        nature.strike = self._count  # type: ignore[method-assign]
        nature._take_group = self._group  # type: ignore[method-assign]
        for name in ("_take_cluster", "_take_store", "_slow_down"):
            setattr(nature, name, lambda: None)

    def _count(self, cause: str, effect: str, node: str) -> None:
        self.counts[effect] += 1
        if effect in MACHINE:
            infants = len(self.nature._lemons)
            self.nature.is_new(node)
            # Lemons stay as they were drawn: the fleet is to be that of the source.
            if len(self.nature._lemons) < infants:
                self.nature._lemons.add(node)
            elif len(self.nature._lemons) > infants:
                self.nature._lemons.discard(node)

    def _group(self) -> None:
        for _ in range(self.nature._rng.randint(2, 5)):
            self._count("host group", fm.HOST, self.nature._names[0])

    def days(self, num: float) -> float:
        """Let so many days pass; return what was drawn per GPU-hour."""
        self.nature.let_loose()
        while self.timeline.elapsed_s < num * DAY_S and self.timeline.advance():
            pass
        return sum(self.counts.values()) / ((992 + 64) * num * 24)


@pytest.mark.parametrize("name", ["opt", "rsc1", "rsc2", "llama3"])
def test_as_many_failures_are_drawn_as_the_source_counts(name: str) -> None:
    published = fm.model_named(name).per_gpu_hour
    # Some 7,000 failures or more: their number is known to two percent.
    num_days = 7000 / (published * 1056 * 24)
    assert Counted(name).days(num_days) == pytest.approx(published, rel=0.04)


def test_of_opts_two_machines_a_day_those_of_groups_and_the_new_ones_are_a_part() -> None:
    model = fm.model_named("opt")
    assert model.per_gpu_hour * 992 * 24 == pytest.approx(2.0)
    assert 0.75 < model.own_frac < 0.9
    assert fm.model_named("llama3").own_frac == 1.0


def test_groups_of_hosts_fall_out_as_often_as_there_are_hosts() -> None:
    model = fm.model_named("opt")
    assert model.groups_per_hour(992) == model.per_hour_groups
    assert model.groups_per_hour(16) == pytest.approx(model.per_hour_groups * 16 / 992)
    anywhere = replace(model, groups_gpus=0)
    assert anywhere.groups_per_hour(16) == model.per_hour_groups


def lemon_days(same_again_frac: float) -> Simulation:
    model = fm.FailureModel(
        "lemons",
        "these tests",
        (fm.Cause("gpu", fm.GPU, 1 / (4 * 32)),),
        lemon_frac=0.15,
        lemon_multiple=20.0,
    )
    crew = Crew(same_again_frac=same_again_frac, replace_s=1800.0)
    simulation = Simulation(sized_scenario(Size(gpus=32, days=1.5, spares=1), model, crew=crew), 2)
    simulation.play()
    return simulation


def test_a_lemon_that_is_replaced_is_one_no_longer() -> None:
    simulation = lemon_days(0.0)
    assert simulation.people.replaced_total > 3
    (lemon,) = Simulation(simulation.scenario, 2).nature._lemons
    assert lemon not in simulation.nature._lemons
    found = Counter(strike.node for strike in simulation.nature.strikes)
    assert found[lemon] < found.total() / 2


def test_the_same_bad_machine_again_is_met_by_the_preflight() -> None:
    sound, bad = lemon_days(0.0), lemon_days(1.0)
    assert bad.people.replaced_total > sound.people.replaced_total
    for simulation, is_met in ((sound, False), (bad, True)):
        faults = {incident.draft.fault for incident in simulation.state.incidents.values()}
        assert ("preflight-memory" in faults) is is_met


@pytest.mark.parametrize("effect", [fm.GPU, fm.HOST])
def test_without_a_preflight_the_same_machine_fails_again_once_it_works(effect: str) -> None:
    scenario = sized_scenario(Size(gpus=16, days=1.0, spares=0), "none")
    nodes = scenario.spec.nodes.model_copy(update={"preflight": "off"})
    scenario = replace(
        scenario,
        spec=scenario.spec.model_copy(update={"nodes": nodes}),
        crew=Crew(same_again_frac=1.0, replace_s=600.0),
    )
    simulation = Simulation(scenario, 1)
    simulation.run_until(lambda state: state.step > 20, HOUR_S)
    simulation.nature.strike("first", effect, "node-0")
    assert "node-0" in simulation.nature._broken
    strikes = simulation.nature.strikes
    simulation.run_until(lambda state: len(strikes) > 1, DAY_S)
    again = strikes[1]
    assert (again.cause, again.node, again.hurts) == (SAME_AGAIN, "node-0", True)
    simulation.nature.is_new("node-0")
    assert not simulation.nature._broken
