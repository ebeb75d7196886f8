"""A made-up run of 992 GPUs as a journal: crashes, a spike, checkpoints, requests of people.

Everything in it follows from the arguments, so pictures of it are the same everywhere.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.findings import Finding, Severity
from midwatch.logbook.fold import evolve
from midwatch.logbook.journal import Journal
from midwatch.logbook.plan import AttemptPlan, Placement
from midwatch.logbook.state import RunState
from midwatch.logbook.wire import Command, Hyper, LrChange, Mesh, StepSample
from midwatch.operator.spec_told import submission
from midwatch.tests.support.builders import START_S, make_sample, make_spec, make_tags

STEP_S = 40.0
SAVE_STEPS = 50


class SyntheticRun:
    """Writes the journal of a run, event by event, and keeps its state and its clock."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 124,
        spares: int = 2,
        slots: int = 8,
        env: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.state = RunState()
        self.now_s = START_S
        self._num_nodes, self._slots = nodes, slots
        self._names = [f"n{index:03d}" for index in range(nodes + spares)]
        self._out: set[str] = set()
        self._random = random.Random(7)
        (folder / "requests").mkdir(parents=True, exist_ok=True)
        self._journal: Journal[ev.Event] = Journal(folder / "journal", ev.Event)
        spec = make_spec(
            name="opt-175b",
            mesh={"dp_shard": nodes, "tp": slots},
            nodes={"ranks_per_node": slots, "spares": spares},
            trainer={"steps": 2000, "interval_steps": SAVE_STEPS},
            env=env or {},
        )
        self.tell(
            submission(spec, midwatch_version="0.1.0", by="ann"),
            ev.ControllerStarted(1, "head", 4711, 0),
        )
        self.tell(*(ev.NodeJoined(n, "1", f"host-{n}", slots, 100) for n in self._names))

    def tell(self, *events: ev.Event) -> None:
        """Append events as of now, and fold them."""
        attempt = self.state.num_attempts
        batch = [(self.now_s, getattr(event, "attempt", attempt), event) for event in events]
        for record in self._journal.append(batch):
            self.state = evolve(self.state, record.event, seq=record.seq, time_s=record.time_s)

    def decide(self, action: d.Action, reason: str, **more: object) -> None:
        """Append a decision and its outcome."""
        opens = more.get("opens")
        if isinstance(opens, d.IncidentDraft):
            more["incident"] = opens.id
        name = f"{self.state.num_attempts}/{self.state.num_decisions + 1}"
        self.tell(ev.DecisionMade(d.Decision(name, action, reason, **more)))  # type: ignore[arg-type]
        self.tell(ev.ActionDone(name))

    def start(self, reason: str, *, step: int = 0, factor: float = 1.0, **more: object) -> None:
        """Start the next attempt on the nodes that are not out, from the checkpoint of step."""
        number = self.state.num_attempts + 1
        usable = [name for name in self._names if name not in self._out][: self._num_nodes]
        places = tuple(Placement(n, i * self._slots, self._slots) for i, n in enumerate(usable))
        changes = self.state.hyper.lr_changes
        if factor != 1.0:
            changes = (*changes, LrChange(step + 1, factor, f"{number}/x"))
        source = f"step-{step:08d}.a{number - 1:04d}" if step else ""
        found = [c for c in self.state.checkpoints.values() if c.step == step]
        source = found[-1].checkpoint if found else ""
        plan = AttemptPlan(
            number,
            Mesh(self._num_nodes, self._slots),
            places,
            (source,) if source else (),
            step,
            Hyper(lr_changes=changes),
        )
        onset = self.state.step - 20 if factor != 1.0 else None
        self.decide(d.StartAttempt(plan, rollback_onset=onset, lr_factor=factor), reason, **more)
        self.now_s += 90.0
        pids = tuple(range(1000, 1000 + self._slots))
        self.tell(*(ev.WorkersStarted(number, name, pids) for name in usable[:3]))
        self.tell(ev.AttemptResumed(number, step, source, 41.0, tier="disk" if source else ""))

    def train(self, until: int, *, sick_from: int | None = None) -> None:
        """Train to a step, saving every SAVE_STEPS; from sick_from on the loss diverges."""
        while self.state.step < until:
            step = self.state.step + 1
            self.now_s += STEP_S
            self.tell(ev.StepDone(self.state.num_attempts, self._sample(step, sick_from)))
            if step % SAVE_STEPS == 0:
                self._save(step)

    def measure(self, spent_s: float, *, is_cut: bool = False) -> None:
        """Measure the newest step on held-out text, or make but half of it within spent_s."""
        step, attempt = self.state.step, self.state.num_attempts
        self.tell(ev.ValidationUnderWay(attempt, step, 0, 8))
        self.now_s += spent_s
        if is_cut:
            self.tell(ev.ValidationUnderWay(attempt, step, 4, 8))
            return
        loss = self.measured_loss(step)
        self.tell(ev.ValidationDone(attempt, step, loss, 64, 131_072, self.now_s, spent_s))

    @staticmethod
    def measured_loss(step: int) -> float:
        """The loss on held-out text of a step, a little above that of training."""
        return 2.3 + 8.0 * math.exp(-step / 60)

    def crash(self, rank: int) -> None:
        """A worker dies of an uncorrectable memory error; its node is out."""
        step, attempt = self.state.step, self.state.num_attempts
        assert self.state.attempt is not None
        node = self.state.attempt.plan.node_of(rank) or ""
        message = "CUDA error: uncorrectable ECC error encountered"
        self.tell(
            ev.WorkerExited(
                attempt, rank, node, signal=6, step=step, phase="FORWARD", message=message
            )
        )
        self.now_s += 2.0
        self._out.add(node)
        draft = self._draft("worker-killed", f"rank {rank} on {node} died of {message}", node, rank)
        evidence = (("exit", "SIGABRT"), ("code", "cuda-ecc"))
        self.decide(
            d.QuarantineNode(node), f"{node} lost a GPU to ECC", opens=draft, evidence=evidence
        )

    def diverge(self) -> str:
        """A detector sees a level shift; return the id of the incident that it opens."""
        step = self.state.step
        text = "loss 4.9 against 2.4 for 20 steps"
        finding = Finding(
            "level-shift", "level-shift", Severity.ROLLBACK, step, step - 20, 4.9, 2.4, text
        )
        self.tell(
            ev.FindingSeen(f"f-{self.state.num_findings + 1:06d}", self.state.num_attempts, finding)
        )
        self.now_s += 1.0
        return f"inc-{len(self.state.incidents) + 1:04d}"

    def refuse(self, request: ev.InterventionRequested) -> None:
        """Somebody asks for a change and is refused."""
        self.tell(request)
        self.decide(d.RejectIntervention(request.id), "not now")

    def steer(self, name: str, action: str, value: float) -> None:
        """Ann asks for a factor on the rate, and every rank takes it from the next step on."""
        attempt, seq = self.state.num_attempts, self.state.next_command
        self.tell(ev.InterventionRequested(name, action, "ann", "to see", value))
        self.decide(d.SendCommand(Command(seq, action, value, name), name), "ann asked: to see")
        assert self.state.attempt is not None
        at_step, ranks = self.state.step + 1, range(self.state.attempt.plan.mesh.world_size)
        change = LrChange(at_step, value, name)
        changes = (*self.state.hyper.lr_changes, change)
        self.tell(
            ev.CommandApplied(
                attempt, seq, "n000", tuple(ranks), at_step, {"lr": 1.0 * value}, {"lr": 1.0},
                hyper=Hyper(lr_changes=changes), cause=name,
            )
        )  # fmt: skip

    def close(self) -> None:
        """Let go of the journal, as a controller that goes away does."""
        self._journal.close()

    def reopen(self) -> None:
        """Take the journal up again, as the next controller does."""
        self._journal = Journal(self.folder / "journal", ev.Event)
        self.tell(ev.ControllerStarted(self._journal.epoch, "head", 4712, self.state.seq))

    def _draft(self, fault: str, title: str, node: str | None, rank: int | None) -> d.IncidentDraft:
        name = f"inc-{len(self.state.incidents) + 1:04d}"
        step = self.state.step
        return d.IncidentDraft(name, fault, title, step, self.now_s, step, node, rank)

    def numeric_draft(self) -> d.IncidentDraft:
        """The draft of the incident that the last finding opens."""
        seen = self.state.findings[-1]
        return d.IncidentDraft(
            f"inc-{len(self.state.incidents) + 1:04d}",
            "divergence",
            seen.finding.message,
            self.state.step,
            self.now_s,
            seen.finding.onset_step,
            is_numeric=True,
            finding=seen.id,
        )

    def _save(self, step: int) -> None:
        attempt = self.state.num_attempts
        name = f"step-{step:08d}.a{attempt:04d}"
        self.tell(
            ev.CheckpointCommitted(attempt, name, step, 992 * 10**9, 0.9, 95.0, make_tags(loss=2.5))
        )
        self.decide(d.VerifyCheckpoint(name), "every checkpoint is read back")
        self.now_s += 10.0
        self.tell(ev.CheckpointVerified(name))

    def _sample(self, step: int, sick_from: int | None) -> StepSample:
        noise = self._random.gauss(0.0, 1.0)
        loss = (2.2 + 8.0 * math.exp(-step / 60)) * (1 + 0.01 * noise)
        grad = (0.25 + 2 * math.exp(-step / 40)) * math.exp(0.1 * noise)
        activation = 110.0 + 0.01 * step + 0.2 * noise
        if sick_from is not None and step >= sick_from:
            since = step - sick_from + 1
            loss, grad, activation = loss + 0.12 * since, grad * 1.2**since, activation + since
        factor = math.prod(c.factor for c in self.state.hyper.lr_changes if c.from_step <= step)
        return make_sample(
            step,
            time_s=self.now_s,
            loss=loss,
            grad_norm=grad,
            lr=1.2e-4 * min(step / 100, 1.0) * (1 - step / 20_000) * factor,
            activation_norm=activation,
            loss_scale=2.0 ** (15 - (step // 90) % 4),
            tokens=2_000_000,
            step_s=STEP_S,
            tokens_per_s=50_000.0,
            memory_step=step - 1,
        )


def write_night(folder: Path, **fleet: Any) -> SyntheticRun:
    """Write a run with a dead GPU and a divergence behind it, training on; return it open."""
    run = SyntheticRun(folder, **fleet)
    run.start("the first attempt")
    run.train(230)
    run.crash(rank=13)
    run.start("the spare takes over", step=200, incident="inc-0001")
    run.train(262)
    run.decide(d.CloseIncident("inc-0001", "trains again past step 230"), "50 steps past it")
    run.train(420, sick_from=398)
    name = run.diverge()
    run.start(
        "the loss left its level; back to the last good checkpoint, LR x0.9",
        step=350,
        factor=0.9,
        opens=run.numeric_draft(),
        alternatives=(("step-00000400.a0002", "after the onset"),),
    )
    assert name in run.state.incidents
    run.train(405)
    run.decide(d.PinCheckpoint(next(iter(run.state.checkpoints))), "the paper's")
    return run
