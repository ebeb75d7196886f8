"""What a failure text is about: first cause before consequence, and no node lost to user code."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from midwatch.health.nodes.failure_kinds import CONSEQUENCES
from midwatch.health.nodes.failure_rules import RULES
from midwatch.health.nodes.failure_text import (
    LINE_CHARS_MAX,
    LINES_REPORTED_MAX,
    TEXT_CHARS_MAX,
    classify,
)
from midwatch.health.nodes.labels import LABELS
from midwatch.health.nodes.verdicts import Action, Blame
from midwatch.tests.support.recorded import recorded

FRESH = [
    excerpt
    for path in sorted(Path(__file__).parent.glob("fresh_excerpts*.toml"))
    for excerpt in tomllib.loads(path.read_text())["excerpt"]
]
BAR = 0.8
OF_THE_NODE = ("gpu_ecc", "gpu_fell_off_bus", "gpu_driver_init", "nvlink", "node_lost", "host_hang")
KEY_ERROR = (
    'Traceback (most recent call last):\n  File "/home/me/train.py", line 40, in main\n'
    '    out = model(batch)\nKeyError: "input_ids"\n'
)
TIMEOUT = (
    "[rank9]:[E ProcessGroupNCCL.cpp:607] [Rank 9] Watchdog caught collective operation timeout:"
    " WorkNCCL(SeqNum=991, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600010 milliseconds before"
    " timing out."
)
CLEAN_UP = (
    "W torch/distributed/elastic/multiprocessing/api.py:898] Sending process 2711 closing signal"
    " SIGTERM"
)


def test_the_answer_has_exactly_the_promised_fields() -> None:
    answer = msgspec.json.decode(
        msgspec.json.encode(classify("CUDA error: uncorrectable ECC error"))
    )
    assert list(answer) == ["label", "confidence", "lines", "blame", "action"]
    assert answer["lines"] == [{"number": 1, "text": "CUDA error: uncorrectable ECC error"}]


def test_every_label_has_a_consequence_and_every_rule_a_label() -> None:
    assert set(CONSEQUENCES) == set(LABELS)
    assert {rule.label for rule in RULES} <= set(LABELS)
    assert all(0 < rule.confidence <= 1 for rule in RULES)


def test_fresh_texts_reach_the_bar() -> None:
    wrong = [(e["label"], classify(e["text"]).label) for e in FRESH]
    wrong = [pair for pair in wrong if pair[0] != pair[1]]
    assert len(wrong) <= (1 - BAR) * len(FRESH), wrong


def test_no_fresh_text_of_another_fault_costs_a_node() -> None:
    for excerpt in FRESH:
        if excerpt["label"] not in OF_THE_NODE:
            found = classify(excerpt["text"])
            assert found.action not in (Action.DRAIN, Action.EVICT), excerpt["text"]


def test_recorded_texts_reach_the_bar_and_cost_no_node_for_user_code() -> None:
    rows = json.loads((recorded("failure_excerpts") / "excerpts.json").read_text())
    wrong = []
    for row in rows:
        found = classify(row["text"])
        if found.label != row["label"]:
            wrong.append((row["id"], row["label"], found.label))
        if row["label"] == "user_code":
            assert found.action not in (Action.DRAIN, Action.EVICT)
    assert len(wrong) <= (1 - BAR) * len(rows), wrong


@pytest.mark.parametrize(
    "text", ["", "\n\n", "all is well", "step 10 | loss 2.31 | 412 ms", "\x00"]
)
def test_a_text_about_nothing_is_unknown(text: str) -> None:
    found = classify(text)
    assert (found.label, found.confidence, found.lines) == ("unknown", 0.0, ())
    assert found.action is Action.WATCH


@pytest.mark.parametrize(
    ("cause", "label"),
    [
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "gpu_ecc"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB.", "oom_gpu"),
        ("RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x5 and 6x7)", "user_code"),
        ("OSError: [Errno 28] No space left on device", "storage"),
        ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", "gpu_fell_off_bus"),
        ("node: NCCL WARN NET/IB : Got completion from peer with status=12", "network_ib"),
        ("slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT x DUE TO NODE FAILURE ***", "node_lost"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_cause_beats_its_consequences_wherever_it_stands(
    cause: str, label: str, is_first: bool
) -> None:
    echoes = [TIMEOUT, CLEAN_UP, "failed (exitcode: -6) local_rank: 3 (pid: 99)"]
    lines = [cause, *echoes] if is_first else [*echoes, cause]
    assert classify("\n".join(lines)).label == label


def test_among_equals_the_first_line_wins() -> None:
    peer = "socketProgress: Connection closed by remote peer node-12<43210>"
    assert classify(f"{TIMEOUT}\n{peer}").label == "nccl_timeout"
    assert classify(f"{peer}\n{TIMEOUT}").label == "remote_peer_exit"


def test_killing_the_survivors_is_not_running_out_of_memory() -> None:
    text = f"{TIMEOUT}\n{CLEAN_UP}\nforcefully exiting via Signals.SIGKILL"
    assert classify(text).label == "nccl_timeout"


def test_a_preempted_job_whose_node_failed_lost_its_node() -> None:
    assert classify("job preempted (node failure)").label == "node_lost"


HEALTHY = [
    "NCCL INFO Bootstrap : Using eth0:10.50.221.11<0>",
    "NCCL INFO NET/IB : No device found.",
    "NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/RoCE [RO]; OOB eth0:10.0.0.1<0>",
    "NCCL INFO NET/Plugin: Failed to find ncclCollNetPlugin symbol.",
    "Warning: destroy_process_group() was not called before program exit, which can leak resources",
    "slurmstepd: error: x11: unable to read DISPLAY value",
    "FutureWarning: torch.cuda.amp.autocast is deprecated, it should be replaced",
    "the backbone is frozen; training the head only",
    "INFO 08-02 18:49:04 processing shard 12 of 400, no failures, 0 errors, ECC errors: 0",
    "loss is decreasing nicely, loss scale 65536",
]


@pytest.mark.parametrize("line", HEALTHY)
def test_what_healthy_runs_print_is_unknown(line: str) -> None:
    assert classify(line).label == "unknown"


def test_ray_memory_pressure_is_host_memory() -> None:
    text = "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory."
    assert classify(text).label == "oom_host"


def test_a_fault_of_the_program_beside_its_xid_costs_no_node() -> None:
    text = "NVRM: Xid (PCI:0000:3b:00): 31, Ch 8\nRuntimeError: CUDA error: device-side assert"
    found = classify(text)
    assert found.action not in (Action.DRAIN, Action.EVICT)


SAID_IN_PASSING = [
    "wandb: WARNING Failed to initialize NVML, system metrics will not be logged",
    "WARNING:root:NVML not available: Failed to initialize NVML: Driver/library version mismatch",
    "torch.fx.proxy.TraceError: node failed to trace: symbolically traced variables",
    "RuntimeError: graph node failure while lowering aten.add",
    "networkx.exception.NetworkXError: node 17 is unreachable from the root",
    "ValueError: tree node is dead; prune() removed it",
    "INFO: NVLink topology check failed, falling back to PCIe",
    "NCCL INFO NVLS multicast support is not available, NVLink SHARP inactive",
    "ECC errors: 0  uncorrectable ECC: 0",
    "    Uncorrectable ECC errors since boot: 0",
    "Volatile / DRAM Uncorrectable : 0 / SRAM Uncorrectable : 0 ; Double Bit ECC : 0",
    "health check: gpu_ecc ok, no GPU has fallen off the bus, no XID 79 seen",
    "Slurm epilog: checking for node failure ... none found",
    "#SBATCH --no-requeue   # do not requeue on node failure",
    "+ sbatch --requeue --kill-on-bad-exit=1  # survive node_fail",
    "elasticity enabled: will restart on node failure",
    "[INFO] max_restarts=3, restarts on node failure or membership change",
    "If you see 'uncorrectable ECC error encountered' or Xid 79, page the hardware team",
    "sample 12: Xid 79, and my GPU has fallen off the bus! What now?",
    "graph: kernel BUG at nodes, Oops: 0000 of them, Machine check exception handled",
    'answer: "RuntimeError: CUDA error: uncorrectable ECC error encountered"',
    '    raise RuntimeError("GPU is lost or double-bit error in the labels")',
]


@pytest.mark.parametrize("words", SAID_IN_PASSING)
def test_words_of_broken_hardware_before_an_exception_of_the_program_cost_no_node(
    words: str,
) -> None:
    found = classify(f"{words}\n{KEY_ERROR}")
    assert found.action not in (Action.DRAIN, Action.EVICT)


@pytest.mark.parametrize(
    "words",
    [
        "0 uncorrectable ECC errors on this node",
        "checking for a node failure",
        "// node failure: not handled yet",
    ],
)
def test_what_is_denied_or_a_comment_is_no_failure_at_all(words: str) -> None:
    assert classify(words).label == "unknown"


@pytest.mark.parametrize(
    "words",
    [
        "sample 17: 'RuntimeError: CUDA error: uncorrectable ECC error encountered'",
        'prompt: Why do I see "GPU has fallen off the bus" in my log?',
    ],
)
def test_what_somebody_cites_costs_no_node(words: str) -> None:
    assert classify(words).action is Action.RESTART


@pytest.mark.parametrize(
    "words",
    ["[12.345678] graph: node failure", "watchdog: node 3 is dead", "[12.345678] saw Xid 79"],
)
def test_a_stamp_alone_makes_no_kernel_line(words: str) -> None:
    assert classify(words).action not in (Action.DRAIN, Action.EVICT)


def test_the_quotes_of_nccl_and_of_structured_logs_say_what_they_hold() -> None:
    nccl = "n1:22:91 [0] enqueue.cc:1 NCCL WARN Cuda failure 'uncorrectable ECC error encountered'"
    assert (classify(nccl).label, classify(nccl).action) == ("gpu_ecc", Action.EVICT)
    assert classify('{"level": "error", "msg": "GPU 3: GPU is lost"}').label == "gpu_fell_off_bus"


def test_source_code_in_a_traceback_says_nothing() -> None:
    text = KEY_ERROR.replace("out = model(batch)", 'raise Lost("GPU is lost, node failure")')
    assert classify(text).label == "user_code"


@pytest.mark.parametrize("prefix", ["[rank3]: ", "(Trainer pid=81, ip=10.0.0.4) ", "  | "])
def test_a_traceback_is_known_behind_what_launchers_put_before_it(prefix: str) -> None:
    text = KEY_ERROR.replace("out = model(batch)", "check(no_ecc, 'uncorrectable ECC error')")
    found = classify("\n".join(prefix + line for line in text.splitlines()))
    assert (found.label, found.blame) == ("user_code", Blame.CODE)


WITNESSED = [
    ("gpu_ecc", "RuntimeError: CUDA error: uncorrectable ECC error encountered"),
    ("gpu_fell_off_bus", "pynvml.NVMLError_GpuIsLost: GPU is lost"),
    ("gpu_fell_off_bus", "kernel: NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."),
    ("node_lost", "srun: error: Node failure on gpu-7"),
    ("node_lost", "ray.exceptions.NodeDiedError: Task was killed because its node died"),
]


@pytest.mark.parametrize(("label", "line"), WITNESSED)
def test_a_node_is_given_up_on_the_word_of_a_witness(label: str, line: str) -> None:
    found = classify(f"{line}\n{TIMEOUT}\n{CLEAN_UP}")
    assert (found.label, found.action) == (label, Action.EVICT)


def test_the_same_words_of_anybody_else_are_hearsay() -> None:
    found = classify("metrics agent: GPU 3: GPU is lost, its job is requeued")
    assert (found.label, found.action) == ("gpu_fell_off_bus", Action.RESTART)
    assert found.confidence < 0.8


def test_an_unfamiliar_exception_is_a_guess_that_holds_nothing() -> None:
    found = classify("Traceback (most recent call last):\nsoundfile.LibsndfileError: bad")
    assert found.label == "user_code"
    assert found.confidence < 0.5
    assert found.action is Action.RESTART


def test_lines_are_numbered_in_the_whole_text_however_long() -> None:
    filler = "step 1 of many, nothing to see\n"
    count = 2 * TEXT_CHARS_MAX // len(filler)
    found = classify(filler * count + "RuntimeError: CUDA error: an illegal memory access")
    assert found.label == "cuda_illegal_access"
    assert found.lines[0].number == count + 1


def test_what_is_quoted_is_bounded() -> None:
    text = ("CUDA error: uncorrectable ECC error " + "x" * 2 * LINE_CHARS_MAX + "\n") * 100
    found = classify(text)
    assert len(found.lines) == LINES_REPORTED_MAX
    assert all(len(line.text) <= LINE_CHARS_MAX for line in found.lines)


def test_colours_do_not_hide_a_message() -> None:
    assert classify("\x1b[31mCUDA error: \x1b[0muncorrectable ECC error").label == "gpu_ecc"


_PIECES = [e["text"] for e in FRESH] + ["NVRM: Xid (PCI:0000:3b:00): 48, x", "ValueError: no"]


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=80)), max_size=4))
def test_any_mixture_gets_a_sound_answer(pieces: list[str]) -> None:
    found = classify("\n".join(pieces))
    assert found.label in LABELS
    assert 0.0 <= found.confidence < 1.0
    if found.blame in (Blame.CODE, Blame.DATA):
        assert found.action not in (Action.DRAIN, Action.EVICT)
    if found.action in (Action.DRAIN, Action.EVICT):
        assert found.confidence >= 0.5


NUMBERS = [
    ("loss_scale_collapse", [
        "OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 2, reducing to 1",
        "OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 1, reducing to 1",
        "OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 1, reducing to 1",
    ]),
    ("healthy_startup_overflows", [
        "OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 262144, reducing to 262144",
        "OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 262144, reducing to 131072",
    ]),
    ("healthy_startup_overflows", [
        "Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to 32768.0",
    ]),
    ("loss_scale_collapse", [
        "Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to 6.1e-05",
        "Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to 3.0e-05",
    ]),
    ("loss_scale_normal_drift", [
        "epoch 001: 100 loss=12.0, loss_scale=0.250",
        "epoch 001: 200 loss=11.0, loss_scale=0.125",
        "epoch 001: 300 loss=10.0, loss_scale=0.125",
    ]),
    ("loss_scale_collapse", [
        "epoch 009: 100 loss=3.0, loss_scale=0.250",
        "epoch 009: 200 loss=3.1, loss_scale=0.125",
        "epoch 009: 300 loss=3.2, loss_scale=0.062",
    ]),
    ("nan_loss", ["iteration 12 | lm loss: nan | loss scale: 1.0 | grad norm: nan |"]),
    ("nan_loss", ["step 7 loss=inf"]),
    ("unknown", ["iteration 5 | lm loss: 2.5E+00 | loss scale: 65536.0 | grad norm: 0.5 |"]),
    ("unknown", ["| epoch 028 | valid on 'valid' subset | loss nan"]),
]  # fmt: skip


@pytest.mark.parametrize(("label", "lines"), NUMBERS)
def test_a_training_log_is_read_by_its_numbers(label: str, lines: list[str]) -> None:
    assert classify("\n".join(lines)).label == label


def test_a_message_outweighs_the_numbers_beside_it() -> None:
    text = "step 7 loss=nan\nRuntimeError: CUDA error: uncorrectable ECC error encountered"
    assert classify(text).label == "gpu_ecc"
