"""A save leaves the loop alone, commits whole or not at all, and says how it ended."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from midwatch.checkpoints import saving
from midwatch.checkpoints.dcp import SaveHandle, Saver, load
from midwatch.checkpoints.manifest import CHECKPOINTS_DIR, checkpoint_dir
from midwatch.checkpoints.store import LocalStore
from midwatch.checkpoints.verify import verify
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.wire import CheckpointStage, Mesh

from tests.support.ranks import run_ranks
from tests.unit.checkpoints import models

ONE = Mesh(1, 1)
WAIT_S = 30.0


def state_of(value: float) -> dict[str, Any]:
    return {
        "weights": torch.full((50, 3), value),
        "scalar": torch.tensor(value, dtype=torch.float64),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 4),
        "nested": {"list": [torch.full((2,), value), {"scale": value}], "text": "abc", "no": None},
        "step": int(value),
    }


def loaded(folder: Path, checkpoint: str) -> dict[str, Any]:
    state = state_of(-1.0)
    load(checkpoint_dir(folder, checkpoint), state)
    return state


def is_state_of(state: dict[str, Any], value: float) -> bool:
    expected = state_of(value)
    nested, wanted = state["nested"], expected["nested"]
    tensors = ("weights", "scalar", "flags", "empty")
    return (
        all(torch.equal(state[key], expected[key]) for key in tensors)
        and torch.equal(nested["list"][0], wanted["list"][0])
        and nested["list"][1] == wanted["list"][1]
        and (nested["text"], nested["no"]) == ("abc", None)
        and state["step"] == expected["step"]
    )


class Stages:
    """Collects stages; can hold the writing thread before it reports an end."""

    def __init__(self) -> None:
        self.seen: list[CheckpointStage] = []
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, stage: CheckpointStage) -> None:
        if stage.stage != "staged":
            assert self.may_end.wait(WAIT_S)
        self.seen.append(stage)

    @property
    def names(self) -> list[tuple[int, str]]:
        return [(stage.step, stage.stage) for stage in self.seen]


@pytest.fixture
def stages() -> Stages:
    return Stages()


@pytest.fixture
def saver(tmp_path: Path, stages: Stages) -> Iterator[Saver]:
    saver = Saver(models.saver_config(str(tmp_path), 0, ONE), stages)
    yield saver
    stages.may_end.set()
    saver.close(WAIT_S)


def saved(saver: Saver, step: int, value: float | None = None) -> CheckpointStage:
    value = float(step) if value is None else value
    return saver.save(state_of(value), models.header(step)).result(WAIT_S)


def test_stages_come_in_order_with_what_they_cost(saver: Saver, stages: Stages) -> None:
    saved(saver, 1)
    assert stages.names == [(1, "staged"), (1, "committed")]
    staged, committed = stages.seen
    assert committed.bytes > staged.bytes > 0
    assert staged.tags == committed.tags == models.header(1).tags
    assert committed.blocked_s == staged.blocked_s > 0.0
    assert committed.save_s > committed.blocked_s


def test_the_state_may_change_as_soon_as_save_returns(
    saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    write_file = saving.write_file

    def held(*args: Any, **kwargs: Any) -> Any:
        assert may_write.wait(WAIT_S)
        return write_file(*args, **kwargs)

    monkeypatch.setattr(saving, "write_file", held)
    state = state_of(5.0)
    handle = saver.save(state, models.header(5))
    state["weights"].fill_(777.0)
    state["nested"]["list"][1]["scale"] = 777.0
    state["step"] = 777
    assert saver.is_busy
    assert not handle.is_done()
    may_write.set()
    assert handle.result(WAIT_S).stage == "committed"
    assert is_state_of(loaded(tmp_path, handle.checkpoint), 5.0)


def test_a_second_save_waits_for_the_first(saver: Saver, stages: Stages, tmp_path: Path) -> None:
    stages.may_end.clear()
    first = saver.save(state_of(1.0), models.header(1))
    handles: list[SaveHandle] = []
    caller = threading.Thread(
        target=lambda: handles.append(saver.save(state_of(2.0), models.header(2)))
    )
    caller.start()
    caller.join(0.05)
    assert caller.is_alive()
    assert not first.is_done()
    stages.may_end.set()
    caller.join(WAIT_S)
    handles[0].result(WAIT_S)
    assert stages.names == [(1, "staged"), (1, "committed"), (2, "staged"), (2, "committed")]
    assert is_state_of(loaded(tmp_path, first.checkpoint), 1.0)
    assert is_state_of(loaded(tmp_path, handles[0].checkpoint), 2.0)


def test_a_committed_step_is_not_saved_again(saver: Saver, stages: Stages) -> None:
    first = saver.save(state_of(1.0), models.header(1))
    assert saver.save(state_of(1.0), models.header(1)) is first
    first.result(WAIT_S)
    assert stages.names == [(1, "staged"), (1, "committed")]


def test_sync_returns_after_the_commit(saver: Saver, tmp_path: Path) -> None:
    handle = saver.save(state_of(1.0), models.header(1), sync=True)
    assert handle.is_done()
    assert verify(checkpoint_dir(tmp_path, handle.checkpoint)).step == 1


def test_a_state_may_change_its_layout(saver: Saver, tmp_path: Path) -> None:
    saved(saver, 1)
    state = state_of(2.0)
    state["more"] = torch.arange(7)
    state["nested"]["text"] = "x" * 5000
    checkpoint = saver.save(state, models.header(2)).result(WAIT_S).checkpoint
    target = state_of(0.0)
    target["more"] = torch.zeros(7, dtype=torch.int64)
    load(checkpoint_dir(tmp_path, checkpoint), target)
    assert torch.equal(target["more"], torch.arange(7))
    assert target["nested"]["text"] == "x" * 5000
    stock = state_of(0.0)
    dcp.load(stock, checkpoint_id=checkpoint_dir(tmp_path, checkpoint), no_dist=True)
    assert stock["nested"]["text"] == "x" * 5000
    assert is_state_of(loaded(tmp_path, saved(saver, 3).checkpoint), 3.0)


def test_a_value_may_outgrow_its_room(saver: Saver, tmp_path: Path) -> None:
    for step, text in ((1, "x"), (2, "y" * 5000), (3, "z")):
        state = {"text": text, "weights": torch.full((9,), float(step))}
        checkpoint = saver.save(state, models.header(step)).result(WAIT_S).checkpoint
        target = {"text": "", "weights": torch.zeros(9)}
        load(checkpoint_dir(tmp_path, checkpoint), target)
        assert target["text"] == text
        assert torch.equal(target["weights"], state["weights"])
        stock = {"text": "", "weights": torch.zeros(9)}
        dcp.load(stock, checkpoint_id=checkpoint_dir(tmp_path, checkpoint), no_dist=True)
        assert stock["text"] == text


def test_a_prepared_save_holds_the_state_of_its_own_moment(saver: Saver, tmp_path: Path) -> None:
    saver.prepare(state_of(1.0))
    assert is_state_of(loaded(tmp_path, saved(saver, 2).checkpoint), 2.0)


def test_a_preparation_for_another_layout_does_no_harm(saver: Saver, tmp_path: Path) -> None:
    saver.prepare({"weights": torch.ones(3), "bad": object()})
    assert is_state_of(loaded(tmp_path, saved(saver, 1).checkpoint), 1.0)
    saver.prepare({"weights": torch.ones(3)})
    assert is_state_of(loaded(tmp_path, saved(saver, 2).checkpoint), 2.0)


def test_what_needs_a_pickle_is_refused(saver: Saver, stages: Stages) -> None:
    for leaf in (object(), {1, 2}, [torch.Generator()], (torch.ones(1),)):
        with pytest.raises(ConfigError) as caught:
            saver.save({"a": {"b": leaf}}, models.header(1))
        assert caught.value.code == "state-not-plain"
    assert stages.seen == []
    assert saved(saver, 2).stage == "committed"


def test_an_error_of_the_callback_reaches_the_loop(tmp_path: Path) -> None:
    def report(stage: CheckpointStage) -> None:
        if stage.stage == "committed":
            raise BrokenPipeError

    saver = Saver(models.saver_config(str(tmp_path), 0, ONE), report)
    assert saved(saver, 1).stage == "committed"
    with pytest.raises(BrokenPipeError):
        saved(saver, 2)
    saver.close(WAIT_S)


# --- disks that refuse ---------------------------------------------------------------------------


def test_a_full_disk_costs_only_that_save(saver: Saver, stages: Stages, tmp_path: Path) -> None:
    assert saved(saver, 1).stage == "committed"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        outcome = saved(saver, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.stage == "failed"
    assert "[file-too-large]" in outcome.error
    assert not checkpoint_dir(tmp_path, outcome.checkpoint).exists()
    assert is_state_of(loaded(tmp_path, stages.seen[0].checkpoint), 1.0)
    assert saved(saver, 3).stage == "committed"
    assert len(LocalStore(tmp_path).listing().committed) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB, which takes a privilege to mount."""
    import subprocess

    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_no_space_left_is_told_as_such(small_disk: Path) -> None:
    saver = Saver(models.saver_config(str(small_disk), 0, ONE))
    assert saved(saver, 1).stage == "committed"
    big = {"weights": torch.ones(1 << 18)}
    outcome = saver.save(big, models.header(2)).result(WAIT_S)
    assert outcome.stage == "failed"
    assert "[disk-full]" in outcome.error
    assert "Free space" in outcome.error
    assert os.listdir(small_disk / CHECKPOINTS_DIR) == ["step-00000001.a0001"]
    assert is_state_of(loaded(small_disk, "step-00000001.a0001"), 1.0)
    assert saved(saver, 3).stage == "committed"
    saver.close(WAIT_S)


