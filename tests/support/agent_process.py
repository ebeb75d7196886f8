"""A whole agent in a process of its own, to be killed: prints its pids as JSON, then waits."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

from midwatch.operator.agent.reports import WorkersStarted
from midwatch.tests.support.agents import Site


def main() -> None:
    """Start two fake workers that neither hear nor speak, one with a subprocess of its own."""
    # A shell that runs the tests in the background has them, and so this process, ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    agent = Site(Path(sys.argv[1]))
    plan = agent.plan(1, deaf=True, mute=True, at=3, grandchild=sys.argv[2], faulty=1)
    agent.supervisor.start(plan)
    workers = list(agent.recorder.wait(WorkersStarted).pids.values())
    grandchild = int(agent.wait_log(1, 1, "grandchild")[0])
    pids = {"workers": workers, "forkserver": agent.forkserver_pid(), "grandchild": grandchild}
    print(json.dumps(pids), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
