"""The controller: observe, fold, decide, act. One tick is one turn of that wheel.

The journal is written ahead of every act, so a controller that dies anywhere in a tick is replaced
by one that folds the journal and finds the decisions whose effects it must repeat. It never waits
for a worker: whatever an action brings about arrives later as a signal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from msgspec.structs import replace

from ..health.numerics.config import Mode
from ..health.numerics.panel import Panel
from ..health.numerics.point import Point
from ..logbook import decisions as d
from ..logbook import events as ev
from ..logbook.errors import Fatal, MidwatchError, Retryable
from ..logbook.findings import Finding
from ..logbook.fold import evolve
from ..logbook.plan import AttemptPlan, PreflightPlan
from ..logbook.record import Record
from ..logbook.state import Incident, RunState
from ..logbook.wire import StepSample
from .agent.reports import RankSamples
from .observer import Observer
from .policy.decide import decide
from .policy.detectors import NODE_DETECTORS, node_mode
from .policy.nodes import failure_of, machine_of
from .policy.upkeep import note_takeover
from .ports import Ports
from .preflight import judge_when_over
from .rank_watch import RankWatch
from .spec import RunSpec

MAX_DECISIONS_PER_TICK = 64


class Controller:
    """Supervises one run. Drive it by calling tick() whenever something may have happened."""

    def __init__(self, spec: RunSpec, ports: Ports) -> None:
        self.spec = spec
        self.state = RunState()
        self._ports = ports
        self._observer = Observer(ports.desk.attach, ports.lemons.verdict)
        self._panel = Panel(spec.detectors)
        self._ranks = RankWatch(self._panel)
        self._undone: dict[str, d.Decision] = {}
        self._unheard_start: AttemptPlan | None = None
        self._unsaid: list[Finding] = []
        self._unheard_preflight: int | None = None
        self._noted: dict[str, Incident] = {}
        self._listed = 0

    # --- opening ---------------------------------------------------------------------------------

    def recover(self, records: Iterable[Record[ev.Event]]) -> None:
        """Fold what the journal holds; decisions without an outcome are carried out again."""
        for record in records:
            self.state = evolve(self.state, record.event, seq=record.seq, time_s=record.time_s)
        self._undone = dict(self.state.pending)
        self._unheard_start = _unheard_start(self.state)
        self._unheard_preflight = _unheard_preflight(self.state)
        for detector, mode in self.state.detectors.items():
            self._switch(detector, mode)
        self._unsaid = _judged_anew(self._panel, self.state)

    def take_over(self) -> None:
        """Note that an earlier controller of this run was lost, if it was at work."""
        takeover = note_takeover(self.state, self._ports.clock.now_s())
        if takeover is not None:
            self.record(ev.DecisionMade(takeover), ev.ActionDone(takeover.id), sync=True)

    def record(self, *events: ev.Event, sync: bool = False) -> None:
        """Append events to the journal, then fold them: the only way the state changes."""
        if not events:
            return
        now_s, attempt = self._ports.clock.now_s(), self.state.num_attempts
        batch = [(now_s, getattr(event, "attempt", attempt), event) for event in events]
        for record in self._ports.journal.append(batch, sync=sync):
            self.state = evolve(self.state, record.event, seq=record.seq, time_s=record.time_s)

    # --- the wheel -------------------------------------------------------------------------------

    def tick(self) -> int:
        """Take in what arrived, decide, act; return how many decisions were made.

        Raises: Fatal[journal-fenced] when another controller has taken over: stop at once.
        """
        # First of all: nodes whose agents did not outlive the last controller are known as gone
        # before anything is placed on them.
        self._ports.cluster.maintain(self.state)
        self._say_unsaid()
        self._give_up_unheard_preflight()
        self._take_in()
        self._redo()
        made = self._decide_and_act()
        self._write_notes()
        return made

    def _say_unsaid(self) -> None:
        """What stands against the run and is not in the journal.

        The last controller may have died before it had written it down; and the detectors, which
        have looked again, would not say a second time what they hold to be said.
        """
        unsaid, self._unsaid = self._unsaid, []
        for finding in unsaid:
            if not _is_said(self.state, finding):
                self._found(self.state.num_attempts, finding)

    def _take_in(self) -> None:
        for signal in self._ports.cluster.poll():
            for event in self._observer.observe(self.state, signal):
                self._take(event)
            if isinstance(signal, RankSamples):
                for finding in self._ranks.take(self.state, signal):
                    self._found(signal.attempt, finding)
        self._judge_preflight()
        self.record(*self._ports.desk.requests())
        self._ports.desk.settled()
        self._ports.cluster.acknowledge()
        attempt = self.state.attempt
        is_over = attempt is not None and (attempt.signal_s is not None or attempt.is_finished)
        if attempt is not None and is_over and self._listed != attempt.number:
            # The reporter of the newest commits may be the one that died, or be late.
            self._listed = attempt.number
            known = tuple(self.state.checkpoints)
            self.record(*self._ports.checkpoints.unknown(known))

    def _judge_preflight(self) -> None:
        outcome = judge_when_over(self.state, self._ports.clock.now_s())
        if outcome is None:
            return
        findings, judged = outcome
        said = [(seen.finding.kind, seen.finding.node) for seen in self.state.findings]
        for finding in findings:
            # Said already where the last controller died between these lines.
            if (finding.kind, finding.node) not in said[-len(findings) :]:
                self._found(self.state.num_attempts, finding)
        self.record(judged)

    def _take(self, event: ev.Event) -> None:
        if isinstance(event, ev.FindingSeen):
            self._found(event.attempt, event.finding)
            return
        before = self.state
        self.record(event)
        if isinstance(event, ev.AttemptResumed) and self.state.lineage != before.lineage:
            self._panel.restarted(event.step)
        new = _new_samples(event, before, self.state)
        for sample in new:
            for finding in self._panel.update(_point(sample)):
                self._found(self.state.num_attempts, finding)

    def _found(self, attempt: int, finding: Finding) -> None:
        if finding.detector in NODE_DETECTORS:
            mode = node_mode(self.state, self.spec, finding.detector)
            if mode == "off":
                return
            finding = replace(finding, shadow=mode == "shadow")
        name = f"f-{self.state.num_findings + 1:06d}"
        self.record(ev.FindingSeen(name, attempt, finding))

    def _switch(self, detector: str, mode: str) -> None:
        if detector in self._panel.detectors:
            self._panel.set_mode(detector, cast(Mode, mode))

    def _write_notes(self) -> None:
        """Write the notes of incidents that changed; a new controller writes all of them."""
        if self._noted is self.state.incidents:
            return
        for name, incident in self.state.incidents.items():
            if self._noted.get(name) is not incident:
                self._ports.desk.write_note(self.state, incident)
        self._noted = self.state.incidents

    def _give_up_unheard_preflight(self) -> None:
        """A preflight that some nodes were told of and others not: its ranks never meet."""
        number, self._unheard_preflight = self._unheard_preflight, None
        if number is None:
            return
        why = "the controller was lost while it gave the order"
        orders = [n for n, made in self._undone.items() if isinstance(made.action, d.RunPreflight)]
        for name in orders:
            del self._undone[name]
        cut = ev.PreflightJudged(number, 0, error=why, is_cut=True)
        self.record(cut, *(ev.ActionDone(name, error=why) for name in orders), sync=True)

    def _redo(self) -> None:
        undone, self._undone = self._undone, {}
        for decision in undone.values():
            self._act(decision)
        plan = self._unheard_start
        if plan is not None:
            try:
                if self.state.running(plan.attempt) is not None:
                    self._ports.cluster.start(plan)
                self._unheard_start = None
            except Retryable:
                return  # An agent is still coming up: tried again with the next tick.

    def _decide_and_act(self) -> int:
        made = 0
        while made < MAX_DECISIONS_PER_TICK:
            decisions = decide(self.state, self.spec, self._ports.clock.now_s())
            if not decisions:
                break
            for decision in decisions:
                self.record(ev.DecisionMade(decision), sync=True)
                self._act(decision)
                made += 1
        return made

    def _act(self, decision: d.Decision) -> None:
        try:
            self._perform(decision)
        except Retryable:
            # Not yet possible (an agent is still coming up): tried again with the next tick.
            self._undone[decision.id] = decision
            return
        except Fatal:
            raise
        except MidwatchError as error:
            self.record(ev.ActionDone(decision.id, error=str(error)))
            return
        # Verifying and pruning take long: they are done when their result is in.
        if not isinstance(decision.action, (d.VerifyCheckpoint, d.PruneCheckpoints)):
            self.record(ev.ActionDone(decision.id))

    def _perform(self, decision: d.Decision) -> None:
        action, cluster, lemons = decision.action, self._ports.cluster, self._ports.lemons
        failure = failure_of(self.state, decision)
        if failure is not None:
            lemons.record(failure)
        # A decision may be carried out late; it means the attempt for which it was made.
        attempt = attempt_of(decision)
        if isinstance(action, d.StartAttempt):
            if self.state.running(action.plan.attempt) is not None:
                cluster.start(action.plan)
        elif isinstance(action, d.RunPreflight):
            self._examine(action.plan, attempt)
        elif isinstance(action, d.EndPreflight):
            cluster.end_examination(action.preflight)
        elif isinstance(action, (d.PauseRun, d.EndRun, d.AwaitNodes)):
            cluster.stop(attempt)
        elif isinstance(action, d.ReleaseNode):
            lemons.release(machine_of(self.state.nodes[action.node]), decision.reason)
        elif isinstance(action, d.SetDetector):
            self._switch(action.detector, action.mode)
        elif isinstance(action, d.SendCommand):
            cluster.send(attempt, action.command)
        elif isinstance(action, d.VerifyCheckpoint):
            self._ports.checkpoints.verify(action.checkpoint)
        elif isinstance(action, d.PruneCheckpoints):
            self._ports.checkpoints.prune(action.checkpoints)

    def _examine(self, plan: PreflightPlan, attempt: int) -> None:
        if self.state.preflight is None or self.state.preflight.plan.number != plan.number:
            return
        if plan.is_gate:
            self._ports.cluster.stop(attempt)
        self._ports.cluster.examine(plan)


def _unheard_start(state: RunState) -> AttemptPlan | None:
    """Return the plan of the current attempt, if some node was never heard to have started it.

    The orders of a controller that died right after it had given them may not have arrived. Given
    twice, they do no harm.
    """
    attempt = state.attempt
    if attempt is None or all(node in attempt.pids for node in attempt.plan.nodes):
        return None
    return attempt.plan


def _unheard_preflight(state: RunState) -> int | None:
    """Return the number of the preflight under way, if some node was never heard to have begun.

    Its order cannot be given again: the rank that the others must meet may wait elsewhere by then.
    """
    current = state.preflight
    if current is None or current.judged is not None:
        return None
    heard = {*current.begun, *current.answers, *current.lost_nodes}
    return None if heard.issuperset(current.plan.nodes) else current.plan.number


def attempt_of(decision: d.Decision) -> int:
    """Return the attempt that was the newest when a decision was made."""
    return int(decision.id.partition("/")[0])


def _new_samples(event: ev.Event, before: RunState, after: RunState) -> Sequence[StepSample]:
    """Return the steps of an event that the fold has taken for new."""
    if after.last is before.last:
        return ()
    if isinstance(event, ev.StepDone):
        return (event.sample,)
    if isinstance(event, ev.StepsRecalled):
        known = before.last.step if before.last is not None else 0
        return [sample for sample in event.samples if known < sample.step <= after.step]
    return ()


def _judged_anew(panel: Panel, state: RunState) -> list[Finding]:
    """Let fresh detectors look at what is known; return what stands after the last sample."""
    attempt = state.attempt
    resumed_step = attempt.resumed_step if attempt and attempt.resumed_s is not None else None
    latest: list[Finding] = []
    for sample in state.samples:
        if resumed_step is not None and sample.step > resumed_step:
            panel.restarted(resumed_step)
            resumed_step = None
        latest = panel.update(_point(sample))
    if resumed_step is not None:
        panel.restarted(resumed_step)
        return []
    standing = [f for f in panel.verdict.evidence if f not in latest]
    return standing + latest


def _is_said(state: RunState, finding: Finding) -> bool:
    """Whether the journal holds as much against the attempt, from the same detector."""
    return any(
        seen.attempt == state.num_attempts
        and _what(seen.finding) == _what(finding)
        and seen.finding.severity.weight >= finding.severity.weight
        for seen in state.findings
    )


def _what(finding: Finding) -> tuple[str, str, int | None, bool]:
    return finding.detector, finding.kind, finding.rank, finding.shadow


def _point(sample: StepSample) -> Point:
    return Point(
        step=sample.step,
        loss=sample.loss,
        grad_norm=sample.grad_norm,
        loss_scale=sample.loss_scale,
        activation_norm=sample.activation_norm,
        lr=sample.lr,
        skipped=int(sample.skipped),
    )
