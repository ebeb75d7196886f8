"""What supervision costs training: the same job under Midwatch on Ray and under plain torchrun.

    python -m tests.bench.overhead [--pairs N] [--steps N] [--preset nano|tiny]

Four CPU ranks (gloo, dp_shard 2 x tp 2) train the same steps of the same job under either, in
pairs whose order alternates. Under Midwatch that is a private local Ray with the controller, two
agents and a spare's; nobody watches the run. A run's step time is the time from one step to a much
later one over the steps between, so checkpoints and reports count; it says nothing of start-up.

overhead_frac is the median over the pairs of (step time under Midwatch / under torchrun - 1). On
cores that the ranks leave no room on, everything else that runs takes its time from them, so the
CPU time of each part is printed too: it tells the cost far more finely than clocks that a
neighbour may disturb, and what part of it is Ray's own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from midwatch.operator.runtime.local_ray import set_local_environment

from .job import build_corpus, job_spec, write_spec
from .processes import Usage
from .under_torchrun import Torchrun

WARM_STEPS = 40
INTERVAL_STEPS = 50
LAST_FRAC = 0.95
"""The end of a run is left out: the processes must still be there when they are looked at."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--preset", choices=["nano", "tiny"], default="nano")
    options = parser.parse_args()
    set_local_environment()
    # Only now: ray reads the environment when it is imported.
    from .under_midwatch import train_watched

    pairs: list[tuple[Usage, Usage]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = build_corpus(folder)
        for number in range(options.pairs):
            spec = job_spec(
                f"overhead-{number}",
                folder / f"ray-{number}",
                corpus,
                steps=options.steps,
                interval_steps=INTERVAL_STEPS,
            )
            spec["trainer"]["preset"] = options.preset
            if number % 2:
                plain = train_plain(spec, folder, number)
                watched = train_watched(spec, WARM_STEPS, LAST_FRAC)
            else:
                watched = train_watched(spec, WARM_STEPS, LAST_FRAC)
                plain = train_plain(spec, folder, number)
            print_pair(watched, plain)
            pairs.append((watched, plain))
    overheads = sorted(watched.step_s / plain.step_s - 1.0 for watched, plain in pairs)
    print_cores("Midwatch on Ray", [watched for watched, _ in pairs])
    print_cores("torchrun", [plain for _, plain in pairs])
    print(f"overhead by pair: {', '.join(f'{o:+.2%}' for o in overheads)}")
    print(json.dumps({"overhead_frac": round(statistics.median(overheads), 4)}))


def train_plain(spec: dict[str, Any], folder: Path, number: int) -> Usage:
    """Train under torchrun; return what the steps after the warm ones took."""
    spec = {**spec, "run_dir": str(folder / f"torchrun-{number}")}
    last_step = spec["trainer"]["steps"]
    with Torchrun(write_spec(folder / "spec.yaml", spec), folder / "torchrun.log") as job:
        begin = job.wait_line(lambda line: (line.step or 0) >= WARM_STEPS)
        usage = Usage({"workers": job.workers().values(), "torchrun itself": [job.pid]})
        end = job.wait_line(lambda line: (line.step or 0) >= LAST_FRAC * last_step)
        return usage.stop((end.step or 0) - (begin.step or 0), end.time_s - begin.time_s)


def print_pair(watched: Usage, plain: Usage) -> None:
    print(
        f"step under Midwatch {watched.step_s * 1e3:.2f} ms, under torchrun "
        f"{plain.step_s * 1e3:.2f} ms: {watched.step_s / plain.step_s - 1.0:+.2%}",
        flush=True,
    )


def print_cores(title: str, runs: list[Usage]) -> None:
    """Print what share of one core each part took; medians over the runs."""
    cores = os.cpu_count() or 1
    print(f"{title}: share of one core taken by (this machine has {cores})")
    for part in runs[0].cores:
        shares = sorted(run.cores[part] for run in runs)
        print(
            f"    {part:32} {statistics.median(shares):8.2%}   "
            f"({shares[0]:.2%} to {shares[-1]:.2%})"
        )
    cpu_s = statistics.median(run.cores["workers"] * run.step_s for run in runs)
    print(f"    CPU time of all workers a step   {cpu_s * 1e3:8.2f} ms")


if __name__ == "__main__":
    main()
