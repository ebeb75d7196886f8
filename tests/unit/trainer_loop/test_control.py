"""Commands are collected by seq, taken once, in order, and their effect is a pure function."""

import math
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from midwatch.logbook.wire import ASIDE, Command, Hyper, LrChange, Mesh, encode_frame
from midwatch.trainer.config import TrainConfig
from midwatch.trainer.control import Mailbox
from midwatch.trainer.effects import Effect
from midwatch.trainer.effects import plan_effect as plan_effect_on
from midwatch.trainer.schedule import lr_at

CONFIG = TrainConfig.model_validate({"preset": "nano", "steps": 100})


def plan_effect(command: Command, hyper: Hyper, next_step: int, config: TrainConfig) -> Effect:
    return plan_effect_on(command, hyper, next_step, config, Mesh(2, 1))


def never_gone() -> None:
    raise AssertionError("the agent is there")


def lr_under(hyper: Hyper, step: int) -> float:
    return lr_at(step, CONFIG.optimizer, CONFIG.schedule, hyper.lr_changes)


@given(order=st.permutations(list(range(1, 9))), upto=st.integers(0, 8))
def test_commands_come_out_in_order_up_to_the_first_gap(order: list[int], upto: int) -> None:
    mailbox = Mailbox(None, 1, never_gone)
    for seq in [*order[:upto], *order[:upto]]:
        mailbox.put(Command(seq, "checkpoint"))
    received = set(order[:upto])
    expected = next(seq for seq in range(9) if seq + 1 not in received)
    assert mailbox.highest() == expected
    assert [c.seq for c in mailbox.take(expected)] == list(range(1, expected + 1))
    assert mailbox.take(expected) == []


def test_commands_folded_before_the_start_are_ignored() -> None:
    mailbox = Mailbox(None, 5, never_gone)
    mailbox.put(Command(3, "stop"))
    assert mailbox.highest() == 4
    assert mailbox.take(4) == []
    mailbox.put(Command(5, "checkpoint"))
    assert [c.seq for c in mailbox.take(5)] == [5]


def test_a_rank_takes_no_more_than_was_agreed() -> None:
    mailbox = Mailbox(None, 1, never_gone)
    for seq in (1, 2, 3):
        mailbox.put(Command(seq, "checkpoint"))
    assert [c.seq for c in mailbox.take(2)] == [1, 2]
    assert mailbox.highest() == 3
    assert [c.seq for c in mailbox.take(3)] == [3]


def test_commands_arrive_over_a_pipe_and_its_end_is_noticed() -> None:
    reading, writing = os.pipe()
    gone = threading.Event()
    mailbox = Mailbox(reading, 1, gone.set)
    whole = b"".join(encode_frame(Command(seq, "lr-factor", 0.5)) for seq in (1, 2))
    os.write(writing, whole[:7])
    os.write(writing, whole[7:])
    os.close(writing)
    assert gone.wait(30.0)
    assert [c.value for c in mailbox.take(mailbox.highest())] == [0.5, 0.5]
    os.close(reading)


def test_garbage_on_the_pipe_counts_as_a_lost_agent(capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    gone = threading.Event()
    Mailbox(reading, 1, gone.set)
    os.write(writing, b"\xff" * 64)
    assert gone.wait(30.0)
    assert "ValueError" in capfd.readouterr().err
    os.close(writing)
    os.close(reading)


def test_lr_factor_scales_the_schedule_that_remains() -> None:
    effect = plan_effect(Command(1, "lr-factor", 0.5, "iv-1"), Hyper(), 40, CONFIG)
    assert effect.hyper.lr_changes == (LrChange(40, 0.5, "iv-1"),)
    assert effect.is_changed
    assert lr_under(effect.hyper, 39) == lr_under(Hyper(), 39)
    assert lr_under(effect.hyper, 60) == pytest.approx(0.5 * lr_under(Hyper(), 60))


def test_lr_makes_the_next_step_equal_the_value_on_top_of_earlier_changes() -> None:
    before = Hyper(lr_changes=(LrChange(10, 0.3, "d-1"),))
    effect = plan_effect(Command(1, "lr", 7e-4, "iv-2"), before, 40, CONFIG)
    assert lr_under(effect.hyper, 40) == pytest.approx(7e-4)
    assert lr_under(effect.hyper, 80) < 7e-4
    assert effect.hyper.lr_changes[0] == before.lr_changes[0]


def test_grad_clip_checkpoint_and_stop() -> None:
    clip = plan_effect(Command(1, "grad-clip", 0.3), Hyper(), 40, CONFIG)
    assert clip.hyper.value_at("grad-clip", 40) == 0.3
    assert clip.hyper.value_at("grad-clip", 39) is None
    save = plan_effect(Command(2, "checkpoint"), Hyper(), 40, CONFIG)
    assert (save.is_save, save.is_stop, save.is_changed) == (True, False, False)
    stop = plan_effect(Command(3, "stop"), Hyper(), 40, CONFIG)
    assert (stop.is_save, stop.is_stop, stop.error) == (True, True, "")


@pytest.mark.parametrize("kind", ["lr", "lr-factor", "grad-clip"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_an_impossible_value_changes_nothing(kind: str, value: float) -> None:
    before = Hyper(lr_changes=(LrChange(10, 0.3, "d-1"),))
    effect = plan_effect(Command(1, kind, value), before, 40, CONFIG)
    assert effect.hyper == before
    assert not effect.is_changed
    assert effect.error.startswith("value-out-of-range:")


def test_an_unknown_command_changes_nothing() -> None:
    effect = plan_effect(Command(1, "lr-faktor", 0.5), Hyper(), 40, CONFIG)
    assert effect.hyper == Hyper()
    assert effect.error.startswith("unknown-command:")


def test_an_order_aside_is_answered_at_once_and_is_no_step_of_the_run() -> None:
    read_fd, write_fd = os.pipe()
    asked: list[str] = []
    answered = threading.Event()

    def on_aside(order: Command) -> None:
        asked.append(order.kind)
        answered.set()

    gone = threading.Event()
    mailbox = Mailbox(read_fd, 1, gone.set, on_aside)
    os.write(write_fd, encode_frame(Command(ASIDE, "trace")))
    assert answered.wait(30.0)
    os.write(write_fd, encode_frame(Command(1, "checkpoint")))
    os.close(write_fd)
    assert gone.wait(30.0)
    assert asked == ["trace"]
    assert [c.seq for c in mailbox.take(mailbox.highest())] == [1]
    os.close(read_fd)
