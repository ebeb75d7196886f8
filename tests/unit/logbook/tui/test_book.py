"""What is known of a run is kept in bounds, and said in words that do not change for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from midwatch.logbook import events as ev
from midwatch.logbook.record import Record
from midwatch.logbook.state import RunState
from midwatch.logbook.summary import summarize
from midwatch.logbook.tui import book as book_module
from midwatch.logbook.tui.book import Book, Sieve, Sifted
from midwatch.logbook.tui.head import head_of
from midwatch.logbook.tui.source import Update
from midwatch.tests.support.builders import START_S, make_sample
from midwatch.tests.support.synthetic_run import STEP_S, SyntheticRun


def record(seq: int, event: ev.Event) -> Record[ev.Event]:
    return Record(seq, START_S + seq, 1, 1, event)


def note(seq: int, text: str = "all is well") -> Record[ev.Event]:
    return record(seq, ev.NoteAdded("ann", text))


def step(seq: int) -> Record[ev.Event]:
    return record(seq, ev.StepDone(1, make_sample(seq)))


def seqs(rows: list[Record[ev.Event]]) -> list[int]:
    return [row.seq for row in rows]


def test_a_sieve_lets_through_what_has_every_word() -> None:
    book = Book()
    book.take(Update(RunState(), records=(note(5, "the XID 79 is back"), step(6), note(7))))
    assert seqs(Sifted(book, Sieve()).rows()) == [5, 7]
    assert seqs(Sifted(book, Sieve(with_dense=True)).rows()) == [5, 6, 7]
    assert seqs(Sifted(book, Sieve(words=("xid", "back"))).rows()) == [5]


def test_sifting_goes_on_where_it_was_as_history_and_news_come_in() -> None:
    book = Book()
    sifted = Sifted(book, Sieve())
    book.take(Update(RunState(), records=(note(5),)))
    assert seqs(sifted.rows()) == [5]
    book.take(Update(RunState(), records=(note(6),), past=(note(1), note(2))))
    assert seqs(sifted.rows()) == [1, 2, 5, 6]
    book.take(Update(RunState(), records=(note(1),), is_anew=True))
    assert seqs(sifted.rows()) == [1]


def test_steps_go_first_when_there_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "MAX_TAIL", 10)
    book = Book()
    sifted = Sifted(book, Sieve())
    for seq in range(1, 40, 2):
        book.take(Update(RunState(), records=(note(seq), step(seq + 1))))
    assert seqs(sifted.rows()) == list(range(1, 40, 2))
    assert len(book.tail) <= 11
    assert all(row.kind != "step" for row in book.past)


def test_trouble_leaves_what_is_known_and_goes_away(small_run: SyntheticRun) -> None:
    book = Book()
    book.take(Update(small_run.state))
    assert book.take(Update(RunState(), trouble="[journal-corrupt] line 3"))
    assert not book.take(Update(RunState(), trouble="[journal-corrupt] line 3"))
    assert book.state is small_run.state
    assert "line 3" in head_of(book, 0.0).now
    assert book.take(Update(small_run.state))
    assert "line 3" not in head_of(book, 0.0).now


def test_nothing_new_is_no_change(small_run: SyntheticRun) -> None:
    book = Book()
    assert book.take(Update(small_run.state, is_anew=True))
    assert not book.take(Update(small_run.state))


def test_the_head_does_not_change_while_nothing_happens(small_run: SyntheticRun) -> None:
    book = Book()
    book.take(Update(small_run.state))
    at_s = small_run.now_s
    assert head_of(book, at_s + 1.0) == head_of(book, at_s + 25.0)


def test_a_run_is_silent_once_it_has_been_quiet_for_three_steps(small_run: SyntheticRun) -> None:
    book = Book()
    book.take(Update(small_run.state))
    at_s = small_run.now_s
    assert small_run.state.step_median.value == STEP_S
    assert head_of(book, at_s + 119.0).heard == ""
    assert head_of(book, at_s + 125.0).heard == "silent for 2 min: is the controller away?"
    assert head_of(book, at_s + 8000.0).heard == "silent for 2 h: is the controller away?"


def test_a_run_that_waits_is_not_silent_while_its_controller_turns(tmp_path: Path) -> None:
    run, book = SyntheticRun(tmp_path / "run", nodes=4, slots=2), Book()
    at_s = run.now_s
    assert book.take(Update(run.state))
    assert head_of(book, at_s + 65.0).heard == "silent for 60 s: is the controller away?"
    assert not book.take(Update(run.state, alive_s=at_s + 60.0))
    assert head_of(book, at_s + 65.0).heard == ""
    assert head_of(book, at_s + 100.0).heard == "silent for 40 s: is the controller away?"
    run.close()


def test_the_figures_of_a_run_that_fell_silent_are_of_now(small_run: SyntheticRun) -> None:
    book = Book()
    book.take(Update(small_run.state))
    now_s = (small_run.now_s + 3 * 86400.0) // 60.0 * 60.0
    figures = {figure.name: figure.value for figure in head_of(book, now_s).figures}
    assert figures["ettr"] == f"{summarize(small_run.state, now_s).ettr_frac:.1%}"
    assert head_of(book, now_s).figures == head_of(book, now_s + 59.0).figures


def test_a_run_of_which_nothing_is_known_has_a_head(small_run: SyntheticRun) -> None:
    book = Book()
    assert head_of(book, 0.0).status == "reading"
    book.take(Update(RunState()))
    head = head_of(book, 0.0)
    assert (head.run, head.status) == ("(nothing submitted yet)", "new")
