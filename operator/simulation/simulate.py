"""Simulate one run of a scenario, or several."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from ...logbook.state import Incident, RunState
from ...logbook.state_file import save_state
from ..controller import Controller
from ..desk import FileDesk
from ..ports import Desk, Ports, RunJournal
from .drive import Drive
from .edges import SimCluster, SimDesk
from .figures import Figures, figures_of, with_people
from .journals import Booked, FolderJournal, NoJournal
from .nature import Nature
from .people import People
from .scenario import Scenario

END_S = 7 * 86_400.0


class Outcome(msgspec.Struct, frozen=True):
    """A simulated run: its figures, the state at its end, and how long it took here."""

    figures: Figures
    state: RunState
    took_s: float


class Simulation(Drive):
    """One run of a scenario. folder: of the run, where its journal and notes are kept."""

    def __init__(self, scenario: Scenario, seed: int, folder: Path | None = None) -> None:
        setting = scenario.setting(seed)
        self._inner: NoJournal | FolderJournal = NoJournal()
        if folder is not None:
            self._inner = FolderJournal(folder / "journal", lambda: self.timeline.now_s())
        self.booked = Booked(self._inner, lambda: self.state)
        super().__init__(setting, self.booked, turning=scenario.turning)
        self.seed = seed
        self.scenario = scenario
        self.folder = folder
        self.nature = Nature(self.world, scenario.model, scenario.chance, seed)
        self.people = People(self.world, scenario.crew, seed, self.nature)

    def play(self) -> Outcome:
        """Let the run go on until it ends or the horizon is reached."""
        began_s = time.perf_counter()
        self.nature.let_loose()
        if self.scenario.trace is not None:
            self.nature.follow(self.scenario.trace, self.seed)
        self.run_until(lambda state: state.end is not None, self.scenario.horizon_s)
        self.booked.settle()
        figures = figures_of(
            self.seed, self.state, self.booked.ledger, self.world, self.nature.strikes
        )
        figures = with_people(figures, self.people, self.ticks_total)
        if self.folder is not None:
            # Whoever reads the journal takes a run that has not ended for one that goes on.
            self.people.stop()
            self.run_until(lambda state: state.end is not None, END_S)
        self.booked.close()
        if self.folder is not None:
            self._lay_down(self.folder)
        return Outcome(figures, self.state, time.perf_counter() - began_s)

    def _ports(self, journal: RunJournal, cluster: SimCluster) -> Ports:
        desk: Desk = QuietDesk(self.world)
        return Ports(self.timeline, journal, cluster, cluster, desk, self.lemons)

    def _ticked(self, controller: Controller) -> None:
        self.people.look(controller.state)

    def _lay_down(self, folder: Path) -> None:
        """Write the notes and the folded state, as the controller of a live run keeps them."""
        save_state(folder / "journal", self.state)
        desk = FileDesk(folder)
        for incident in self.state.incidents.values():
            desk.write_note(self.state, incident)
        desk.close()


class QuietDesk(SimDesk):
    """Writes no note: they are written once, at the end, from the journal."""

    def write_note(self, state: RunState, incident: Incident) -> None:
        return None


def simulate(
    scenario: Scenario,
    runs: int,
    seed: int = 0,
    folder: Path | None = None,
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Return the outcomes of some seeds; the first is journaled where a folder is given."""
    found = []
    for outcome in _each(scenario, range(seed, seed + runs), folder):
        told(outcome)
        found.append(outcome)
    return found


def _each(scenario: Scenario, seeds: range, folder: Path | None) -> Iterator[Outcome]:
    for seed in seeds:
        yield Simulation(scenario, seed, folder if seed == seeds[0] else None).play()
