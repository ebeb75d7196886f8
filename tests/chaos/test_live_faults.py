"""Every fault the core promises to survive, alone and in pairs, on a real Ray with real workers.

After a hardware fault the loss curve must equal the undisturbed run's, bit for bit.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from midwatch.checkpoints.manifest import checkpoint_dir
from midwatch.checkpoints.store import LocalStore
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.state import RunState, Status
from midwatch.operator.runtime.session import Session

from tests.support.live_run import (
    LiveRun,
    Strike,
    is_training,
    kill,
    nano_spec,
    strike_agent,
    strike_controller,
    strike_worker,
    wait_until,
    worker_pid,
)

pytestmark = pytest.mark.chaos

EVERY_STEP = {"memory": {"every_steps": 1}}
# A step is copied while the next one or two are trained: on a busy machine nano steps are quicker.
MEMORY_LAG_STEPS = 3


def survive(
    run: LiveRun, undisturbed: dict[int, float], expected: list[str], *strikes: Strike
) -> RunState:
    """Run to the end under the strikes and check what must hold after any hardware fault."""
    state = run.finish(*strikes)
    assert state.status is Status.COMPLETED, run.describe()
    assert run.losses() == undisturbed
    assert sorted(i.draft.fault for i in state.incidents.values()) == sorted(expected)
    assert all(incident.outcome for incident in state.incidents.values())
    for name in state.incidents:
        assert (run.run_dir / "notes" / f"{name}.md").is_file()
    run.assert_fold_is_live()
    return state


def resumed_from(run: LiveRun) -> list[str]:
    """Return the tier from which each attempt of a run resumed, "" for a fresh start."""
    return [event.tier for event in run.events() if isinstance(event, ev.AttemptResumed)]


def test_a_killed_worker(session: Session, corpus: Path, undisturbed: dict, tmp_path: Path) -> None:
    with LiveRun(nano_spec("worker", tmp_path, corpus, checkpoints=EVERY_STEP), session) as run:
        state = survive(run, undisturbed, ["worker-killed"], strike_worker(2, 12))
    (incident,) = state.incidents.values()
    assert incident.draft.rank == 2
    assert resumed_from(run) == ["", "memory"]
    assert incident.steps_lost <= MEMORY_LAG_STEPS
    assert not any(node.quarantined for node in state.nodes.values())


def test_a_killed_agent_is_replaced_by_the_spare(
    session: Session, corpus: Path, undisturbed: dict, tmp_path: Path
) -> None:
    spec = nano_spec("agent", tmp_path, corpus, spares=1, checkpoints=EVERY_STEP)
    with LiveRun(spec, session) as run:
        state = survive(run, undisturbed, ["node-lost"], strike_agent(0, 12))
    (incident,) = state.incidents.values()
    assert [n.node for n in state.nodes.values() if n.quarantined] == [incident.draft.node]
    assert state.num_attempts == 2
    # The spare had nothing: it got the state from the memory of the node that is left.
    assert resumed_from(run) == ["", "memory"]
    assert incident.steps_lost <= MEMORY_LAG_STEPS


def test_two_agents_killed_at_once_leave_the_disk(
    session: Session, corpus: Path, undisturbed: dict, tmp_path: Path
) -> None:
    def both(state: RunState) -> bool:
        if not is_training(state) or state.step < 12:
            return False
        assert state.attempt is not None
        killed = [kill(state.nodes[node].pid) for node in state.attempt.plan.nodes]
        return all(killed)

    with LiveRun(nano_spec("two-agents", tmp_path, corpus, spares=2), session) as run:
        state = run.finish(both)
        assert state.status is Status.COMPLETED, run.describe()
        assert run.losses() == undisturbed
        tiers = resumed_from(run)
    assert tiers[0] == ""
    assert tiers[-1] == "disk"
    assert sum(1 for node in state.nodes.values() if node.quarantined) == 2


def test_without_the_memory_tier_the_newest_checkpoint_on_disk_is_taken(
    session: Session, corpus: Path, undisturbed: dict, tmp_path: Path
) -> None:
    off = {"memory": {"mode": "off"}}
    with LiveRun(nano_spec("no-memory", tmp_path, corpus, checkpoints=off), session) as run:
        state = survive(run, undisturbed, ["worker-killed"], strike_worker(2, 12))
        events = run.events()
    (incident,) = state.incidents.values()
    again = [e for e in events if isinstance(e, ev.DecisionMade) and _is_restart(e)]
    before = events[: events.index(again[0])]
    committed = [e.checkpoint for e in before if isinstance(e, ev.CheckpointCommitted)]
    assert incident.checkpoint == max(committed)
    assert resumed_from(run) == ["", "disk"]


def _is_restart(event: ev.DecisionMade) -> bool:
    action = event.decision.action
    return isinstance(action, d.StartAttempt) and action.plan.attempt > 1


def test_a_stopped_worker_is_a_hang_with_stacks(
    session: Session, corpus: Path, undisturbed: dict, tmp_path: Path
) -> None:
    with LiveRun(nano_spec("hang", tmp_path, corpus), session) as run:
        stop = strike_worker(3, 12, signal.SIGSTOP)
        state = survive(run, undisturbed, ["hang"], stop)
    (incident,) = state.incidents.values()
    assert incident.draft.rank == 3
    stacks = [path.read_text() for path in (tmp_path / "evidence").iterdir()]
    assert len(stacks) == 2
    assert any("torch/distributed" in text for text in stacks)


def test_a_killed_controller_costs_no_step(
    session: Session, corpus: Path, undisturbed: dict, tmp_path: Path
) -> None:
    with LiveRun(nano_spec("controller", tmp_path, corpus), session) as run:
        die = strike_controller(lambda state: state.step >= 12)
        state = survive(run, undisturbed, ["controller-lost"], die)
    assert state.num_attempts == 1
    assert state.epoch == 2


def test_a_worker_killed_while_recovering(
    session: Session, corpus: Path, undisturbed: dict, tmp_path: Path
) -> None:
    def again(state: RunState) -> bool:
        attempt = state.attempt
        recovering = attempt is not None and attempt.number == 2 and attempt.first_step_s is None
        return recovering and kill(worker_pid(state, 1))

    with LiveRun(nano_spec("again", tmp_path, corpus), session) as run:
        expected = ["worker-killed", "worker-killed"]
        state = survive(run, undisturbed, expected, strike_worker(2, 12), again)
    assert state.num_attempts == 3


def test_an_agent_killed_during_a_checkpoint(
    session: Session, corpus: Path, undisturbed: dict, tmp_path: Path
) -> None:
    struck: list[str] = []

    def during_save(state: RunState) -> bool:
        if state.attempt is None or state.step < 10:
            return False
        for folder in (tmp_path / "checkpoints").iterdir():
            writer = state.nodes[state.attempt.plan.placements[0].node].pid
            if not (folder / "manifest.json").exists() and kill(writer):
                struck.append(folder.name)
                return True
        return False

    with LiveRun(nano_spec("saving", tmp_path, corpus, spares=1), session) as run:
        state = survive(run, undisturbed, ["node-lost"], during_save)
    assert struck
    (incident,) = state.incidents.values()
    assert incident.checkpoint, "every state saved before must still be usable"


def test_a_rotten_checkpoint_sends_the_load_to_the_next_one(
    session: Session, corpus: Path, undisturbed: dict, tmp_path: Path
) -> None:
    rotten: list[str] = []

    def rot_and_kill(state: RunState) -> bool:
        ranks = [worker_pid(state, rank) for rank in range(4)]
        if state.step < 12 or not is_training(state) or None in ranks:
            return False
        for pid in ranks:
            # Nothing can be saved any more: the newest that is there stays the newest.
            kill(pid, signal.SIGSTOP)
        newest = LocalStore(tmp_path).listing().committed[-1]
        known = state.checkpoints.get(newest.id)
        if known is None or known.verified is not True:
            # It would be read back after it has rotted, and not even be offered.
            for pid in ranks:
                kill(pid, signal.SIGCONT)
            return False
        rotten.append(newest.id)
        shard = checkpoint_dir(tmp_path, newest.id) / newest.files[1].name
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 8
        shard.write_bytes(content)
        return kill(ranks[2])

    off = {"memory": {"mode": "off"}}
    with LiveRun(nano_spec("rotten", tmp_path, corpus, checkpoints=off), session) as run:
        expected = ["bad-checkpoint", "worker-killed"]
        state = survive(run, undisturbed, expected, rot_and_kill)
    killed, noted = sorted(state.incidents.values(), key=lambda i: i.draft.fault, reverse=True)
    assert killed.checkpoint < rotten[0]
    assert killed.tier == "disk"
    note = (tmp_path / "notes" / f"{noted.draft.id}.md").read_text()
    assert f"passed over {rotten[0]}" in note
    assert "[shard-checksum]" in note


def test_the_interval_is_chosen_and_changed_on_every_rank(
    session: Session, corpus: Path, undisturbed: dict, tmp_path: Path
) -> None:
    bounds = {"interval": {"min_steps": 2, "max_steps": 8}}
    with LiveRun(nano_spec("interval", tmp_path, corpus, checkpoints=bounds), session) as run:
        state = survive(run, undisturbed, ["worker-killed"], strike_worker(2, 25))
    changes = [i for i in state.interventions.values() if i.request.action == "save-interval"]
    assert [change.request.value for change in changes] == [2.0, 8.0]
    assert all(change.acks == (0, 1, 2, 3) for change in changes[:1])
    assert state.hyper.save_interval_steps == 8
    assert changes[-1].readback["save_interval_steps"] == 8.0


@pytest.mark.parametrize("seed", range(3))
def test_the_controller_killed_while_it_decides(
    session: Session, corpus: Path, undisturbed: dict, tmp_path: Path, seed: int
) -> None:
    # Seeded moments from before the controller can have heard of the dead worker to after it
    # has written down its decision.
    moment = [
        lambda state: True,
        lambda state: state.num_attempts == 2,
        lambda state: state.num_attempts == 2 and worker_pid(state, 0) is not None,
    ][seed]
    victim = random.Random(seed).randrange(4)
    killed: list[bool] = []

    def worker(state: RunState) -> bool:
        if state.step >= 12 and not killed and kill(worker_pid(state, victim)):
            killed.append(True)
        return bool(killed)

    def controller(state: RunState) -> bool:
        return bool(killed) and moment(state) and kill(state.controller_pid)

    with LiveRun(nano_spec(f"deciding-{seed}", tmp_path, corpus), session) as run:
        expected = ["controller-lost", "worker-killed"]
        state = survive(run, undisturbed, expected, worker, controller)
    assert state.epoch == 2
    assert state.num_attempts == 2


def test_no_process_of_a_run_outlives_it(session: Session, corpus: Path, tmp_path: Path) -> None:
    with LiveRun(nano_spec("orphans", tmp_path, corpus), session) as run:
        state = run.until(lambda state: state.step >= 5)
        assert state.attempt is not None
        pids = [pid for pids in state.attempt.pids.values() for pid in pids]
    assert len(pids) == 4
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "workers live on")