def test_a_manifest_that_does_not_fit_is_no_commit(small_disk: Path) -> None:
    saver = Saver(models.saver_config(str(small_disk), 0, ONE))
    saved(saver, 1)
    filler = small_disk / "filler"
    free = os.statvfs(small_disk)
    # Room for the shard file of the next save, but not for the three files after it.
    filler.write_bytes(b"x" * (free.f_bavail * free.f_bsize - 20480))
    outcome = saved(saver, 2)
    assert outcome.stage == "failed"
    assert "[disk-full]" in outcome.error
    assert LocalStore(small_disk).listing().ids == ("step-00000001.a0001",)
    filler.unlink()
    assert saved(saver, 3).stage == "committed"
    saver.close(WAIT_S)


def test_a_vanished_directory_is_told_as_such(saver: Saver, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINTS_DIR).rmdir()
    outcome = saved(saver, 1)
    assert outcome.stage == "failed"
    assert "[checkpoint-dir-missing]" in outcome.error


def test_a_forbidden_directory_is_told_as_such(
    saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        # Permissions do not bind root, so the refusal itself is made.
        def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
    else:
        (tmp_path / CHECKPOINTS_DIR).chmod(0o500)
    outcome = saved(saver, 1)
    assert outcome.stage == "failed"
    assert "[checkpoint-not-writable]" in outcome.error


def one_rank_cannot_write(rank: int, folder: str) -> list[tuple[str, str]]:
    mesh = Mesh(2, 2)
    saver = Saver(models.saver_config(folder, rank, mesh))
    state = models.sharded_state(mesh, 1)
    outcomes = [saver.save(state, models.header(1)).result(WAIT_S)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    outcomes.append(saver.save(state, models.header(2)).result(WAIT_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    outcomes.append(saver.save(state, models.header(3)).result(WAIT_S))
    saver.close()
    return [(outcome.stage, outcome.error) for outcome in outcomes]


def test_one_rank_that_cannot_write_fails_the_save_on_all(tmp_path: Path) -> None:
    results = run_ranks(one_rank_cannot_write, 4, str(tmp_path))
    assert all(result == results[0] for result in results)
    (first, _), (second, error), (third, _) = results[0]
    assert (first, second, third) == ("committed", "failed", "committed")
    assert error.startswith("rank 2: [file-too-large]")
    listing = LocalStore(tmp_path).listing()
    assert [manifest.step for manifest in listing.committed] == [1, 3]
    assert listing.garbage == ()
    for checkpoint in listing.ids:
        verify(checkpoint_dir(tmp_path, checkpoint))


def train_and_save(rank: int, folder: str) -> list[str]:
    import torch.distributed as dist

    mesh = Mesh(2, 1)
    saver = Saver(models.saver_config(folder, rank, mesh))
    state = models.sharded_state(mesh, 1)
    handles = []
    for step in range(1, 31):
        for parameter in state["model"].values():
            parameter.to_local().fill_(float(step))
        state["step"] = step
        if step % 3 == 0:
            handles.append(saver.save(state, models.header(step)))
        for repeat in range(5):
            total = torch.full((100,), float(step + repeat + rank))
            dist.all_reduce(total)
            assert torch.equal(total, torch.full((100,), float(2 * (step + repeat) + 1)))
    checkpoints = [handle.result(WAIT_S).checkpoint for handle in handles]
    for step, checkpoint in zip(range(3, 31, 3), checkpoints, strict=True):
        load(checkpoint_dir(folder, checkpoint), models.wipe(state), rank=rank)
        assert state["step"] == step
        for parameter in state["model"].values():
            assert (parameter.to_local() == step).all()
    saver.close()
    return checkpoints


def test_saves_beside_training_never_meet_its_collectives(tmp_path: Path) -> None:
    first, second = run_ranks(train_and_save, 2, str(tmp_path))
    assert first == second
    assert LocalStore(tmp_path).listing().ids == tuple(first)
