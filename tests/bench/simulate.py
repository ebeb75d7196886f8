"""How fast months of virtual time pass, and what the real controller costs at each size.

    python -m tests.bench.simulate [--long] [--dir DIR]

60 days at 992 GPUs under OPT-175B's failures, without and with the journal written down; with
--long also 30 days at 16,384 GPUs under Llama 3's. Then a day at 992, 16,384 and 100,000 GPUs over
the port: CPU that the controller takes a simulated second, the 99th percentile of what a turn that
decides takes, and the bytes of journal a day. The world takes its own CPU, which is not in these.
The last line is one JSON object {"wall_s_992_60d"}.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import msgspec
from midwatch.operator.controller import Controller
from midwatch.operator.simulation.failure_models import model_named
from midwatch.operator.simulation.scenario import LARGE, Size, sized_scenario
from midwatch.operator.simulation.simulate import Outcome, Simulation

DAY_S = 86_400.0
LLAMA3_STEP_S = 6.0


class TimedSimulation(Simulation):
    """A run that notes what the controller's turns take here."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.cpu_s = 0.0
        self.deciding_s: list[float] = []

    def _boot(self) -> None:
        super()._boot()
        if self.controller is not None:
            self._time(self.controller)

    def _time(self, controller: Controller) -> None:
        tick = controller.tick

        def timed() -> int:
            began_s = time.process_time()
            made = tick()
            took_s = time.process_time() - began_s
            self.cpu_s += took_s
            if made:
                self.deciding_s.append(took_s)
            return made

        controller.tick = timed  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help="16,384 GPUs for 30 days, too")
    parser.add_argument("--days", type=float, default=1.0, help="of each size over the port")
    parser.add_argument("--dir", type=Path, help="put the journals on this file system")
    options = parser.parse_args()
    quick = tell(Simulation(sized_scenario(Size(gpus=992, days=60.0), "opt"), 0), "992 GPUs, 60 d")
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        written = Simulation(sized_scenario(Size(gpus=992, days=60.0), "opt"), 0, Path(name))
        tell(written, "the same, journaled")
        print(f"    journal {size_of(Path(name) / 'journal') / 2**20:.0f} MiB")
    if options.long:
        times = msgspec.structs.replace(LARGE, step_s=LLAMA3_STEP_S)
        scenario = sized_scenario(Size(gpus=16_384, days=30.0), "llama3", times)
        tell(Simulation(scenario, 0), "16,384 GPUs, 30 d")
    for gpus in (992, 16_384, 100_000):
        at_size(gpus, options.days, options.dir)
    print(json.dumps({"wall_s_992_60d": round(quick.took_s, 1)}))


def tell(simulation: Simulation, what: str) -> Outcome:
    """Play a run and print what it took."""
    began_s = time.process_time()
    outcome = simulation.play()
    cpu_s = time.process_time() - began_s
    figures = outcome.figures
    print(
        f"{what}: {outcome.took_s:.1f} s ({cpu_s:.1f} s of a core), ETTR {figures.ettr_frac:.2%}, "
        f"{figures.restarts} restarts, {figures.step} steps, {figures.ticks} turns, "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most"
    )
    return outcome


def at_size(gpus: int, days: float, folder: Path | None) -> None:
    """Print what the controller costs at one size, over the port and with its journal."""
    times = msgspec.structs.replace(LARGE, step_s=20.0 if gpus < 1000 else LLAMA3_STEP_S)
    days = min(days, 0.1) if gpus > 50_000 else days
    scenario = sized_scenario(Size(gpus=gpus, days=days), model_named("llama3"), times)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        simulation = TimedSimulation(scenario, 0, Path(name))
        outcome = simulation.play()
        journal_bytes = size_of(Path(name) / "journal")
    deciding = sorted(simulation.deciding_s)
    p99_s = deciding[int(0.99 * (len(deciding) - 1))] if deciding else 0.0
    span_s = simulation.timeline.elapsed_s
    print(
        f"{gpus} GPUs, {span_s / 3600:.1f} h: {1e3 * simulation.cpu_s / span_s:.3f} ms of CPU a "
        f"simulated second, a turn that decides {p99_s:.3f} s at the 99th percentile of "
        f"{len(deciding)}, journal {journal_bytes / span_s * DAY_S / 2**20:.0f} MiB a day, "
        f"{outcome.figures.restarts} restarts"
    )


def size_of(folder: Path) -> int:
    """Return the bytes of all journal segments in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.jsonl"))


if __name__ == "__main__":
    main()
