"""How soon the terminal logbook shows a long run, and what it costs while nothing happens.

    python tests/bench/tui.py [--events N] [--starts N] [--dir DIR]

`midwatch watch` is started as a person starts it, on a terminal of 120 x 40, over the journal of
the journal bench (124 nodes). first_paint_s: median time from the exec to a screen that names the
run, with the saved state that a controller leaves; bare_paint_s: without one, as for a run of an
older version. paint_cpu_s: the CPU time of it, which suffers less from neighbours. idle_core_frac:
its CPU over IDLE_S seconds once all is read.
The last line is one JSON object with these.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from midwatch.logbook import events as ev
from midwatch.logbook.fold import evolve
from midwatch.logbook.journal import Journal
from midwatch.logbook.reader import read
from midwatch.logbook.snapshot import discard_snapshots
from midwatch.logbook.state import RunState
from midwatch.logbook.state_file import EVERY_EVENTS, save_state
from midwatch.tests.bench.journal import append_all, history
from midwatch.tests.bench.processes import cpu_s

ROWS, COLUMNS = 40, 120
RUN_NAME = b"bench"
IDLE_S = 20.0
SETTLE_S = 2.0
READ_MOST_S = 300.0


class Watch:
    """`midwatch watch` on a terminal of its own, whose output is read all the time."""

    def __init__(self, run_dir: Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        command = [str(Path(sys.executable).with_name("midwatch")), "watch", str(run_dir)]
        environ = {**os.environ, "TERM": "xterm-256color"}
        self._began_s = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environ
        )
        os.close(slave)

    def first_paint_s(self) -> float:
        """Return how long it took until the name of the run was written to the terminal."""
        seen = b""
        while RUN_NAME not in seen:
            data = self._take(READ_MOST_S)
            if not data:
                raise RuntimeError(f"the screen does not name the run: {seen[-500:]!r}")
            seen += data
        return time.perf_counter() - self._began_s

    def cpu_s(self) -> float:
        """Return the CPU time that it has taken so far."""
        return cpu_s(self._process.pid)

    def read_all_s(self) -> float:
        """Return how long it took until a stretch of SETTLE_S cost hardly any CPU."""
        while time.perf_counter() - self._began_s < READ_MOST_S:
            if self.core_frac(SETTLE_S) < 0.2:
                return time.perf_counter() - self._began_s - SETTLE_S
        raise RuntimeError(f"it is still busy after {READ_MOST_S:.0f} s")

    def core_frac(self, span_s: float) -> float:
        """Return the share of a core that it takes over a stretch of time."""
        before_s, begun_s = cpu_s(self._process.pid), time.perf_counter()
        while (left_s := begun_s + span_s - time.perf_counter()) > 0:
            self._take(left_s)
        return (cpu_s(self._process.pid) - before_s) / (time.perf_counter() - begun_s)

    def close(self) -> None:
        os.write(self._master, b"q")
        while self._take(READ_MOST_S):
            pass
        self._process.wait()
        os.close(self._master)

    def _take(self, wait_s: float) -> bytes:
        """Return what is written within wait_s, b"" for nothing or when it has gone."""
        if not select.select([self._master], [], [], wait_s)[0]:
            return b""
        try:
            return os.read(self._master, 1 << 16)
        except OSError:
            return b""


def write_run(run_dir: Path, count: int) -> RunState:
    """Write the journal of a run of so many events; return its state half a save before the end."""
    (run_dir / "requests").mkdir(parents=True)
    directory = run_dir / "journal"
    events = itertools.islice(history(), count)
    append_all(directory, [(1764000000.5 + n, 1, event) for n, event in enumerate(events)])
    state = RunState()
    for record in itertools.islice(read(directory, ev.Event), max(count - EVERY_EVENTS // 2, 1)):
        state = evolve(state, record.event, seq=record.seq, time_s=record.time_s)
    with Journal[ev.Event](directory, ev.Event) as journal:
        journal.sync()
    return state


def paints(run_dir: Path, starts: int) -> tuple[list[float], list[float]]:
    """Return the times to the first paint and the CPU times of it, each sorted."""
    elapsed, cpu = [], []
    for _ in range(starts):
        watch = Watch(run_dir)
        elapsed.append(watch.first_paint_s())
        cpu.append(watch.cpu_s())
        watch.close()
    return sorted(elapsed), sorted(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--dir", type=Path, help="put the journal on this file system")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        run_dir = Path(name) / "run"
        state = write_run(run_dir, options.events)
        bare, _ = paints(run_dir, options.starts)
        print(f"first paint without a saved state {statistics.median(bare):6.2f} s", _range(bare))
        path = save_state(run_dir / "journal", state)
        print(f"saved state of {path.stat().st_size:,} bytes at event {state.seq:,}")
        saved, cpu = paints(run_dir, options.starts)
        print(f"first paint with it               {statistics.median(saved):6.2f} s", _range(saved))
        print(f"CPU time of it                    {statistics.median(cpu):6.2f} s", _range(cpu))
        watch = Watch(run_dir)
        watch.first_paint_s()
        print(f"all of the history on the screen  {watch.read_all_s():6.2f} s")
        idle = watch.core_frac(IDLE_S)
        print(f"idle                              {idle:6.1%} of a core")
        watch.close()
        discard_snapshots(run_dir / "journal")
    figures = {
        "first_paint_s": round(statistics.median(saved), 3),
        "bare_paint_s": round(statistics.median(bare), 3),
        "paint_cpu_s": round(statistics.median(cpu), 3),
        "idle_core_frac": round(idle, 4),
    }
    print(json.dumps(figures))


def _range(values: list[float]) -> str:
    return f"({values[0]:.2f} to {values[-1]:.2f})"


if __name__ == "__main__":
    main()
