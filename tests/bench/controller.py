"""What the controller needs of a core for 992 and for 16,384 GPUs, and how soon it decides.

    python -m tests.bench.controller [--calm S] [--faults N] [--dir DIR]

The real Controller, turned as the controller actor turns it, over the real journal, desk, observer
and cluster port; only the agents are made up (fleet_model.py). 124 and 2,048 of them, with 8 ranks
each and 8 spares, report once a second what real ones report: the samples of their ranks and their
status, a step a second from rank 0, a checkpoint every 20 steps. Simulated time passes as fast as
the work allows, and the work takes its own time out of it, as on a core of its own.

core_frac_*: CPU seconds per simulated second over a calm minute. Not in it: what Ray itself takes
for the calls that bring the reports.
decision_p99_s: from what an agent, or a person, has said last of a fault to the decision that
answers it, journaled and synced; the larger of both sizes. The faults are killed workers whose
peers die of it in turn, hangs reported by every node with all stacks, lost agents, and requests.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from midwatch.logbook import events as ev
from midwatch.logbook.decisions import (
    Decision,
    PruneCheckpoints,
    SendCommand,
    StartAttempt,
    VerifyCheckpoint,
)
from midwatch.logbook.journal import Journal
from midwatch.logbook.record import Record
from midwatch.operator.controller import Controller
from midwatch.operator.desk import FileDesk, post_request
from midwatch.operator.lemon_file import LemonFile
from midwatch.operator.ports import Ports
from midwatch.operator.runtime.controller_actor import TICK_S
from midwatch.operator.runtime.ray_cluster import ClusterSettings
from midwatch.operator.spec import RunSpec
from midwatch.operator.spec_told import submission

from .fleet_model import PEER_EXIT_S, RANKS_PER_NODE, Fleet, ModelCluster, Timeline

SPARES = 8
WARM_S = 10.0
CALM_STEPS = 4
UPKEEP = (VerifyCheckpoint, PruneCheckpoints)


class TimedJournal:
    """The journal, and when each decision was safely in it; those of upkeep are left out."""

    def __init__(self, directory: Path, timeline: Timeline) -> None:
        self.decisions: list[tuple[float, Decision]] = []
        self._timeline = timeline
        self._journal = Journal[ev.Event](directory, ev.Event)
        self.epoch = self._journal.epoch
        self.close = self._journal.close

    def append(
        self, events: Sequence[tuple[float, int, ev.Event]], sync: bool = False
    ) -> list[Record[ev.Event]]:
        records = self._journal.append(events, sync=sync)
        for _, _, event in events:
            if isinstance(event, ev.DecisionMade) and not isinstance(event.decision.action, UPKEEP):
                self.decisions.append((self._timeline.now_s(), event.decision))
        return records


class Night:
    """One run of a given size: the controller, its ports, and the time in which it turns."""

    def __init__(self, num_nodes: int, folder: Path, seed: int) -> None:
        self.timeline = Timeline()
        self.fleet = Fleet(self.timeline, num_nodes + SPARES, seed)
        self.run_dir = folder / f"nodes-{num_nodes}"
        spec = _spec(num_nodes, self.run_dir)
        settings = ClusterSettings(run_dir=str(self.run_dir), resources={})
        self._is_woken = False
        self.fleet.cluster = ModelCluster(spec, settings, self._wake, self.fleet)
        self.journal = TimedJournal(self.run_dir / "journal", self.timeline)
        ports = Ports(
            clock=self.timeline,
            journal=self.journal,
            cluster=self.fleet.cluster,
            checkpoints=self.fleet.cluster,
            desk=FileDesk(self.run_dir),
            lemons=LemonFile(self.run_dir / "lemons.json"),
        )
        self.controller = Controller(spec, ports)
        self._turned_s = self.timeline.time_s
        self.controller.record(submission(spec, midwatch_version="bench", by="bench"), sync=True)

    def _wake(self) -> None:
        self._is_woken = True

    def run_until(self, done: Callable[[], bool], limit_s: float = 120.0) -> None:
        """Let time pass until done; the wheel turns as the controller actor turns it."""
        end_s = self.timeline.time_s + limit_s
        while not done():
            assert self.timeline.time_s < end_s, f"not done: {self.controller.state.attempt}"
            turn_s = self._turned_s + (0.0 if self._is_woken else TICK_S)
            if self.timeline.next_s() <= max(turn_s, self.timeline.time_s):
                self.timeline.run_next()
                continue
            self.timeline.time_s = max(self.timeline.time_s, turn_s)
            self._is_woken = False
            self.timeline.work(self.controller.tick)
            self._turned_s = self.timeline.time_s

    def run_for(self, span_s: float) -> None:
        end_s = self.timeline.time_s + span_s
        self.run_until(lambda: self.timeline.time_s >= end_s, 2 * span_s)

    def run_until_calm(self) -> None:
        """Until the attempt of the moment has made a few steps."""
        self.run_until(self._is_calm)

    def _is_calm(self) -> bool:
        attempt = self.controller.state.attempt
        well = attempt is not None and attempt.signal_s is None
        return well and attempt is not None and attempt.num_steps >= CALM_STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calm", type=float, default=60.0, help="simulated seconds without faults")
    parser.add_argument("--faults", type=int, default=32, help="faults for each size")
    parser.add_argument("--dir", type=Path, help="put the journals on this file system")
    parser.add_argument(
        "--profile", action="store_true", help="say where a calm minute's time goes"
    )
    options = parser.parse_args()
    fracs: dict[int, float] = {}
    worst_s = 0.0
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        for num_nodes in (124, 2048):
            night = Night(num_nodes, Path(name), seed=1)
            fracs[num_nodes] = calm(night, options.calm, options.profile)
            worst_s = max(worst_s, storm(night, options.faults))
            night.journal.close()
    result = {
        "core_frac_992": fracs[124],
        "core_frac_16384": fracs[2048],
        "decision_p99_s": worst_s,
    }
    print(json.dumps({key: round(value, 4) for key, value in result.items()}))


def calm(night: Night, span_s: float, is_profiled: bool) -> float:
    """Return the share of a core that a calm span takes."""
    night.run_until_calm()
    night.run_for(WARM_S)
    profile = cProfile.Profile(time.process_time) if is_profiled else None
    began_s, began_cpu_s = night.timeline.time_s, night.timeline.cpu_s
    if profile is not None:
        profile.enable()
    night.run_for(span_s)
    if profile is not None:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)
    state = night.controller.state
    frac = (night.timeline.cpu_s - began_cpu_s) / (night.timeline.time_s - began_s)
    print(f"{state.attempt.plan.mesh.world_size if state.attempt else 0} GPUs, calm: {frac:.2%}")
    assert state.num_attempts == 1
    assert not state.incidents
    return frac


def storm(night: Night, num_faults: int) -> float:
    """Let faults strike one after another; return the 99th percentile of the decisions' delays."""
    delays_s: dict[str, list[float]] = {}
    began_s, began_cpu_s = night.timeline.time_s, night.timeline.cpu_s
    for number in range(num_faults):
        night.run_until_calm()
        night.run_for(night.fleet.chance.uniform(0.0, 2.0))
        kind = FAULTS[number % len(FAULTS)]
        decided = len(night.journal.decisions)
        said_s = kind(night)
        night.run_until(lambda kind=kind, decided=decided: answers(night, kind, decided) != [])
        answered_s = answers(night, kind, decided)[0]
        delays_s.setdefault(kind.__name__, []).append(answered_s - said_s)
    span_s = night.timeline.time_s - began_s
    frac = (night.timeline.cpu_s - began_cpu_s) / span_s
    print(f"    {num_faults} faults in {span_s:.0f} s: {frac:.2%} of a core; delays of decisions")
    for name, times_s in delays_s.items():
        median_ms, worst_ms = 1e3 * statistics.median(times_s), 1e3 * max(times_s)
        print(f"    {name:16} median {median_ms:7.1f} ms, worst {worst_ms:7.1f} ms")
    every = sorted(time_s for times_s in delays_s.values() for time_s in times_s)
    return every[min(len(every) - 1, int(0.99 * len(every)))]


