"""The job that both sides of a comparison train: one spec, alike but for name and folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from midwatch.trainer.data.build import BuildConfig, build
from midwatch.trainer.data.corpus import stdlib_dir

VOCAB = 512
ENDLESS = 1_000_000
"""More steps than any bench lets a job make."""


def build_corpus(folder: Path) -> Path:
    """Tokenise a little of the standard library."""
    out = folder / "corpus"
    build([stdlib_dir()], out, BuildConfig(vocab_size=VOCAB, max_bytes=200_000))
    return out


def job_spec(
    name: str, run_dir: Path, corpus: Path, *, steps: int, interval_steps: int, **changes: Any
) -> dict[str, Any]:
    """Return a run spec of the nano model on dp_shard 2 x tp 2, two nodes and a spare.

    torchrun passes over everything but name, run_dir, mesh and trainer.
    """
    return {
        "name": name,
        "run_dir": str(run_dir),
        "mesh": {"dp_shard": 2, "tp": 2},
        "nodes": {"ranks_per_node": 2, "spares": 1},
        "trainer": {
            "preset": "nano",
            "model": {"vocab": VOCAB},
            "steps": steps,
            "schedule": {"warmup_steps": 20},
            "data": {"dir": str(corpus)},
            "checkpoint": {"interval_steps": interval_steps},
        },
        **changes,
    }


def write_spec(path: Path, spec: dict[str, Any]) -> Path:
    """Write a spec as YAML and return where."""
    path.write_text(yaml.safe_dump(spec))
    return path
