"""How many machines a run takes from a Ray cluster."""

from __future__ import annotations

import pytest
from midwatch.logbook.errors import ConfigError
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
