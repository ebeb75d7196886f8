"""The Checkpoints port over parts on nodes and a store: real errands, agents that pass them on."""

from __future__ import annotations

import os
import queue
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import pytest
from midwatch.checkpoints.manifest import (
    MANIFEST_NAME,
    Manifest,
    checkpoint_dir,
    checkpoint_id,
)
from midwatch.checkpoints.objects import open_store, prepare_store
from midwatch.checkpoints.remote import RunObjects
from midwatch.checkpoints.store import LocalStore
from midwatch.checkpoints.uploading import Uploader
from midwatch.logbook.errors import MidwatchError
from midwatch.logbook.events import CheckpointCommitted
from midwatch.logbook.state import RunState
from midwatch.logbook.tiers import Storage
from midwatch.operator.agent.reports import PartHeld
from midwatch.operator.agent.upload_wire import Answer, CheckPart, Errand, UploadConfig
from midwatch.operator.agent.uploader import Site
from midwatch.operator.ports import CommitFound, PruneResult, Signal, VerifyResult
from midwatch.operator.runtime import ray_checkpoints
from midwatch.operator.runtime.ray_checkpoints import FolderCheckpoints, TieredCheckpoints
from midwatch.tests.support.builders import fold, started
from msgspec.structs import replace

from tests.support.parts import save_parts
from tests.unit.checkpoints.test_uploading import Heard

NODES = ("n0", "n1")
DEADLINE_S = 30.0


class Agent:
    """A node's agent: runs errands at once, in the calling thread, or is dead.

    ails: what it answers instead of reading its part back.
    """

    def __init__(self, folder: Path, node: str) -> None:
        storage = Storage(url=str(folder / "store"), local_root=str(folder / node), run_id="id")
        self.site = Site(UploadConfig(run="r", storage=storage))
        self.is_dead = False
        self.ails = ""
        self.parts_held: tuple[PartHeld, ...] = ()
        self.run_errand = _Method(self._run)
        self.parts = _Method(lambda: msgspec.msgpack.encode(self.parts_held))

    def _run(self, payload: bytes) -> bytes:
        if self.is_dead:
            raise ConnectionError("the actor died")
        errand = msgspec.msgpack.decode(payload, type=Errand)
        if self.ails and isinstance(errand, CheckPart):
            return msgspec.msgpack.encode(Answer(error=self.ails))
        try:
            return msgspec.msgpack.encode(self.site._run(errand))
        except (MidwatchError, OSError) as error:
            return msgspec.msgpack.encode(Answer(error=str(error)))


class _Method:
    def __init__(self, call: Any) -> None:
        self._call = call

    def remote(self, *args: Any) -> _Method:
        self._result: Future[Any] = Future()
        try:
            self._result.set_result(self._call(*args))
        except ConnectionError as error:
            self._result.set_exception(error)
        return self

    def future(self) -> Future[Any]:
        return self._result


