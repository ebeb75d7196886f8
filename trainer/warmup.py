"""Pay once for what every worker would pay at birth, in a process that workers are forked from.

Most of the time from a fork to the first step is spent on imports that happen on first use and on
operators that torch sets up when they are first called. The preload makes one step of a small
model of the run's own kind on torch's "fake" process group, in which no collective waits for
anybody. It leaves no thread behind: a fork copies only the thread that calls it, and a lock held
by another would stay locked in the child for ever.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any


def preload(trainer_config: dict[str, Any]) -> None:
    """Make this process a quick parent of workers that train trainer_config.

    Call it once, before any fork and before anything has imported numpy or torch. Afterwards the
    process has one thread and no process group.

    Raises: RuntimeError when a thread is left, since forking would then be unsafe.
    """
    # numpy's linear algebra starts its threads when it is imported, hence also the late import.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # Has torch count GPUs through NVML: asking the CUDA runtime would start what no fork survives.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    from ..checkpoints.fingerprint import take_fingerprint
    from .rehearsal import rehearse

    rehearse(trainer_config)
    # Versions are remembered, and so inherited: looking them up takes milliseconds a package.
    take_fingerprint({})
    _refuse_threads()
    # What is alive now is never garbage: keep the collector of every child from touching, and so
    # copying, the pages it shares with this process.
    gc.collect()
    gc.freeze()


def _refuse_threads() -> None:
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if len(names) != 1:
        raise RuntimeError(f"the preload left threads behind: {names}; forking is unsafe")
