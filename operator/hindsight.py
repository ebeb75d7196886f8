"""What the policy would have decided about a recorded curve, had it watched.

The points of the curve are folded into a RunState like the steps of a live run, checkpoints are
assumed where the spec would have taken them, and the real policy answers every finding on that
state. So the LR ladder climbs with recurrence, and a rollback pauses where no checkpoint is sound.
The curve goes on as it was recorded, whatever was decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from ..health.numerics.point import Point
from ..logbook import decisions as d
from ..logbook import events as ev
from ..logbook.findings import Finding, Severity
from ..logbook.fold import evolve
from ..logbook.plan import AttemptPlan, Placement
from ..logbook.state import RunState
from ..logbook.wire import CheckpointTags, Mesh, StepSample
from .policy.recovery import answer_failure
from .policy.upkeep import close_incidents, note_findings
from .spec import RunSpec

CHECKPOINT_EVERY_STEPS = 250
"""Taken where no spec says otherwise; OPT-175B's own interval."""
GAP_S = 7200.0
"""A curve has no clock: findings lie so far apart that no budget per hour is spent."""
_NODE = "recorded"


def default_spec() -> RunSpec:
    """Return the spec of a run about which nothing is known but its curve."""
    return RunSpec.model_validate(
        {
            "name": "recorded",
            "mesh": {"dp_shard": 1},
            "nodes": {"ranks_per_node": 1},
            "trainer": {"checkpoint": {"interval_steps": CHECKPOINT_EVERY_STEPS}},
        }
    )


