"""The policy under every order of events that hypothesis can think of.

A machine tells the fold what could happen next, and lets the policy decide until it has nothing
left to say, as the controller does. Whatever came before: it comes to rest, gives its reasons,
keeps to its budgets, and places nothing where nothing may run.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from midwatch.checkpoints.manifest import checkpoint_id
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.findings import Finding, Severity
from midwatch.logbook.fold import evolve
from midwatch.logbook.record import Record
from midwatch.logbook.state import AttemptState, RunState
from midwatch.logbook.wire import Hyper, LrChange
from midwatch.operator.policy.decide import decide
from midwatch.tests.sim.checkers import Checker, canonical
from midwatch.tests.support.builders import START_S, make_sample, make_spec, make_tags

MAX_DECISIONS = 64
NODES = ("n0", "n1", "n2")
SPECS = tuple(
    make_spec(
        nodes={"ranks_per_node": 2, "spares": 1, "when_short": short},
        restart={"max_restarts_per_hour": restarts},
        numeric={"recurrence_steps": recurrence, "recover_after_steps": 20},
        retention={"keep_newest": 2, "max_age_hours": 0.5},
        checkpoints={"interval": {"min_steps": 2, "max_steps": 9}} if short == "wait" else {},
    )
    for short in ("wait", "shrink")
    for restarts in (3, 20)
    for recurrence in (10, 2000)
)
nodes = st.sampled_from(NODES)
ranks = st.integers(0, 3)
ACTIONS = """lr lr-factor grad-clip checkpoint stop resume quarantine release no
pause pause rollback optimizer revert ack"""
actions = st.sampled_from(ACTIONS.split())
timings = st.sampled_from([(None, None), (None, None), (None, 5), (3, None), (3, 5)])
ages = st.sampled_from([None, 0, 40])
about_checkpoints = st.sampled_from(
    ["pin", "unpin", "verify", "prune", "quarantine-checkpoint", "release-checkpoint"]
)


class Policy(RuleBasedStateMachine):
    """A run without a world: every rule is something that a cluster or a person could say."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = START_S
        self.spec = SPECS[0]
        self.journal: list[Record[ev.Event]] = []
        self.checker = Checker(self.spec, None)
        self.lives = 0
        self.asked = 0
        self.found = 0

    @property
    def state(self) -> RunState:
        return self.checker.shadow

    @property
    def attempt(self) -> AttemptState | None:
        return self.state.attempt

    def record(self, *events: ev.Event) -> None:
        for event in events:
            record = Record(len(self.journal) + 1, self.now_s, 0, 1, event)
            self.journal.append(record)
            self.checker.appended([record])

    def tell(self, *events: ev.Event) -> None:
        """Record what happened, then let the policy come to rest."""
        self.record(*events)
        for _ in range(MAX_DECISIONS):
            before = canonical(self.state)
            decisions = decide(self.state, self.spec, self.now_s)
            again = decide(self.state, self.spec, self.now_s)
            assert decisions == again, "decide is not deterministic"
            assert canonical(self.state) == before, "decide changed the state"
            if not decisions:
                return
            for decision in decisions:
                self.record(ev.DecisionMade(decision))
                # As in the controller: long work is done when its result is in.
                if not isinstance(decision.action, (d.VerifyCheckpoint, d.PruneCheckpoints)):
                    self.record(ev.ActionDone(decision.id))
        raise AssertionError(f"never comes to rest: {self.checker.decisions[-3:]}")

    # --- the run, its nodes and its controller ---------------------------------------------------

    @initialize(which=st.integers(0, len(SPECS) - 1), joined=st.sampled_from([0, 2, 3, 3]))
    def submit(self, which: int, joined: int) -> None:
        self.spec = SPECS[which]
        self.checker = Checker(self.spec, None)
        self.tell(ev.RunSubmitted("run", {}, "", 1, "", "ann"))
        for node in NODES[:joined]:
            self.join(node)
            self.wait(0.1)

    @rule(node=nodes)
    def join(self, node: str) -> None:
        self.lives += 1
        self.tell(ev.NodeJoined(node, f"{node}#{self.lives}", "host", 2))

    @rule(node=nodes)
    def lose(self, node: str) -> None:
        known = self.state.nodes.get(node)
        if known is not None:
            self.tell(ev.NodeLost(node, known.incarnation, "its process died"))

    @rule(span_s=st.sampled_from([0.0, 0.1, 2.0, 15.0, 200.0, 2000.0, 4000.0]))
    def wait(self, span_s: float) -> None:
        self.now_s += span_s
        self.tell()

    @rule()
    def take_over(self) -> None:
        self.tell(ev.ControllerStarted(2, "host", 1, len(self.journal)))

    # --- an attempt, the current one or an older -------------------------------------------------

    @precondition(lambda self: self.attempt is not None)
    @rule(which=st.integers(0, 8), old=st.booleans())
    def resumed(self, which: int, old: bool) -> None:
        assert self.attempt is not None
        plan = self.attempt.plan
        names = plan.checkpoints
        name = names[which % len(names)] if names else ""
        step = self.state.checkpoints[name].step if name in self.state.checkpoints else 0
        passed = tuple((worse, "shard-checksum") for worse in names[: which % max(len(names), 1)])
        self.tell(ev.AttemptResumed(plan.attempt - old, step, name, 0.1, passed))

    @precondition(lambda self: self.attempt is not None)
    @rule(count=st.integers(1, 40), is_read_back=st.booleans())
    def goes_well(self, count: int, is_read_back: bool) -> None:
        assert self.attempt is not None
        if self.attempt.resumed_s is None:
            self.resumed(0, old=False)
        self.train(count, sick=False, old=False)
        if self.attempt is not None:
            self.commit(0, 0, 64.0)
        if is_read_back and self.state.checkpoints:
            self.tell(ev.CheckpointVerified(list(self.state.checkpoints)[-1]))

    @precondition(lambda self: self.attempt is not None and self.attempt.num_steps > 0)
    @rule(ago=st.integers(0, 30))
    def diverges(self, ago: int) -> None:
        self.finds(ago, Severity.ROLLBACK, old=False)

    @precondition(lambda self: self.attempt is not None)
    @rule(count=st.integers(1, 40), sick=st.booleans(), old=st.booleans())
    def train(self, count: int, sick: bool, old: bool) -> None:
        number = self.state.num_attempts - old
        for _ in range(count):
            step = self.state.step + 1
            self.now_s += 0.5
            loss = float("nan") if sick else 4.0
            sample = make_sample(step, loss=loss, activation_norm=100.0 + (step if sick else -step))
            self.record(ev.StepDone(number, sample))
        self.tell()

    @rule(
        back=st.integers(0, 60), attempts_back=st.integers(0, 2), scale=st.sampled_from([0.1, 64])
    )
    def commit(self, back: int, attempts_back: int, scale: float) -> None:
        step = max(self.state.step - back, 1) // 5 * 5 or 5
        number = max(self.state.num_attempts - attempts_back, 1)
        tags = make_tags(loss_scale=scale)
        name = checkpoint_id(step, number)
        self.tell(ev.CheckpointCommitted(number, name, step, 1, 0.0, 0.0, tags))

    @precondition(lambda self: bool(self.state.checkpoints))
    @rule(which=st.integers(0, 20), error=st.sampled_from(["", "", "", "shard-checksum"]))
    def verified(self, which: int, error: str) -> None:
        names = list(self.state.checkpoints)
        self.tell(ev.CheckpointVerified(names[which % len(names)], error))

    @rule(which=st.integers(0, 20))
    def pruned(self, which: int) -> None:
        prunes = [x.action for x in self.checker.decisions if type(x.action) is d.PruneCheckpoints]
        if prunes:
            self.tell(ev.CheckpointsPruned(prunes[which % len(prunes)].checkpoints))

    @precondition(lambda self: self.attempt is not None)
    @rule(
        rank=ranks,
        how=st.sampled_from(
            ["signal", "collective-failed", "worker-raised", "no-usable-checkpoint", "exit-0"]
        ),
        old=st.booleans(),
    )
    def exits(self, rank: int, how: str, old: bool) -> None:
        assert self.attempt is not None
        node = self.attempt.plan.node_of(rank) or NODES[0]
        more: dict[str, Any] = {"exit_code": 1, "code": how}
        if how == "signal":
            more = {"signal": 9}
        elif how == "exit-0":
            more = {"exit_code": 0}
        self.tell(ev.WorkerExited(self.state.num_attempts - old, rank, node, **more))

    @precondition(lambda self: self.attempt is not None)
    @rule(node=nodes)
    def cannot_start(self, node: str) -> None:
        self.tell(ev.StartFailed(self.state.num_attempts, node, "fork-failed", ""))

    @precondition(lambda self: self.attempt is not None)
    @rule(node=nodes, rank=ranks, stopped=st.booleans())
    def hangs(self, node: str, rank: int, stopped: bool) -> None:
        row = ev.HangRow(rank, self.state.step, "VOTE", 6.0, "T" if stopped else "S", not stopped)
        self.tell(ev.HangSuspected(self.state.num_attempts, node, 5.0, (row,)))

    @precondition(lambda self: self.attempt is not None)
    @rule(which=st.lists(ranks, min_size=1, max_size=4, unique=True), stopped=st.booleans())
    def finishes(self, which: list[int], stopped: bool) -> None:
        number, step = self.state.num_attempts, self.state.step
        self.tell(*(ev.RankFinished(number, rank, step, stopped) for rank in which))

    @precondition(lambda self: self.attempt is not None)
    @rule(ago=st.integers(0, 30), severity=st.sampled_from(Severity), old=st.booleans())
    def finds(self, ago: int, severity: Severity, old: bool) -> None:
        self.found += 1
        step = self.state.step
        finding = Finding(
            "level-shift", "level-shift", severity, step, max(step - ago, 0), 9.0, 4.0, "loss is up"
        )
        self.tell(ev.FindingSeen(f"f-{self.found:06d}", self.state.num_attempts - old, finding))

    # --- people ----------------------------------------------------------------------------------

    @rule(
        action=actions,
        value=st.sampled_from([0.5, 1e-3, 2.0]),
        node=nodes,
        timing=timings,
        age=ages,
    )
    def ask(
        self,
        action: str,
        value: float,
        node: str,
        timing: tuple[int | None, int | None],
        age: int | None,
    ) -> None:
        self.asked += 1
        name = f"ask-{self.asked}"
        ahead, for_steps = timing
        target = {"rollback": "", "revert": f"ask-{self.asked - 1}", "ack": "inc-0001"}
        self.tell(
            ev.InterventionRequested(
                name,
                action,
                "ann",
                "",
                float(max(self.state.step - 7, 0)) if action == "rollback" else value,
                target.get(action, node),
                values={"beta2": 0.98} if action == "optimizer" else {},
                at_step=self.state.step + ahead if ahead is not None else None,
                for_steps=for_steps,
                seen_seq=max(self.state.seq - age, 0) if age is not None else None,
            )
        )

    @rule(action=about_checkpoints, which=st.integers(0, 8))
    def ask_about_a_checkpoint(self, action: str, which: int) -> None:
        names = (*self.state.checkpoints, checkpoint_id(999, 9))
        self.asked += 1
        name = f"ask-{self.asked}"
        self.tell(
            ev.InterventionRequested(name, action, "ann", "", target=names[which % len(names)])
        )

    @precondition(lambda self: self.attempt is not None)
    @rule(
        some=st.lists(ranks, min_size=1, max_size=4, unique=True),
        error=st.booleans(),
        phase=st.sampled_from(["applied", "applied", "scheduled", "expired"]),
    )
    def applied(self, some: list[int], error: bool, phase: str) -> None:
        number, at_step = self.state.num_attempts, self.state.step + 1
        for name, known in self.state.interventions.items():
            is_open = known.stage in ("sent", "scheduled", "applied")
            if not is_open or known.sent_attempt != number or known.seq is None:
                continue
            hyper = None
            if known.request.action in ("lr", "lr-factor") and not error:
                change = LrChange(at_step, known.request.value, name)
                changes = (*self.state.hyper.lr_changes, change)
                hyper = Hyper(changes) if not known.acks else self.state.hyper
            said = "value-out-of-range" if error else ""
            self.tell(
                ev.CommandApplied(
                    number,
                    known.seq,
                    "n0",
                    tuple(some),
                    at_step,
                    {},
                    {},
                    said,
                    hyper=hyper,
                    phase=phase,
                    cause=name,
                    until_step=at_step + 5 if known.request.for_steps else None,
                )
            )
            return

    # --- what always holds -----------------------------------------------------------------------

    @invariant()
    def rests_for_a_reason(self) -> None:
        state = self.state
        if state.paused and state.end is None:
            assert state.pause_reason
            assert state.attempt is None
            asked = state.paused == d.ON_REQUEST
            assert asked or state.open_incidents, "paused without an incident to read"

    @invariant()
    def knows_what_it_knows_once(self) -> None:
        state = self.state
        assert len(set(state.open_incidents)) == len(state.open_incidents)
        assert set(state.trending) <= set(state.checkpoints)
        if state.attempt is not None:
            assert state.attempt.number == state.num_attempts

    def teardown(self) -> None:
        folded = RunState()
        for record in self.journal:
            folded = evolve(folded, record.event, seq=record.seq, time_s=record.time_s)
        assert canonical(folded) == canonical(self.state)


Policy.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
TestPolicy = Policy.TestCase
