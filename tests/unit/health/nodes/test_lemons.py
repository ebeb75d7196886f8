"""The lemon memory: budgets, decay, quarantine that outlives a renaming, and forgiveness."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from midwatch.health.nodes.identity import read_machine_uuid
from midwatch.health.nodes.lemons import (
    Failure,
    GpuIdentity,
    LemonBook,
    LemonBudget,
    MachineIdentity,
    judge_machine,
    record,
    release,
)

DAY_S = 86400.0
BUDGET = LemonBudget()
GPUS = tuple(GpuIdentity(f"GPU-{i}", f"165000000{i}") for i in range(8))
MACHINE = MachineIdentity("4c4c4544-0042", GPUS)
OTHER = MachineIdentity("4c4c4544-0099", (GpuIdentity("GPU-x", "999"),))


def failure(attempt: int, time_s: float = 0.0, **fields: object) -> Failure:
    plain: dict[str, object] = {
        "time_s": time_s,
        "run": "opt",
        "attempt": attempt,
        "machine": MACHINE,
        "cause": "gpu_ecc",
        "host": "n7",
        **fields,
    }
    return msgspec.convert(plain, Failure)


def filled(*failures: Failure, budget: LemonBudget = BUDGET) -> LemonBook:
    book = LemonBook()
    for item in failures:
        book = record(book, item, budget)
    return book


def is_held(book: LemonBook, machine: MachineIdentity, now_s: float) -> bool:
    return judge_machine(book, machine, now_s, BUDGET).is_quarantined


def test_a_machine_within_its_budget_stays_in_use() -> None:
    book = filled(failure(1), failure(2))
    assert not is_held(book, MACHINE, 0.0)
    assert not is_held(book, OTHER, 0.0)


def test_a_machine_past_its_budget_is_quarantined_with_a_reason() -> None:
    verdict = judge_machine(filled(*map(failure, (1, 2, 3))), MACHINE, 0.0, BUDGET)
    assert verdict.is_quarantined
    assert "3 failures" in verdict.reason
    assert "gpu_ecc" in verdict.reason


def test_a_replacement_that_returns_the_same_machine_is_known_again() -> None:
    book = filled(*map(failure, (1, 2, 3)))
    renamed = MachineIdentity("a-fresh-installation", GPUS)
    unnamed = MachineIdentity("", GPUS[:5])
    assert is_held(book, renamed, DAY_S)
    assert is_held(book, unnamed, DAY_S)
    assert not is_held(book, MachineIdentity("a-fresh-installation", GPUS[:2]), DAY_S)


def test_a_gpu_is_known_again_in_another_machine_and_by_its_serial() -> None:
    book = filled(failure(1, gpus=["GPU-3"]), failure(2, gpus=["GPU-3"]))
    moved = MachineIdentity("elsewhere", (GpuIdentity("GPU-3", ""),))
    by_serial = MachineIdentity("elsewhere", (GpuIdentity("GPU-new-name", GPUS[3].serial),))
    assert is_held(book, moved, 0.0)
    assert is_held(book, by_serial, 0.0)
    assert not is_held(book, MachineIdentity("elsewhere", GPUS[:2]), 0.0)


def test_one_attempt_counts_once() -> None:
    book = filled(*[failure(1) for _ in range(20)])
    assert book.machines[MACHINE.uuid].failures_total == 1


def test_an_attempt_counts_by_the_heaviest_of_its_failures() -> None:
    mild = {"weight": 0.5, "cause": "row-remap", "gpus": ["GPU-3"]}
    grave = {"weight": 1.0, "cause": "xid", "gpus": ["GPU-3"]}
    both = filled(failure(1, **mild), failure(1, **grave), failure(1, **mild))
    alone = filled(failure(1, **grave))
    assert both == alone
    assert both.machines[MACHINE.uuid].last_cause == "xid"
    thrice = filled(*[failure(i, **fields) for i in (1, 2, 3) for fields in (mild, grave)])
    assert is_held(thrice, MACHINE, 0.0)
    assert thrice.machines[MACHINE.uuid].failures_total == 3


def test_an_attempt_in_a_book_from_before_weights_were_noted_has_counted_in_full() -> None:
    entry = filled(failure(1)).machines[MACHINE.uuid]
    assert b"last_weight" not in msgspec.json.encode(entry)
    book = LemonBook(machines={MACHINE.uuid: entry})
    assert record(book, failure(1), BUDGET) == book


def test_the_same_attempt_number_of_another_run_counts_again() -> None:
    book = filled(failure(1), failure(1, run="bloom"), failure(1, run="glm"))
    assert is_held(book, MACHINE, 0.0)


def test_failures_long_ago_weigh_little() -> None:
    apart = [failure(i, time_s=i * 60 * DAY_S) for i in range(1, 6)]
    assert not is_held(filled(*apart), MACHINE, 300 * DAY_S)


def test_quarantine_holds_until_the_score_has_fallen_well_below_the_budget() -> None:
    book = filled(*map(failure, (1, 2, 3)))
    assert is_held(book, MACHINE, 14 * DAY_S)
    assert not is_held(book, MACHINE, 30 * DAY_S)


def test_a_released_machine_is_free_until_it_fails_past_its_budget_again() -> None:
    book = release(filled(*map(failure, (1, 2, 3))), MACHINE, "ada", DAY_S)
    assert not is_held(book, MACHINE, DAY_S)
    assert book.machines[MACHINE.uuid].released_by == "ada"
    assert book.machines[MACHINE.uuid].failures_total == 3
    for attempt in (4, 5, 6):
        book = record(book, failure(attempt, time_s=2 * DAY_S), BUDGET)
    assert is_held(book, MACHINE, 2 * DAY_S)


def test_what_the_program_did_is_not_remembered() -> None:
    book = filled(*[failure(i, weight=0.0, cause="user_code") for i in range(50)])
    assert book == LemonBook()


def test_suspicions_add_up_slowly() -> None:
    few = [failure(i, weight=0.3, cause="hang") for i in range(1, 8)]
    many = [failure(i, weight=0.3, cause="hang") for i in range(1, 10)]
    assert not is_held(filled(*few), MACHINE, 0.0)
    assert is_held(filled(*many), MACHINE, 0.0)


def test_a_machine_that_cannot_be_named_is_not_mistaken_for_another() -> None:
    nameless = MachineIdentity("", ())
    book = filled(*[failure(i, machine={"uuid": "", "gpus": []}) for i in range(9)])
    assert not is_held(book, nameless, 0.0)


def test_the_book_survives_as_json() -> None:
    book = filled(*map(failure, (1, 2, 3)), failure(4, gpus=["GPU-3"]))
    assert msgspec.json.decode(msgspec.json.encode(book), type=LemonBook) == book


def test_recording_leaves_the_old_book_as_it_was() -> None:
    book = filled(failure(1))
    record(book, failure(2), BUDGET)
    assert book.machines[MACHINE.uuid].failures_total == 1


@given(st.lists(st.tuples(st.floats(0, 1e8), st.floats(0, 2)), max_size=20), st.floats(0, 1e9))
def test_the_score_never_grows_by_waiting(past: list[tuple[float, float]], wait_s: float) -> None:
    book = LemonBook()
    for attempt, (time_s, weight) in enumerate(past):
        book = record(book, failure(attempt, time_s, weight=weight), BUDGET)
    now_s = 1e8
    earlier = judge_machine(book, MACHINE, now_s, BUDGET)
    later = judge_machine(book, MACHINE, now_s + wait_s, BUDGET)
    assert later.score <= earlier.score
    assert earlier.is_quarantined or not later.is_quarantined


@pytest.mark.parametrize(
    ("files", "uuid"),
    [
        ({"sys/class/dmi/id/product_uuid": "4C4C4544-0042\n"}, "4c4c4544-0042"),
        ({"sys/class/dmi/id/product_uuid": "00000000-0000\n", "etc/machine-id": "abc"}, "abc"),
        ({"sys/class/dmi/id/product_uuid": "FFFFFFFF-FFFF\n"}, ""),
        ({".dockerenv": "", "etc/machine-id": "abc"}, ""),
        ({"run/.containerenv": "", "sys/class/dmi/id/product_uuid": "4C-44"}, "4c-44"),
        ({}, ""),
    ],
)
def test_a_machine_is_named_by_its_hardware(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, str], uuid: str
) -> None:
    root = tmp_path_factory.mktemp("root")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert read_machine_uuid(root) == uuid
