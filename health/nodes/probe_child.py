"""The probe's own process: reads the GPUs each time it is asked, and may be killed at any moment.

Run as `python -m midwatch.health.nodes.probe_child`. A line on standard input asks for one report;
the answer is one line of JSON. It ends with its parent: a thread waits for the end of standard
input, since the main thread may be stuck in a driver call that never returns.
"""

from __future__ import annotations

import os
import queue
import sys
import threading

import msgspec

from .nvml import NvmlReader


def main() -> None:
    """Answer until standard input ends."""
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    reader = NvmlReader()
    encoder = msgspec.json.Encoder()
    answers = sys.stdout.buffer
    while True:
        requests.get()
        answers.write(encoder.encode(reader.read()) + b"\n")
        answers.flush()


def _listen(requests: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
