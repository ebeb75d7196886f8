"""Giving back what a run held of its Ray cluster: nothing of a detached run ends by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import ray
from ray.exceptions import RayError
from ray.util.placement_group import get_placement_group, remove_placement_group

from .names import NAMESPACE, places_name


def end_actors(names: Iterable[str]) -> None:
    """End actors by their names; harmless when repeated."""
    for name in names:
        with contextlib.suppress(ValueError, RayError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def give_back_places(run: str) -> None:
    """Let go of the machines that were reserved for a run; harmless when repeated."""
    with contextlib.suppress(ValueError, RayError):
        remove_placement_group(get_placement_group(places_name(run)))
