"""What was measured on held-out text, from the event to everything that people read."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.chapter import chapter_of
from midwatch.logbook.chronicle import Chronicle, read_chronicle
from midwatch.logbook.document import to_html, to_markdown
from midwatch.logbook.ledger import Cause
from midwatch.logbook.live_view import doing_text
from midwatch.logbook.metrics import exposition
from midwatch.logbook.notes import render_note
from midwatch.logbook.phrases import phrase_of
from midwatch.logbook.reader import read
from midwatch.logbook.report import render_report
from midwatch.logbook.state import RECENT_VALIDATIONS, RunState
from midwatch.logbook.summary import summarize
from midwatch.tests.support.builders import START_S, decided, fold, make_sample, started
from midwatch.tests.support.synthetic_run import SyntheticRun
from msgspec.structs import replace


def measured(step: int, loss: float = 3.0, attempt: int = 1, ended_s: float = 0.0) -> ev.Event:
    return ev.ValidationDone(attempt, step, loss, 64, 2048, ended_s, 20.0)


def trained(last: int, state: RunState | None = None) -> RunState:
    state = state or fold([ev.AttemptResumed(1, 0, "", 1.0)], started())
    steps = range(state.step + 1, last + 1)
    return fold([ev.StepDone(1, make_sample(step)) for step in steps], state)


def steps_of(state: RunState) -> list[int]:
    return [known.step for known in state.validations]


def test_a_measurement_is_known_once_and_of_this_attempt_alone() -> None:
    state = trained(10)
    assert (state.validation, state.validated_step) == (None, 0)
    for stray in (measured(11), measured(10, attempt=2), measured(0)):
        assert fold([stray], state).validations == ()
    state = fold([measured(10), measured(10, 9.0), measured(5)], state)
    assert steps_of(state) == [10]
    assert state.validation is not None
    assert state.validation.perplexity == pytest.approx(math.exp(3.0))
    # Nothing of the training changes with it.
    assert state.step_median == trained(10).step_median
    assert state.last == trained(10).last


def test_what_a_restart_goes_back_past_is_measured_anew() -> None:
    state = fold([measured(step) for step in (10, 20, 30)], trained(30))
    assert state.attempt is not None
    plan = replace(state.attempt.plan, attempt=2, validated_step=state.validated_step)
    again = d.StartAttempt(plan)
    state = fold([decided(state, again)], state)
    assert state.attempt is not None
    assert state.attempt.plan.validated_step == 30
    state = fold([ev.AttemptResumed(2, 25, "step-00000025.a0001", 1.0)], state)
    assert steps_of(state) == [10, 20]
    assert fold([measured(25, attempt=2)], state).validated_step == 25


def test_only_the_last_are_kept_in_the_state() -> None:
    count = RECENT_VALIDATIONS + 5
    state = trained(count)
    state = fold([measured(step) for step in range(1, count + 1)], state)
    assert steps_of(state) == list(range(6, count + 1))


def test_rounds_are_heard_and_told_while_they_last() -> None:
    state = trained(10)
    assert state.attempt is not None
    before_s = state.attempt.heard_s
    state = fold([ev.ValidationUnderWay(1, 10, 12, 40)], state, every_s=500.0)
    assert state.attempt is not None
    assert state.attempt.heard_s == before_s + 500.0
    assert doing_text(state).startswith("measuring step 10 on held-out text (12 of 40 rounds)")
    assert fold([ev.ValidationUnderWay(2, 10, 1, 40)], state).validating == state.validating
    assert "measuring" not in doing_text(fold([measured(10)], state))
    assert "measuring" not in doing_text(trained(11, state))


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e6])
def test_a_diverged_run_has_no_number_and_breaks_nothing(loss: float) -> None:
    state = fold([measured(10, loss)], trained(10))
    assert not math.isfinite(summarize(state, START_S + 100).validation_perplexity or 0.0)
    assert 'midwatch_validation_perplexity{run="night"}' in exposition(state, START_S + 100)
    assert phrase_of(measured(10, loss)) is not None


# --- a whole run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyntheticRun]:
    """Measured every 50 steps, for 100 seconds each; a worker dies in the fifth measurement."""
    run = SyntheticRun(tmp_path_factory.mktemp("run"), nodes=4, spares=1, slots=2)
    run.start("the first attempt")
    for step in (40, 90, 140, 190):
        run.train(step)
        run.measure(100.0)
    run.train(240)
    run.measure(60.0, is_cut=True)
    run.crash(rank=3)
    run.start("the spare takes over", step=200, incident="inc-0001")
    run.train(290)
    run.measure(100.0)
    yield run
    run.close()


@pytest.fixture(scope="module")
def chronicle(run: SyntheticRun) -> Chronicle:
    return read_chronicle(read(run.folder / "journal", ev.Event))


def test_the_ledger_has_its_time_under_its_own_name(
    run: SyntheticRun, chronicle: Chronicle
) -> None:
    totals = chronicle.ledger.totals(run.now_s)
    # Five whole ones and what was told of the one cut short, on eight ranks.
    assert totals[Cause.VALIDATION] == pytest.approx(8 * (5 * 100.0 + 60.0))
    assert sum(totals.values()) == pytest.approx(10 * (run.now_s - START_S))
    # What came after the last round that was told of is the time until the death was seen.
    assert totals[Cause.DETECT] == pytest.approx(8 * 0.0)


def test_productive_time_is_not_touched(run: SyntheticRun) -> None:
    summary = summarize(run.state, run.now_s)
    assert summary.productive_s == pytest.approx(290 * 40.0)
    assert (summary.validation_step, summary.validation_loss) == (290, run.measured_loss(290))


def test_the_report_shows_it_beside_the_loss(run: SyntheticRun, chronicle: Chronicle) -> None:
    assert [each.step for each in chronicle.validation] == [40, 90, 140, 190, 290]
    title, blocks = render_report(chronicle, run.now_s)
    html, markdown = to_html(title, blocks), to_markdown(title, blocks, "figures")
    assert "Training loss and validation perplexity" in html
    best = math.exp(run.measured_loss(290))
    assert f"lowest {best:.4g} at step 290" in html
    assert "measured at 5 steps" in markdown
    assert "| validation |" in markdown


def test_a_note_tells_what_was_measured_before_and_after(run: SyntheticRun) -> None:
    incident = run.state.incidents["inc-0001"]
    chapter = chapter_of(read(run.folder / "journal", ev.Event), incident)
    before, after = math.exp(run.measured_loss(190)), math.exp(run.measured_loss(290))
    row = f"| perplexity on held-out text | {before:.4g} (step 190) | {after:.4g} (step 290) |"
    assert row in render_note(run.state, incident, chapter)


def test_metrics_and_the_journal_name_it(run: SyntheticRun) -> None:
    text = exposition(run.state, run.now_s)
    assert 'midwatch_validation_step{run="opt-175b"} 290.0' in text
    assert 'midwatch_validation_seconds{run="opt-175b"} 100.0' in text
    said = phrase_of(run.state.validations[-1])
    assert said == (
        f"step 290 on held-out text: perplexity {math.exp(run.measured_loss(290)):.4g} "
        f"(loss {run.measured_loss(290):.4f}) over 64 sequences, in 1 min 40 s"
    )
