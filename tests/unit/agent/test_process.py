"""How a process ended, asked of the kernel while its parent has not reaped it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from midwatch.operator.agent.process import unreaped_status


def unreaped(program: str) -> int:
    """Start a Python program that is left unreaped once it has ended."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", program], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


@pytest.mark.parametrize(
    ("program", "known"),
    [
        ("raise SystemExit(3)", (3, None)),
        ("import os; os._exit(255)", (255, None)),
        ("import os; os.kill(os.getpid(), 9)", (None, signal.SIGKILL)),
        ("import os; os.abort()", (None, signal.SIGABRT)),
        # What may not be seen looks the same.
        ("", None),
    ],
)
def test_the_kernel_knows_how_it_ended(
    program: str, known: tuple[int | None, int | None] | None
) -> None:
    pid = unreaped(program)
    try:
        assert unreaped_status(pid) == known
    finally:
        os.waitpid(pid, 0)


def test_whoever_lives_or_is_reaped_has_no_status() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert unreaped_status(process.pid) is None
        process.kill()
        process.wait()
        assert unreaped_status(process.pid) is None
