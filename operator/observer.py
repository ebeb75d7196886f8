"""From what agents say to events of the journal: fenced by attempt, trimmed to what matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from ..health.nodes.evidence import weigh_signs
from ..health.nodes.lemons import MachineIdentity
from ..health.nodes.liveness import RankProgress
from ..health.nodes.node_judge import Repeats
from ..logbook import events as ev
from ..logbook import wire
from ..logbook.findings import Finding, Severity
from ..logbook.state import RunState
from ..logbook.tiers import TierRefused
from .agent import reports as rp
from .examinations import Examinations
from .exit_reading import ExitReader
from .policy.nodes import machine_of
from .ports import CommitFound, NodeGone, NodeSigns, NodeUp, PruneResult, Signal, VerifyResult
from .readbacks import applied_event, loaded_events
from .worker_events import checkpoint_events, events_of

Attach = Callable[[str, str], str]
JudgeMachine = Callable[[MachineIdentity], str]

RANK_TIMES_EVERY_STEPS = 10
REMEMBERED_REPORTS = 16_384
ECHO_MESSAGE_MAX = 200
SIGNS_WINDOW_S = 3600.0
_OF_WORKERS = (
    rp.WorkerMessages,
    rp.WorkerExited,
    rp.WorkersExited,
    rp.StartFailed,
    rp.WorkersStarted,
)


class Observer:
    """Turns signals into events. Remembers only what one report needs of an earlier one.

    attach keeps a stack dump somewhere and returns its path; judge_machine says why a machine must
    not be used, "" when it may be. Findings get their id from whoever
    journals them.
    """

    def __init__(self, attach: Attach, judge_machine: JudgeMachine) -> None:
        self._attach = attach
        self._judge_machine = judge_machine
        self._last_words: dict[tuple[int, int], wire.WorkerFailed] = {}
        self._seen: dict[str, SeenReports] = {}
        self._refusals: set[tuple[str, str]] = set()
        self._start_errors: dict[str, str] = {}
        self._repeats = Repeats()
        # A condition stands for days and is told again with every look at the node.
        self._signs_said = Repeats(window_s=SIGNS_WINDOW_S)
        self._examinations = Examinations()
        self._exits = ExitReader()

    def observe(self, state: RunState, signal: Signal) -> list[ev.Event]:
        """Return the events that a signal amounts to for a run in this state."""
        if isinstance(signal, NodeGone):
            known = state.nodes.get(signal.node)
            if known is None or not known.present or known.incarnation != signal.agent:
                return []
            return [ev.NodeLost(signal.node, signal.agent, signal.reason)]
        if isinstance(signal, NodeUp):
            return [self._joined(signal)]
        if isinstance(signal, VerifyResult):
            return [ev.CheckpointVerified(signal.checkpoint, signal.error)]
        if isinstance(signal, PruneResult):
            return [ev.CheckpointsPruned(signal.checkpoints)]
        if isinstance(signal, CommitFound):
            name = signal.commit.checkpoint
            is_news = name not in state.checkpoints and name not in state.pruned
            return [signal.commit] if is_news else []
        if isinstance(signal, NodeSigns):
            return self._signs(state, signal)
        return self._report(state, signal)

    def _signs(self, state: RunState, signal: NodeSigns) -> list[ev.Event]:
        """What the cluster says of a node counts once, until it says more or has been silent."""
        found = weigh_signs(signal.signs, node=signal.node, step=state.step)
        new = [f for f in found if self._signs_said.is_new(signal.node, f, signal.time_s)]
        return [ev.FindingSeen("", state.num_attempts, finding) for finding in new]

    def _joined(self, signal: NodeUp) -> ev.Event:
        machine = signal.machine
        return ev.NodeJoined(
            signal.node,
            signal.agent,
            signal.host,
            signal.slots,
            signal.pid,
            machine=machine.uuid,
            gpus=_gpus(machine),
            lemon=self._judge_machine(machine),
        )

    def _report(self, state: RunState, report: rp.AgentReport) -> list[ev.Event]:
        if isinstance(report, rp.AgentStatus):
            return self._status(state, report)
        if not self._seen.setdefault(report.agent, SeenReports()).is_new(report.seq):
            # Sent again because our acknowledgement was lost.
            return []
        if isinstance(report, _OF_WORKERS) and report.attempt < 0:
            return self._examinations.observe(state, report)
        if isinstance(report, rp.WorkerMessages):
            return self._messages(state, report)
        if isinstance(report, (rp.CheckpointStored, rp.UploadTrouble)):
            # Facts about the store, whoever's attempt it was.
            return _upload(state, report)
        if isinstance(report, rp.PartHeld):
            return []
        if isinstance(report, rp.NodeFindings):
            # What is wrong with a node is so in any attempt.
            return self._node_findings(state, report)
        if isinstance(report, rp.EnergyUsed):
            use = report.use
            used = use.joules, use.span_s, use.num_gpus
            return [ev.EnergyUsed(max(report.attempt, 0), report.node, *used)]
        running = state.running(report.attempt)
        if running is None:
            return _stale(report)
        handler = _HANDLERS.get(type(report))
        if isinstance(report, rp.WorkerExited):
            return self._read(state, report)
        if isinstance(report, rp.WorkersExited):
            exits = tuple(_without_echo(self._exited(report, row)) for row in report.rows)
            return [ev.WorkersExited(report.attempt, report.node, exits)]
        if isinstance(report, rp.HangSuspected):
            return [self._hang(report)]
        return handler(report) if handler is not None else []

    def _status(self, state: RunState, report: rp.AgentStatus) -> list[ev.Event]:
        """A node that cannot load the workers' code never joins: somebody must be told why."""
        error = report.forkserver_error
        if report.forkserver != "failed" or self._start_errors.get(report.agent) == error:
            return self._identified(state, report)
        self._start_errors[report.agent] = error
        told = f"{report.node} cannot load the workers' code: {error[-500:]}"
        warning = _warning(state, report.node, "forkserver", "forkserver-failed", told)
        return [ev.FindingSeen("", state.num_attempts, warning)]

    def _identified(
        self, state: RunState, report: rp.AgentStatus | rp.NodeFindings
    ) -> list[ev.Event]:
        """What a node is may be known only after it has joined: its driver is slow to open."""
        machine, node = report.machine, state.nodes.get(report.node)
        if not machine.is_known or node is None or node.incarnation != report.agent:
            return []
        if machine == machine_of(node):
            return []
        gpus = _gpus(machine)
        lemon = self._judge_machine(machine)
        return [ev.NodeIdentified(node.node, node.incarnation, machine.uuid, gpus, lemon)]

    def _messages(self, state: RunState, report: rp.WorkerMessages) -> list[ev.Event]:
        events: list[ev.Event] = []
        applied: dict[tuple[int, str, str], list[tuple[int, wire.Applied]]] = {}
        stale = state.running(report.attempt) is None
        for rank, message in report.batch:
            if isinstance(message, wire.CheckpointStage):
                # A commit is a fact about the disk, whoever's attempt it was; the fold judges it.
                events += checkpoint_events(report.attempt, message)
            elif stale:
                continue
            elif isinstance(message, wire.WorkerFailed):
                self._last_words[report.attempt, rank] = message
            elif isinstance(message, TierRefused):
                events += self._refused(state, report.node, message)
            elif isinstance(message, wire.Applied):
                key = (message.seq, message.cause, message.phase)
                applied.setdefault(key, []).append((rank, message))
            else:
                events += events_of(report.attempt, rank, message, state.step)
        events += [applied_event(report, acks) for acks in applied.values()]
        events += [] if stale else loaded_events(report)
        return events + (_stale(report) if stale and not events else [])

    def _refused(self, state: RunState, node: str, message: TierRefused) -> list[ev.Event]:
        """Said once of a node: every attempt would say it again."""
        if (node, message.code) in self._refusals:
            return []
        self._refusals.add((node, message.code))
        warning = _warning(state, node, "memory-tier", message.code, message.message)
        return [ev.FindingSeen("", state.num_attempts, warning)]

    def _node_findings(self, state: RunState, report: rp.NodeFindings) -> list[ev.Event]:
        new = [
            finding
            for finding in report.findings
            if self._repeats.is_new(report.node, finding, report.time_s)
        ]
        step = state.step
        return self._identified(state, report) + [
            ev.FindingSeen(
                "",
                state.num_attempts,
                replace(finding, node=report.node, step=step, onset_step=step),
            )
            for finding in new
        ]

    def _read(self, state: RunState, report: rp.WorkerExited) -> list[ev.Event]:
        words = self._last_words.get((report.attempt, report.exit.rank))
        event = self._exited(report, report)
        if event.code in wire.PEER_CODES or event.exit_code == 0:
            return [event]
        traceback = words.traceback if words is not None else ""
        read, findings = self._exits.read(event, traceback, state.step)
        return [read, *findings]

    def _exited(self, report: rp.AgentReport, row: rp.ExitRow | rp.WorkerExited) -> ev.WorkerExited:
        words = self._last_words.pop((report.attempt, row.exit.rank), None)
        code = row.exit.exit_code
        return ev.WorkerExited(
            attempt=report.attempt,
            rank=row.exit.rank,
            node=report.node,
            exit_code=code if code is not None or row.exit.signal is not None else -1,
            signal=row.exit.signal,
            step=row.step,
            phase=row.phase.name,
            code=words.code if words is not None else "",
            message=words.message[:2000] if words is not None else row.cause,
            log_tail=row.log_tail[-2000:],
        )

    def _hang(self, report: rp.HangSuspected) -> ev.Event:
        text = "\n".join(f"=== rank {rank}\n{stack}" for rank, stack in report.stacks.items())
        path = ""
        if text:
            path = self._attach(f"stacks-attempt{report.attempt}-{report.node}.txt", text)
        return ev.HangSuspected(
            attempt=report.attempt,
            node=report.node,
            deadline_s=report.deadline_s,
            rows=tuple(_hang_row(row) for row in report.rows),
            stacks=path,
        )


