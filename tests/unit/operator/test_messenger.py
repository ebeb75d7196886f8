"""People are told at least once by a real webhook, whatever it does; secrets stay secret."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from midwatch.logbook.state import RunState
from midwatch.operator import messenger as messenger_module
from midwatch.operator.messenger import TOLD_FILE, Messenger
from midwatch.operator.spec_outward import NotifySpec
from midwatch.tests.sim.night import Night
from midwatch.tests.support.builders import make_spec
from midwatch.tests.support.live_run import wait_until
from midwatch.tests.support.web_hook import WebHook

ENV = "MIDWATCH_TEST_WEBHOOK"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebHook]:
    monkeypatch.setattr(messenger_module, "LOOK_S", 0.01)
    monkeypatch.setattr(messenger_module, "FIRST_DELAY_S", 0.01)
    with WebHook() as hook:
        monkeypatch.setenv(ENV, hook.url)
        yield hook


def notify(**fields: object) -> NotifySpec:
    return NotifySpec.model_validate(
        {"webhook": {"env": ENV}, "timeout_s": 5.0, "retry_max_s": 0.05, **fields}
    )


class Run:
    """A night whose state a messenger reads from another thread."""

    def __init__(self) -> None:
        self.night = Night()
        self.night.run_to_step(43)
        self.state = self.night.state

    def hurt(self) -> None:
        self.night.world.kill_worker(1)
        self.state = self.night.run(lambda s: len(s.open_incidents) > 0)

    def heal(self) -> None:
        self.state = self.night.run(lambda s: not s.open_incidents)

    def end(self) -> None:
        self.state = self.night.run_to_end()

    def __call__(self) -> RunState:
        return self.state


def test_what_happens_is_told_once_and_in_order(hook: WebHook, tmp_path: Path) -> None:
    run = Run()
    messenger = Messenger(notify(), tmp_path, run)
    run.hurt()
    wait_until(lambda: len(hook.bodies) == 1, "nobody was told of the incident")
    run.heal()
    wait_until(lambda: len(hook.bodies) == 2, "nobody was told that it is over")
    run.end()
    assert messenger.close(30.0)
    assert ["inc-0001" in text for text in hook.texts] == [True, True, False]
    assert "closed: recovered" in hook.texts[1]
    assert "is completed at step 120" in hook.texts[2]


def test_a_failing_server_is_tried_until_it_takes_the_message(
    hook: WebHook, tmp_path: Path
) -> None:
    hook.answers += [500, 503, 429, 404, hook.cut, hook.silent]
    run = Run()
    messenger = Messenger(notify(timeout_s=1.5), tmp_path, run)
    run.hurt()
    wait_until(lambda: len(hook.bodies) == 1, "the message was lost")
    assert hook.requests_total == 7
    assert messenger.close(30.0)
    assert len(hook.bodies) == 1


def test_a_new_controller_tells_nothing_twice_and_misses_nothing(
    hook: WebHook, tmp_path: Path
) -> None:
    run = Run()
    first = Messenger(notify(), tmp_path, run)
    run.hurt()
    wait_until(lambda: len(hook.bodies) == 1, "nobody was told of the incident")
    # What was told is known to be so once the server's answer is in.
    told = tmp_path / TOLD_FILE
    wait_until(lambda: "inc-0001/opened" in told.read_text(), "it is not remembered")
    first.close(0.0)
    run.heal()
    second = Messenger(notify(), tmp_path, run)
    wait_until(lambda: len(hook.bodies) == 2, "nobody was told that it is over")
    assert second.close(30.0)
    assert sum("start attempt 2" in text for text in hook.texts) == 1


def test_what_was_over_before_anybody_was_to_be_told_is_no_news(
    hook: WebHook, tmp_path: Path
) -> None:
    run = Run()
    run.hurt()
    run.heal()
    messenger = Messenger(notify(), tmp_path, run)
    run.end()
    assert messenger.close(30.0)
    assert [("inc-0001" in text) for text in hook.texts] == [False]


def test_only_the_topics_asked_for_are_told(hook: WebHook, tmp_path: Path) -> None:
    run = Run()
    messenger = Messenger(notify(topics=["recovered"]), tmp_path, run)
    run.hurt()
    run.end()
    assert messenger.close(30.0)
    assert len(hook.texts) == 1
    assert "training again after" in hook.texts[0]


def test_a_message_the_server_calls_bad_is_given_up_and_the_next_goes_out(
    hook: WebHook, tmp_path: Path
) -> None:
    hook.answers += [400] * messenger_module.REFUSALS_MAX
    run = Run()
    messenger = Messenger(notify(), tmp_path, run)
    run.hurt()
    told = tmp_path / TOLD_FILE
    wait_until(lambda: "inc-0001/opened" in told.read_text(), "the bad message blocks the rest")
    run.heal()
    wait_until(lambda: len(hook.bodies) == 1, "the next message never went out")
    assert "closed" in hook.texts[0]
    assert messenger.close(30.0)


def test_a_flood_is_cut_to_its_newest(
    hook: WebHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messenger_module, "WAITING_MAX", 2)
    run = Run()
    told = Messenger(notify(topics=["opened", "recovered", "closed", "ended"]), tmp_path, run)
    hook.answers += [hook.silent]
    run.hurt()
    run.end()
    told.close(0.0)
    hook.free.set()
    again = Messenger(notify(topics=["opened", "recovered", "closed", "ended"]), tmp_path, run)
    assert again.close(30.0)
    assert any("earlier messages are left out" in text for text in hook.texts)
    assert "is completed" in hook.texts[-1]


def test_a_state_that_cannot_be_told_of_ends_no_thread(
    hook: WebHook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run()
    messenger = Messenger(notify(), tmp_path, run)
    run.hurt()
    sound, run.state = run.state, None  # type: ignore[assignment]
    wait_until(lambda: "could not be made" in caplog.text, "nobody complained")
    run.state = sound
    wait_until(lambda: len(hook.bodies) == 1, "nobody was told any more")
    assert messenger.close(30.0)


def test_a_server_that_is_stuck_holds_up_no_tick_and_no_end(hook: WebHook, tmp_path: Path) -> None:
    hook.answers += [hook.silent] * 50
    run = Run()
    messenger = Messenger(notify(timeout_s=60.0), tmp_path, run)
    run.hurt()
    wait_until(lambda: hook.requests_total == 1, "no message was tried")
    run.end()
    assert run.state.status == "completed"
    assert not messenger.close(0.1)
    names = {thread.name for thread in threading.enumerate() if not thread.daemon}
    assert "messenger" not in names, "the process could not end"


def test_secrets_are_in_no_log_no_file_and_no_spec(
    hook: WebHook, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    token = tmp_path / "token"
    token.write_text("t0ken-Val\n")
    spec = notify(webhook_token={"file": str(token)})
    hook.answers += [500, 404, hook.cut]
    folder = tmp_path / "run"
    folder.mkdir()
    run = Run()
    with caplog.at_level(logging.DEBUG):
        messenger = Messenger(spec, folder, run)
        run.hurt()
        wait_until(lambda: len(hook.bodies) == 1, "the message was lost")
        monkeypatch.setenv(ENV, "not a url with sEcReT")
        run.heal()
        wait_until(lambda: "url-invalid" in caplog.text, "a bad URL was not complained of")
        monkeypatch.delenv(ENV)
        wait_until(lambda: "secret-missing" in caplog.text, "a missing secret went unsaid")
        monkeypatch.setenv(ENV, hook.url)
        assert messenger.close(30.0)
    assert hook.headers[0]["Authorization"] == "Bearer t0ken-Val"
    written = "".join(path.read_text() for path in folder.iterdir())
    for text in (caplog.text, written, spec.model_dump_json()):
        assert "sEcReT" not in text
        assert "t0ken-Val" not in text
    whole = make_spec(notify=spec.model_dump())
    assert "sEcReT" not in whole.model_dump_json()
