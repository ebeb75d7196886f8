"""What people ask for lies safe on the desk, whatever the file system does meanwhile."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from midwatch.logbook import events as ev
from midwatch.operator.desk import FileDesk, post_request

STOP = ev.InterventionRequested("stop-1", "stop", "ann", "the loss is wrong")


@pytest.fixture
def desk(tmp_path: Path) -> FileDesk:
    return FileDesk(tmp_path)


@pytest.fixture
def private_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_what_cannot_be_read_just_now_is_read_later_and_said_once(
    desk: FileDesk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    post_request(tmp_path, STOP, time_s=1.0)
    (path,) = (tmp_path / "requests").iterdir()
    aside = path.rename(tmp_path / "aside")
    # A link to itself is there, and every look at it fails.
    path.symlink_to(path)
    for _ in range(3):
        assert desk.requests() == []
        desk.settled()
    (said,) = caplog.messages
    assert path.name in said
    aside.replace(path)
    assert desk.requests() == [STOP]
    desk.settled()
    assert list((tmp_path / "requests").iterdir()) == []


def test_what_is_no_request_is_put_aside(desk: FileDesk, tmp_path: Path) -> None:
    (tmp_path / "requests" / "1.json").write_text('{"type": "stop')
    assert desk.requests() == []
    assert [path.name for path in (tmp_path / "requests").iterdir()] == ["1.refused"]


@pytest.mark.usefixtures("private_umask")
def test_another_user_may_read_what_was_asked_for(desk: FileDesk, tmp_path: Path) -> None:
    post_request(tmp_path, STOP, time_s=1.0)
    (path,) = (tmp_path / "requests").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert desk.requests() == [STOP]