def _without_echo(event: ev.WorkerExited) -> ev.WorkerExited:
    """What a rank says that only lost a peer is what all others say."""
    if event.code not in wire.PEER_CODES:
        return event
    return replace(event, message=event.message[:ECHO_MESSAGE_MAX], log_tail="")


class SeenReports:
    """Which reports of one agent were taken. They may come out of order: what a dead controller
    had not acknowledged comes again after what its successor is told first."""

    def __init__(self) -> None:
        self._newest = 0
        self._seen: set[int] = set()

    def is_new(self, seq: int) -> bool:
        """Return whether seq is seen for the first time; too old to be remembered is not new."""
        if seq in self._seen or seq <= self._newest - REMEMBERED_REPORTS:
            return False
        self._seen.add(seq)
        self._newest = max(self._newest, seq)
        if len(self._seen) > 2 * REMEMBERED_REPORTS:
            floor = self._newest - REMEMBERED_REPORTS
            self._seen = {known for known in self._seen if known > floor}
        return True


def _gpus(machine: MachineIdentity) -> tuple[tuple[str, str], ...]:
    return tuple((gpu.uuid, gpu.serial) for gpu in machine.gpus)


def _warning(state: RunState, node: str, detector: str, kind: str, message: str) -> Finding:
    return Finding(
        detector=detector,
        kind=kind,
        severity=Severity.WARN,
        step=state.step,
        onset_step=state.step,
        value=0.0,
        reference=0.0,
        message=message,
        node=node,
    )


