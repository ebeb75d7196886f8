"""Who speaks on a line of a failure text, and whether what stands there is said to have happened.

A log quotes, warns and supposes in the very words in which a driver reports: "Failed to initialize
NVML" may be the end of a node or a remark of a metrics library, "will restart on node failure" is
a setting. So what costs a node its place must come from somebody who knows (a witness): the
kernel, the CUDA runtime, NVML, the scheduler, Ray. Everything else is hearsay.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence


class Voice(enum.Enum):
    """How a line is spoken.

    QUOTED:    source code in a traceback, a comment, a command: nothing has happened.
    REMARK:    logged as a note or a warning: the run went on after it.
    PROGRAM:   an exception in the program's own words.
    PLAIN:     anybody's words.
    RUNTIME:   the CUDA runtime or NVML, as raised in the process or logged by torch and NCCL.
    AUTHORITY: scheduler, cluster or Ray, in the form that only they use.
    KERNEL:    a line of the kernel log.
    """

    QUOTED = enum.auto()
    REMARK = enum.auto()
    PROGRAM = enum.auto()
    PLAIN = enum.auto()
    RUNTIME = enum.auto()
    AUTHORITY = enum.auto()
    KERNEL = enum.auto()


# What launchers and Ray put before each line of a rank, and exception groups before theirs.
_RANK = re.compile(r"^(?:\s*(?:\[(?:rank|default)?\d+\]:?|\(\w[^()]*pid=[^()]*\)|\d+:|[|+]) ?)+")
# With a comma, which faulthandler leaves out in the stacks of a process that has raised nothing.
_FRAME = re.compile(r'^\s*File "(?P<path>[^"]*)", line \d+(?:, in |\s*$)')
_CODE_INDENT = re.compile(r"^(?: {4}|\t)")
_RAISE = re.compile(r"^\s*raise\b")
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib/python\d|^<")
_SOURCE = re.compile(r"^\s*(?:#(?!\d)|//|\+{1,4} |\$ |>>> |(?: {4}|\t)raise \w)")
_EXCEPTION = re.compile(
    r"^\s*(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning)\b(?:: |\(|\s*$)"
)
# Raised because another process ended: the launcher's words, not the program's.
_ECHO = re.compile(
    r"\b(?:ChildFailed|Dist\w*|CalledProcess|RayTask|ProcessRaised)(?:Error|Exception)\b|SignalExc"
)
_REMARK = re.compile(
    r"^.{0,60}?(?:\b(?:TRACE|DEBUG|INFO|NOTICE|WARNING)\b|(?<!NCCL )\bWARN\b|\b\w*Warning: |"
    r"level\W{1,4}(?:debug|info|notice|warn))|^\s*(?:note|hint|info|warning): "
)
# The stamps of dmesg, syslog and the journal, and drivers that put their own name first.
_KERNEL = re.compile(
    r"\d\d:\d\d:\d\d\S* (?:\S+ )?kernel: |^\s*\[ *\d+\.\d{6}\] |"
    r"^\s*(?:\[[ .\d]+\] ?|\[\w{3} \w{3} [ \d]\d [\d:]{8} \d{4}\] ?(?:\S+ kernel: )?|<\d+>|"
    r"\d+,\d+,\d+,[^;]*;|(?:kernel|dmesg): |[\d. ]+\] )?"
    r"(?:NVRM: |SXid \(PCI:|(?:pcieport|pciehp|nvme|mlx[45]_core|EDAC|mce|rcu\w*|NMI watchdog|"
    r"watchdog|nvidia-nvswitch\d*|md/raid\w*|EXT4-fs|XFS|Kernel panic|BUG|Memory failure|"
    r"\{\d+\}\[Hardware Error\])(?=[ :(]))"
)
_AUTHORITY = re.compile(
    # Slurm and PBS
    r"\b(?:srun|sbatch|salloc|slurmstepd|slurmctld|slurmd|pbs_\w+): |\bNODE_FAIL\b|"
    r"DUE TO NODE FAILURE|\bpreempted \(node failure\)|could not connect to MOM|"
    # Ray
    r"\bray\.exceptions\.\w*(?:Died|Lost|Unavailable)\w*|\(raylet\b|"
    r"\bThe node with (?:\w+ )?(?:ID|id)\b|"
    # Kubernetes
    r"\b(?:node-controller|node-lifecycle-controller|taint-eviction-controller|kubelet)\b|"
    r"\b(?:Warning|Normal) +Node[A-Z]\w+|"
    # NVIDIA's own tools
    r"\bnvidia-container-cli: |\bNVIDIA-SMI has failed|\bDCGM_FR_[A-Z]|"
    r"\bDetected [1-9]\d* (?:volatile|aggregate) double-bit ECC errors?|\[ERROR\] \[tid \d+\]|"
    r"^\s*Unable to determine the device handle for"
)
# At the head of an exception, or behind the source position that C++ logs put first.
_RUNTIME = re.compile(
    r"(?:^\s*(?:what\(\): *)?(?:\[[^\]]*\] *)*(?:(?:\w+\.)*\w*(?:Error|Exception)\b[^:]*: "
    r".{0,160}?)?|"
    r"\.(?:cc|cpp|cu|h|hpp):\d+\]? .{0,240}?)"
    r"(?:\bCUDA error: |\bcuda runtime error \(\d+\)|\bcudaError[A-Z]\w+:|"
    r"\bCUDA_ERROR_[A-Z_]+(?=:|\s*$)|\bCuda failure\b|\bcudaGetDeviceCount\(\))|"
    r"^\s*(?:\w+\.)*NVMLError\w*"
)


def read_voices(lines: Sequence[str]) -> list[Voice]:
    """Return how each line is spoken, in their order."""
    voices = []
    in_frame = raised = is_own = False
    for raw in lines:
        line = _RANK.sub("", raw)
        frame = _FRAME.match(line)
        if frame is not None:
            in_frame, raised = True, False
            is_own = _LIBRARY.search(frame["path"]) is None
            voices.append(Voice.QUOTED)
            continue
        if in_frame and _CODE_INDENT.match(line):
            raised = raised or (is_own and _RAISE.match(line) is not None)
            voices.append(Voice.QUOTED)
            continue
        voice = _voice(line)
        if voice is Voice.RUNTIME and raised:
            voice = Voice.PLAIN
        elif voice is Voice.PLAIN and in_frame and line.strip() and not _ECHO.search(line):
            # What stands behind the last frame is the exception, whatever it is called.
            voice = Voice.PROGRAM
        voices.append(voice)
        in_frame = raised = False
    return voices


def _voice(line: str) -> Voice:
    if _SOURCE.match(line):
        return Voice.QUOTED
    if _KERNEL.search(line):
        return Voice.KERNEL
    if _AUTHORITY.search(line):
        return Voice.AUTHORITY
    if _REMARK.match(line):
        return Voice.REMARK
    if _RUNTIME.search(line):
        return Voice.RUNTIME
    return Voice.PROGRAM if _EXCEPTION.match(line) and not _ECHO.search(line) else Voice.PLAIN


_SUPPOSED = re.compile(
    r"\b(?:potential|possible) (?:root )?(?:cause|reason)s?\b|\bThis can happen (?:if|when)\b",
    re.IGNORECASE,
)


def without_guesses(line: str) -> str:
    """Return the line without the list of what may have been the cause, as Ray appends it."""
    guesses = _SUPPOSED.search(line)
    return line if guesses is None else line[: guesses.start()]


_DENIED = re.compile(
    r"\b(?:no|not|never|without|neither|nor|none|any|zero|0|if|when|whenever|unless|whether|would|"
    r"could|may|might|will|should|survives?|check(?:s|ed|ing)?|tests?|testing)\b"
    r"(?:[ -]+\w+){0,4}?[ -]+['\"`(]*$|\b(?:on|upon|for|against) +['\"`(]*$",
    re.IGNORECASE,
)
# Between quotes of prose; a field of a structured log and NCCL's own quotes say what they hold.
_IN_QUOTES = re.compile(r"""(?:^|(?<!":)(?<!Cuda failure)(?<!failure \d)[\s(\[{,])["'`][^"'`]*$""")
_COUNTED_NONE = re.compile(
    r"^[^.;,/|\d]{0,40}?[:=]\s*(?:0|no|none|false|ok|pass(?:ed)?)(?=[\s,;)/]|\.?$)", re.IGNORECASE
)


def is_denied(line: str, start: int, end: int) -> bool:
    """Whether line[start:end] is not said to be so: negated, supposed, or counted as none."""
    return bool(_DENIED.search(line[:start]) or _COUNTED_NONE.search(line[end:]))


def is_cited(line: str, start: int) -> bool:
    """Whether what stands at start is between quotes, so that somebody cites it."""
    return _IN_QUOTES.search(line[:start]) is not None