class Hindsight:
    """Follows a recorded curve and answers the findings that it is asked about.

    checkpoint_every_steps: where the run is taken to have saved; None asks the spec's trainer.
    """

    def __init__(self, spec: RunSpec, checkpoint_every_steps: int | None = None) -> None:
        # One rank stands for all of them: placement is no question of the curve.
        self._spec = spec.model_copy(update={"mesh": default_spec().mesh, "nodes": _one_node()})
        self._every_steps = checkpoint_every_steps or _interval_of(spec)
        self._state = RunState()
        self._latest = {"loss": math.nan, "grad_norm": 0.0, "activation_norm": 0.0, "lr": 0.0}
        self._saved_step = 0
        self._record(
            ev.RunSubmitted(spec.name, {}, "", 0, "", ""),
            ev.NodeJoined(_NODE, _NODE, _NODE, 1),
        )
        self._start(0, "")

    def follow(self, points: Iterable[Point]) -> Iterator[Point]:
        """Pass points on, each folded before whoever reads them sees it."""
        for point in points:
            if point.step < self._state.step:
                # The recorded run itself went back.
                self._restart(point.step - 1)
            self._take(point)
            yield point

    def decide(self, finding: Finding) -> tuple[str, float]:
        """Return (what the policy does, factor on the remaining schedule) for a finding.

        Returns: "none": it is only recorded. "note": an incident is opened and watched.
            "rollback": back to an earlier checkpoint. "pause": a human must look first.
        """
        self._tick(GAP_S)
        while closed := close_incidents(self._state, self._spec, self._state.time_s):
            self._decided(closed[0])
        name = f"f-{self._state.num_findings + 1:06d}"
        self._record(ev.FindingSeen(name, self._state.num_attempts, finding))
        if finding.shadow or finding.severity is Severity.OBSERVE:
            return "none", 1.0
        answer = answer_failure if finding.severity is Severity.ROLLBACK else note_findings
        decisions = answer(self._state, self._spec, self._state.time_s)
        return self._carry_out(decisions[0]) if decisions else ("none", 1.0)

    def _carry_out(self, decision: d.Decision) -> tuple[str, float]:
        step = self._state.step
        self._decided(decision)
        action = decision.action
        if isinstance(action, d.StartAttempt):
            first = action.plan.checkpoints[0] if action.plan.checkpoints else ""
            resumed = ev.AttemptResumed(action.plan.attempt, action.plan.resume_step, first, 0.0)
            self._record(resumed)
            self._saved_step = action.plan.resume_step
            return "rollback", action.lr_factor
        if isinstance(action, d.Observe):
            return "note", 1.0
        # Whoever looked set it going again where it was: that is what the record shows.
        self._tick(GAP_S)
        self._decided(d.Decision(self._next_id(), d.ResumeRun(), "the recorded run went on"))
        self._start(step, self._newest_checkpoint(step))
        return "pause", 1.0

    # --- the curve, as events --------------------------------------------------------------------

    def _take(self, point: Point) -> None:
        for name, value in self._latest.items():
            seen = getattr(point, name)
            self._latest[name] = value if seen is None else seen
        skipped = point.skipped > 0
        sample = StepSample(
            step=point.step,
            time_s=self._state.time_s,
            loss=self._latest["loss"],
            grad_norm=self._latest["grad_norm"],
            lr=self._latest["lr"],
            activation_norm=self._latest["activation_norm"],
            found_inf=skipped,
            skipped=skipped,
            loss_scale=point.loss_scale,
            tokens=0,
            data_step=point.step - 1,
            step_s=1.0,
            tokens_per_s=0.0,
            model_tflops_per_device=0.0,
        )
        self._record(ev.StepDone(self._state.num_attempts, sample))
        if point.step - self._saved_step >= self._every_steps:
            self._saved_step = point.step
            self._save(sample)

    def _save(self, sample: StepSample) -> None:
        attempt = self._state.num_attempts
        name = f"step-{sample.step:08d}.a{attempt:04d}"
        tags = CheckpointTags(
            loss=sample.loss,
            grad_norm=sample.grad_norm,
            activation_norm=sample.activation_norm,
            loss_scale=sample.loss_scale,
            lr=sample.lr,
        )
        self._record(
            ev.CheckpointCommitted(attempt, name, sample.step, 0, 0.0, 0.0, tags),
            ev.CheckpointVerified(name),
        )
        kept = self._spec.retention.keep_newest + 8
        old = list(self._state.checkpoints)[:-kept]
        if old:
            self._record(ev.CheckpointsPruned(tuple(old)))

    def _restart(self, step: int) -> None:
        self._start(max(step, 0), self._newest_checkpoint(step))

    def _start(self, step: int, checkpoint: str) -> None:
        """Begin an attempt at exactly this step, whether or not a checkpoint lies there."""
        plan = AttemptPlan(
            attempt=self._state.num_attempts + 1,
            mesh=Mesh(1, 1),
            placements=(Placement(_NODE, 0, 1),),
            checkpoints=(checkpoint,) if checkpoint else (),
            resume_step=step,
            hyper=self._state.hyper,
        )
        self._decided(d.Decision(self._next_id(), d.StartAttempt(plan), "as recorded"))
        self._record(ev.AttemptResumed(plan.attempt, step, checkpoint, 0.0))
        self._saved_step = min(self._saved_step, step)

    def _newest_checkpoint(self, step: int) -> str:
        usable = [c for c in self._state.checkpoints.values() if c.step <= step and not c.abandoned]
        return max(usable, key=lambda c: c.step).checkpoint if usable else ""

    def _next_id(self) -> str:
        return f"{self._state.num_attempts}/{self._state.num_decisions + 1}"

    def _decided(self, decision: d.Decision) -> None:
        self._record(ev.DecisionMade(decision), ev.ActionDone(decision.id))

    def _record(self, *events: ev.Event) -> None:
        state = self._state
        for event in events:
            state = evolve(state, event, seq=state.seq + 1, time_s=state.time_s)
        self._state = state

    def _tick(self, by_s: float) -> None:
        self._state = evolve(
            self._state,
            ev.NodeJoined(_NODE, _NODE, _NODE, 1),
            seq=self._state.seq + 1,
            time_s=self._state.time_s + by_s,
        )


def _one_node() -> object:
    return default_spec().nodes


def _interval_of(spec: RunSpec) -> int:
    checkpoint = spec.trainer.get("checkpoint")
    interval = checkpoint.get("interval_steps") if isinstance(checkpoint, dict) else None
    return interval if isinstance(interval, int) else CHECKPOINT_EVERY_STEPS
