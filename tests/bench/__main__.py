"""Every figure of the project: python -m tests.bench [NAME ...]

Each bench runs in a process of its own; its last line is one JSON object. One that fails does not
stop the others, but the whole then ends with status 1.
"""

from __future__ import annotations

import subprocess
import sys

NAMES = ("recovery", "overhead", "stall", "controller", "journal", "detectors", "agent", "birth")


def main(names: list[str]) -> int:
    """Run the named benches, all by default; return the exit status."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"no such bench: {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or NAMES:
        print(f"== {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=False)
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