def _stale(report: rp.AgentReport) -> list[ev.Event]:
    # What an ended attempt's own end looks like is expected, not stale news.
    if isinstance(report, (rp.AttemptStopped, rp.AgentNote, rp.RankSamples, rp.StacksDumped)):
        return []
    what = str(report.__struct_config__.tag)
    return [ev.StaleIgnored(attempt=report.attempt, what=what, node=report.node)]


def _upload(state: RunState, report: rp.CheckpointStored | rp.UploadTrouble) -> list[ev.Event]:
    if isinstance(report, rp.UploadTrouble):
        since_s = report.since_s
        return [ev.UploadFailed(report.node, report.code, report.message[:1000], since_s)]
    name = report.checkpoint
    known = state.checkpoints.get(name)
    is_told = name in state.uploaded_early or (known is not None and known.uploaded_s is not None)
    if is_told or name in state.pruned:
        # Every node that holds a part of it says so.
        return []
    return [ev.CheckpointUploaded(name, report.node, report.bytes, report.upload_s)]


def _hang_row(row: RankProgress) -> ev.HangRow:
    return ev.HangRow(
        row.rank,
        row.step,
        row.phase.name,
        row.age_s,
        row.state,
        row.waits,
        row.marks,
        row.rounds,
    )


def _workers_started(report: rp.WorkersStarted) -> list[ev.Event]:
    pids = tuple(report.pids[rank] for rank in sorted(report.pids))
    return [ev.WorkersStarted(report.attempt, report.node, pids)]


def _start_failed(report: rp.StartFailed) -> list[ev.Event]:
    return [ev.StartFailed(report.attempt, report.node, report.code, report.message)]


def _rank_samples(report: rp.RankSamples) -> list[ev.Event]:
    by_step: dict[int, list[wire.RankSample]] = {}
    for sample in report.batch:
        if sample.step % RANK_TIMES_EVERY_STEPS == 0:
            by_step.setdefault(sample.step, []).append(sample)
    return [
        ev.RankTimes(
            attempt=report.attempt,
            step=step,
            node=report.node,
            rows=tuple(
                (s.rank, s.step_s, s.data_s, s.forward_s, s.backward_s, s.comm_s, s.optimizer_s)
                for s in samples
            ),
        )
        for step, samples in by_step.items()
    ]


_HANDLERS: dict[type, Callable[[Any], list[ev.Event]]] = {
    rp.WorkersStarted: _workers_started,
    rp.StartFailed: _start_failed,
    rp.RankSamples: _rank_samples,
}
