"""Metrics, heartbeat and messages beside a controller: none of them can take it down."""

from __future__ import annotations

import logging
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.state import RunState
from midwatch.operator import heartbeat as heartbeat_module
from midwatch.operator.exporter import CONNECTIONS_MAX, Exporter
from midwatch.operator.heartbeat import Heartbeat
from midwatch.operator.lookouts import Lookouts
from midwatch.operator.secret_value import read_secret, require_secrets
from midwatch.operator.spec import RunSpec
from midwatch.operator.spec_api import ApiSpec
from midwatch.operator.spec_outward import NotifySpec, SecretName
from midwatch.tests.sim.night import Night
from midwatch.tests.support.builders import make_spec
from midwatch.tests.support.live_run import wait_until
from midwatch.tests.support.web_hook import WebHook
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

ENV = "MIDWATCH_TEST_HEARTBEAT"


@pytest.fixture(scope="module")
def state() -> RunState:
    return Night().run_to_step(30)


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        body: bytes = answer.read()
        return body.decode()


def beating(**fields: object) -> NotifySpec:
    return NotifySpec.model_validate(
        {"heartbeat": {"env": ENV}, "heartbeat_every_s": 0.05, "timeout_s": 1.0, **fields}
    )


def test_metrics_are_served_as_the_state_goes_on_and_end_with_the_run(state: RunState) -> None:
    now = [state]
    exporter = Exporter("127.0.0.1", 0, lambda: now[0])
    assert "midwatch_step" in scrape(exporter.port)
    now[0] = RunState()
    assert "midwatch_" not in scrape(exporter.port)
    exporter.close()
    with pytest.raises(urllib.error.URLError):
        scrape(exporter.port)


def test_connections_that_say_nothing_are_bounded_and_cut(state: RunState) -> None:
    exporter = Exporter("127.0.0.1", 0, lambda: state, connection_s=3.0)
    address = ("127.0.0.1", exporter.port)
    silent = [socket.create_connection(address) for _ in range(CONNECTIONS_MAX)]
    # One that sends a byte now and then is no better.
    for each in silent:
        each.sendall(b"GET /met")
    with socket.create_connection(address, timeout=10) as one_too_many:
        answer = one_too_many.recv(1 << 10)
    assert answer.startswith(b"HTTP/1.1 503 ")
    # All of them are cut when their time is over, and whoever asks properly is answered again.
    for each in silent:
        each.settimeout(20.0)
        assert b"200 OK" not in each.recv(1 << 10)
        each.close()

    def answers() -> bool:
        try:
            return "midwatch_step" in scrape(exporter.port)
        except urllib.error.HTTPError as busy:
            busy.close()
            return False

    wait_until(answers, "nobody was answered any more")
    exporter.close()


def test_a_port_that_is_taken_is_said_so_and_the_run_goes_on(
    state: RunState, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Exporter("127.0.0.1", 0, lambda: state)
    with pytest.raises(ConfigError) as refused:
        Exporter("127.0.0.1", first.port, lambda: state)
    assert refused.value.code == "metrics-port-taken"
    spec = make_spec(observe={"metrics_port": first.port})
    lookouts = Lookouts(spec, tmp_path, lambda: state, lambda: True)
    assert "metrics-port-taken" in caplog.text
    lookouts.close(0.0)
    first.close()


def test_the_heart_beats_while_the_controller_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turning = [True]
    with WebHook() as hook:
        monkeypatch.setenv(ENV, hook.url)
        heart = Heartbeat(beating(), lambda: turning[0])
        wait_until(lambda: hook.requests_total >= 3, "no heartbeat came")
        turning[0] = False
        quiet = [0]

        def is_quiet() -> bool:
            # Two looks in a row without a beat between them, each longer than the interval.
            before, quiet[0] = quiet[0], hook.requests_total
            heart._closing.wait(0.5)
            return before == hook.requests_total

        wait_until(is_quiet, "a controller that is stuck still gave signs of life")
        turning[0] = True
        count = hook.requests_total
        wait_until(lambda: hook.requests_total > count, "the heart never beat again")
        heart.close()


def test_a_missed_beat_is_made_up_for_at_once_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat_module, "FIRST_RETRY_S", 0.01)
    with caplog.at_level(logging.DEBUG), WebHook(500, 500, 500) as hook:
        monkeypatch.setenv(ENV, hook.url)
        heart = Heartbeat(beating(heartbeat_every_s=3600.0), lambda: True)
        wait_until(lambda: len(hook.bodies) == 1, "a failed beat was not tried again")
        heart.close()
    assert caplog.text.count("no heartbeat") == 1
    assert "sEcReT" not in caplog.text


