"""Which environment wrote a checkpoint, and what differs from the one that loads it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import msgspec

from .manifest import Fingerprint


def config_digest(config: Mapping[str, Any]) -> str:
    """Return a digest that is equal for equal configurations, whatever the order of their keys."""
    return hashlib.sha256(msgspec.json.encode(config, order="deterministic")).hexdigest()[:16]


def take_fingerprint(
    config: Mapping[str, Any], *, torch_version: str | None = None, gpu: str | None = None
) -> Fingerprint:
    """Return the fingerprint of this process.

    config:        the trainer's configuration as plain data.
    torch_version: of the imported torch; None asks the installed package, for callers without it.
    gpu:           name of the accelerator, None on a CPU.
    """
    return Fingerprint(
        python=platform.python_version(),
        torch=torch_version or _installed("torch"),
        midwatch=_installed("midwatch"),
        platform=f"{platform.system()}-{platform.machine()}",
        config_digest=config_digest(config),
        gpu=gpu,
    )


def differences(saved: Fingerprint, current: Fingerprint) -> tuple[str, ...]:
    """Return one line per field that differs, e.g. "torch: saved 2.12.0, now 2.13.0"."""
    before, now = msgspec.structs.asdict(saved), msgspec.structs.asdict(current)
    return tuple(
        f"{name}: saved {before[name]}, now {now[name]}"
        for name in Fingerprint.__struct_fields__
        if before[name] != now[name]
    )


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
