"""YAML as Kubernetes reads it: 1e-6 is a number there, and a text to PyYAML."""

from __future__ import annotations

import re
from typing import Any

import yaml


class Loader(yaml.CSafeLoader):
    """PyYAML's safe and fast loader with the numbers of YAML 1.2."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load_all(text: str) -> list[dict[str, Any]]:
    """Return every object of a stream."""
    return [known for known in yaml.load_all(text, Loader) if known]
