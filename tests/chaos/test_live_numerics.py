"""Numeric trouble and people's changes on a real Ray: divergence, the rate, stop and resume."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from midwatch.logbook.decisions import StartAttempt
from midwatch.logbook.events import InterventionRequested, StepDone
from midwatch.logbook.state import RunState, Status
from midwatch.operator.desk import post_request
from midwatch.operator.runtime.session import Session
from midwatch.trainer.config import TrainConfig
from midwatch.trainer.schedule import lr_at

from tests.support.live_run import (
    LiveRun,
    Strike,
    is_training,
    kill,
    nano_spec,
    worker_pid,
)

pytestmark = pytest.mark.chaos

# Only the loss scaler may act, so that its collapse is what is recovered from.
SCALER_ALONE = {
    name: {"mode": "shadow"}
    for name in ("level_shift", "non_finite", "grad_norm", "activation_norm", "creep")
}


def ask(run: LiveRun, at_step: int, action: str, value: float = 0.0, **more: Any) -> Strike:
    """A person's request, made once the run has completed at_step."""

    def strike(state: RunState) -> bool:
        if not is_training(state) or state.step < at_step:
            return False
        request = InterventionRequested(
            id=f"test-{action}", action=action, by="a test", reason="to see", value=value, **more
        )
        post_request(run.run_dir, request, time_s=time.time())
        return True

    return strike


def scheduled_lr(run: LiveRun, step: int) -> float:
    """The rate of a step that nobody has changed."""
    config = TrainConfig.model_validate(run.spec.trainer)
    return lr_at(step, config.optimizer, config.schedule)


def test_a_real_divergence_is_rolled_back_with_a_lower_rate(
    session: Session, corpus: Path, tmp_path: Path
) -> None:
    trainer = {"steps": 120, "loss_scaler": {"init": 64.0}}
    changes: dict[str, Any] = {"detectors": SCALER_ALONE, "limits": {"lr_max": 100.0}}
    spec = nano_spec("diverge", tmp_path, corpus, trainer=trainer, **changes)
    with LiveRun(spec, session) as run:
        state = run.finish(ask(run, 22, "lr", 30.0))
        assert state.status is Status.COMPLETED, run.describe()
        run.assert_fold_is_live()
        events = run.events()
    (incident,) = state.incidents.values()
    assert incident.draft.fault == "scaler-collapse"
    # It truly diverged: the loss was gone and the scale at its floor.
    diverged = [e.sample for e in events if isinstance(e, StepDone) and e.attempt == 1]
    assert math.isnan(diverged[-1].loss)
    assert diverged[-1].loss_scale == 2.0**-5
    # The answer: a checkpoint from before, the raise taken back, a rate below the schedule's.
    assert incident.checkpoint_tags is not None
    raised_at = state.interventions["test-lr"].at_step
    assert raised_at is not None
    saved_at = (raised_at - 1) // 5 * 5
    assert incident.checkpoint == f"step-{saved_at:08d}.a0001"
    start = next(d.action for d in incident.decisions if isinstance(d.action, StartAttempt))
    assert start.lr_factor == 0.9
    assert state.interventions["test-lr"].stage == "reverted"
    assert [change.factor for change in state.hyper.lr_changes] == [0.9]
    assert incident.lr_after == pytest.approx(0.9 * scheduled_lr(run, saved_at + 1))
    # And it worked.
    assert state.last is not None
    assert state.last.loss < incident.checkpoint_tags.loss


def test_a_changed_rate_reaches_every_rank_and_survives_a_crash(
    session: Session, corpus: Path, tmp_path: Path
) -> None:
    with LiveRun(nano_spec("steer", tmp_path, corpus), session) as run:

        def crash(state: RunState) -> bool:
            known = state.interventions.get("test-lr-factor")
            applied = known is not None and known.stage == "applied"
            return applied and kill(worker_pid(state, 0))

        state = run.finish(ask(run, 10, "lr-factor", 0.5), crash)
        samples = [e.sample for e in run.events() if isinstance(e, StepDone)]
    known = state.interventions["test-lr-factor"]
    assert known.stage == "applied"
    assert known.acks == (0, 1, 2, 3)
    assert known.readback["lr"] == pytest.approx(0.5 * known.previous["lr"])
    assert state.num_attempts == 2
    assert known.at_step is not None
    # Every step of both attempts, those that were made again too.
    assert {sample.step for sample in samples} == set(range(1, 41))
    for sample in samples:
        factor = 0.5 if sample.step >= known.at_step else 1.0
        assert sample.lr == factor * scheduled_lr(run, sample.step)
    assert [change.factor for change in state.hyper.lr_changes] == [0.5]


