"""A preflight as the agent's entry point: check this rank's machine, report, and end.

It is born, fenced and ended like a training worker, so an agent can run it before a first attempt
or when a node is suspected. The order comes in the environment (logbook/preflight.py), the findings
go out as one PreflightDone; who is to blame is judged by whoever asked, from those of all ranks.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from typing import Any

import torch

from ..logbook.errors import ConfigError
from ..logbook.preflight import ORDER_VARIABLE
from ..logbook.wire import Finished, WorkerFailed, WorkerStart
from .control import Mailbox, die_with_parent, exit_without_agent
from .preflight_rank import PreflightRank, order_from_environment
from .rendezvous import connect_store, meeting_of
from .report import PipeReport
from .worker import dump_stacks_on_signal, failure_of

_LAST_WORDS_S = 5.0


def main(start: WorkerStart) -> None:
    """Run one rank of a preflight; never returns after a failure of its own (exit status 1).

    A check that fails is a result, not a failure: the exit status is then 0.
    """
    die_with_parent()
    dump_stacks_on_signal()
    assert start.report_fd is not None
    report = PipeReport(start.report_fd, exit_without_agent)
    # Nothing is ordered from a preflight, but the end of this pipe is the end of the agent.
    Mailbox(start.command_fd, start.first_command, exit_without_agent)
    try:
        report.send(_rank_of(start).run())
        report.send(Finished(start.rank, 0))
    except BaseException as error:
        code, message = failure_of(error)
        report.send(WorkerFailed(start.rank, code, message, traceback.format_exc()))
        _end(report, 1)
    _end(report, 0)


def preload(config: dict[str, Any]) -> None:
    """Import what preflight workers need, in the process they are forked from."""
    # Has torch count GPUs through NVML: asking the CUDA runtime would start what no fork survives.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    gc.collect()
    gc.freeze()


def pick_device(start: WorkerStart) -> torch.device:
    """Return the GPU of this rank, or the CPU where there is none or the spec asks for it.

    Raises: ConfigError[no-gpu] when the spec asks for a GPU and none is usable.
    """
    wanted = start.trainer.get("device", "auto")
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ConfigError(
            "no-gpu",
            f"{start.node} has no usable GPU.",
            remedy="Look at the node's driver, or check without GPUs.",
        )
    if wanted == "cpu" or not has_gpu:
        return torch.device("cpu")
    device = torch.device("cuda", start.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _rank_of(start: WorkerStart) -> PreflightRank:
    order = order_from_environment()
    if order is None:
        raise ConfigError(
            "preflight-order-missing",
            f"{ORDER_VARIABLE} does not say what to check.",
            remedy="Start preflights with midwatch doctor.",
        )
    torch.set_num_threads(int(start.trainer.get("threads", 1)))
    device = pick_device(start)
    return PreflightRank(start, order, connect_store(meeting_of(start)), device)


def _end(report: PipeReport, status: int) -> None:
    report.close(_LAST_WORDS_S)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of a group that failed may never end.
    os._exit(status)
