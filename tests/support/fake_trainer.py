"""A trainer of a few lines that speaks the worker's protocol; what it does stands in its config.

Keys of WorkerStart.trainer (all optional): step_s, steps, chatter (a long line per step), deaf
(neither commands nor the agent's end are heard), mute, and at step `at`: "return" CODE, "exit"
CODE, "raise" TEXT, "hang" (silent for ever), "pause_s" (silent for a while), "save_s" (a phase of
saving), "garbage" (bytes that are no frame), "flood" COUNT (StepSamples at once), "samples" COUNT
(RankSamples at once), "grandchild" (a subprocess, in a session of its own when "escape"),
"ignore_term". Only rank `faulty` (0) does so.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from midwatch.logbook.wire import (
    Applied,
    Command,
    Finished,
    Phase,
    ProgressPage,
    RankSample,
    Resumed,
    StepSample,
    WorkerMessage,
    WorkerStart,
    command_reader,
    encode_frame,
)

PRELOADED: dict[str, Any] = {}


def preload(config: dict[str, Any]) -> None:
    """Stand for a heavy import; raises or leaves a thread behind when told to."""
    if "raise" in config:
        raise RuntimeError(config["raise"])
    if "thread" in config:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    if "sleep_s" in config:
        time.sleep(config["sleep_s"])
    if "open" in config:
        config["file"] = open(config["open"])  # noqa: SIM115 - held for the workers to inherit
    if "failing_forks" in config:
        _fail_forks(config["failing_forks"])
    PRELOADED.update(config, pid=os.getpid())


def _fail_forks(count: int) -> None:
    """Have the next forks of this process fail as they do past a limit on processes."""
    fork, left = os.fork, [count]

    def failing() -> int:
        if not left[0]:
            return fork()
        left[0] -= 1
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    os.fork = failing


def main(start: WorkerStart) -> int | None:
    """Train: note progress, report, obey commands."""
    return _Fake(start).run()


class _Fake:
    def __init__(self, start: WorkerStart) -> None:
        assert start.report_fd is not None
        assert start.command_fd is not None
        assert start.progress_fd is not None
        self.start = start
        self.config = start.trainer
        self.page = ProgressPage(start.progress_fd)
        self.reader = command_reader()
        os.set_blocking(start.command_fd, False)

    def run(self) -> int | None:
        self.page.note(0, Phase.BUILDING)
        self._print_birth()
        self.say(Resumed(self.start.rank, 0, ""))
        step_s = self.config.get("step_s", 0.005)
        for step in range(self.config.get("steps", 1_000_000)):
            self.page.note(step, Phase.FORWARD)
            if step == self.config.get("at") and self.start.rank == self.config.get("faulty", 0):
                self._fail()
                if "return" in self.config:
                    return int(self.config["return"])
            time.sleep(step_s)
            if self.start.rank == 0:
                self.say(step_sample(step + 1))
            self.say(rank_sample(self.start.rank, step + 1))
            self.page.note(step + 1, Phase.TRAINING)
            if "chatter" in self.config:
                print(f"step {step}: " + "x" * 200)
            if self._obey():
                break
        self.page.note(step + 1, Phase.DONE)
        self.say(Finished(self.start.rank, step + 1))
        return None

    def say(self, message: WorkerMessage) -> None:
        assert self.start.report_fd is not None
        if "mute" in self.config:
            return
        frame = encode_frame(message)
        while frame:
            frame = frame[os.write(self.start.report_fd, frame) :]

    def _obey(self) -> bool:
        assert self.start.command_fd is not None
        if "deaf" in self.config:
            return False
        try:
            data = os.read(self.start.command_fd, 65536)
        except BlockingIOError:
            return False
        if not data:
            os._exit(3)
        commands: list[Command] = self.reader.feed(data)
        for command in commands:
            self.say(Applied(self.start.rank, command.seq, 1, {"value": command.value}))
        return any(command.kind == "stop" for command in commands)

    def _print_birth(self) -> None:
        """Write to the log what tests want to know of the process."""
        fds = sorted(int(name) for name in os.listdir("/proc/self/fd"))
        print("fds", [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")])
        print("links", {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in fds if _is_open(fd)})
        if self.start.memory is not None:
            print("buffers", *(os.fstat(fd).st_ino for fd in self.start.memory.fds))
        print("group", os.getpgid(0), "pid", os.getpid(), "parent", os.getppid())
        print("preloaded", PRELOADED.get("pid"), "env", os.environ.get("FAKE"))
        print("threads", threading.active_count(), "main", sys.modules["__main__"].__spec__)
        if self.start.listen_fd is not None:
            self.listener = socket.socket(fileno=self.start.listen_fd)
            print("listening", self.listener.getsockname()[1])

    def _fail(self) -> None:
        config = self.config
        if "grandchild" in config:
            escape = config["grandchild"] == "escape"
            sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
            child = subprocess.Popen(sleeper, start_new_session=escape)
            print("grandchild", child.pid)
        if "ignore_term" in config:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("ignoring SIGTERM")
        if "garbage" in config:
            assert self.start.report_fd is not None
            os.write(self.start.report_fd, b"\xff" * 64)
        for number in range(config.get("flood", 0)):
            self.say(step_sample(number))
        for number in range(config.get("samples", 0)):
            self.say(rank_sample(self.start.rank, number))
        if "raise" in config:
            raise RuntimeError(config["raise"])
        if "exit" in config:
            sys.exit(config["exit"])
        if "save_s" in config:
            self.page.note(config["at"], Phase.SAVING)
            time.sleep(config["save_s"])
        time.sleep(config.get("pause_s", 0.0))
        if "hang" in config:
            stand_still()


def stand_still() -> None:
    """Hang, under a name that a stack dump must show."""
    while True:
        time.sleep(3600)


def _is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def step_sample(step: int) -> StepSample:
    """Return a plausible StepSample."""
    return StepSample(
        step=step,
        time_s=time.time(),
        loss=3.0,
        grad_norm=1.0,
        lr=1e-4,
        activation_norm=10.0,
        found_inf=False,
        skipped=False,
        loss_scale=None,
        tokens=64,
        data_step=step,
        step_s=0.01,
        tokens_per_s=6400.0,
        model_tflops_per_device=0.1,
    )


def rank_sample(rank: int, step: int) -> RankSample:
    """Return a plausible RankSample."""
    return RankSample(rank, step, 0.01, 0.0, 0.004, 0.004, 0.001, 0.001, 3.0, 1.0, False)
