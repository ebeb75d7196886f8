"""Faults as data, and seeded nights full of them.

One seed decides the cluster, what the run can bear, and every fault. A night has two phases: the
faults strike while the run goes on (whatever happens, the checkers must hold); then they stop, and
the run must come to its end, or rest for a stated reason until a person helps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from midwatch.logbook.decisions import ON_REQUEST
from midwatch.logbook.state import Status
from midwatch.logbook.wire import Hyper
from midwatch.operator.simulation.conditions import Times
from midwatch.operator.simulation.training import NO_RETURN, Fragility, Physics, Weights, train_one
from msgspec.structs import replace

from ..support.builders import make_spec
from .night import Night
from .plans import Fault, Plan

STORM_S = 120.0
CALM_S = 3000.0
MAX_HELP = 12


def plan_of(seed: int, *, with_disk: bool = True) -> Plan:
    """Return the night of a seed.

    with_disk: draw failing writes of journal and notes, too. They are drawn from a seed of their
    own and last, so that without them every older seed is the night that it was.
    """
    rng = random.Random(seed)
    per_node = rng.choice([1, 2])
    nodes = rng.choice([1, 2, 2, 3])
    spec = make_spec(
        mesh={"dp_shard": nodes, "tp": per_node},
        nodes={
            "ranks_per_node": per_node,
            "spares": rng.choice([0, 1, 2]),
            "when_short": rng.choice(["wait", "wait", "shrink"]),
            "preflight": "quick" if seed % 2 else "off",
        },
        trainer={"steps": rng.randrange(120, 260), "interval_steps": rng.choice([5, 10, 25])},
        restart={
            "max_restarts_per_hour": rng.choice([3, 20]),
            "start_deadline_s": 40.0,
            "hang_max_s": 60.0,
        },
        numeric={"recover_after_steps": rng.choice([40, 2000])},
        retention={
            "keep_newest": rng.choice([1, 2, 4]),
            "max_age_hours": rng.choice([None, 20 / 3600]),
        },
        checkpoints=rng.choice([{}, {"interval": {"min_steps": 4, "max_steps": 30}}]),
    )
    faults = sorted((_draw(rng) for _ in range(rng.randrange(1, 20))), key=lambda f: f.at_s)
    physics = _physics(rng, seed)
    memory = rng.random() < 0.5
    times = Times(memory_copy_s=0.02 if memory else None, blocked_s=rng.choice([0.0, 0.1]))
    if with_disk:
        faults = sorted([*faults, *_disk_faults(seed)], key=lambda f: f.at_s)
    return Plan(seed, spec, physics, times, tuple(faults))


def _disk_faults(seed: int) -> list[Fault]:
    rng = random.Random(f"{seed}/disk")
    kinds = [rng.choice(_DISK) for _ in range(rng.choice([0, 0, 1, 2]))]
    return [Fault(rng.uniform(1.0, STORM_S), kind, amount=rng.random()) for kind in kinds]


def _physics(rng: random.Random, seed: int) -> Physics:
    first = rng.randrange(30, 150)
    weak = Fragility(first, first + rng.randrange(5, 80), rng.choice([0.3, 0.5, 0.8, 0.95]))
    # Poison that only the scaler shows is named too late for the data to be found.
    poison = rng.random() < 0.15
    return Physics(
        seed=seed,
        fragile=(weak,) if rng.random() < 0.4 else (),
        poison=frozenset({rng.randrange(30, 150)}) if poison else frozenset(),
        loss_gain=1.0 if poison else rng.choice([1.0, 1.0, 0.0]),
        nan_from=rng.choice([1e9, 1e9, 3.0]),
    )


def _draw(rng: random.Random) -> Fault:
    at_s, kind = rng.uniform(1.0, STORM_S), rng.choice(DRAWN)
    index, amount = rng.randrange(6), rng.random()
    # Named here, so that a night that is kept means the same whatever can be asked for later.
    asks = {"person": tuple(ASKS), "people": tuple(ASKS), "checkpoint-request": CHECKPOINT_ASKS}
    named = asks.get(kind)
    return Fault(at_s, kind, index, amount, named[int(amount * len(named))] if named else "")


def play(plan: Plan, night: Night | None = None) -> Night:
    """Play a night to its end. AssertionError when something does not hold."""
    night = night or Night(plan.spec, seed=plan.seed, physics=plan.physics, times=plan.times)
    for fault in plan.faults:
        night.timeline.later(fault.at_s, _striking(night, fault))
    night.run_for(STORM_S)
    _calm(night)
    for _ in range(MAX_HELP):
        night.run(lambda s: _rests(night), CALM_S)
        if night.state.status.is_terminal:
            break
        _help(night)
    night.run_for(5.0)
    night.checker.check_end()
    _check_training(plan, night)
    return night


def _check_training(plan: Plan, night: Night) -> None:
    """What was trained in the end is what should have been, and the weights are healthy."""
    world, state, fragile = night.world, night.state, plan.physics.fragile
    if any(fault.kind in ("person", "people") for fault in plan.faults):
        return
    assert state.end is Status.COMPLETED, f"the run ended as {state.end}: {state.pause_reason}"
    steps = plan.spec.trainer["steps"]
    assert state.step == steps, f"it completed at step {state.step} of {steps}"
    if all(fault.kind != "reorder" for fault in plan.faults):
        # A step that is overtaken on its way may be lost behind a later one that is known.
        silent = sorted(set(range(1, steps + 1)) - night.checker.heard)
        assert not silent, f"nobody was told of steps {silent}"
    # What sickens the last steps of a run ends with it before it can show.
    unseen = range(state.step - 40, state.step + 1)
    troubled = any(f.first_step <= unseen[-1] and f.last_step > unseen[0] for f in fragile)
    if not troubled and not any(step in unseen for step in plan.physics.poison):
        sickness = world.gangs[max(world.gangs)].weights.sickness
        assert sickness < NO_RETURN, f"the weights ended sick ({sickness:.3g})"
    if replace(state.hyper, save_interval_steps=None) == Hyper():
        weights = Weights()
        while weights.step < state.step:
            weights, sample = train_one(weights, state.hyper, world.setting)
            made = replace(world.samples[sample.step], time_s=0.0, memory_step=None)
            assert made == sample, f"step {sample.step} is not that of the undisturbed curve"


def _striking(night: Night, fault: Fault) -> Callable[[], None]:
    return lambda: _STRIKES[fault.kind](night, fault)


def _calm(night: Night) -> None:
    """No fault outlives the storm, but what it broke stays broken."""
    world = night.world
    world.wire.extra_s.clear()
    world.wire.duplicates = world.wire.shuffled = 0
    world.trouble.failing_starts.clear()
    world.trouble.slow_starts.clear()
    world.storage.failing_saves = 0
    night.fuse.blows_at = None
    night.disk.failing_appends = night.disk.failing_notes = 0
    for saved in world.disk.saved.values():
        saved.is_unfit = False
    for agent in world.agents.values():
        agent.lost_commands = 0
        agent.quiet_about_hangs = False


def _rests(night: Night) -> bool:
    """Whether the run has ended, or rests until a person helps, and says why."""
    state = night.state
    if state.status is Status.PAUSED:
        assert state.pause_reason, "paused without a reason"
        asked = state.paused == ON_REQUEST
        assert asked or state.open_incidents, "paused without an incident"
        return True
    if state.status is Status.WAITING:
        quarantined = any(node.quarantined for node in state.nodes.values())
        return quarantined and night.controller is not None and not night.world.requests
    return state.status.is_terminal


def _help(night: Night) -> None:
    """What a person would do: give the nodes back, and set the run going."""
    for node in night.state.nodes.values():
        if node.quarantined:
            night.ask("release", target=node.node, id=f"help-{node.node}-{night.state.seq}")
    if night.state.paused:
        night.ask("resume", id=f"help-{night.state.seq}")
    paused, seq = night.state.paused, night.state.seq
    night.run(lambda s: s.seq > seq and (not paused or not s.paused or s.resumed_s > 0.0), 60.0)
    night.run_for(3.0)


# --- what strikes --------------------------------------------------------------------------------


def _node(night: Night, fault: Fault) -> str:
    names = sorted(night.world.agents) or ["node-0"]
    return names[fault.index % len(names)]


def _kill_worker(night: Night, fault: Fault) -> None:
    ranks = night.spec.world_size
    night.world.kill_worker(fault.index % ranks, report_after_s=fault.amount * 1.5)


def _kill_agent(night: Night, fault: Fault) -> None:
    night.world.kill_agent(_node(night, fault))


def _hang(night: Night, fault: Fault) -> None:
    if fault.amount < 0.3 and night.world.agents:
        night.world.agents[_node(night, fault)].quiet_about_hangs = True
    night.world.stop_worker(fault.index % night.spec.world_size)


def _cut(night: Night, fault: Fault) -> None:
    night.world.wire.cut(_node(night, fault), 30.0 * fault.amount)


def _slow_wire(night: Night, fault: Fault) -> None:
    night.world.wire.extra_s[_node(night, fault)] = 4.0 * fault.amount


def _duplicates(night: Night, fault: Fault) -> None:
    night.world.wire.duplicates += int(100 * fault.amount)


def _reorder(night: Night, fault: Fault) -> None:
    night.world.wire.shuffled += int(100 * fault.amount)


def _partition(night: Night, fault: Fault) -> None:
    """Half of the nodes cannot be reached."""
    for node in sorted(night.world.agents)[fault.index % 2 :: 2]:
        night.world.wire.cut(node, 30.0 * fault.amount)


def _group(night: Night, fault: Fault) -> None:
    """Two nodes go at once, as those behind one switch do."""
    for index in (0, 1):
        night.world.kill_agent(_node(night, replace(fault, index=fault.index + index)))


def _clock_jump(night: Night, fault: Fault) -> None:
    night.clock.ahead_s += 120.0 * (fault.amount - 0.5)


def _store_down(night: Night, fault: Fault) -> None:
    storage = night.world.storage
    storage.down_until_s = max(storage.down_until_s, night.timeline.elapsed_s + 60 * fault.amount)


def _zombie(night: Night, fault: Fault) -> None:
    night.linger(20.0 * fault.amount)


def _lose_commands(night: Night, fault: Fault) -> None:
    for agent in night.world.agents.values():
        if fault.amount < 0.5 or agent.node == _node(night, fault):
            agent.lost_commands += 1


def _failing_start(night: Night, fault: Fault) -> None:
    night.world.trouble.failing_starts[_node(night, fault)] = 1 + int(3 * fault.amount)


def _slow_start(night: Night, fault: Fault) -> None:
    night.world.trouble.slow_starts[_node(night, fault)] = 100.0 * fault.amount


def _crash(night: Night, fault: Fault) -> None:
    night.crash()


def _crash_at_call(night: Night, fault: Fault) -> None:
    night.crash_after(1 + int(60 * fault.amount))


def _failing_saves(night: Night, fault: Fault) -> None:
    night.world.storage.failing_saves = 1 + int(3 * fault.amount)


def _late_commit(night: Night, fault: Fault) -> None:
    night.world.storage.slow_saves_s.append(40.0 * fault.amount)
    night.world.storage.late_commits += 1


def _rot(night: Night, fault: Fault) -> None:
    saved = sorted(night.world.disk.saved.values(), key=lambda s: s.step)
    if saved:
        saved[-1].is_corrupt = True


def _unfit(night: Night, fault: Fault) -> None:
    saved = sorted(night.world.disk.saved.values(), key=lambda s: s.step)
    for each in saved[-1 - int(2 * fault.amount) :]:
        each.is_unfit = True


def _misread(night: Night, fault: Fault) -> None:
    saved = sorted(night.world.disk.saved.values(), key=lambda s: s.step)
    for each in saved[-1 - int(4 * fault.amount) :]:
        each.misread_loads = 1


def _checkpoint_request(night: Night, fault: Fault) -> None:
    action = fault.ask
    if action == "verify" and night.state.status.is_terminal:
        return  # Its nodes are gone; whoever asks then reads it where it lies.
    known = sorted(night.state.checkpoints) or ["step-00000000.a0001"]
    target = "" if action == "prune" else known[fault.index % len(known)]
    night.ask(action, target=target, id=f"{action}-{fault.at_s:.3f}")


def _person(night: Night, fault: Fault) -> None:
    action, value, target, more = ASKS[fault.ask](night, fault)
    night.ask(action, value, target, id=f"{action}-{fault.at_s:.3f}", **more)


def _journal_fails(night: Night, fault: Fault) -> None:
    night.disk.failing_appends = 1 + int(3 * fault.amount)


def _notes_fail(night: Night, fault: Fault) -> None:
    night.disk.failing_notes = 1 + int(3 * fault.amount)


Ask = tuple[str, float, str, dict[str, Any]]


def _fixed(action: str, value: float = 0.0, **more: Any) -> Callable[[Night, Fault], Ask]:
    return lambda night, fault: (action, value, "", more)


def _later(action: str, value: float = 0.0, **more: Any) -> Callable[[Night, Fault], Ask]:
    return lambda night, fault: (action, value, "", {"at_step": night.state.step + 5, **more})


def _of_node(action: str) -> Callable[[Night, Fault], Ask]:
    return lambda night, fault: (action, 0.0, _node(night, fault), {})


def _go_back(night: Night, fault: Fault) -> Ask:
    return "rollback", max(night.state.step - 15.0, 0.0), "", {}


def _take_back(night: Night, fault: Fault) -> Ask:
    return "revert", 0.0, next(reversed(night.state.interventions), ""), {}


# What a person may ask for, in the order in which seeds count them: add at the end of a copy of
# its own, never here, or older seeds become other nights.
ASKS: dict[str, Callable[[Night, Fault], Ask]] = {
    "lower": _fixed("lr-factor", 0.7),
    "raise": _fixed("lr-factor", 1.5),
    "raise-much": _fixed("lr-factor", 20.0),
    "clip": _fixed("grad-clip", 0.3),
    "checkpoint": _fixed("checkpoint"),
    "quarantine": _of_node("quarantine"),
    "release": _of_node("release"),
    "resume": _fixed("resume"),
    "rate": _fixed("lr", 5e-4),
    "lower-for-a-while": _later("lr-factor", 0.8, for_steps=15),
    "rate-for-a-while": _fixed("lr", 4e-4, for_steps=15),
    "clip-later": _later("grad-clip", 0.5),
    "optimizer": _fixed("optimizer", values={"beta2": 0.98}, for_steps=15),
    "scaler-later": _later("scaler", values={"loss-scale": 32.0}),
    "pause": _fixed("pause"),
    "pause-later": _later("pause"),
    "rollback": _go_back,
    "revert": _take_back,
    "stop": _fixed("stop"),
}
CHECKPOINT_ASKS = ("pin", "unpin", "verify", "prune", "quarantine-checkpoint", "release-checkpoint")
_DISK = ("journal-fails", "notes-fail")
_STRIKES: dict[str, Callable[[Night, Fault], None]] = {
    "kill-worker": _kill_worker,
    "kill-agent": _kill_agent,
    "hang": _hang,
    "cut": _cut,
    "slow-wire": _slow_wire,
    "duplicates": _duplicates,
    "reorder": _reorder,
    "partition": _partition,
    "group": _group,
    "clock-jump": _clock_jump,
    "store-down": _store_down,
    "zombie": _zombie,
    "lose-commands": _lose_commands,
    "failing-start": _failing_start,
    "slow-start": _slow_start,
    "crash": _crash,
    "crash-at-call": _crash_at_call,
    "failing-saves": _failing_saves,
    "late-commit": _late_commit,
    "rot": _rot,
    "unfit": _unfit,
    "misread": _misread,
    "checkpoint-request": _checkpoint_request,
    "person": _person,
    "people": _person,
    "journal-fails": _journal_fails,
    "notes-fail": _notes_fail,
}
DRAWN = tuple(kind for kind in _STRIKES if kind not in _DISK)
"""In the order in which seeds count them."""
