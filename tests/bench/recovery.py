"""From the SIGKILL of a worker to the first new step: Midwatch on Ray against torchrun.

    python -m tests.bench.recovery [--kills N] [--torchrun-kills N] [--seed N]

Both sides train one job, nano on four CPU ranks (gloo, dp_shard 2 x tp 2), saved every five steps,
one after the other, and lose the same ranks: first Midwatch, on a private local Ray with two node
agents and a spare, then `torchrun --standalone --max-restarts`, whose workers go on from their
newest checkpoint by themselves. A kill comes once the attempt has made ten steps, plus a random
part of a second.

A recovery begins just before kill(2) and ends when rank 0 of the next attempt has completed its
first optimizer step: its own time stamp in the journaled StepSample, under torchrun the arrival
of the line that it prints of that step. A step trained again counts: it is the first new one.

recovery_s and torchrun_s are medians over the kills of one run, ratio is the second over the
first. The breakdown is in milliseconds since the kill: journal times for what the controller knew
and decided, /proc for the end of the old processes, and the last rank's own stamps for its start.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path

from midwatch.operator.runtime.local_ray import set_local_environment

from .job import ENDLESS, build_corpus, job_spec, write_spec
from .processes import wait_gone
from .under_torchrun import Torchrun

INTERVAL_STEPS = 5
CALM_STEPS = 10
MAX_PAUSE_S = 0.5
RANKS = 4
FIRST_STEP = "first new step"
Moments = dict[str, float]


class Victims:
    """The seeded order in which ranks die, and how long after the calm began."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def next(self) -> tuple[int, float]:
        return self._chance.randrange(RANKS), self._chance.uniform(0.0, MAX_PAUSE_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=9)
    parser.add_argument("--torchrun-kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    set_local_environment()
    # Only now: ray reads the environment when it is imported.
    from .under_midwatch import kill_workers

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = build_corpus(folder)
        spec = job_spec(
            "recovery", folder / "ray", corpus, steps=ENDLESS, interval_steps=INTERVAL_STEPS
        )
        ours = kill_workers(spec, Victims(options.seed), options.kills, CALM_STEPS)
        spec["run_dir"] = str(folder / "torchrun")
        theirs = kill_under_torchrun(spec, folder, Victims(options.seed), options.torchrun_kills)
    recovery_s = print_moments("Midwatch on Ray", ours)
    torchrun_s = print_moments("torchrun", theirs)
    result = {"recovery_s": recovery_s, "torchrun_s": torchrun_s, "ratio": torchrun_s / recovery_s}
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


def kill_under_torchrun(
    spec: dict[str, object], folder: Path, victims: Victims, kills: int
) -> list[Moments]:
    """Return the moments of each recovery, in seconds since its kill."""
    rows = []
    with Torchrun(write_spec(folder / "spec.yaml", spec), folder / "torchrun.log") as job:
        calm, since = CALM_STEPS, 0
        for _ in range(kills):
            job.wait_line(lambda line, calm=calm: (line.step or 0) >= calm, since)
            rank, pause_s = victims.next()
            time.sleep(pause_s)
            old = job.workers()
            since = len(job.lines)
            killed_s = time.time()
            os.kill(old[rank], signal.SIGKILL)
            gone_s = wait_gone(old.values())
            came = job.wait_line(lambda line: line.resumed_step is not None, since)
            stepped = job.wait_line(
                lambda line, came=came: line.step is not None and line.time_s > came.time_s, since
            )
            moments = {
                "old processes gone": gone_s,
                "state loaded": came.time_s,
                FIRST_STEP: stepped.time_s,
            }
            rows.append({name: stamp_s - killed_s for name, stamp_s in moments.items()})
            calm = (came.resumed_step or 0) + CALM_STEPS
    return rows


def print_moments(title: str, rows: list[Moments]) -> float:
    """Print each moment's median and range; return the median of the recovery in seconds."""
    print(f"{title}: {len(rows)} kills, milliseconds since the kill")
    for name in rows[0]:
        times_ms = sorted(1e3 * row[name] for row in rows)
        median_ms = statistics.median(times_ms)
        print(f"    {name:32} {median_ms:8.0f}   ({times_ms[0]:.0f} to {times_ms[-1]:.0f})")
    return statistics.median(row[FIRST_STEP] for row in rows)


if __name__ == "__main__":
    main()
