"""What a run takes from a Ray cluster, and gives back. Ray is a stub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.state import Status
from midwatch.operator.runtime import leaving, session
from midwatch.operator.runtime.names import agent_name, controller_name, places_name
from midwatch.operator.runtime.ray_cluster import ClusterSettings
from midwatch.operator.runtime.session import Session, fitting_nodes
from midwatch.operator.spec import RunSpec
from midwatch.tests.support.builders import make_spec
from ray.exceptions import ActorDiedError

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


class Actor:
    """An actor of a stub of Ray: its methods are called when their result is asked for."""

    def __init__(self, status: Status = Status.TRAINING, places: object = None) -> None:
        self.status, self.places = status, places
        self.is_dead = False
        self.meanwhile: list[Callable[[], object]] = []
        self.ping = self._method(lambda: (1, self.status))
        self.farewell = self._method(self._rest)
        self.identity = self._method(lambda: b"")

    def _method(self, body: Callable[[], object]) -> SimpleNamespace:
        def call() -> object:
            if self.is_dead:
                raise ActorDiedError
            return body()

        return SimpleNamespace(remote=lambda: call)

    def _rest(self) -> bool:
        is_over = self.status.is_terminal
        while self.meanwhile:
            # Between the answer and what its reader makes of it.
            self.meanwhile.pop()()
        return is_over


class Cluster:
    """A stub of Ray: actors and placement groups by name, and machines of one CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.actors: dict[str, Actor] = {}
        self.groups: dict[str, SimpleNamespace] = {}
        self.num_machines = 3
        self.has_room = True
        monkeypatch.setattr(session, "prepare_store_once", lambda *_: None)
        monkeypatch.setattr(session, "launch_controller", self.launch)
        monkeypatch.setattr(session, "placement_group", self.reserve)
        for module in (session, leaving):
            monkeypatch.setattr(module, "ray", self)
            monkeypatch.setattr(module, "get_placement_group", self.group)
            monkeypatch.setattr(module, "remove_placement_group", self.remove, raising=False)

    def get(self, call: Callable[[], object], timeout: float) -> object:
        return call()

    def get_actor(self, name: str, namespace: str) -> Actor:
        if name not in self.actors:
            raise ValueError(name)
        return self.actors[name]

    def kill(self, actor: Actor) -> None:
        actor.is_dead = True
        self.actors = {name: each for name, each in self.actors.items() if each is not actor}

    def nodes(self) -> list[dict[str, object]]:
        return [{"Alive": True, "Resources": {"CPU": 1.0}}] * self.num_machines

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.num_machines)}

    def launch(self, spec: RunSpec, settings: ClusterSettings, name: str, namespace: str) -> Actor:
        return self.actors.setdefault(name, Actor(places=settings.bundles))

    def group(self, name: str) -> SimpleNamespace:
        if name not in self.groups:
            raise ValueError(name)
        return self.groups[name]

    def remove(self, group: SimpleNamespace) -> None:
        del self.groups[group.name]

    def reserve(
        self, bundles: list[dict[str, float]], strategy: str, name: str, lifetime: str
    ) -> SimpleNamespace:
        assert name not in self.groups
        self.groups[name] = SimpleNamespace(
            name=name, bundle_specs=bundles, wait=lambda timeout_seconds: self.has_room
        )
        return self.groups[name]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


SPEC = make_spec(nodes={"spares": 1})
CONTROLLER, PLACES = controller_name(SPEC.name), places_name(SPEC.name)


def submit() -> Actor:
    return session.submit(SPEC, Path("run"), Session(False, ""))


def test_who_is_slower_to_submit_a_stopped_run_finds_it_taken_up(cluster: Cluster) -> None:
    stopped = cluster.actors[CONTROLLER] = Actor(Status.STOPPED)
    faster: list[Actor] = []
    stopped.meanwhile.append(lambda: faster.append(submit()))
    assert [submit()] == faster == [cluster.actors[CONTROLLER]]
    assert faster[0].places is cluster.groups[PLACES]


def test_a_controller_that_another_one_who_submits_has_ended_is_replaced(
    cluster: Cluster,
) -> None:
    stopped = cluster.actors[CONTROLLER] = Actor(Status.STOPPED)
    stopped.ping.remote = lambda: lambda: (cluster.kill(stopped), stopped.farewell.remote()())
    assert submit() is cluster.actors[CONTROLLER] is not stopped


