"""CSV, JSONL and trainer_state.json: any usual column name, absent is not NaN, errors say where."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from midwatch.health.numerics.point import Point
from midwatch.health.replay.fields import ReadOptions, parse_map
from midwatch.health.replay.readers import read_points
from midwatch.logbook.errors import ConfigError


def written(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def reason(path: Path, options: ReadOptions | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        list(read_points(path, options))
    return caught.value


def test_a_csv_with_usual_names_needs_no_map(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "a.csv",
        "run,Global_Step,train/loss,Grad-Norm,learning rate,loss_scale,actv_norm\n"
        "x,1,2.5,0.3,1e-4,4,3400\n",
    )
    assert list(read_points(path)) == [
        Point(step=1, loss=2.5, grad_norm=0.3, lr=1e-4, loss_scale=4.0, activation_norm=3400.0)
    ]


def test_a_map_names_other_columns(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "t,loss,smooth\n3,9.0,2.0\n")
    options = ReadOptions(columns=parse_map(["step=t", "loss=smooth"]))
    assert list(read_points(path, options)) == [Point(step=3, loss=2.0)]


def test_an_empty_cell_is_absent_and_nan_is_a_value(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "step,loss,grad_norm\n1,,0.5\n2,nan,inf\n\n3,-inf,\n")
    first, second, third = read_points(path)
    assert (first.loss, first.grad_norm) == (None, 0.5)
    assert second.loss is not None
    assert math.isnan(second.loss)
    assert second.grad_norm == math.inf
    assert (third.loss, third.grad_norm) == (-math.inf, None)


def test_rows_can_be_selected(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "run_id,step,loss\na,1,2\nb,1,3\na,2,4\n")
    points = read_points(path, ReadOptions(where={"run_id": "a"}))
    assert [point.loss for point in points] == [2.0, 4.0]


def test_a_running_total_of_skips_becomes_skips_per_point(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "step,loss,skipped_steps_cum\n1,2,1\n2,2,3\n3,2,3\n4,2,0\n")
    assert [point.skipped for point in read_points(path)] == [1, 2, 0, 0]


def test_tabs_separate_a_tsv(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "step\tloss\n1\t2.5\n")
    assert list(read_points(path)) == [Point(step=1, loss=2.5)]


def test_a_file_without_a_suffix_is_looked_into(tmp_path: Path) -> None:
    assert list(read_points(written(tmp_path, "a", "step,loss\n1,2\n"))) == [Point(step=1, loss=2)]
    json_lines = written(tmp_path, "b", '{"step": 1, "loss": 2.0}\n')
    assert list(read_points(json_lines)) == [Point(step=1, loss=2.0)]


def test_json_lines_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "a.jsonl",
        '{"event": "start"}\n{"step": 1, "loss": 2.0, "found_inf": true}\n\n'
        '{"step": 2, "eval/loss": 3.0}\n{"step": 3, "loss": NaN}\n{"step": 4, "loss": null, '
        '"grad_norm": "0.5"}\n',
    )
    points = list(read_points(path))
    assert [point.step for point in points] == [1, 3, 4]
    assert points[0].skipped == 1
    assert points[1].loss is not None
    assert math.isnan(points[1].loss)
    assert (points[2].loss, points[2].grad_norm) == (None, 0.5)


def test_trainer_state_is_read_and_its_hidden_nan_found(tmp_path: Path) -> None:
    state = {
        "global_step": 30,
        "log_history": [
            {"epoch": 0.1, "step": 10, "loss": 2.5, "grad_norm": 0.4, "learning_rate": 1e-4},
            {"epoch": 0.1, "step": 10, "eval_loss": 2.6},
            {"epoch": 0.2, "step": 20, "loss": 0.0, "grad_norm": math.nan, "learning_rate": 1e-4},
            {"step": 30, "train_runtime": 9.0, "train_loss": 2.4},
        ],
    }
    path = written(tmp_path, "trainer_state.json", json.dumps(state, indent=2))
    first, second = read_points(path)
    assert first == Point(step=10, loss=2.5, grad_norm=0.4, lr=1e-4)
    assert second.step == 20
    assert second.loss is not None
    assert math.isnan(second.loss)


@pytest.mark.parametrize(
    ("name", "text", "line", "word"),
    [
        ("a.csv", "", 1, "empty"),
        ("a.csv", "step,loss\n1,2\n2,abc\n", 3, "abc"),
        ("a.csv", "step,loss\n1,2\n2\n", 3, "1 cells"),
        ("a.csv", "step,loss\n,2\n", 2, "step"),
        ("a.csv", "step,loss\n-4,2\n", 2, "not a step"),
        ("a.csv", "loss\n2\n", 1, "step"),
        ("a.csv", "step,lr\n1,2\n", 1, "loss"),
        ("a.jsonl", '{"step": 1, "loss": 2}\n{"step": 2, "lo', 2, "not JSON"),
        ("a.jsonl", '{"step": 1, "loss": 2}\n[1]\n', 2, "not a JSON object"),
        ("a.jsonl", '{"step": 1, "loss": 2}\n{"step": 2, "loss": [3]}\n', 2, "not a number"),
        ("a.jsonl", '{"step": 1, "loss": 2}\n{"loss": 3}\n', 2, "not a step"),
        ("a.json", '{"log_history": [\n,\n', 2, "not JSON"),
        ("a.json", '{"steps": []}\n', 1, "log_history"),
        ("a.log", "hello\nworld\n", 2, "no line"),
        ("a", "\n\n", 1, "empty"),
        ("a", "{'loss': 2.5, 'learning_rate': 1e-4}\n", 1, "Hugging Face"),
        ("a.log", "epoch 001: 100 / 2000 loss=10.1, ppl=900, lr=1e-4\n", 1, "neither a table"),
    ],
)
def test_unreadable_input_names_the_line_and_the_reason(
    tmp_path: Path, name: str, text: str, line: int, word: str
) -> None:
    error = reason(written(tmp_path, name, text))
    assert error.code == "replay-unreadable"
    assert f"line {line}:" in error.message
    assert word in error.message


@pytest.mark.parametrize("text", ["train | epoch 1, loss=10.1, num_updates=1\n", "hello\n"])
def test_a_log_of_an_unknown_kind_is_told_what_is_read(tmp_path: Path, text: str) -> None:
    remedy = reason(written(tmp_path, "a.log", text)).remedy
    for known in ("csv", "jsonl", "trainer_state.json", "Megatron-LM", "DeepSpeed"):
        assert known in remedy


def test_what_is_not_text_or_not_there_is_unreadable(tmp_path: Path) -> None:
    binary = tmp_path / "a.csv"
    binary.write_bytes(b"step,loss\n1,\xff\xfe\n")
    assert reason(binary).code == "replay-unreadable"
    assert reason(tmp_path / "missing.csv").code == "replay-unreadable"
    assert reason(tmp_path).code == "replay-unreadable"


def test_a_mapped_column_must_be_there(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "step,loss\n1,2\n")
    error = reason(path, ReadOptions(columns={"loss": "train_loss"}))
    assert error.code == "replay-unreadable"
    assert "train_loss" in error.message
    assert "step, loss" in error.remedy
    assert reason(path, ReadOptions(where={"run": "a"})).code == "replay-unreadable"


@pytest.mark.parametrize("pair", ["loss", "loss=", "speed=x", "=x"])
def test_a_map_must_be_field_and_column(pair: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_map([pair])
    assert caught.value.code == "replay-map"


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "step,loss\n1,2\n")
    assert reason(path, ReadOptions(format="parquet")).code == "replay-map"
