"""The people of a simulated run: they mend or change machines, and answer what the run asks."""

from __future__ import annotations

import random
from functools import partial

import msgspec

from ...logbook import events as ev
from ...logbook.state import NodeState, RunState, Status
from .nature import Nature
from .strikes import Chance
from .world import World

LOOK_AGAIN_S = 600.0
SETTLED_S = 60.0
"""From a machine's end until the node is released: by then the run has seen the old agent go."""


class Crew(msgspec.Struct, frozen=True):
    """How fast people are, medians in seconds.

    replace_s: from a quarantine until the node is given back on a sound machine.
    respond_s: until somebody looks at a run that has paused or waits for a node.
    same_again_frac: share of replacements that are the same bad machine.
    """

    replace_s: float = 4 * 3600.0
    respond_s: float = 1800.0
    same_again_frac: float = 0.1


class People:
    """Watch a run and do what a crew would. pages_total: how often somebody had to look.

    nature: told of every node that is given back.
    """

    def __init__(self, world: World, crew: Crew, seed: int, nature: Nature) -> None:
        self.pages_total = 0
        self.replaced_total = 0
        self._world = world
        self._crew = crew
        self._rng = random.Random(f"{seed}/people")
        self._chance = Chance()
        self._nature = nature
        self._nodes: dict[str, NodeState] | None = None
        self._at_work: set[str] = set()
        self._paged = ""

    def look(self, state: RunState) -> None:
        """Notice what has changed; called after every turn."""
        if state.nodes is not self._nodes:
            self._nodes = state.nodes
            for name, node in state.nodes.items():
                if node.quarantined and name not in self._at_work:
                    self._at_work.add(name)
                    after_s = self._chance.draw_s(self._crew.replace_s, self._rng)
                    self._world.timeline.later(after_s, partial(self._give_back, name))
        status = state.status
        asks = status.value if status is Status.PAUSED or _waits(state) else ""
        if asks and asks != self._paged:
            self.pages_total += 1
            self._world.timeline.later(
                self._chance.draw_s(self._crew.respond_s, self._rng), self._respond
            )
        self._paged = asks

    def stop(self) -> None:
        """Ask the run to save and end: its time is over."""
        self._ask("stop", "", "the time of this simulation is over")

    def _give_back(self, name: str) -> None:
        """Put the node on a sound machine, or so one hopes, and release it."""
        if self._world.absent.get(name, 0.0) > self._world.timeline.elapsed_s:
            # The machine is still down, and with it perhaps the whole cluster.
            self._world.timeline.later(LOOK_AGAIN_S, partial(self._give_back, name))
            return
        self.replaced_total += 1
        # Whatever machine comes back, its agent is a new one, and nobody has tried it out.
        self._world.kill_agent(name, known_after_s=0.0)
        is_same = self._rng.random() < self._crew.same_again_frac
        if not is_same:
            self._world.trouble.repaired(name)
        self._world.timeline.later(SETTLED_S, partial(self._release, name, is_same=is_same))

    def _release(self, name: str, *, is_same: bool) -> None:
        self._at_work.discard(name)
        if is_same:
            self._nature.is_same(name)
        else:
            self._nature.is_new(name)
        self._ask("release", name, "back on a sound machine")

    def _respond(self) -> None:
        if self._paged == Status.PAUSED.value:
            self._ask("resume", "", "looked at it")
            self._paged = ""

    def _ask(self, action: str, target: str, reason: str) -> None:
        number = self._world.timeline.elapsed_s
        self._world.ask(
            ev.InterventionRequested(
                id=f"{action}-{target}-{number:.3f}",
                action=action,
                by="crew",
                reason=reason,
                target=target,
            )
        )


def _waits(state: RunState) -> bool:
    """Whether the run waits for a node that only people can bring."""
    is_short = state.status is Status.WAITING and state.num_attempts > 0
    return is_short and any(node.quarantined for node in state.nodes.values())
