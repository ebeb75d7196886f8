"""How long four workers take from their fork to the first completed step, and where it goes.

    python -m tests.bench.birth [--repeats N]

The parent is warm and the workers resume from a checkpoint, as after a fault. Times are of the
slowest rank, medians over the repeats; a phase ends when its last rank has left it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from midwatch.logbook.wire import Mesh, Phase, Resumed
from midwatch.tests.support.crew import Crew, Nursery, starts_for
from midwatch.trainer.data import corpus
from midwatch.trainer.data.build import BuildConfig, build

MESH = Mesh(dp_shard=2, tp=2)
SAVED_STEP = 10


def measure(nursery: Nursery, run_dir: Path, trainer: dict[str, Any], attempt: int) -> list[float]:
    """Return seconds from the first fork to: all forked, meshed, loaded, first step."""
    starts = starts_for(
        run_dir,
        trainer,
        MESH,
        attempt=attempt,
        until_step=SAVED_STEP + 1,
        checkpoints=(f"step-{SAVED_STEP:08d}.a0001",),
    )
    begun_s = time.monotonic()
    crew = Crew(nursery, starts)
    marks_s = [time.monotonic() - begun_s]
    while min(phase for _, phase in crew.places()) < Phase.LOADING:
        crew.watch(lambda crew: True)
        time.sleep(0.001)
    marks_s.append(time.monotonic() - begun_s)
    crew.watch(lambda crew: len(crew.said(Resumed)) == MESH.world_size)
    marks_s.append(time.monotonic() - begun_s)
    crew.watch(lambda crew: bool(crew.steps()))
    marks_s.append(time.monotonic() - begun_s)
    crew.watch()
    assert crew.exit_codes() == [0] * MESH.world_size, crew.failures()
    return marks_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "corpus"
        build([corpus.stdlib_dir()], data, BuildConfig(vocab_size=512, max_bytes=200_000))
        trainer = {
            "preset": "nano",
            "model": {"vocab": 512},
            "data": {"dir": str(data)},
            "checkpoint": {"interval_steps": 1000},
        }
        begun_s = time.monotonic()
        nursery = Nursery(trainer)
        run_dir = Path(folder) / "run"
        first = Crew(nursery, starts_for(run_dir, trainer, MESH, until_step=SAVED_STEP))
        preload_s = time.monotonic() - begun_s
        first.watch()
        assert first.exit_codes() == [0] * MESH.world_size, first.failures()
        rows = [measure(nursery, run_dir, trainer, 2 + number) for number in range(repeats)]
        nursery.close()
    forked_s, meshed_s, loaded_s, stepped_s = (
        statistics.median(c) for c in zip(*rows, strict=True)
    )
    print(f"preload, once per node  {preload_s:.3f} s")
    print(f"four processes forked   {forked_s:.3f} s")
    print(f"mesh and model built    {meshed_s:.3f} s")
    print(f"checkpoint loaded       {loaded_s:.3f} s")
    print(f"first step completed    {stepped_s:.3f} s, slowest {max(r[-1] for r in rows):.3f} s")
    print(
        json.dumps(
            {
                "birth_s": round(stepped_s, 4),
                "forked_s": round(forked_s, 4),
                "meshed_s": round(meshed_s, 4),
                "loaded_s": round(loaded_s, 4),
                "preload_s": round(preload_s, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