def answers(night: Night, kind: Callable[[Night], float], since: int) -> list[float]:
    """Return when the decisions that answer a fault were made."""
    wanted = SendCommand if kind is request else StartAttempt
    made = night.journal.decisions[since:]
    return [time_s for time_s, decision in made if isinstance(decision.action, wanted)]


# --- faults: each returns when the last thing was said of it --------------------------------------


def killed_worker(night: Night) -> float:
    fleet = night.fleet
    victim = fleet.chance.choice(fleet.carrying())
    dead, attempt = fleet.chance.choice(victim.ranks), victim.attempt
    fleet.stand_still()
    for agent in fleet.carrying():
        for rank in agent.ranks:
            delay_s = fleet.chance.uniform(0.02, PEER_EXIT_S)
            night.timeline.later(
                delay_s,
                lambda agent=agent, rank=rank: agent.lose_rank(attempt, rank, signal=None),
            )
    said_s = night.timeline.time_s
    victim.lose_rank(attempt, dead, signal=9)
    return said_s


def hang(night: Night) -> float:
    fleet = night.fleet
    stopped = fleet.chance.randrange(fleet.num_ranks)
    fleet.stand_still()
    last_s = 0.0
    for agent in fleet.carrying():
        delay_s = fleet.chance.uniform(0.0, 0.3)
        last_s = max(last_s, night.timeline.time_s + delay_s)
        night.timeline.later(delay_s, lambda agent=agent: agent.hang(stopped))
    return last_s


def lost_agent(night: Night) -> float:
    fleet = night.fleet
    fleet.stand_still()
    said_s = night.timeline.time_s
    fleet.chance.choice(fleet.carrying()).die()
    return said_s


def request(night: Night) -> float:
    said_s = night.timeline.time_s
    asked = ev.InterventionRequested(f"lr-{said_s}", "lr-factor", "bench", "to see", value=0.99)
    post_request(night.run_dir, asked, time_s=said_s)
    return said_s


FAULTS = (killed_worker, hang, request, killed_worker, lost_agent, hang, killed_worker, request)


def _spec(num_nodes: int, run_dir: Path) -> RunSpec:
    return RunSpec.model_validate(
        {
            "name": f"bench-{num_nodes}",
            "run_dir": str(run_dir),
            "mesh": {"dp_shard": num_nodes, "tp": RANKS_PER_NODE},
            "nodes": {
                "ranks_per_node": RANKS_PER_NODE,
                "spares": SPARES,
                "preflight": "off",
            },
            "trainer": {"preset": "175B", "steps": 1_000_000},
            "restart": {"max_restarts_per_hour": 1000, "quarantine_after_hangs": 100},
        }
    )


if __name__ == "__main__":
    main()
