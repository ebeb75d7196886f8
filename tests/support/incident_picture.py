"""Draw docs/incident.svg from a seeded night: python -m tests.support.incident_picture

The run diverges, is rolled back and trains past the place where it broke.
"""

from __future__ import annotations

from pathlib import Path

from midwatch.logbook.chapter import chapter_of
from midwatch.logbook.plots import plot_incident
from midwatch.operator.simulation.edges import MemoryJournal
from midwatch.operator.simulation.training import Fragility, Physics
from midwatch.tests.sim.night import Night
from midwatch.tests.support.builders import make_spec

TARGET = Path(__file__).parents[2] / "docs" / "incident.svg"


def main() -> None:
    spec = make_spec(trainer={"steps": 200})
    night = Night(spec, physics=Physics(fragile=(Fragility(80, 150, 0.95),)))
    state = night.run_to_end()
    assert isinstance(night.journal, MemoryJournal)
    incident = next(i for i in state.incidents.values() if i.attempt_after is not None)
    TARGET.write_text(plot_incident(incident, chapter_of(night.journal.records(), incident)))


if __name__ == "__main__":
    main()
