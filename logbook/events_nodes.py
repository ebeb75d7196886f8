"""What can happen to nodes; part of events.py, through which everybody reads them."""

from __future__ import annotations

from .event_base import EventBase
from .preflight import CheckResult, PreflightDone, SilentRank

# --- nodes ---------------------------------------------------------------------------------------


class NodeJoined(EventBase, frozen=True, tag="node-joined"):
    """An agent is up with its workers' code preloaded. incarnation names this agent process.

    machine, gpus: what it runs on, by its hardware: the machine's UUID ("" where it names nobody)
        and (UUID, serial) of each GPU. lemon: why that must not be used, "" when it may be.
    """

    node: str
    incarnation: str
    host: str
    slots: int
    pid: int = 0
    machine: str = ""
    gpus: tuple[tuple[str, str], ...] = ()
    lemon: str = ""


class NodeIdentified(EventBase, frozen=True, tag="node-identified"):
    """What a node runs on has come to be known after it joined. Fields as in NodeJoined."""

    node: str
    incarnation: str
    machine: str
    gpus: tuple[tuple[str, str], ...]
    lemon: str


class NodeLost(EventBase, frozen=True, tag="node-lost"):
    """The agent of a node is gone (its process died) or silent past the heartbeat deadline."""

    node: str
    incarnation: str
    reason: str


class EnergyUsed(EventBase, frozen=True, tag="energy"):
    """What the GPUs of a node say they have used within span_s, put down to an attempt."""

    attempt: int
    node: str
    joules: float
    span_s: float
    num_gpus: int


# --- preflights ----------------------------------------------------------------------------------


class PreflightBegun(EventBase, frozen=True, tag="preflight-begun"):
    """The ranks of one node are at work: its order has arrived."""

    preflight: int
    node: str


class PreflightAnswered(EventBase, frozen=True, tag="preflight-answered"):
    """What some ranks of one node found, and which of its ranks ended without saying anything."""

    preflight: int
    node: str
    done: tuple[PreflightDone, ...] = ()
    silent: tuple[SilentRank, ...] = ()


class PreflightJudged(EventBase, frozen=True, tag="preflight-judged"):
    """All answers of a preflight are in, or its time is over. What it found stands in findings.

    failed: the checks that did not pass, the first few. error: why it proves nothing, "" when it
    does. is_cut: a node was lost meanwhile, so the others are to be tried out again.
    """

    preflight: int
    checks_total: int
    failed: tuple[CheckResult, ...] = ()
    bad_nodes: tuple[str, ...] = ()
    suspect_nodes: tuple[str, ...] = ()
    error: str = ""
    is_cut: bool = False
