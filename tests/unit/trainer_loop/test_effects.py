"""What holds at a step follows from the step and the changes alone."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from midwatch.logbook.hyper import Command, Hyper, LrChange, Setting
from midwatch.logbook.wire import Mesh
from midwatch.trainer.config import TrainConfig
from midwatch.trainer.effects import due_commands, plan_due, plan_effect
from midwatch.trainer.schedule import lr_at

CONFIG = TrainConfig.model_validate({"preset": "nano", "steps": 400})
MESH = Mesh(2, 1)
causes = st.sampled_from(["a", "b", "c"])
ends = st.none() | st.integers(1, 60)
changes = st.builds(
    lambda first, factor, cause, length: LrChange(
        first, factor, cause, first + length if length else None
    ),
    st.integers(1, 300),
    st.sampled_from([0.5, 0.9, 2.0]),
    causes,
    ends,
)


def rate(hyper: Hyper, step: int) -> float:
    return lr_at(step, CONFIG.optimizer, CONFIG.schedule, hyper.lr_changes)


def test_of_settings_in_force_the_one_made_last_holds() -> None:
    hyper = Hyper(
        grad_clip=0.7,
        settings=(
            Setting("grad-clip", 0.5, 10, "a", 30),
            Setting("grad-clip", 0.3, 15, "b", 20),
            Setting("beta2", 0.9, 1, "c"),
        ),
    )
    values = [hyper.value_at("grad-clip", step) for step in (9, 10, 14, 15, 19, 20, 29, 30)]
    assert values == [0.7, 0.5, 0.5, 0.3, 0.3, 0.5, 0.5, 0.7]
    assert hyper.value_at("eps", 12) is None
    assert list(hyper.begun_at(15)) == ["b"]
    assert list(hyper.ended_at(20)) == ["b"]


def test_a_momentary_setting_strikes_once() -> None:
    hyper = Hyper(settings=(Setting("loss-scale", 8.0, 10, "a"),))
    assert [hyper.struck_at("loss-scale", step) for step in (9, 10, 11)] == [None, 8.0, None]


@given(made=st.lists(changes, max_size=6), cause=causes, step=st.integers(1, 320))
def test_what_is_taken_back_leaves_every_step_before_as_it_was(
    made: list[LrChange], cause: str, step: int
) -> None:
    before = Hyper(lr_changes=tuple(made))
    after = before.without(cause, step)
    assert not after.stands(cause, step)
    for at in range(1, 400, 7):
        others = math.prod(
            c.factor
            for c in made
            if c.from_step <= at
            and (c.until_step is None or at < c.until_step)
            and (c.cause != cause or at < step)
        )
        assert math.isclose(after.factor_at(at), others)


@given(
    made=st.lists(changes, max_size=6),
    step=st.integers(2, 300),
    length=st.none() | st.integers(1, 80),
)
def test_a_rate_asked_for_as_such_is_the_rate_and_moves_with_its_schedule_alone(
    made: list[LrChange], step: int, length: int | None
) -> None:
    order = Command(1, "lr", 5e-4, "new", for_steps=length or 0)
    effect = plan_effect(order, Hyper(lr_changes=tuple(made)), step, CONFIG, MESH)
    assert not effect.error
    assert math.isclose(rate(effect.hyper, step), 5e-4, rel_tol=1e-9)
    factors = {round(effect.hyper.factor_at(at), 9) for at in range(step, step + (length or 200))}
    assert len(factors) == 1, "something else began or ended under it"
    # And whatever was trained before stays as it was trained.
    assert all(rate(effect.hyper, s) == rate(Hyper(tuple(made)), s) for s in range(1, step, 5))


@given(ahead=st.integers(1, 50), late=st.integers(0, 50), length=st.integers(0, 20))
def test_a_scheduled_change_is_the_same_wherever_the_run_takes_it_up(
    ahead: int, late: int, length: int
) -> None:
    order = Command(1, "lr", 5e-4, "new", at_step=40 + ahead, for_steps=length)
    waiting = plan_effect(order, Hyper(), 40, CONFIG, MESH)
    assert (waiting.phase, waiting.at_step) == ("scheduled", 40 + ahead)
    assert due_commands(waiting.hyper, 40 + ahead - 1) == []
    # In time, and by an attempt that goes on from a state behind the step.
    [due] = due_commands(waiting.hyper, 40 + ahead)
    assert due_commands(waiting.hyper, 40 + ahead + late) == [due]
    taken = plan_due(due, waiting.hyper, CONFIG, MESH)
    at_once = plan_effect(
        Command(1, "lr", 5e-4, "new", for_steps=length), Hyper(), 40 + ahead, CONFIG, MESH
    )
    assert taken.hyper == at_once.hyper
    assert taken.until_step == (40 + ahead + length if length else None)


def test_what_happens_once_waits_until_its_step_is_completed() -> None:
    order = Command(1, "stop", cause="s", at_step=50)
    waiting = plan_effect(order, Hyper(), 40, CONFIG, MESH)
    assert due_commands(waiting.hyper, 50) == []
    [due] = due_commands(waiting.hyper, 51)
    effect = plan_due(due, waiting.hyper, CONFIG, MESH)
    assert (effect.is_stop, effect.is_save, effect.hyper.scheduled) == (True, True, ())
    assert plan_effect(order, Hyper(), 51, CONFIG, MESH).is_stop
    assert plan_effect(order, Hyper(), 52, CONFIG, MESH).error.startswith("step-passed:")


def test_no_more_data_is_left_out_than_the_limit_says() -> None:
    batch = CONFIG.sequences_per_step(MESH)
    long = Command(1, "skip", 5.0, target=f"samples {100 * batch}:{105 * batch + 1}")
    assert plan_effect(long, Hyper(), 40, CONFIG, MESH).error.startswith("range-too-long:")
    fits = Command(1, "skip", 5.0, target=f"samples {100 * batch}:{105 * batch}")
    assert plan_effect(fits, Hyper(), 40, CONFIG, MESH).hyper.skipped == ((100, 105),)
