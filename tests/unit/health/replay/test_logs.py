"""Log lines of Megatron-LM and DeepSpeed, with the traps that recorded logs hold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from midwatch.health.numerics.point import Point
from midwatch.health.replay.readers import read_points
from midwatch.logbook.errors import ConfigError

MEGATRON = (
    " [2025-04-13 23:41:12] iteration {step:8d}/    1000 | consumed samples:          160 | "
    "elapsed time per iteration (ms): 1147.6 | learning rate: 1.500000E-04 | "
    "global batch size:    16 |{loss} loss scale: {scale:.1f} |{norm} number of skipped "
    "iterations: {skipped:3d} | number of nan iterations:   0 |"
)


def megatron(
    step: int, loss: str = "2.5E+00", scale: float = 4096.0, norm: str = "0.512", skipped: int = 0
) -> str:
    return MEGATRON.format(
        step=step,
        loss=f" lm loss: {loss} |" if loss else "",
        scale=scale,
        norm=f" grad norm: {norm} |" if norm else "",
        skipped=skipped,
    )


def points(tmp_path: Path, *lines: str) -> list[Point]:
    path = tmp_path / "train.log"
    path.write_text("\n".join(["starting", *lines, "done"]) + "\n", encoding="utf-8")
    return list(read_points(path))


def test_a_megatron_line_is_read(tmp_path: Path) -> None:
    assert points(tmp_path, megatron(10), "[Rank 0] memory (MB) | allocated: 1464.3") == [
        Point(step=10, loss=2.5, grad_norm=0.512, loss_scale=4096.0, lr=1.5e-4)
    ]


def test_a_prefix_of_the_launcher_does_not_matter(tmp_path: Path) -> None:
    assert points(tmp_path, "[default7]:" + megatron(11))[0].step == 11


def test_steps_that_were_all_skipped_have_no_loss(tmp_path: Path) -> None:
    lines = [megatron(10), megatron(20, loss="", skipped=10, norm="")]
    assert points(tmp_path, *lines)[1] == Point(step=20, loss_scale=4096.0, lr=1.5e-4, skipped=10)


def test_a_loss_that_is_left_out_without_skips_was_nan(tmp_path: Path) -> None:
    for skipped in (0, 3):
        loss = points(tmp_path, megatron(10), megatron(20, loss="", skipped=skipped))[1].loss
        assert loss is not None
        assert math.isnan(loss)


def test_a_printed_nan_is_read(tmp_path: Path) -> None:
    point = points(tmp_path, megatron(10, loss="NAN", norm="inf"))[0]
    assert point.loss is not None
    assert math.isnan(point.loss)
    assert point.grad_norm == math.inf


def test_an_impossible_value_in_a_megatron_line_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        points(tmp_path, megatron(10), megatron(11, loss="2.5E+0x"))
    assert caught.value.code == "replay-unreadable"
    assert "line 3:" in caught.value.message


def test_deepspeed_lines_about_one_step_make_one_point(tmp_path: Path) -> None:
    read = points(
        tmp_path,
        "[2023-05-01 12:00:00,123] [INFO] [logging.py:96:log_dist] [Rank 0] step=10, skipped=0, "
        "lr=[9.9e-06, 9.9e-06], mom=[(0.9, 0.95)]",
        "steps: 10 loss: 3.2500 iter time (s): 0.512 samples/sec: 31.2",
        "[2023-05-01 12:00:09,123] [INFO] [logging.py:96:log_dist] [Rank 0] step=20, skipped=0, "
        "lr=[1.2e-05, 1.2e-05], mom=[(0.9, 0.95)]",
        "steps: 20 loss: nan iter time (s): 0.512 samples/sec: 31.2",
    )
    assert read[0] == Point(step=10, loss=3.25, lr=9.9e-6)
    assert (read[1].step, read[1].lr) == (20, 1.2e-5)
    assert read[1].loss is not None
    assert math.isnan(read[1].loss)


def test_overflows_between_steps_are_counted_and_carry_the_scale(tmp_path: Path) -> None:
    overflow = (
        "[2023-02-08 13:52:24,187] [INFO] [loss_scaler.py:183:update_scale] [deepspeed] OVERFLOW! "
        "Rank 0 Skipping step. Attempted loss scale: {}, {}"
    )
    read = points(
        tmp_path,
        overflow.format(65536, "but hysteresis is 2. Reducing hysteresis to 1"),
        "step:0, loss:5.453125",
        overflow.format(65536, "reducing to 32768"),
        overflow.format(32768, "reducing to 16384"),
        "step:2, loss:5.25",
        "step:3, loss:5.125",
    )
    assert [(p.step, p.loss, p.loss_scale, p.skipped) for p in read] == [
        (0, 5.453125, 65536.0, 1),
        (2, 5.25, 16384.0, 2),
        (3, 5.125, 16384.0, 0),
    ]


def test_the_total_of_skips_is_turned_into_skips_per_point(tmp_path: Path) -> None:
    lines = [f"step={10 * n}, skipped={total}, lr=[1e-4]" for n, total in ((1, 7), (2, 9), (3, 9))]
    assert [point.skipped for point in points(tmp_path, *lines)] == [7, 2, 0]
