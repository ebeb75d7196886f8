"""The last words of workers cost a node its place on a witness's word, never for the program."""

from __future__ import annotations

import signal
import tomllib
from pathlib import Path

import pytest
from midwatch.logbook import events as ev
from midwatch.operator.exit_reading import ExitReader

KEY_ERROR = (
    'Traceback (most recent call last):\n  File "/home/me/train.py", line 40, in main\n'
    '    out = model(batch)\nKeyError: "input_ids"\n'
)
TEXTS = Path(__file__).parents[1] / "health" / "nodes"
FRESH = [
    excerpt["text"]
    for path in sorted(TEXTS.glob("fresh_excerpts*.toml"))
    for excerpt in tomllib.loads(path.read_text())["excerpt"]
]
ECC = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
ECC_TRACE = (
    'Traceback (most recent call last):\n  File "/home/me/train.py", line 41, in main\n'
    f"    loss.backward()\n{ECC}\n"
)


def blamed(
    log: str,
    traceback: str = "",
    reader: ExitReader | None = None,
    died_of: signal.Signals = signal.SIGABRT,
) -> str:
    """Return what is done with the node of a worker that ended so, "" for nothing."""
    message = traceback.splitlines()[-1] if traceback else "signal"
    event = ev.WorkerExited(
        attempt=1,
        rank=0,
        node="n0",
        exit_code=1 if traceback else None,
        signal=None if traceback else died_of,
        code="worker-raised" if traceback else "",
        message=message,
        log_tail=f"{log}\n{traceback}",
    )
    _, found = (reader or ExitReader()).read(event, traceback, 12)
    actions = [seen.finding.action for seen in found if isinstance(seen, ev.FindingSeen)]
    return actions[0] if actions else ""


@pytest.mark.parametrize(
    "log",
    [
        "wandb: WARNING Failed to initialize NVML, system metrics will not be logged",
        "sample 17: 'RuntimeError: CUDA error: uncorrectable ECC error encountered'",
        ECC,
        "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
    ],
)
def test_an_exception_of_the_program_costs_no_node_whatever_its_log_shows(log: str) -> None:
    assert blamed(log, KEY_ERROR) == ""


@pytest.mark.parametrize("log", FRESH)
def test_nor_does_any_fresh_text_before_it(log: str) -> None:
    assert blamed(log, KEY_ERROR) == ""


@pytest.mark.parametrize("log", [ECC, f"[rank0]:[E watchdog] {ECC[14:]}"])
def test_nor_where_only_the_log_holds_that_exception(log: str) -> None:
    assert blamed(f"{log}\n{KEY_ERROR}") == ""


def test_a_fault_of_the_gpu_that_ended_the_worker_costs_its_node_once() -> None:
    reader = ExitReader()
    assert blamed("step 12", ECC_TRACE, reader) == "evict"
    assert blamed("step 12", ECC_TRACE, reader) == ""


def test_without_an_exception_the_log_of_the_runtime_counts() -> None:
    aborted = f"terminate called after throwing an instance of 'c10::Error'\n  what():  {ECC[14:]}"
    assert blamed(aborted) == "evict"
    assert blamed("GPU 3: GPU is lost, says the metrics agent") == ""


def test_a_worker_that_was_killed_was_not_ended_by_what_its_log_shows() -> None:
    assert blamed(ECC, died_of=signal.SIGKILL) == ""


@pytest.mark.parametrize(
    "line",
    [
        "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
        "srun: error: Node failure on gpu-117",
    ],
)
def test_kernel_and_scheduler_speak_elsewhere_and_are_only_cited_by_a_worker(line: str) -> None:
    assert blamed(line) == ""


@pytest.mark.parametrize("own", ["mylib.DataBroken: shard 3", "RuntimeError: the batch is empty"])
def test_an_exception_by_any_name_must_blame_the_node_itself(own: str) -> None:
    assert blamed(ECC, KEY_ERROR.replace('KeyError: "input_ids"', own)) == ""
