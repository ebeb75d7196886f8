"""Play seeded nights from the command line: `python -m midwatch.tests.sim.replay SEED [COUNT]`.

One seed is told decision by decision; with a COUNT that many seeds are played from SEED on, and
those that fail are named.
"""

from __future__ import annotations

import sys

from .faults import plan_of, play
from .night import Night


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
    night = Night(plan.spec, seed=plan.seed, physics=plan.physics)
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


def explore(first: int, count: int) -> int:
    """Play many seeds; print those that fail, each with the command that replays it."""
    failed = 0
    for seed in range(first, first + count):
        try:
            play(plan_of(seed))
        except AssertionError as error:
            failed += 1
            print(f"seed {seed}: {str(error)[:300]}\n    {command(seed)}")
    print(f"{count} nights played, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    arguments = [int(text) for text in sys.argv[1:]]
    raise SystemExit(explore(*arguments) if len(arguments) > 1 else tell(arguments[0]))
