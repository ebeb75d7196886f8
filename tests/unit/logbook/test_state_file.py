"""A state saved beside its journal spares a reader the history, and is never trusted blindly."""

from __future__ import annotations

from pathlib import Path

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook import state_file
from midwatch.logbook.journal import Journal
from midwatch.logbook.state import RunState
from midwatch.logbook.state_file import load_saved_state, save_state
from midwatch.operator.cli.runs import StateFollower, load_state
from midwatch.tests.support.builders import make_sample, started
from midwatch.tests.support.journals import flip_bit


def nodes(first: int, count: int) -> list[tuple[float, int, ev.Event]]:
    """Events to append: so many nodes join."""
    return [
        (1000.0 + n, 0, ev.NodeJoined(f"n{n}", "1", "host", 8)) for n in range(first, first + count)
    ]


def test_what_was_saved_is_found_again(tmp_path: Path) -> None:
    state = started()
    save_state(tmp_path, state)
    assert load_saved_state(tmp_path, up_to_seq=state.seq) == state
    assert load_saved_state(tmp_path, up_to_seq=state.seq - 1) == RunState()


def test_a_damaged_one_and_one_of_another_fold_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = started()
    path = save_state(tmp_path, state)
    with monkeypatch.context() as changed:
        changed.setattr(state_file, "fold_version", lambda: "fold-of-tomorrow")
        assert load_saved_state(tmp_path, up_to_seq=state.seq) == RunState()
    flip_bit(path, path.stat().st_size - 1)
    assert load_saved_state(tmp_path, up_to_seq=state.seq) == RunState()


def test_a_reader_starts_from_it_and_ends_at_the_same_state(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with Journal[ev.Event](folder, ev.Event) as journal:
        journal.append(nodes(0, 20))
        journal.sync()
        save_state(folder, load_state(tmp_path))
        journal.append([*nodes(20, 3), (1100.0, 1, ev.StepDone(1, make_sample(1)))])
        follower = StateFollower(tmp_path)
        assert [record.seq for record in follower.poll()] == [21, 22, 23, 24]
        journal.append(nodes(30, 1))
        assert [record.seq for record in follower.poll()] == [25]
    for path in folder.glob("snapshot-*"):
        path.unlink()
    assert follower.state == load_state(tmp_path)
    assert len(follower.state.nodes) == 24
