"""Four real ranks train: the same every time, bit for bit, also across a resume."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from midwatch.checkpoints.manifest import checkpoint_dir, read_manifest
from midwatch.logbook.wire import Finished, Hyper, Mesh, Phase, Resumed, StepSample
from midwatch.tests.support.crew import Crew, Nursery, starts_for

MESH = Mesh(dp_shard=2, tp=2)


def run(nursery: Nursery, run_dir: Path, trainer: dict[str, Any], **start: Any) -> Crew:
    """Train an attempt to its end on four ranks."""
    crew = Crew(nursery, starts_for(run_dir, trainer, start.pop("mesh", MESH), **start))
    crew.watch()
    assert crew.failures() == []
    assert crew.exit_codes() == [0] * len(crew.workers)
    return crew


def numbers(samples: list[StepSample]) -> list[StepSample]:
    """Return samples without the readings of the clock."""
    clocks = {"time_s": 0.0, "step_s": 0.0, "tokens_per_s": 0.0, "model_tflops_per_device": 0.0}
    return [msgspec.structs.replace(sample, **clocks) for sample in samples]


def shard_hashes(run_dir: Path, checkpoint: str) -> list[str]:
    files = read_manifest(checkpoint_dir(run_dir, checkpoint)).files
    return [entry.sha256 for entry in files if entry.name.endswith(".distcp")]


def test_two_runs_are_equal_bit_for_bit(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    crews = [run(nursery, tmp_path / name, trainer, until_step=12) for name in ("a", "b")]
    first, second = (numbers(crew.steps()) for crew in crews)
    assert [sample.step for sample in first] == list(range(1, 13))
    assert [sample.data_step for sample in first] == list(range(12))
    assert first == second
    assert first[-1].loss < first[0].loss
    hashes = [shard_hashes(tmp_path / name, "step-00000012.a0001") for name in ("a", "b")]
    assert len(hashes[0]) == 4
    assert hashes[0] == hashes[1]


def test_every_rank_reports_every_step_and_its_end(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    crew = run(nursery, tmp_path, trainer, until_step=5)
    for worker in crew.workers:
        rank = worker.rank
        samples = crew.rank_samples(rank)
        assert [sample.step for sample in samples] == [1, 2, 3, 4, 5]
        parts_s = [
            s.data_s + s.forward_s + s.backward_s + s.comm_s + s.optimizer_s for s in samples
        ]
        assert all(0.0 < part <= s.step_s for part, s in zip(parts_s, samples, strict=True))
        [resumed] = crew.said(Resumed, rank)
        assert (resumed.rank, resumed.step, resumed.checkpoint) == (rank, 0, "")
        assert resumed.readback["beta2"] == 0.95, "it says what it holds"
        assert crew.said(Finished, rank) == [Finished(rank, 5)]
        assert worker.page.read()[:2] == (5, Phase.DONE)
        assert bool(crew.said(StepSample, rank)) == (rank == 0)
    # The ranks of a tp group hold the same sequences, those of a dp group different ones.
    local = [crew.rank_samples(rank)[0].local_loss for rank in range(4)]
    assert local[0] == local[1] != local[2] == local[3]


def test_ten_steps_equal_five_and_five_after_a_resume(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    whole = run(nursery, tmp_path / "whole", trainer, until_step=10)
    first = run(nursery, tmp_path / "parts", trainer, until_step=5)
    second = run(
        nursery,
        tmp_path / "parts",
        trainer,
        until_step=10,
        attempt=2,
        checkpoints=tuple(first.committed()),
    )
    assert numbers(first.steps()) + numbers(second.steps()) == numbers(whole.steps())
    resumed: list[Resumed] = second.said(Resumed)
    assert [(r.step, r.checkpoint) for r in resumed] == [(5, "step-00000005.a0001")] * 4
    assert shard_hashes(tmp_path / "parts", "step-00000010.a0002") == shard_hashes(
        tmp_path / "whole", "step-00000010.a0001"
    )


def test_saves_come_at_the_interval_and_at_the_end(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    often = {**trainer, "checkpoint": {"interval_steps": 4}}
    crew = run(nursery, tmp_path, often, until_step=9)
    assert crew.committed() == [f"step-0000000{step}.a0001" for step in (4, 8, 9)]
    header = read_manifest(checkpoint_dir(tmp_path, "step-00000008.a0001")).header
    at_8 = crew.steps()[7]
    assert (header.step, header.data_step, header.hyper) == (8, 8, Hyper())
    assert (header.tags.loss, header.tags.grad_norm) == (at_8.loss, at_8.grad_norm)
    assert header.tags.loss_scale == at_8.loss_scale


def test_skipped_data_steps_are_left_out_and_stay_left_out(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    plain = run(nursery, tmp_path / "plain", trainer, until_step=4)
    hyper = Hyper(skipped=((2, 5), (7, 8)))
    first = run(nursery, tmp_path / "skip", trainer, until_step=4, hyper=hyper)
    assert [sample.data_step for sample in first.steps()] == [0, 1, 5, 6]
    assert first.losses()[:2] == plain.losses()[:2]
    assert first.losses()[2] != plain.losses()[2]
    second = run(
        nursery,
        tmp_path / "skip",
        trainer,
        until_step=6,
        attempt=2,
        checkpoints=tuple(first.committed()),
        hyper=hyper,
    )
    assert [sample.data_step for sample in second.steps()] == [8, 9]


@pytest.mark.parametrize("mesh", [Mesh(4, 1), Mesh(1, 2)])
def test_another_mesh_takes_over_and_sees_the_same_data(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any], mesh: Mesh
) -> None:
    exact = {**trainer, "precision": "fp32", "global_batch_size": 16}
    whole = run(nursery, tmp_path / "whole", exact, until_step=8)
    first = run(nursery, tmp_path / "parts", exact, until_step=4)
    second = run(
        nursery,
        tmp_path / "parts",
        exact,
        until_step=8,
        attempt=2,
        mesh=mesh,
        checkpoints=tuple(first.committed()),
    )
    # Only the order of additions differs, so the losses agree to float32 accuracy.
    assert second.losses() == pytest.approx(whole.losses()[4:], rel=1e-5)


def test_a_checkpoint_tells_of_the_steps_before_it_and_so_does_the_next(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    """Their reports may have died with their reporter, or come too late to be listened to."""
    section = {**trainer, "checkpoint": {"interval_steps": 2}}
    first = run(nursery, tmp_path, section, until_step=4)
    second = run(
        nursery, tmp_path, section, until_step=6, attempt=2, checkpoints=(first.committed()[-1],)
    )
    third = run(
        nursery, tmp_path, section, until_step=8, attempt=3, checkpoints=(second.committed()[-1],)
    )
    (resumed,) = second.said(Resumed, 0)
    assert list(resumed.recalled) == first.steps()
    (resumed,) = third.said(Resumed, 0)
    assert list(resumed.recalled) == [*first.steps(), *second.steps()]
    assert all(not said.recalled for rank in (1, 2, 3) for said in third.said(Resumed, rank))


def test_a_fork_of_a_warm_process_is_its_own_rank(
    nursery: Nursery, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    """The preload has worked as rank 0 of a mesh of this very shape."""
    mesh = Mesh(3, 2)
    exact = {**trainer, "precision": "fp32", "global_batch_size": 12}
    odd = run(nursery, tmp_path / "odd", exact, until_step=2, mesh=mesh)
    usual = run(
        nursery,
        tmp_path / "usual",
        {**exact, "micro_batch_size": 12},
        until_step=2,
        mesh=Mesh(1, 1),
    )
    assert odd.losses() == pytest.approx(usual.losses(), rel=1e-5)
    assert len(set(shard_hashes(tmp_path / "odd", "step-00000002.a0001"))) == 6
