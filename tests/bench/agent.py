"""How fast an agent sees a worker die, ends its peers, and gives birth to the next attempt.

    python -m tests.bench.agent [--rounds N] [--ranks N] [--bare]

Workers are the stdlib-only fake trainer, so the figures are the agent's own; the forkserver has
torch and the trainer preloaded, as in earnest, unless --bare. A new attempt is ordered as soon as
the death is reported. Times are from the SIGKILL to: the report in the reader's hands, all old
workers gone, all new ones forked, the first instruction of the slowest new one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import statistics
import tempfile
import time
from pathlib import Path

from midwatch.operator.agent.plan import LocalPlan, Preload
from midwatch.operator.agent.reports import AttemptStopped, WorkerExited, WorkersStarted
from midwatch.tests.support.agents import FAKE, Site, site, wait_until

TRAINER = {"preset": "nano", "model": {"vocab": 272}, "data": {"dir": "unused"}}
MOMENTS = ("reported", "old_gone", "new_forked", "new_running")


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--bare", action="store_true")
    options = parser.parse_args()
    entry = f"{FAKE}:preload" if options.bare else "midwatch.trainer.warmup:preload"
    preload = Preload(entry, {} if options.bare else TRAINER)
    chance = random.Random(7)
    with tempfile.TemporaryDirectory() as folder:
        changes = {"preload": (preload,), "env": {"OMP_NUM_THREADS": "1"}}
        with site(Path(folder), status_s=1.0, poll_s=0.1, **changes) as agent:
            rounds = measure(agent, options.rounds, options.ranks, chance)
            idle_frac = supervise(agent, options.rounds + 2, options.ranks)
    result: dict[str, float] = {}
    for moment, times in zip(MOMENTS, zip(*rounds, strict=True), strict=True):
        median_s, worst_s = statistics.median(times), max(times)
        print(f"{moment:12} median {median_s * 1e3:7.2f} ms   worst {worst_s * 1e3:7.2f} ms")
        result[f"{moment}_s"] = round(median_s, 5)
    print(f"supervising {options.ranks} ranks at 20 steps/s each: {idle_frac:.2%} of a core")
    print(json.dumps({**result, "core_frac": round(idle_frac, 5)}))


def measure(agent: Site, rounds: int, ranks: int, chance: random.Random) -> list[list[float]]:
    """Kill one rank per round and time what follows."""
    pids = begin(agent, 1, ranks)
    times = []
    for attempt in range(1, rounds + 1):
        time.sleep(0.2)
        killed_s = time.monotonic()
        os.kill(pids[chance.randrange(ranks)], signal.SIGKILL)
        agent.recorder.wait(WorkerExited, lambda report, attempt=attempt: is_of(report, attempt))
        moments = [time.monotonic() - killed_s]
        agent.supervisor.start(plan(agent, attempt + 1, ranks))
        agent.recorder.wait(AttemptStopped, lambda report, attempt=attempt: is_of(report, attempt))
        moments.append(time.monotonic() - killed_s)
        pids = started(agent, attempt + 1)
        moments.append(time.monotonic() - killed_s)
        wait_running(agent, attempt + 1, ranks)
        moments.append(time.monotonic() - killed_s)
        times.append(moments)
    return times


def supervise(agent: Site, attempt: int, ranks: int, for_s: float = 5.0) -> float:
    """Return the share of a core that this process spends on watching calm workers."""
    begin(agent, attempt, ranks)
    before = resource.getrusage(resource.RUSAGE_SELF)
    began_s = time.monotonic()
    time.sleep(for_s)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent_s / (time.monotonic() - began_s)


def plan(agent: Site, attempt: int, ranks: int) -> LocalPlan:
    return agent.plan(attempt, ranks=range(ranks), step_s=0.05)


def begin(agent: Site, attempt: int, ranks: int) -> dict[int, int]:
    agent.supervisor.start(plan(agent, attempt, ranks))
    pids = started(agent, attempt)
    wait_running(agent, attempt, ranks)
    return pids


def started(agent: Site, attempt: int) -> dict[int, int]:
    found = agent.recorder.wait(WorkersStarted, lambda report: is_of(report, attempt))
    return found.pids


def is_of(report: WorkerExited | AttemptStopped | WorkersStarted, attempt: int) -> bool:
    return report.attempt == attempt


def wait_running(agent: Site, attempt: int, ranks: int) -> None:
    """Wait until every worker has printed its first line."""
    wait_until(
        lambda: all("threads" in agent.log(attempt, rank) for rank in range(ranks)), "all run"
    )


if __name__ == "__main__":
    main()
