"""Joining or starting a Ray cluster, and putting a run on it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    remove_placement_group,
)

from ...logbook.errors import ConfigError, Retryable
from ...logbook.state import Status
from ..spec import RunSpec
from ..storage import prepare_store_once
from .controller_actor import launch_controller
from .leaving import end_actors, give_back_places
from .local_ray import is_local
from .names import NAMESPACE, agent_name, controller_name, node_names, places_name
from .ray_calls import brief
from .ray_cluster import ClusterSettings

_log = logging.getLogger(__name__)
PLACEMENT_TIMEOUT_S = 60.0
READY_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5.0
FAREWELL_TIMEOUT_S = 25.0
GONE_TIMEOUT_S = 10.0
GONE_LOOK_S = 0.05
ALIVE_TIMEOUT_S = 5.0


class Session(msgspec.Struct, frozen=True):
    """A connection to Ray. is_local: the cluster was started here and ends with this process."""

    is_local: bool
    address: str


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[Session]:
    """Join the Ray cluster at address (or RAY_ADDRESS); start a private local one without.

    For a local one, local_ray.set_local_environment() must have been called before ray's import.
    Raises: Retryable[ray-unreachable]; ConfigError[ray-start-failed], ports in use included.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    session = _start_local() if is_local(address) else _join(str(address))
    try:
        yield session
    finally:
        ray.shutdown()


def _start_local() -> Session:
    try:
        ray.init(
            address="local",
            namespace=NAMESPACE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=128 << 20,
        )
    except Exception as error:
        # Ray raises a bare Exception when a node of its own comes up too slowly.
        raise ConfigError(
            "ray-start-failed",
            f"a local Ray cluster could not be started: {_first_line(error)}.",
            remedy="Free the port or memory it names, or pass --address of a running cluster.",
        ) from error
    return Session(True, ray.get_runtime_context().gcs_address)


def _join(address: str) -> Session:
    _require_listener(address)
    try:
        ray.init(
            address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR
        )
    except (RayError, RuntimeError, ValueError, OSError, ConnectionError) as error:
        raise _unreachable(address, error) from error
    return Session(False, ray.get_runtime_context().gcs_address)


def _require_listener(address: str) -> None:
    """Ray itself goes on trying an address where nobody listens for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: BaseException) -> Retryable:
    return Retryable(
        "ray-unreachable",
        f"no Ray cluster answers at {address}: {_first_line(error)}.",
        delay_s=5.0,
        remedy="Check the address, and RAY_AUTH_MODE=token with RAY_AUTH_TOKEN if it asks for a "
        "token; leave --address out to start a local cluster.",
    )


def submit(spec: RunSpec, run_dir: Path, session: Session) -> Any:
    """Put a run on the cluster (or find it there) and return its controller actor.

    Raises: ConfigError[cluster-too-small], [store-not-there]; Retryable[controller-not-ready].
    """
    prepare_store_once(spec, run_dir)
    _retire(spec)
    actor = _controller(spec)
    if actor is None:
        settings = ClusterSettings(
            run_dir=str(run_dir), resources=_resources(spec), bundles=_bundles(spec)
        )
        actor = launch_controller(spec, settings, controller_name(spec.name), NAMESPACE)
    try:
        ray.get(actor.ping.remote(), timeout=READY_TIMEOUT_S)
    except (RayError, GetTimeoutError) as error:
        raise Retryable(
            "controller-not-ready",
            f"the controller of {spec.name} did not come up: {_last_line(error)}",
            delay_s=5.0,
            remedy=f"See {run_dir}/logs/controller.log.",
        ) from error
    return actor


def tear_down(spec: RunSpec) -> None:
    """End the controller of a run that has ended; harmless when repeated, or too late.

    It has given back agents and places itself. Only what a controller that is gone has left behind
    is ended by its name: under it may be what somebody has submitted meanwhile.
    """
    controller = _controller(spec)
    if controller is not None:
        try:
            _dismiss(controller)
        except RayError as error:
            _log.info("the controller was not ended: %s", brief(error))
    elif _has_agents(spec):
        # Places without any agents are those of somebody who is about to create a controller.
        end_actors(_agents(spec))
        give_back_places(spec.name)


def _dismiss(controller: Any) -> bool:
    """End this controller, once all is written, if its run is at rest; return whether it was.

    Raises: RayError where it does not answer.
    """
    # What it has yet to write and to tell would be lost with it.
    is_over = bool(ray.get(controller.farewell.remote(), timeout=FAREWELL_TIMEOUT_S))
    if is_over:
        with contextlib.suppress(ValueError, RayError):
            ray.kill(controller)
    return is_over


def _retire(spec: RunSpec) -> None:
    """End the controller of a run that is over: it can be asked, and takes nothing up any more."""
    controller = _controller(spec)
    if controller is None:
        return
    try:
        _, status = ray.get(controller.ping.remote(), timeout=READY_TIMEOUT_S)
        # Between the two questions somebody may have set it going again.
        is_over = Status(status).is_terminal and _dismiss(controller)
    except ActorDiedError:
        # Somebody else who submits the run was faster.
        is_over = True
    except RayError as error:
        _log.info("the controller that is there does not answer: %s", brief(error))
        return
    if not is_over:
        return
    deadline_s = time.monotonic() + GONE_TIMEOUT_S
    # The name of an actor that is being killed outlives it for a moment.
    while _controller(spec) == controller and time.monotonic() < deadline_s:
        time.sleep(GONE_LOOK_S)


def _controller(spec: RunSpec) -> Any:
    """Return the controller actor of a run, None where there is none."""
    with contextlib.suppress(ValueError):
        return ray.get_actor(controller_name(spec.name), namespace=NAMESPACE)
    return None


def _agents(spec: RunSpec) -> list[str]:
    return [agent_name(spec.name, node) for node in _nodes(spec)]


def _has_agents(spec: RunSpec) -> bool:
    """Whether an agent of the run is alive: without a controller it trains on."""
    return any(_is_alive(name) for name in _agents(spec))


def _is_alive(agent: str) -> bool:
    try:
        handle = ray.get_actor(agent, namespace=NAMESPACE)
        ray.get(handle.identity.remote(), timeout=ALIVE_TIMEOUT_S)
    except (ValueError, ActorDiedError):
        # The name of an actor that is being killed outlives it for a moment.
        return False
    except RayError as error:
        _log.info("%s is slow to answer: %s", agent, brief(error))
    return True


def _nodes(spec: RunSpec) -> tuple[str, ...]:
    return node_names(spec.num_nodes, spec.nodes.spares)


def _resources(spec: RunSpec) -> dict[str, float]:
    gpus = ray.cluster_resources().get("GPU", 0.0)
    wanted = spec.nodes.ranks_per_node if gpus else 0
    return {"num_cpus": 0, "num_gpus": wanted}


def _bundles(spec: RunSpec) -> PlacementGroup | None:
    """A bundle a node, each on a machine of its own; None where all share this machine."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    if spec.nodes.spread == "pack" or (spec.nodes.spread == "auto" and len(alive) == 1):
        return None
    gpus = _resources(spec)["num_gpus"]
    bundle = {"CPU": 1.0, "GPU": gpus} if gpus else {"CPU": 1.0}
    wanted = fitting_nodes(spec, [node["Resources"] for node in alive], bundle)
    found = _found_places(spec.name)
    if found is not None and _has_agents(spec):
        return _kept(spec, found, bundle)
    group = _reserved(places_name(spec.name), found, [bundle] * wanted)
    if not group.wait(timeout_seconds=PLACEMENT_TIMEOUT_S):
        if group is not found:
            # What is not there now would be taken, for nobody, once it is.
            remove_placement_group(group)
        raise ConfigError(
            "cluster-too-small",
            f"Ray could not reserve {wanted} nodes with {bundle} each "
            f"within {PLACEMENT_TIMEOUT_S:.0f} s.",
            remedy="Free resources (ray status shows them) or lower what the spec asks for.",
        )
    return group


