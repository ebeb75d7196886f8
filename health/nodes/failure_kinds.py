"""What a rule of failure_rules is made of, and what follows from the label it gives.

Rule: (label, tier, confidence, pattern). A failed run prints its cause once and its consequences
everywhere, so a rule says how near to the cause its message stands (tier), and only within the
highest tier found does the earliest line win:

  CAUSE    somebody in a position to know names it: driver, kernel, scheduler.
  PRECISE  the failing process names what failed, exactly.
  DETAIL   the transport or the host names a symptom that has few causes.
  PROGRAM  an exception of the interpreter; a typed one points at the program.
  HEARSAY  the words of a fault of the node, from somebody who need not know (failure_voice).
  PEER     another process, the meeting point or a collective is gone; which of these came
           first, the order of the lines tells.
  ECHO     what is printed once anything is wrong: clean-up, aborts, general NCCL lines.
  NOISE    what is printed at any end of a run, also a good one.

confidence is the chance that the label is right when this rule decided alone.

Patterns ignore case.
"""

from __future__ import annotations

from typing import NamedTuple

from . import labels as lb
from .verdicts import Action, Blame

NOISE, ECHO, PEER, HEARSAY, PROGRAM, DETAIL, PRECISE, CAUSE = range(8)

STOP, RESTART, WATCH, DRAIN, EVICT = (
    Action.STOP,
    Action.RESTART,
    Action.WATCH,
    Action.DRAIN,
    Action.EVICT,
)


class Consequence(NamedTuple):
    """Whose fault a label usually is, and what is done about it."""

    blame: Blame
    action: Action


CONSEQUENCES: dict[str, Consequence] = {
    lb.GPU_ECC: Consequence(Blame.NODE, EVICT),
    lb.GPU_FELL_OFF_BUS: Consequence(Blame.NODE, EVICT),
    lb.GPU_DRIVER_INIT: Consequence(Blame.NODE, EVICT),
    lb.NVLINK: Consequence(Blame.NODE, EVICT),
    lb.NCCL_TIMEOUT: Consequence(Blame.UNKNOWN, RESTART),
    lb.NETWORK_IB: Consequence(Blame.NETWORK, RESTART),
    lb.REMOTE_PEER_EXIT: Consequence(Blame.UNKNOWN, RESTART),
    lb.RENDEZVOUS: Consequence(Blame.UNKNOWN, RESTART),
    lb.PREEMPTION: Consequence(Blame.PREEMPTION, RESTART),
    lb.EXTERNAL_SIGNAL: Consequence(Blame.UNKNOWN, RESTART),
    lb.NODE_LOST: Consequence(Blame.NODE, EVICT),
    lb.OOM_HOST: Consequence(Blame.CODE, RESTART),
    lb.OOM_GPU: Consequence(Blame.CODE, RESTART),
    lb.SHM_EXHAUSTED: Consequence(Blame.CODE, RESTART),
    lb.STORAGE: Consequence(Blame.STORAGE, RESTART),
    lb.USER_CODE: Consequence(Blame.CODE, STOP),
    lb.CUDA_ILLEGAL_ACCESS: Consequence(Blame.UNKNOWN, RESTART),
    lb.HOST_HANG: Consequence(Blame.UNKNOWN, RESTART),
    lb.SCHEDULER: Consequence(Blame.UNKNOWN, RESTART),
    lb.LOSS_SCALE_COLLAPSE: Consequence(Blame.UNKNOWN, Action.ROLLBACK),
    lb.NAN_LOSS: Consequence(Blame.UNKNOWN, Action.ROLLBACK),
    lb.LOSS_SCALE_NORMAL_DRIFT: Consequence(Blame.UNKNOWN, Action.IGNORE),
    lb.HEALTHY_STARTUP_OVERFLOWS: Consequence(Blame.UNKNOWN, Action.IGNORE),
    lb.UNKNOWN: Consequence(Blame.UNKNOWN, WATCH),
}


class Rule(NamedTuple):
    """One message and what it means; blame and action only where they differ from the label's."""

    label: str
    tier: int
    confidence: float
    pattern: str
    blame: Blame | None = None
    action: Action | None = None
