"""Play seeded nights from the command line.

    python -m midwatch.tests.sim.replay SEED             one seed, decision by decision
    python -m midwatch.tests.sim.replay SEED COUNT       so many seeds; those that fail are named
    python -m midwatch.tests.sim.replay --seconds 60     seeds nobody has tried, for so long
    python -m midwatch.tests.sim.replay SEED --keep      lay its night down in nights/, as data

`make fuzz SECONDS=60` is the last of them. A failing seed is printed with the command that plays it
again; once its cause is mended its night is kept in nights/, which test_random.py plays.
"""

from __future__ import annotations

import argparse
import itertools
import math
import secrets
import time
from collections.abc import Iterable

from .faults import plan_of, play
from .night import Night
from .plans import KEPT, encode


def command(seed: int) -> str:
    """Return the command that plays one seed again."""
    return f"python -m midwatch.tests.sim.replay {seed}"


def tell(seed: int) -> int:
    """Play one seed and print what was decided; return an exit status."""
    plan = plan_of(seed)
    print(f"seed {seed}: {plan.spec.num_nodes} nodes, {plan.spec.nodes.spares} spares")
    print(f"physics: {plan.physics}")
    for fault in plan.faults:
        print(f"  {fault}")
    night = Night(plan.spec, seed=plan.seed, physics=plan.physics, times=plan.times)
    start_s = night.timeline.now_s()
    status = 0
    try:
        play(plan, night)
    except AssertionError as error:
        print(f"FAILED: {error}")
        status = 1
    for at_s, decision in night.checker.told:
        name = type(decision.action).__name__
        print(f"{at_s - start_s:8.2f}  {decision.id:>7}  {name:<20} {decision.reason[:150]}")
    state = night.state
    print(f"{state.status} at step {state.step}, {state.num_attempts} attempts")
    return status


def keep(seed: int, *, with_disk: bool = True) -> int:
    """Lay the night of a seed down in nights/."""
    KEPT.mkdir(exist_ok=True)
    path = KEPT / f"{seed}.json"
    path.write_bytes(encode(plan_of(seed, with_disk=with_disk)))
    print(path)
    return 0


def explore(seeds: Iterable[int], seconds: float = math.inf) -> int:
    """Play many seeds; print those that fail, each with the command that replays it."""
    failed = played = 0
    end_s = time.monotonic() + seconds
    for seed in seeds:
        try:
            play(plan_of(seed))
        except Exception as error:
            failed += 1
            what = f"{type(error).__name__}: {error}"
            print(f"seed {seed}: {what:.300}\n    {command(seed)}", flush=True)
        played += 1
        if time.monotonic() > end_s:
            break
    print(f"{played} nights played, {failed} failed")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="where to begin")
    parser.add_argument("count", type=int, nargs="?", help="so many seeds")
    parser.add_argument("--seconds", type=float, help="go on for so long")
    parser.add_argument("--keep", action="store_true", help="lay the night down as data")
    parser.add_argument("--no-disk", action="store_true", help="as kept: no failing writes")
    options = parser.parse_args()
    first = options.seed
    if options.keep:
        if first is None:
            parser.error("--keep takes a seed")
        return keep(first, with_disk=not options.no_disk)
    if options.seconds is not None:
        # Elsewhere every time: what was tried once passes again.
        first = secrets.randbelow(1 << 40) if first is None else first
        return explore(itertools.count(first), options.seconds)
    if first is None:
        parser.error("give a seed, or --seconds")
    return tell(first) if options.count is None else explore(range(first, first + options.count))


if __name__ == "__main__":
    raise SystemExit(main())
