"""Linux process plumbing that the standard library lacks, and what /proc knows of a process."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2
_FACT_BYTES_MAX = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def set_parent_death_signal(signum: int, parent_pid: int) -> None:
    """Have the kernel signal this process when the thread that forked it ends.

    A parent that died before the call would never be noticed, hence the look afterwards.
    Raises: ProcessLookupError when the parent is already gone.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent_pid:
        raise ProcessLookupError(f"parent {parent_pid} is gone")


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that they can be ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def child_pids() -> list[int]:
    """Return the children of this (single-threaded) process, adopted ones included."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def signal_group(pidfd: int, pid: int, signum: int) -> None:
    """Signal a worker's whole process group, if any of it is left.

    The pidfd form cannot hit a stranger that inherited the number; kernels before 6.9 lack it.
    """
    try:
        signal.pidfd_send_signal(pidfd, signum, None, _PIDFD_SIGNAL_PROCESS_GROUP)
    except ProcessLookupError:
        pass
    except OSError:
        try:
            signal.pidfd_send_signal(pidfd, signum)
            os.killpg(pid, signum)
        except ProcessLookupError:
            pass


def process_state(pid: int) -> str:
    """Return the state letter of /proc/PID/stat; "X" when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return "X"


def unreaped_status(pid: int) -> tuple[int | None, int | None] | None:
    """Return how a process ended that its parent has not reaped yet: (exit code, signal).

    One of the two is None, as in reports.Exit. None where it lives, is reaped, or may have ended
    well: the kernel shows 0 to whoever may not see the status. Source: proc_pid_stat(5), field 52.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return None
    status = int(fields[49]) if fields[:1] == [b"Z"] else 0
    if status == 0:
        return None
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None


def process_facts(pid: int) -> str:
    """Return what the kernel shows of a process that cannot speak for itself.

    Which files are readable depends on privileges; what is not is left out.
    """
    facts = []
    for name in ("wchan", "syscall", "stack", "status"):
        try:
            with open(f"/proc/{pid}/{name}", errors="replace") as file:
                text = file.read(_FACT_BYTES_MAX).strip()
        except OSError as error:
            text = f"not readable: {error.strerror}"
        facts.append(f"/proc/{pid}/{name}:\n{text}")
    return "\n".join(facts)
