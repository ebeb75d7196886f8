"""What must hold at every decision and after every tick, whatever the night brings.

    one writer               every record carries the epoch of the newest controller that was born
    no stale attempt acts    what an older attempt still says changes nothing of the run's course
    no checkpoint lost       what was committed is on disk until a decision deletes it, and known
    no intervention lost     each is settled in the end, and none is in force twice
    budgets end storms       no more restarts an hour than the spec allows
    every decision explained by a reason, under an id of its own
    spares booked once       no node carries two blocks of ranks, and only usable ones carry any
    one fold                 the journal folds to what the controller holds

A checker reads only the journal and the world's own truth; it keeps a fold of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.fold import evolve
from midwatch.logbook.plan import AttemptPlan
from midwatch.logbook.record import Record
from midwatch.logbook.state import RunState
from midwatch.logbook.wire import Hyper
from midwatch.operator.policy.candidates import last_good_checkpoint, newest_checkpoint
from midwatch.operator.simulation.world import World
from midwatch.operator.spec import RunSpec

HOUR_S = 3600.0
FULL_LOOK_EVERY = 64
_OF_ATTEMPTS = (
    ev.StepDone,
    ev.StepsRecalled,
    ev.AttemptResumed,
    ev.WorkersStarted,
    ev.WorkerExited,
    ev.WorkersExited,
    ev.HangSuspected,
    ev.StartFailed,
    ev.RankFinished,
)
SETTLED = ("applied", "rejected", "failed", "reverted", "expired")


def canonical(state: RunState) -> bytes:
    """A state as bytes, so that NaN equals NaN."""
    return msgspec.msgpack.encode(state)


def _course(state: RunState) -> tuple[object, ...]:
    return state.step, state.last, state.attempt, state.hyper, state.lineage


def rate_factor(hyper: Hyper, step: int) -> float:
    """What the changes in force multiply the scheduled rate of a step by."""
    return hyper.factor_at(step)


class Checker:
    """Folds the journal beside the controller and looks at every decision in it.

    heard: every step of which the journal has the numbers.
    """

    def __init__(self, spec: RunSpec, world: World | None) -> None:
        self.shadow = RunState()
        self.told: list[tuple[float, d.Decision]] = []
        self.heard: set[int] = set()
        self.num_looks = 0
        self._spec = spec
        self._world = world
        self._seen_ids: set[str] = set()
        self._restarts_s: list[float] = []
        self._last_plan: AttemptPlan | None = None
        self._sent: dict[int, set[int]] = {}
        self._epoch = 0
        self._deleted: set[str] = set()

    @property
    def decisions(self) -> list[d.Decision]:
        """Every decision so far, in order."""
        return [decision for _, decision in self.told]

    # --- what is fed -----------------------------------------------------------------------------

    def appended(self, records: Sequence[Record[ev.Event]]) -> None:
        """Records went into the journal."""
        for record in records:
            before = self.shadow
            assert record.epoch >= self._epoch, "a controller wrote that had been replaced"
            self._epoch = record.epoch
            if isinstance(record.event, ev.DecisionMade):
                self._check(before, record.event.decision, record.time_s)
            if isinstance(record.event, ev.StepDone):
                self.heard.add(record.event.sample.step)
            elif isinstance(record.event, ev.StepsRecalled):
                self.heard.update(sample.step for sample in record.event.samples)
            self.shadow = evolve(before, record.event, seq=record.seq, time_s=record.time_s)
            self._check_fence(before, record.event)
            assert self.shadow.seq == before.seq + 1, "the journal has a gap"

    def reopened(self, records: Iterable[Record[ev.Event]]) -> None:
        """A controller opened the journal: what it will read is what was folded here."""
        fresh = RunState()
        for record in records:
            fresh = evolve(fresh, record.event, seq=record.seq, time_s=record.time_s)
        assert canonical(fresh) == canonical(self.shadow), "the journal folds to another state"

    def look(self, live: RunState) -> None:
        """A tick has ended."""
        assert self._world is not None
        self.num_looks += 1
        state = self.shadow
        assert live.seq == state.seq, "the controller has folded something else than it wrote"
        seen = len(self._seen_ids)
        assert live.num_decisions == seen, f"{live.num_decisions} decisions, {seen} journaled"
        if self.num_looks % FULL_LOOK_EVERY == 0 or state.status.is_terminal:
            assert canonical(live) == canonical(state), "fold(journal) differs from the live state"
        missing = [name for name in state.incidents if name not in self._world.notes]
        assert not missing, f"no note for {missing}"
        assert len(state.pending) < 32, f"decisions pile up: {list(state.pending)}"

    def pending(self) -> list[str]:
        """What is still open, for the message of a night that gets nowhere."""
        state = self.shadow
        lines = [
            f"incident {name}: {state.incidents[name].draft.title}" for name in state.open_incidents
        ]
        lines += [
            f"intervention {name}: {i.stage}, sent in attempt {i.sent_attempt}"
            for name, i in state.interventions.items()
            if i.stage not in SETTLED
        ]
        lines += [f"decision {name}: {p.action}" for name, p in state.pending.items()]
        lines += [
            f"node {n.node}: present {n.present}, quarantined {n.quarantined!r}"
            for n in state.nodes.values()
        ]
        gang = self._world.live_gang if self._world is not None else None
        if gang is not None:
            lives = {rank: worker.life.value for rank, worker in gang.workers.items()}
            lines.append(f"gang {gang.attempt} at step {gang.weights.step}: {lives}")
        return lines

    def _check_fence(self, before: RunState, event: ev.Event) -> None:
        attempt = getattr(event, "attempt", before.num_attempts)
        if isinstance(event, _OF_ATTEMPTS) and attempt != before.num_attempts:
            now = self.shadow
            course = (now.step, now.last, now.attempt, now.hyper, now.lineage)
            was = (before.step, before.last, before.attempt, before.hyper, before.lineage)
            assert course == was, f"{type(event).__name__} of attempt {attempt} changed the run"

    # --- decisions -------------------------------------------------------------------------------

    def _check(self, state: RunState, decision: d.Decision, now_s: float) -> None:
        assert decision.id not in self._seen_ids, f"{decision.id} was made twice"
        assert decision.reason.strip(), f"{decision.id} has no reason"
        self._seen_ids.add(decision.id)
        self.told.append((now_s, decision))
        action = decision.action
        if isinstance(action, d.StartAttempt):
            self._check_start(state, decision, action, now_s)
        elif isinstance(action, d.SendCommand):
            self._check_command(state, action)
        elif isinstance(action, d.PruneCheckpoints):
            self._check_prune(state, action)
        elif isinstance(action, d.ResumeRun):
            self._restarts_s.clear()
        elif isinstance(action, d.QuarantineNode):
            assert action.node in state.nodes, f"{action.node} is no node"
        elif isinstance(action, d.QuarantineCheckpoint):
            assert newest_checkpoint(state).ranked != (action.checkpoint,), "nothing would be left"

    def _check_start(
        self, state: RunState, decision: d.Decision, action: d.StartAttempt, now_s: float
    ) -> None:
        plan = action.plan
        assert not state.paused, "a paused run was started"
        assert state.end is None, "an ended run was started"
        wanted = state.num_attempts + 1
        assert plan.attempt == wanted, f"attempt {plan.attempt} in the place of {wanted}"
        assert len(set(plan.nodes)) == len(plan.nodes), "a node carries two blocks of ranks"
        for node in plan.nodes:
            assert state.nodes[node].is_usable, f"{node} is not usable"
        ranks = [p.first_rank + i for p in plan.placements for i in range(p.num_ranks)]
        assert ranks == list(range(plan.mesh.world_size)), f"ranks {ranks} fill no mesh"
        for name in plan.checkpoints:
            known = state.checkpoints[name]
            assert known.verified is not False, f"{name} is known to be unsound"
            assert not known.abandoned, f"{name} lies on a lineage that was left"
            assert not known.quarantined, f"{name} is quarantined"
        if state.num_attempts:
            self._restarts_s = [t for t in self._restarts_s if now_s - t < HOUR_S] + [now_s]
            budget, num = self._spec.restart.max_restarts_per_hour, len(self._restarts_s)
            # What a person asks for counts, but is done: the budget is against storms.
            is_asked = bool(action.intervention)
            assert is_asked or num <= budget, f"{num} restarts within an hour, allowed are {budget}"
        if action.rollback_onset is not None:
            self._check_rollback(action)
            # Unless a person has accepted that nothing better is left.
            accepted = ("chosen by rule", "newest-usable") in decision.evidence
            onset = action.rollback_onset
            assert plan.resume_step <= onset or accepted, f"back to after the onset at {onset}"
        self._last_plan = plan

    def _check_rollback(self, action: d.StartAttempt) -> None:
        plan, last = action.plan, self._last_plan
        assert last is not None
        step = plan.resume_step + 1
        new = (plan.checkpoints[:1], plan.nodes, plan.hyper)
        assert new != (last.checkpoints[:1], last.nodes, last.hyper), "an identical retry"
        before = rate_factor(last.hyper, max(step, last.resume_step + 1))
        blamed = [n for n in last.nodes if self.shadow.nodes[n].evict is not None]
        if action.lr_factor == 1.0 and blamed and not set(blamed) & set(plan.nodes):
            # Whoever corrupted the numbers is out: the rate was not at fault, and stays.
            return
        assert rate_factor(plan.hyper, step) < before or self._has_lowered(action), (
            "a rollback did not lower the rate"
        )

    def _has_lowered(self, action: d.StartAttempt) -> bool:
        # Against the rate at the end of the failing attempt, which changes may have raised.
        step = self.shadow.step + 1
        return rate_factor(action.plan.hyper, step) < rate_factor(self.shadow.hyper, step)

    def _check_command(self, state: RunState, action: d.SendCommand) -> None:
        attempt = state.attempt
        assert attempt is not None, "a command to nobody"
        sent = self._sent.setdefault(attempt.number, set())
        seq = action.command.seq
        # Ranks take commands in order without a gap, so a gap would silence the run for ever.
        expected = max(sent, default=attempt.plan.first_command - 1) + 1
        assert seq == expected or seq in sent, f"command {seq} leaves a gap before {expected}"
        sent.add(seq)

    def _check_prune(self, state: RunState, action: d.PruneCheckpoints) -> None:
        self._deleted.update(action.checkpoints)
        last_good = last_good_checkpoint(state, self._spec, state.step).checkpoint
        assert last_good not in action.checkpoints, "last_good was pruned"
        assert not set(state.pins) & set(action.checkpoints), "a pinned checkpoint was pruned"
        kept = [
            c
            for c in state.checkpoints.values()
            if c.checkpoint not in action.checkpoints and c.verified and not c.abandoned
        ]
        had = [c for c in state.checkpoints.values() if c.verified and not c.abandoned]
        assert kept or not had, "no verified checkpoint is left"

    # --- the end of a night ----------------------------------------------------------------------

    def check_end(self) -> None:
        """A run that ended has nothing left open, and did nothing twice."""
        state = self.shadow
        assert state.status.is_terminal, f"{state.status} {state.paused}"
        unsettled = {n: i.stage for n, i in state.interventions.items() if i.stage not in SETTLED}
        assert not unsettled, f"interventions never settled: {unsettled}"
        causes = [change.cause for change in state.hyper.lr_changes]
        assert len(causes) == len(set(causes)), "a change of the rate is in force twice"
        self._check_disk()
        assert not state.open_incidents, f"incidents left open: {state.open_incidents}"

    def _check_disk(self) -> None:
        assert self._world is not None
        disk = self._world.disk
        lost = disk.ever - set(disk.saved) - self._deleted
        assert not lost, f"gone from disk without a decision: {sorted(lost)}"
        # What an older attempt left behind, and told nobody of, nobody will ask for.
        last = [name for name, s in disk.saved.items() if s.attempt == self.shadow.num_attempts]
        unknown = set(last) - set(self.shadow.checkpoints) - self._deleted
        assert not unknown, f"on disk, and nobody knows of it: {sorted(unknown)}"
