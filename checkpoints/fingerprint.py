"""Which environment wrote a checkpoint, and what differs from the one that loads it."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from .manifest import Fingerprint

PACKAGES = ("numpy", "ray")
"""Packages besides torch and midwatch whose versions may explain another result."""
MAX_CONFIG_LINES = 20
_DRIVER = Path("/sys/module/nvidia/version")


def config_digest(config: Mapping[str, Any]) -> str:
    """Return a digest that is equal for equal configurations, whatever the order of their keys."""
    return hashlib.sha256(msgspec.json.encode(config, order="deterministic")).hexdigest()[:16]


def take_fingerprint(
    config: Mapping[str, Any],
    *,
    torch_version: str | None = None,
    gpu: str | None = None,
    libraries: Mapping[str, str] | None = None,
) -> Fingerprint:
    """Return the fingerprint of this process.

    config:        the trainer's configuration as plain data.
    torch_version: of the imported torch; None asks the installed package, for callers without it.
    gpu:           name of the accelerator, None on a CPU.
    libraries:     versions of what only torch knows of: CUDA, NCCL.
    """
    return Fingerprint(
        python=platform.python_version(),
        torch=torch_version or _installed("torch"),
        midwatch=_installed("midwatch"),
        platform=f"{platform.system()}-{platform.machine()}",
        config_digest=config_digest(config),
        gpu=gpu,
        packages={**installed_packages(), **(libraries or {})},
        config=dict(config),
    )


@functools.cache
def installed_packages() -> dict[str, str]:
    """Return the versions of PACKAGES, and of the GPU driver where one is loaded.

    Looked up once: to read the metadata of an installation takes milliseconds a package, which a
    worker that a restart waits for should inherit rather than spend.
    """
    versions = {package: _installed(package) for package in PACKAGES}
    try:
        return {**versions, "driver": _DRIVER.read_text(encoding="ascii").strip()}
    except OSError:
        return versions


def differences(saved: Fingerprint, current: Fingerprint) -> tuple[str, ...]:
    """Return one line for whatever differs, e.g. "torch: saved 2.12.0, now 2.13.0".

    What one of the two does not record is not compared; where both hold the configuration, its
    fields are, and not their digest.
    """
    pairs = [
        (name, getattr(saved, name), getattr(current, name))
        for name in ("python", "torch", "midwatch", "platform", "gpu")
    ]
    if saved.packages and current.packages:
        names = sorted({*saved.packages, *current.packages})
        pairs += [(name, saved.packages.get(name), current.packages.get(name)) for name in names]
    lines = [_line(*pair) for pair in pairs if pair[1] != pair[2]]
    if saved.config_digest == current.config_digest:
        return tuple(lines)
    if not (saved.config and current.config):
        return (*lines, _line("config_digest", saved.config_digest, current.config_digest))
    before, now = dict(_leaves(saved.config)), dict(_leaves(current.config))
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    lines += [_line(n, before.get(n), now.get(n)) for n in changed[:MAX_CONFIG_LINES]]
    more = len(changed) - MAX_CONFIG_LINES
    return (*lines, f"config: {more} fields more") if more > 0 else tuple(lines)


def _line(name: str, saved: Any, now: Any) -> str:
    return f"{name}: saved {saved}, now {now}"


def _leaves(config: Mapping[str, Any], prefix: str = "config") -> Iterator[tuple[str, Any]]:
    """Every field that holds no section of its own, by its path."""
    for key, value in config.items():
        path = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


@functools.cache
def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
