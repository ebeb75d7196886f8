"""What Ray itself takes of the controller's core to bring a report a second from every node.

    python -m tests.bench.ray_calls [--span S]

controller.py measures the controller's own work. Between an agent and the controller lies a call
of a Ray actor, whose cost is Ray's: threads and gRPC in the process that is called. Here an actor
like the controller's takes empty calls with a report's weight of bytes, 124 and 2,048 a second.
core_frac_*: CPU seconds of the called process per second, its idle share included.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

from midwatch.operator.runtime.local_ray import set_local_environment

from .processes import cpu_s

REPORT_BYTES = 1200
IN_FLIGHT = 64


class Listener:
    """Takes calls as the controller does, and does nothing."""

    def ingest(self, agent: str, payload: bytes) -> tuple[int, int]:
        return 1, len(payload)

    def pid(self) -> int:
        return os.getpid()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--span", type=float, default=15.0, help="seconds for each rate")
    span_s = parser.parse_args().span
    set_local_environment()
    # Only now: ray reads the environment when it is imported.
    import ray
    from midwatch.operator.runtime.session import ray_session

    with ray_session("local"):
        actor = ray.remote(Listener).options(max_concurrency=16, num_cpus=0).remote()
        pid = ray.get(actor.pid.remote())
        fracs = {rate: load(ray, actor, pid, rate, span_s) for rate in (0, 124, 2048)}
    for rate, frac in fracs.items():
        print(f"{rate:5} calls a second: {frac:.2%} of a core in the called process")
    print(json.dumps({f"core_frac_{rate}": round(fracs[rate], 4) for rate in (124, 2048)}))


def load(ray: Any, actor: Any, pid: int, rate: int, span_s: float) -> float:
    """Call at a steady rate for a while; return the share of a core that the actor took."""
    payload = os.urandom(REPORT_BYTES)
    waiting: list[Any] = []
    began_s, before_s = time.monotonic(), cpu_s(pid)
    for number in range(int(rate * span_s)):
        time.sleep(max(0.0, began_s + number / rate - time.monotonic()))
        waiting.append(actor.ingest.remote("agent", payload))
        if len(waiting) >= IN_FLIGHT:
            ray.get(waiting.pop(0))
    ray.get(waiting)
    time.sleep(max(0.0, began_s + span_s - time.monotonic()))
    return (cpu_s(pid) - before_s) / (time.monotonic() - began_s)


if __name__ == "__main__":
    main()