@pytest.mark.parametrize("is_between", [False, True], ids=["before", "between"])
def test_a_late_tear_down_leaves_a_run_that_was_taken_up(
    cluster: Cluster, is_between: bool
) -> None:
    stopped = cluster.actors[CONTROLLER] = Actor(Status.STOPPED)
    if is_between:
        stopped.meanwhile.append(submit)
    else:
        submit()
    session.tear_down(SPEC)
    taken_up = cluster.actors[CONTROLLER]
    assert (taken_up.is_dead, taken_up.places) == (False, cluster.groups[PLACES])


def test_a_tear_down_leaves_the_places_of_who_is_about_to_create_a_controller(
    cluster: Cluster,
) -> None:
    places = cluster.reserve([{"CPU": 1.0}] * 3, "", PLACES, "")
    session.tear_down(SPEC)
    assert submit().places is places is cluster.groups[PLACES]


def test_a_controller_at_rest_is_ended_and_so_is_what_one_that_is_gone_has_left(
    cluster: Cluster,
) -> None:
    cluster.actors[CONTROLLER] = Actor(Status.COMPLETED)
    session.tear_down(SPEC)
    assert not cluster.actors
    cluster.actors[agent_name(SPEC.name, "node-1")] = Actor()
    cluster.reserve([{"CPU": 1.0}] * 3, "", PLACES, "")
    session.tear_down(SPEC)
    assert not cluster.actors
    assert not cluster.groups


def submit_with_agents(cluster: Cluster, bundles: list[dict[str, float]]) -> Actor:
    cluster.actors[agent_name(SPEC.name, "node-1")] = Actor()
    cluster.reserve(bundles, "", PLACES, "")
    # One of its machines may be gone.
    cluster.has_room = False
    return submit()


@pytest.mark.parametrize(("then", "now"), [(3, 2), (2, 3), (3, 3)])
def test_agents_that_train_keep_their_places_though_there_are_other_machines_now(
    cluster: Cluster, then: int, now: int
) -> None:
    bundles = [{"CPU": 1.0}] * then
    cluster.num_machines = now
    controller = submit_with_agents(cluster, bundles)
    assert controller.places is cluster.groups[PLACES]
    assert cluster.groups[PLACES].bundle_specs is bundles


@pytest.mark.parametrize("bundles", [[{"CPU": 1.0}], [{"CPU": 1.0}] * 4, [BUNDLE] * 3])
def test_places_in_which_agents_train_by_another_spec_are_neither_taken_nor_removed(
    cluster: Cluster, bundles: list[dict[str, float]]
) -> None:
    with pytest.raises(ConfigError) as raised:
        submit_with_agents(cluster, bundles)
    assert raised.value.code == "nodes-at-work"
    assert cluster.groups[PLACES].bundle_specs is bundles
    assert CONTROLLER not in cluster.actors


@pytest.mark.parametrize("is_found", [False, True])
def test_places_that_never_came_are_given_back_by_who_asked_for_them(
    cluster: Cluster, is_found: bool
) -> None:
    cluster.has_room = False
    if is_found:
        # Somebody else who submits the run is waiting for them.
        cluster.reserve([{"CPU": 1.0}] * 3, "", PLACES, "")
    with pytest.raises(ConfigError) as raised:
        submit()
    assert raised.value.code == "cluster-too-small"
    assert (PLACES in cluster.groups) is is_found


@pytest.mark.parametrize("earlier", [[{"CPU": 1.0}] * 2, [{"CPU": 1.0}] * 4, [BUNDLE] * 3])
def test_places_left_by_another_spec_are_not_taken_for_those_that_are_asked_for(
    cluster: Cluster, earlier: list[dict[str, float]]
) -> None:
    dying = cluster.actors[agent_name(SPEC.name, "node-0")] = Actor()
    dying.is_dead = True
    cluster.reserve(earlier, "", PLACES, "")
    assert submit().places is cluster.groups[PLACES]
    assert cluster.groups[PLACES].bundle_specs == [{"CPU": 1.0}] * 3
