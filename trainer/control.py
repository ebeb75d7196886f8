"""The control mailbox: orders from the agent, and the watch on it.

A thread takes Commands off the pipe; the loop asks for the highest seq received, all ranks agree
on the lowest of those, and then each rank takes the commands up to it, in order, at the same step
boundary (effects.py says what they do). The thread is also the watch on the agent: when the pipe
ends, the agent is gone and so, at once, is this process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import traceback
from collections.abc import Callable

import msgspec

from ..logbook.wire import ASIDE, Command, command_reader

EXIT_AGENT_GONE = 113
"""Exit status of a worker whose agent has gone."""
_READ_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1


class Mailbox:
    """Commands received and not yet taken; fd None is a mailbox that stays empty.

    first_command: commands with a lower seq are folded into the run already and are ignored.
    on_gone: called on the reading thread when the agent has closed the pipe.
    on_aside: called on the reading thread with each order that is no step of the run.
    """

    def __init__(
        self,
        fd: int | None,
        first_command: int,
        on_gone: Callable[[], None],
        on_aside: Callable[[Command], None] | None = None,
    ) -> None:
        self._fd = fd
        self._on_gone = on_gone
        self._on_aside = on_aside
        self._lock = threading.Lock()
        self._commands: dict[int, Command] = {}
        self._highest = first_command - 1
        self._taken = first_command - 1
        if fd is not None:
            os.set_blocking(fd, True)
            threading.Thread(target=self._read, name="mailbox", daemon=True).start()

    def highest(self) -> int:
        """Return the highest seq up to which every command has been received."""
        return self._highest

    def take(self, upto: int) -> list[Command]:
        """Return the commands with seq <= upto that were not taken before, in order."""
        if upto <= self._taken:
            return []
        with self._lock:
            taken = [self._commands.pop(seq) for seq in range(self._taken + 1, upto + 1)]
            self._taken = upto
        return taken

    def put(self, command: Command) -> None:
        """Receive one command; repeated ones and those before first_command are ignored."""
        with self._lock:
            if command.seq > self._highest:
                self._commands.setdefault(command.seq, command)
            while self._highest + 1 in self._commands:
                self._highest += 1

    def _read(self) -> None:
        assert self._fd is not None
        reader = command_reader()
        try:
            while data := _read_some(self._fd):
                for command in reader.feed(data):
                    if command.seq != ASIDE:
                        self.put(command)
                    elif self._on_aside is not None:
                        self._on_aside(command)
        except (ValueError, msgspec.MsgspecError):
            # An agent that speaks another language cannot steer this worker: treat it as gone.
            traceback.print_exc()
        self._on_gone()


def exit_without_agent() -> None:
    """End this process at once; nothing it could still do has anyone to report to."""
    os._exit(EXIT_AGENT_GONE)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that forked it ends.

    The end of the command pipe covers an agent that dies; this covers a worker that is stopped or
    stuck in a call that never lets its threads run.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _read_some(fd: int) -> bytes:
    try:
        return os.read(fd, _READ_BYTES)
    except OSError:
        # A pipe that cannot be read is an agent that cannot be heard.
        return b""
