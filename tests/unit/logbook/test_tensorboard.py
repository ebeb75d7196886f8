"""Event files as TensorBoard itself reads them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from midwatch.logbook.chronicle import Chronicle, read_chronicle
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.events import ValidationDone
from midwatch.logbook.tensorboard import write_tensorboard
from midwatch.operator.simulation.edges import MemoryJournal
from midwatch.tests.sim.night import Night
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def chronicle() -> Chronicle:
    night = Night()
    night.run_to_step(43)
    night.world.kill_worker(1)
    night.run_to_end()
    assert isinstance(night.journal, MemoryJournal)
    return read_chronicle(night.journal.records())


def read_back(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return events


def test_every_step_that_stands_is_there_once(chronicle: Chronicle, tmp_path: Path) -> None:
    folder = tmp_path / "board"
    written = write_tensorboard(chronicle, folder)
    events = read_back(folder)
    tags = events.Tags()["scalars"]
    assert "train/learning_rate" in tags
    loss = events.Scalars("train/loss")
    assert [point.step for point in loss] == list(chronicle.curves.steps) == list(range(1, 121))
    assert [point.value for point in loss] == pytest.approx(list(chronicle.curves.loss), rel=1e-6)
    assert [point.wall_time for point in loss] == pytest.approx(list(chronicle.curves.times_s))
    assert written == 120 * len(tags)


def test_a_run_in_bf16_has_no_loss_scale_and_perplexity_comes_where_measured(
    chronicle: Chronicle, tmp_path: Path
) -> None:
    other = Chronicle()
    other.curves.steps.extend([1, 2])
    for column in ("times_s", "loss", "lr", "grad_norm", "activation_norm", "tokens_per_s"):
        getattr(other.curves, column).extend([1.0, math.nan])
    other.curves.loss_scale.extend([math.nan, math.nan])
    other.validation = [ValidationDone(1, 2, math.log(17.5), 8, 256, 5.0, 0.5)]
    write_tensorboard(other, tmp_path / "board")
    events = read_back(tmp_path / "board")
    assert "train/loss_scale" not in events.Tags()["scalars"]
    assert math.isnan(events.Scalars("train/loss")[1].value)
    (measured,) = events.Scalars("validation/perplexity")
    assert (measured.step, measured.wall_time) == (2, 5.0)
    assert measured.value == pytest.approx(17.5)


def test_an_export_is_replaced_and_nothing_else_ever_is(
    chronicle: Chronicle, tmp_path: Path
) -> None:
    folder = tmp_path / "board"
    write_tensorboard(chronicle, folder)
    write_tensorboard(chronicle, folder)
    assert len(read_back(folder).Scalars("train/loss")) == 120
    (folder / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError) as refused:
        write_tensorboard(chronicle, folder)
    assert refused.value.code == "export-not-empty"
    assert (folder / "mine.txt").read_text() == "keep me"
