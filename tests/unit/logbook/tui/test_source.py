"""A long journal is told from its end first, and whole in the end, however it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from midwatch.logbook.state_file import save_state
from midwatch.logbook.tui.book import Book
from midwatch.logbook.tui.source import JournalSource
from midwatch.operator.cli.runs import load_state
from midwatch.tests.support.synthetic_run import SyntheticRun


def read_whole(source: JournalSource, book: Book, budget_s: float = 0.0) -> int:
    """Take updates until there is no more; return how many it took."""
    for count in range(1, 10_000):
        update = source.advance(budget_s)
        book.take(update)
        if not update.has_more:
            return count
    raise AssertionError("it never ends")


def ticking() -> float:
    """A clock on which every look takes a second, so that each slice holds one chunk."""
    ticking.now_s += 1.0  # type: ignore[attr-defined]
    return float(ticking.now_s)  # type: ignore[attr-defined]


ticking.now_s = 0.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("tail", [1, 10, 100, 100_000])
@pytest.mark.parametrize("is_saved", [False, True])
def test_however_it_is_read_the_book_is_the_same(
    small_run: SyntheticRun, tail: int, is_saved: bool
) -> None:
    small_run.crash(rank=3)
    small_run.start("the spare takes over", step=50, incident="inc-0001")
    folder = small_run.folder / "journal"
    if is_saved:
        save_state(folder, small_run.state)
    small_run.train(80)
    book = Book()
    read_whole(JournalSource(folder, tail=tail), book, budget_s=0.01)
    assert book.is_whole
    assert book.state == small_run.state
    seqs = [record.seq for record in (*book.past, *book.tail)]
    assert seqs == sorted(set(seqs))
    points = book.series.points("loss", 1, 80, 1000)
    assert [p.first for p in points] == [*range(1, 61), *range(51, 81)]
    assert [p.first for p in points if p.is_abandoned] == list(range(51, 61))


def test_the_first_look_shows_the_end_and_says_that_it_is_a_glimpse(
    small_run: SyntheticRun,
) -> None:
    source = JournalSource(small_run.folder / "journal", tail=10)
    first = source.advance(0.0)
    assert (first.is_whole, first.has_more) == (False, True)
    assert (first.state.run, first.state.step, first.state.num_attempts) == ("opt-175b", 60, 1)
    assert len(first.records) == 10
    assert first.read_frac == 0.0


def test_with_a_saved_state_the_first_look_is_whole(small_run: SyntheticRun) -> None:
    save_state(small_run.folder / "journal", small_run.state)
    small_run.train(62)
    first = JournalSource(small_run.folder / "journal", tail=10).advance(0.0)
    assert (first.is_whole, first.has_more) == (True, True)
    assert first.state == small_run.state


def test_history_comes_in_slices_and_news_in_between(small_run: SyntheticRun) -> None:
    small_run.train(2000)
    source = JournalSource(small_run.folder / "journal", tail=10, clock=ticking)
    book = Book()
    book.take(source.advance(1.5))
    book.take(source.advance(1.5))
    assert 0.0 < book.read_frac < 1.0
    small_run.crash(rank=0)
    assert read_whole(source, book, budget_s=1.5) > 1
    assert book.state == small_run.state == load_state(small_run.folder)


def test_a_folder_without_a_journal_is_an_empty_run(tmp_path: Path) -> None:
    update = JournalSource(tmp_path / "journal").advance(0.0)
    assert (update.is_whole, update.has_more, update.trouble) == (True, False, "")
    assert not update.state.run
