"""How many machines a run takes from a Ray cluster."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from midwatch.logbook.errors import ConfigError
from midwatch.operator.runtime import session
from midwatch.operator.runtime.session import fitting_nodes
from midwatch.tests.support.builders import make_spec

GPU_NODE = {"CPU": 90.0, "GPU": 8.0}
HEAD = {"memory": 1e9}
BUNDLE = {"CPU": 1.0, "GPU": 8.0}


@pytest.mark.parametrize(("machines", "taken"), [(3, 3), (9, 3), (2, 2)])
def test_spares_are_given_up_where_no_machine_is_left_for_them(machines: int, taken: int) -> None:
    spec = make_spec(nodes={"spares": 1})
    assert (spec.num_nodes, spec.nodes.spares) == (2, 1)
    # The head has no room for a node.
    assert fitting_nodes(spec, [HEAD, *[GPU_NODE] * machines], BUNDLE) == taken


def test_a_cluster_without_a_machine_for_every_rank_is_too_small() -> None:
    with pytest.raises(ConfigError) as raised:
        fitting_nodes(make_spec(), [HEAD, GPU_NODE, {"CPU": 8.0, "GPU": 4.0}], BUNDLE)
    assert raised.value.code == "cluster-too-small"


class Groups:
    """The placement groups of a cluster, by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bundles: dict[str, list[dict[str, float]]] = {}
        monkeypatch.setattr(session, "get_placement_group", self.get)
        monkeypatch.setattr(session, "remove_placement_group", self.remove)
        monkeypatch.setattr(session, "placement_group", self.create)

    def get(self, name: str) -> SimpleNamespace:
        if name not in self.bundles:
            raise ValueError(name)
        return SimpleNamespace(name=name, bundle_specs=self.bundles[name])

    def remove(self, group: SimpleNamespace) -> None:
        del self.bundles[group.name]

    def create(
        self, bundles: list[dict[str, float]], strategy: str, name: str, lifetime: str
    ) -> SimpleNamespace:
        assert name not in self.bundles
        self.bundles[name] = bundles
        return self.get(name)


@pytest.mark.parametrize("later", [[BUNDLE] * 2, [BUNDLE] * 3, [{"CPU": 1.0, "GPU": 4.0}] * 2])
def test_places_left_by_another_spec_are_not_taken_for_those_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, later: list[dict[str, float]]
) -> None:
    groups = Groups(monkeypatch)
    session._reserved("night/nodes", [BUNDLE] * 2)
    assert session._reserved("night/nodes", later).bundle_specs == later
    assert groups.bundles == {"night/nodes": later}