def _found_places(run: str) -> PlacementGroup | None:
    with contextlib.suppress(ValueError):
        return get_placement_group(places_name(run))
    return None


def _kept(spec: RunSpec, found: PlacementGroup, bundle: dict[str, float]) -> PlacementGroup:
    """Return the places in which agents of the run train; removing them would end these.

    Not waited for: a machine that they have lost may never come back, and spares may be missing.
    Raises: ConfigError[nodes-at-work] where the spec asks for others.
    """
    has = found.bundle_specs
    fewest, most = spec.num_nodes, len(_nodes(spec))
    if all(each == bundle for each in has) and fewest <= len(has) <= most:
        return found
    raise ConfigError(
        "nodes-at-work",
        f"{spec.name} still trains without a controller on {len(has)} nodes with {has[0]} each; "
        f"the spec asks for {fewest} to {most} with {bundle} each.",
        remedy="Submit the spec that it trains by, stop the run, then submit this one.",
    )


def _reserved(
    name: str, found: PlacementGroup | None, bundles: list[dict[str, float]]
) -> PlacementGroup:
    """Return a placement group of these bundles.

    found: that of this name, without an agent in it. One for other bundles is from an older spec,
    or from a cluster with other machines.
    """
    if found is not None:
        if found.bundle_specs == bundles:
            return found
        remove_placement_group(found)
    return placement_group(
        [dict(bundle) for bundle in bundles],
        strategy="STRICT_SPREAD",
        name=name,
        lifetime="detached",
    )


def fitting_nodes(
    spec: RunSpec, machines: Sequence[Mapping[str, float]], bundle: Mapping[str, float]
) -> int:
    """Return how many nodes of a run find a machine of their own: all, or all but some spares.

    machines: the resources of each. Raises: ConfigError[cluster-too-small].
    """
    able = sum(all(m.get(name, 0.0) >= much for name, much in bundle.items()) for m in machines)
    wanted = len(_nodes(spec))
    if able < spec.num_nodes:
        raise ConfigError(
            "cluster-too-small",
            f"{spec.name} wants {spec.num_nodes} nodes with {dict(bundle)} each; the cluster has "
            f"{able}.",
            remedy="Add nodes, lower the mesh, or set nodes.spread: pack.",
        )
    if able < wanted:
        _log.warning("%s begins with %d of %d nodes: spares are missing", spec.name, able, wanted)
    return min(able, wanted)


def _last_line(error: BaseException) -> str:
    # Ray puts the traceback of the actor first and what it raised last.
    text = [line for line in str(error).strip().splitlines() if line.strip()]
    return text[-1].strip()[:500] if text else type(error).__name__


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__
