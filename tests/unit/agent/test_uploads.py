"""An agent and its uploader: a real process that is killed, asked, and ends with its agent."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from midwatch.checkpoints.objects import open_store, prepare_store
from midwatch.checkpoints.remote import RunObjects
from midwatch.checkpoints.retrying import Backoff
from midwatch.checkpoints.store import LocalStore
from midwatch.logbook.errors import Retryable
from midwatch.logbook.tiers import Storage
from midwatch.operator.agent.reports import CheckpointStored, PartHeld, UploadTrouble
from midwatch.operator.agent.upload_wire import (
    CheckPart,
    CheckStored,
    Delete,
    Forget,
    Sweep,
    UploadConfig,
)
from midwatch.operator.agent.uploads import Uploads

from tests.support.agents import Recorder, is_running, site, wait_until
from tests.support.parts import save_parts
from tests.support.s3_servers import free_ports

ANSWER_S = 60.0
BABBLE = """
import os, sys
if os.path.exists({flag!r}):
    os.unlink({flag!r})
    print("loading libraries, this may take a while", flush=True)
"""


class Hold:
    """Uploads of one node over a shared folder."""

    def __init__(
        self, folder: Path, is_there: bool = True, env: dict[str, str] | None = None
    ) -> None:
        self.root = folder / "node"
        self.storage = Storage(
            url=str(folder / "store"), local_root=str(self.root), run_id="id", retry_max_s=0.1
        )
        self.remote = RunObjects(open_store(self.storage), "r", "id")
        if is_there:
            prepare_store(self.storage.url)
        self.heard = Recorder()
        config = UploadConfig(run="r", storage=self.storage, env=env or {})
        self.uploads = Uploads(
            config, folder / "uploader.log", lambda report: self.heard([report]), lambda: 7
        )

    def pid(self) -> int:
        wait_until(lambda: self.uploads._child is not None, "the uploader is there")
        child = self.uploads._child
        assert child is not None
        return child.pid


@contextmanager
def holding(
    folder: Path, is_there: bool = True, env: dict[str, str] | None = None
) -> Iterator[Hold]:
    hold = Hold(folder, is_there, env)
    hold.uploads.begin()
    try:
        yield hold
    finally:
        hold.uploads.close()


def test_what_lies_here_is_told_and_uploaded(tmp_path: Path) -> None:
    with holding(tmp_path) as hold:
        # Its loss is NaN, which must not be lost on the way.
        manifest, files = save_parts([hold.root], 5)
        held = hold.heard.wait(PartHeld)
        assert held.commit.checkpoint == manifest.id
        assert set(held.held) == set(files)
        assert held.num_files == len(files)
        assert held.attempt == 7
        assert held.commit.tags is not None
        assert held.commit.tags.loss != held.commit.tags.loss
        stored = hold.heard.wait(CheckpointStored)
        assert (stored.checkpoint, stored.bytes) == (manifest.id, manifest.total_bytes)
        assert hold.remote.committed() == (manifest.id,)
        assert [part.commit.checkpoint for part in hold.uploads.parts()] == [manifest.id]


def test_errands(tmp_path: Path) -> None:
    with holding(tmp_path) as hold:
        manifest, files = save_parts([hold.root], 5)
        hold.heard.wait(CheckpointStored)
        names = tuple(sorted(files))
        ask = hold.uploads.ask
        assert tuple(sorted(ask(CheckPart(manifest.id), ANSWER_S).sound)) == names
        assert tuple(sorted(ask(CheckStored(manifest.id, names), ANSWER_S).sound)) == names
        assert "manifest-missing" in ask(CheckPart("step-00000099.a0001"), ANSWER_S).error
        assert ask(Forget((manifest.id,)), ANSWER_S).error == ""
        assert LocalStore(hold.root).listing().ids == ()
        assert ask(Delete((manifest.id,)), ANSWER_S).error == ""
        assert hold.remote.committed() == ()
        assert ask(Sweep(3), ANSWER_S).error == ""


def test_a_killed_uploader_is_replaced(tmp_path: Path) -> None:
    with holding(tmp_path) as hold:
        first = hold.pid()
        os.kill(first, signal.SIGKILL)
        manifest, _ = save_parts([hold.root], 5)
        stored = hold.heard.wait(CheckpointStored)
        assert stored.checkpoint == manifest.id
        second = hold.pid()
        assert second != first
    assert not is_running(second)
    with pytest.raises(Retryable) as caught:
        hold.uploads.ask(Sweep(1), 0.0)
    assert caught.value.code == "uploader-away"


def test_an_uploader_that_is_started_as_its_agent_closes_ends(tmp_path: Path) -> None:
    hold = Hold(tmp_path)
    hold.uploads.close()
    # Its thread may have looked just before that whether it is closed.
    hold.uploads._live_once(Backoff(1.0, 1.0))
    assert hold.uploads._child is None


def test_an_uploader_that_cannot_be_started_is_told_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "uploader.log").mkdir()
    with holding(tmp_path) as hold:
        trouble = hold.heard.wait(UploadTrouble)
        assert trouble.code == "uploader-lost"
        assert "IsADirectoryError" in trouble.message
        assert (trouble.attempt, trouble.since_s > 0) == (7, True)
        (tmp_path / "uploader.log").rmdir()
        manifest, _ = save_parts([hold.root], 5)
        assert hold.heard.wait(CheckpointStored).checkpoint == manifest.id


def test_an_uploader_that_cannot_be_understood_is_replaced(tmp_path: Path) -> None:
    """Something prints to its standard output as it starts, once."""
    (tmp_path / "flag").touch()
    (tmp_path / "sitecustomize.py").write_text(BABBLE.format(flag=str(tmp_path / "flag")))
    with holding(tmp_path, env={"PYTHONPATH": str(tmp_path)}) as hold:
        trouble = hold.heard.wait(UploadTrouble)
        assert trouble.code == "uploader-lost"
        assert "frame of" in trouble.message
        save_parts([hold.root], 5)
        hold.heard.wait(CheckpointStored)


def test_a_store_that_is_not_there_is_told_before_anything_is_saved(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with holding(tmp_path, is_there=False) as hold:
        trouble = hold.heard.wait(UploadTrouble)
        assert trouble.code == "store-unreachable"
        assert trouble.since_s > 0
        save_parts([hold.root], 5)
        os.unlink(tmp_path / "store")
        prepare_store(hold.storage.url)
        hold.heard.wait(CheckpointStored)


def test_an_error_that_nobody_foresaw_does_not_end_the_uploads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    helper, chain = tmp_path / "credentials.sh", tmp_path / "config"
    helper.write_text("#!/bin/sh\necho Service temporarily unavailable\n")
    helper.chmod(0o755)
    chain.write_text(f"[default]\ncredential_process = {helper}\n")
    config = UploadConfig(
        run="r",
        storage=Storage(
            url="s3://bucket/prefix",
            local_root=str(tmp_path / "node"),
            endpoint_url=f"http://127.0.0.1:{free_ports(1)[0]}",
            retry_max_s=0.1,
        ),
        env={"AWS_CONFIG_FILE": str(chain), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")},
    )
    heard = Recorder()
    log = tmp_path / "uploader.log"
    uploads = Uploads(config, log, lambda report: heard([report]), lambda: 7)
    uploads.begin()
    try:
        heard.wait(UploadTrouble, lambda trouble: trouble.code == "upload-failed")
        assert "uploader-failed" in uploads.ask(Sweep(1), ANSWER_S).error
        helper.write_text(
            '#!/bin/sh\necho \'{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b"}\'\n'
        )
        heard.wait(UploadTrouble, lambda trouble: trouble.code == "store-unreachable")
    finally:
        uploads.close()
    assert "JSONDecodeError" in log.read_text()


def test_a_supervisor_uploads_beside_its_workers(tmp_path: Path) -> None:
    storage = Storage(url=str(tmp_path / "s"), local_root=str(tmp_path / "node"), run_id="id")
    prepare_store(storage.url)
    with site(tmp_path, upload=UploadConfig(run="r", storage=storage)) as running:
        manifest, _ = save_parts([tmp_path / "node"], 5)
        stored = running.recorder.wait(CheckpointStored)
        assert stored.checkpoint == manifest.id
        assert stored.node == "node-a"
        assert stored.seq > 0
