"""A request is over in time, whatever the server does, and no error tells its URL."""

from __future__ import annotations

import socket
import time

import pytest
from midwatch.logbook.errors import ConfigError, Fatal, MidwatchError, Retryable
from midwatch.operator.web_call import call
from midwatch.tests.support.web_hook import WebHook

SECRET = "sEcReT"


def failure(url: str, timeout_s: float = 5.0) -> MidwatchError:
    with pytest.raises(MidwatchError) as caught:
        call(url, b"{}", {}, timeout_s)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value


def test_a_body_is_posted_with_its_headers_and_none_is_a_question() -> None:
    with WebHook() as hook:
        call(hook.url, b'{"text": "hello"}', {"Authorization": "Bearer x"}, 5.0)
        call(hook.url, None, {}, 5.0)
    assert hook.texts[:1] == ["hello"]
    assert hook.headers[0]["Authorization"] == "Bearer x"
    assert hook.requests_total == 2


@pytest.mark.parametrize("status", [500, 503, 429, 408, 401, 403, 404, 302, 307])
def test_what_may_pass_or_be_mended_may_be_tried_again(status: int) -> None:
    with WebHook(status) as hook:
        error = failure(hook.url)
        assert isinstance(error, Retryable)
        assert error.code == "web-unwilling"
        assert hook.requests_total == 1, "a redirect was followed"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_message_that_is_at_fault_itself_is_refused(status: int) -> None:
    with WebHook(status) as hook:
        assert isinstance(failure(hook.url), Fatal)


@pytest.mark.parametrize("manners", ["silent", "dripping"])
def test_a_server_that_never_ends_holds_nobody(manners: str) -> None:
    with WebHook() as hook:
        hook.answers.append(getattr(hook, manners))
        began_s = time.monotonic()
        error = failure(hook.url, timeout_s=0.3)
        assert error.code == "web-timeout"
        # It answers in less than the minute for which such a server would go on.
        assert time.monotonic() - began_s < 30.0


def test_a_server_that_hangs_up_and_one_that_is_not_there() -> None:
    with WebHook() as hook:
        hook.answers.append(hook.cut)
        assert failure(hook.url).code == "web-unreachable"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/{SECRET}"
        assert failure(url).code == "web-unreachable"


@pytest.mark.parametrize(
    "url",
    [
        f"file:///etc/{SECRET}",
        SECRET,
        f"http:/{SECRET}",
        f"ftp://h/{SECRET}",
        f"http://[{SECRET}/",
    ],
)
def test_what_is_no_url_is_refused_without_being_repeated(url: str) -> None:
    assert isinstance(failure(url), ConfigError)


@pytest.mark.parametrize("url", [f"http://h:{SECRET}/", f"http://127.0.0.1:1/{SECRET} x"])
def test_what_only_looks_like_a_url_fails_without_being_repeated(url: str) -> None:
    failure(url)
