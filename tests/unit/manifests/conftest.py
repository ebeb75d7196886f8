"""Every kustomization, rendered by the kubectl of the development packages."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.kube_yaml import load_all

Object = dict[str, Any]
MANIFESTS = Path(__file__).parents[3] / "manifests"
KUBECTL = Path(sys.executable).with_name("kubectl")
# What midwatch itself reads, not Kubernetes.
NOT_KUSTOMIZED = ("runs", "grafana")


def kustomizations(kind: str = "Kustomization") -> list[str]:
    """Return the folders with a kustomization of a kind, relative to manifests/."""
    return sorted(
        str(path.parent.relative_to(MANIFESTS))
        for path in MANIFESTS.rglob("kustomization.yaml")
        if yaml.safe_load(path.read_text())["kind"] == kind
    )


@functools.cache
def _rendered(folder: str) -> tuple[list[Object], str]:
    done = subprocess.run(
        [KUBECTL, "kustomize", MANIFESTS / folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return load_all(done.stdout), done.stderr


def render(folder: str) -> list[Object]:
    """Return the objects of one kustomization, to do with as one likes."""
    return copy.deepcopy(_rendered(folder)[0])


def complaints(folder: str) -> str:
    """Return what kustomize had to say beside the objects."""
    return _rendered(folder)[1]


def one(objects: list[Object], kind: str, name: str) -> Object:
    """Return the one object of a kind and name."""
    (found,) = (o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name))
    return found