def test_a_rate_out_of_bounds_is_refused(session: Session, corpus: Path, tmp_path: Path) -> None:
    spec = nano_spec("bounds", tmp_path, corpus, limits={"lr_max": 0.01})
    with LiveRun(spec, session) as run:
        state = run.finish(ask(run, 5, "lr", 5.0))
    known = state.interventions["test-lr"]
    assert known.stage == "rejected"
    assert "0.01" in known.detail
    assert state.hyper.lr_changes == ()


def test_stop_saves_and_the_run_goes_on_where_it_stopped(
    session: Session, corpus: Path, tmp_path: Path
) -> None:
    spec = nano_spec("stopped", tmp_path, corpus)
    with LiveRun(spec, session) as run:
        state = run.finish(ask(run, 12, "stop"))
    assert state.status is Status.STOPPED
    newest = max(state.checkpoints.values(), key=lambda c: c.step)
    assert newest.step == state.step
    with LiveRun(spec, session) as run:
        state = run.until(lambda state: state.status is Status.COMPLETED)
    assert state.step == 40
    assert state.num_attempts == 2


def test_commands_read_and_steer_a_run(session: Session, corpus: Path, tmp_path: Path) -> None:
    def midwatch(*arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "midwatch.operator.cli.main", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    folder = str(tmp_path)
    spec = nano_spec("commands", tmp_path, corpus, trainer={"steps": 1_000_000})
    with LiveRun(spec, session) as run:
        run.until(lambda state: state.step >= 3)
        asked = ["lr", folder, "--factor", "0.5", "--reason", "to see"]
        dry = json.loads(midwatch(*asked, "--dry-run", "-o", "json"))
        assert dry[0]["action"]["type"] == "send-command"
        assert run.state.interventions == {}
        midwatch(*asked, "--expect-attempt", "7", status=4)
        applied = json.loads(midwatch(*asked, "--expect-attempt", "1", "-o", "json"))
        assert applied["stage"] == "applied"
        assert applied["acks"] == [0, 1, 2, 3]
        assert "limits" in midwatch("lr", folder, "--to", "7", "--reason", "no", status=4)
        why = ["--reason", "to see"]
        stale = midwatch("lr", folder, "--to", "1e-4", "--expect", "0.9", *why, status=4)
        assert "conflict: lr was expected to be 0.9" in stale
        adam = ["optimizer", folder, "--beta2", "0.98", "--for-steps", "1000000", *why]
        changed = json.loads(midwatch(*adam, "-o", "json"))
        assert (changed["previous"]["beta2"], changed["readback"]["beta2"]) == (0.95, 0.98)
        assert changed["acks"] == [0, 1, 2, 3]
        later = ["clip", folder, "--to", "0.3", "--at-step", "900000", *why]
        waiting = json.loads(midwatch(*later, "-o", "json"))
        assert (waiting["stage"], waiting["at_step"]) == ("scheduled", 900000)
        assert "reverted" not in midwatch("interventions", folder)
        midwatch("revert", waiting["request"]["id"], folder, *why)
        midwatch("pause", folder, *why)
        assert run.state.paused == "on-request"
        held = run.state.step
        midwatch("resume", folder, *why)
        state = run.until(lambda state: state.step > held)
        # The new processes say what they hold: nothing was undone by the load.
        assert state.attempt is not None
        assert (state.attempt.number, state.attempt.readback["beta2"]) == (2, 0.98)
        assert state.attempt.differs == ()
        assert "reverted: taken back by revert-" in midwatch("interventions", folder)
        midwatch("stop", folder, "--reason", "seen enough")
    status = json.loads(midwatch("status", folder, "-o", "json"))
    assert status["summary"]["status"] == "stopped"
    lines = midwatch("journal", folder, "--kind", "decision", "-o", "json").splitlines()
    assert {json.loads(line)["event"]["kind"] for line in lines} == {"decision"}
    assert midwatch("notes", folder) == ""
    assert "no-such-run" in midwatch("status", "nowhere", status=3)
    assert "no-such-incident" in midwatch("notes", folder, "--incident", "inc-9999", status=3)
