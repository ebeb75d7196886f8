"""Run benches, each in a process of its own: python -m tests.bench [NAME...], all without a name.

What a bench prints is passed on as it comes. At the end each one's last line, a JSON object,
stands beside its name. One that fails does not keep the others from running; the exit status is
then 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
MARK = '\nif __name__ == "__main__":'


def main() -> int:
    known = bench_names()
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    names = parser.parse_args().names or known
    unknown = sorted(set(names) - set(known))
    if unknown:
        parser.error(f"no bench is called {', '.join(unknown)}; there are {', '.join(known)}")
    results = {name: run_bench(name) for name in names}
    print()
    for name, result in results.items():
        print(f"{name:12} {result if result is not None else 'FAILED'}")
    return 0 if None not in results.values() else 1


def bench_names() -> list[str]:
    """Return the benches of this folder: its programs."""
    programs = (path for path in FOLDER.glob("*.py") if MARK in path.read_text("utf-8"))
    return sorted(path.stem for path in programs if path.stem != "__main__")


def run_bench(name: str) -> str | None:
    """Run one bench and pass its output on; return its JSON line, None when it has failed."""
    print(f"=== {name}", flush=True)
    began_s = time.monotonic()
    command = [sys.executable, "-u", "-m", f"tests.bench.{name}"]
    last = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"    {line}", end="", flush=True)
            last = line.strip() or last
    print(f"    {time.monotonic() - began_s:.0f} s, exit status {process.returncode}", flush=True)
    return last if process.returncode == 0 and _is_object(last) else None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


if __name__ == "__main__":
    raise SystemExit(main())
