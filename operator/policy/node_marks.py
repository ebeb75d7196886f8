"""Which nodes anything at all is to be said about: found once for all items of the checklist.

In a run of thousands of nodes nearly all are well, and every item of every decision would look at
each of them to find that out. The nodes of a state are a value that is replaced, never changed, so
what was found about the last one asked about holds for as long as it is the same one.
"""

from __future__ import annotations

import msgspec

from ...logbook.state import NodeState


class NodeMarks(msgspec.Struct, frozen=True):
    """The nodes of a state that bear a mark, each list in the order of the state.

    unproven: suspected, or not yet tried out in their present life.
    """

    evicted: tuple[NodeState, ...]
    drained: tuple[NodeState, ...]
    lemons: tuple[NodeState, ...]
    unproven: tuple[NodeState, ...]


def node_marks(nodes: dict[str, NodeState]) -> NodeMarks:
    """Return the marked nodes of a state."""
    global _last
    known = _last
    if known[0] is not nodes:
        _last = known = (nodes, _marks_of(nodes))
    return known[1]


def _marks_of(nodes: dict[str, NodeState]) -> NodeMarks:
    every = tuple(nodes.values())
    return NodeMarks(
        evicted=tuple(n for n in every if n.evict is not None),
        drained=tuple(n for n in every if n.drain is not None),
        lemons=tuple(n for n in every if n.lemon),
        unproven=tuple(n for n in every if n.suspicion or n.examined != n.incarnation),
    )


_last: tuple[dict[str, NodeState], NodeMarks] = ({}, NodeMarks((), (), (), ()))