class Fleet:
    """Two nodes with a checkpoint each has a part of, and the port over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        prepare_store(str(folder / "store"))
        self.agents = {node: Agent(folder, node) for node in NODES}
        self.signals: list[Signal] = []
        self.heard = threading.Condition()
        self.port = TieredCheckpoints(lambda: list(self.agents.items()), self.emit)
        storage = Storage(url=str(folder / "store"), local_root="/unused", run_id="id")
        self.remote = RunObjects(open_store(storage), "r", "id")

    def emit(self, signal: Signal) -> None:
        with self.heard:
            self.signals.append(signal)
            self.heard.notify_all()

    def save(self, step: int, upload: bool) -> Manifest:
        roots = [self.folder / node for node in NODES]
        manifest, _ = save_parts(roots, step)
        if upload:
            for root in (*roots, *roots):
                Uploader(root, self.remote, Heard(), run_id="id").turn()
            assert manifest.id in self.remote.committed()
        return manifest

    def verify(self, manifest: Manifest) -> list[Signal]:
        self.signals.clear()
        self.port.verify(manifest.id)
        return list(self.signals)

    def break_shard(self, node: str, manifest: Manifest, name: str) -> None:
        path = checkpoint_dir(self.folder / node, manifest.id) / name
        data = bytearray(path.read_bytes())
        data[3] ^= 1
        path.write_bytes(data)

    def rot_in_store(self, manifest: Manifest, name: str) -> None:
        path = self.folder / "store" / "r" / manifest.id / name
        data = bytearray(path.read_bytes())
        data[3] ^= 1
        path.write_bytes(data)

    def part(self, node: str, manifest: Manifest, names: tuple[str, ...]) -> PartHeld:
        commit = CheckpointCommitted(
            attempt=1, checkpoint=manifest.id, step=5, bytes=1, blocked_s=0.0, save_s=0.0
        )
        return PartHeld(
            attempt=1, node=node, commit=commit, held=names, num_files=len(manifest.files)
        )


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.mark.parametrize("upload", [False, True])
def test_parts_that_are_sound_together(fleet: Fleet, upload: bool) -> None:
    manifest = fleet.save(5, upload)
    assert fleet.verify(manifest) == [VerifyResult(manifest.id, "")]


def test_a_rotten_part_with_no_other_copy(fleet: Fleet) -> None:
    manifest = fleet.save(5, upload=False)
    fleet.break_shard("n1", manifest, "__2_0.distcp")
    (result,) = fleet.verify(manifest)
    assert isinstance(result, VerifyResult)
    assert "__2_0.distcp" in result.error
    assert "shard-checksum" in result.error


def test_a_rotten_part_whose_copy_in_the_store_is_sound(fleet: Fleet) -> None:
    manifest = fleet.save(5, upload=True)
    fleet.break_shard("n1", manifest, "__2_0.distcp")
    assert fleet.verify(manifest) == [VerifyResult(manifest.id, "")]
    stored = fleet.folder / "store" / "r" / manifest.id / "__2_0.distcp"
    stored.write_bytes(stored.read_bytes()[:-1])
    (result,) = fleet.verify(manifest)
    assert isinstance(result, VerifyResult)
    assert result.error


def test_a_dead_agent_is_no_proof_against_a_checkpoint(fleet: Fleet) -> None:
    manifest = fleet.save(5, upload=True)
    fleet.agents["n1"].is_dead = True
    assert fleet.verify(manifest) == [VerifyResult(manifest.id, "")]
    fleet.agents["n0"].is_dead = True
    assert fleet.verify(manifest) == []


def test_a_silent_agent_may_have_what_the_store_has_not(fleet: Fleet) -> None:
    manifest = fleet.save(5, upload=False)
    fleet.agents["n1"].is_dead = True
    assert fleet.verify(manifest) == []
    fleet.agents["n1"].is_dead = False
    fleet.agents["n1"].ails = "[uploader-away] the uploader of this node has not answered."
    assert fleet.verify(manifest) == []
    fleet.agents["n1"].ails = ""
    assert fleet.verify(manifest) == [VerifyResult(manifest.id, "")]


def test_what_silent_agents_may_have_is_read_in_the_store(fleet: Fleet) -> None:
    manifest = fleet.save(5, upload=True)
    for agent in fleet.agents.values():
        agent.ails = "[uploader-away] the uploader of this node has not answered."
    assert fleet.verify(manifest) == [VerifyResult(manifest.id, "")]
    fleet.rot_in_store(manifest, "__2_0.distcp")
    assert fleet.verify(manifest) == [], "a node may have a sound copy"


def test_a_rotten_manifest_is_an_answer(fleet: Fleet) -> None:
    manifest = fleet.save(5, upload=False)
    fleet.break_shard("n1", manifest, MANIFEST_NAME)
    (result,) = fleet.verify(manifest)
    assert isinstance(result, VerifyResult)
    assert "object-missing" in result.error


def test_one_of_which_nothing_is_left_on_the_nodes(fleet: Fleet) -> None:
    manifest = fleet.save(5, upload=True)
    for node in NODES:
        LocalStore(fleet.folder / node).delete(manifest.id)
    assert fleet.verify(manifest) == [VerifyResult(manifest.id, "")]
    fleet.rot_in_store(manifest, "__2_0.distcp")
    (result,) = fleet.verify(manifest)
    assert isinstance(result, VerifyResult)
    assert "__2_0.distcp" in result.error
    assert "shard-checksum" in result.error
    fleet.remote.delete(manifest.id)
    (result,) = fleet.verify(manifest)
    assert isinstance(result, VerifyResult)
    assert "manifest-missing" in result.error


def test_a_pruned_checkpoint_is_gone_everywhere(fleet: Fleet) -> None:
    old, new = fleet.save(5, upload=True), fleet.save(10, upload=True)
    fleet.port.prune((old.id,))
    assert fleet.signals == [PruneResult((old.id,))]
    assert fleet.remote.committed() == (new.id,)
    for node in NODES:
        assert LocalStore(fleet.folder / node).listing().ids == (new.id,)


def test_pruning_goes_on_until_somebody_can(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_checkpoints, "RETRY_S", 0.01)
    old = fleet.save(5, upload=True)
    for agent in fleet.agents.values():
        agent.is_dead = True
    fleet.port.prune((old.id,))
    assert fleet.signals == []
    for agent in fleet.agents.values():
        agent.is_dead = False
    with fleet.heard:
        assert fleet.heard.wait_for(lambda: bool(fleet.signals), DEADLINE_S)
    assert fleet.remote.committed() == ()


def test_in_the_run_folder_only_what_is_gone_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_checkpoints, "RETRY_S", 0.01)
    old, new, last = (save_parts([tmp_path], step, run_id="")[0].id for step in (5, 10, 15))
    signals: queue.SimpleQueue[Signal] = queue.SimpleQueue()
    rename, is_sick = os.rename, threading.Event()
    refused = threading.Event()
    is_sick.set()

    def rename_unless_sick(source: Path, to: Path) -> None:
        if is_sick.is_set() and old in str(source):
            refused.set()
            raise OSError(5, "Input/output error")
        rename(source, to)

    monkeypatch.setattr(os, "rename", rename_unless_sick)
    port = FolderCheckpoints(str(tmp_path), list, signals.put)
    port.prune((old, new))
    assert signals.get(timeout=DEADLINE_S) == PruneResult((new,))
    assert refused.is_set()
    refused.clear()
    assert refused.wait(DEADLINE_S), "it is tried again"
    assert signals.empty()
    assert LocalStore(tmp_path).listing().ids == (old, last)
    is_sick.clear()
    assert signals.get(timeout=DEADLINE_S) == PruneResult((old,))
    assert LocalStore(tmp_path).listing().ids == (last,)


class SlowReader:
    """An agent whose readings end when the test says so."""

    def __init__(self) -> None:
        self.readings: list[tuple[str, Future[str]]] = []
        self.verify = self

    def remote(self, checkpoint: str) -> SlowReader:
        self.readings.append((checkpoint, Future()))
        return self

    def future(self) -> Future[str]:
        return self.readings[-1][1]

    @property
    def read(self) -> list[str]:
        return [checkpoint for checkpoint, _ in self.readings]


def test_a_reading_that_takes_long_is_the_only_one(tmp_path: Path) -> None:
    a, b, c = (checkpoint_id(step, 1) for step in (10, 20, 30))
    commits = [CheckpointCommitted(1, name, 10, 1, 0.0, 0.0) for name in (a, b, c)]
    state, signals = fold(commits, started()), list[Signal]()
    reader, other = SlowReader(), SlowReader()
    agents = [("n0", reader), ("n1", other)]
    port = FolderCheckpoints(str(tmp_path), lambda: agents, signals.append)
    for name in (b, b, a, c, a, b):
        port.verify(name)
        port.maintain(state)
    assert (reader.read, other.read) == ([b], [])
    reader.readings[0][1].set_result("")
    port.maintain(state)
    assert reader.read == [b, c], "then the newest of those that wait"
    # One that does not answer any more is not waited for, and what it says at last counts still.
    del agents[0]
    port.maintain(state)
    assert other.read == [a]
    reader.readings[1][1].set_result("torn")
    port.verify(c)
    assert other.read == [a]
    other.readings[0][1].set_exception(ConnectionError("the actor died"))
    port.verify(b)
    port.maintain(replace(state, checkpoints={}))
    assert other.read == [a, c], "what was deleted meanwhile is not read"
    assert signals == [VerifyResult(b, ""), VerifyResult(c, "torn")]


def test_a_reading_that_never_ends_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = (checkpoint_id(step, 1) for step in (10, 20, 30))
    commits = [CheckpointCommitted(1, name, 10, 1, 0.0, 0.0) for name in (a, b, c)]
    state, signals = fold(commits, started()), list[Signal]()
    hung, other = SlowReader(), SlowReader()
    port = FolderCheckpoints(str(tmp_path), lambda: [("n0", hung), ("n1", other)], signals.append)
    port.verify(a)
    port.verify(b)
    assert (hung.read, other.read) == ([a], [])
    monkeypatch.setattr(ray_checkpoints, "VERIFY_PATIENCE_S", -1.0)
    port.maintain(state)
    assert (hung.read, other.read) == ([a], [b]), "another agent goes on"
    port.verify(a)
    port.verify(c)
    assert (hung.read, other.read) == ([a], [b]), "no agent has two"
    # What it says at last counts, and is not asked for once more.
    hung.readings[0][1].set_result("")
    other.readings[0][1].set_result("")
    port.maintain(state)
    assert (hung.read, other.read) == ([a, c], [b])
    hung.readings[1][1].set_result("")
    port.maintain(state)
    assert (hung.read, other.read) == ([a, c], [b])
    assert signals == [VerifyResult(name, "") for name in (a, b, c)]


def test_newer_saves_do_not_keep_one_from_being_read_for_ever(tmp_path: Path) -> None:
    names = [checkpoint_id(step, 1) for step in range(8)]
    commits = [CheckpointCommitted(1, name, 1, 1, 0.0, 0.0) for name in names]
    state, reader = fold(commits, started()), SlowReader()
    port = FolderCheckpoints(str(tmp_path), lambda: [("n0", reader)], lambda signal: None)
    port.verify(names[1])
    port.verify(names[0])
    for newer in names[2:]:
        # Every reading takes as long as it is to the next save.
        port.verify(newer)
        reader.readings[-1][1].set_result("")
        port.maintain(state)
    assert reader.read == [names[step] for step in (1, 2, 0, 4, 3, 6, 5)]


def test_commits_that_nobody_told_of(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = fleet.save(5, upload=False)
    names = [entry.name for entry in manifest.files]
    own = {"n0": names[:2] + names[4:], "n1": names[2:]}
    fleet.port.note(fleet.part("n0", manifest, tuple(own["n0"])))
    assert fleet.port.unknown(()) == []
    # The other part is learned from an agent that an earlier controller knew.
    fleet.agents["n1"].parts_held = (fleet.part("", manifest, tuple(own["n1"])),)
    fleet.port.met("n1", fleet.agents["n1"])
    (commit,) = fleet.port.unknown(())
    assert commit.checkpoint == manifest.id
    assert fleet.port.unknown((manifest.id,)) == []
    fleet.port.maintain(RunState())
    assert fleet.signals == [], "its reporter may still speak"
    monkeypatch.setattr(ray_checkpoints, "SETTLE_S", -1.0)
    fleet.port.maintain(RunState(pruned=(manifest.id,)))
    assert fleet.signals == []
    fleet.port.maintain(RunState())
    assert fleet.signals == [CommitFound(commit)]
    # With its node the part is gone.
    del fleet.agents["n1"]
    assert fleet.port.unknown(()) == []


def test_a_sweep_finishes_deletions(fleet: Fleet) -> None:
    manifest = fleet.save(5, upload=True)
    fleet.remote.store.put_new(f"r/deleted/{manifest.id}.id", b"")
    fleet.remote.store.delete([fleet.remote.key(manifest.id, MANIFEST_NAME)])
    fleet.port.sweep(2)
    assert fleet.remote.store.listing(f"r/{manifest.id}/") == []