def test_everything_the_spec_asks_for_is_there_and_goes(
    state: RunState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WebHook() as hook:
        monkeypatch.setenv(ENV, hook.url)
        notify = {"heartbeat": {"env": ENV}, "webhook": {"env": ENV}, "heartbeat_every_s": 0.05}
        spec: RunSpec = make_spec(observe={"metrics_port": 0}, notify=notify)
        lookouts = Lookouts(spec, tmp_path, lambda: state, lambda: True)
        wait_until(lambda: hook.requests_total >= 1, "no heartbeat came")
        assert lookouts.exporter is not None
        families = {f.name for f in text_string_to_metric_families(scrape(lookouts.exporter.port))}
        assert "midwatch_step" in families
        lookouts.close(30.0)
    quiet = Lookouts(make_spec(), tmp_path, lambda: state, lambda: True)
    assert quiet.exporter is None
    quiet.close(0.0)


def test_a_secret_is_read_by_name_and_its_absence_names_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    path.write_text("  https://x/y\n")
    assert read_secret(SecretName(file=str(path))) == "https://x/y"
    monkeypatch.setenv(ENV, "z")
    assert read_secret(SecretName(env=ENV)) == "z"
    for bad in (b"", b"a" * 9000, "ü".encode(), b"a\x00b", b"a\nb"):
        path.write_bytes(bad)
        with pytest.raises(ConfigError) as refused:
            read_secret(SecretName(file=str(path)))
        assert refused.value.code in ("secret-missing", "secret-invalid")
        assert str(path) in str(refused.value)
    monkeypatch.delenv(ENV)
    with pytest.raises(ConfigError, match=ENV):
        read_secret(SecretName(env=ENV))
    with pytest.raises(ConfigError, match="nowhere"):
        read_secret(SecretName(file=str(tmp_path / "nowhere")))


def test_a_run_here_is_not_begun_with_a_secret_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("x")
    spec = beating(webhook={"env": "NOBODY_SET_THIS"}, webhook_token={"file": "/nowhere"})
    monkeypatch.setenv(ENV, "https://example.invalid/")
    with pytest.raises(ConfigError, match="NOBODY_SET_THIS"):
        require_secrets(spec, ApiSpec())
    monkeypatch.setenv("NOBODY_SET_THIS", "https://example.invalid/")
    require_secrets(beating(webhook_token={"file": str(tmp_path / "token")}), ApiSpec())
    tokens = {"viewer": {"env": ENV}, "operator": {"env": "NOBODY_SET_THIS_TOKEN"}}
    require_secrets(NotifySpec(), ApiSpec.model_validate({"tokens": tokens}))
    with pytest.raises(ConfigError, match="NOBODY_SET_THIS_TOKEN"):
        require_secrets(NotifySpec(), ApiSpec.model_validate({"enabled": True, "tokens": tokens}))


@pytest.mark.parametrize(
    "fields",
    [
        {"webhook": {}},
        {"webhook": {"env": "A", "file": "/b"}},
        {"webhook": {"file": "relative"}},
        {"webhook": {"env": "https://hooks.example/T0"}},
        {"webhook": "https://hooks.example/T0"},
        {"topics": ["everything"]},
    ],
)
def test_a_spec_holds_names_and_never_the_secret_itself(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NotifySpec.model_validate(fields)
