"""midwatch checkpoints: from the run's folder alone, with no controller alive."""

from __future__ import annotations

import getpass
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from midwatch.checkpoints.dcp import Saver
from midwatch.checkpoints.manifest import (
    SaveHeader,
    checkpoint_dir,
    checkpoint_id,
    read_manifest,
)
from midwatch.checkpoints.objects import open_store
from midwatch.checkpoints.objects_folder import prepare_folder
from midwatch.checkpoints.remote import RunObjects
from midwatch.checkpoints.shardfile import commit_manifest
from midwatch.checkpoints.store import LocalStore
from midwatch.checkpoints.uploading import Uploader
from midwatch.logbook import decisions as d
from midwatch.logbook import events as ev
from midwatch.logbook.fold import evolve
from midwatch.logbook.journal import Journal
from midwatch.logbook.plan import AttemptPlan, Placement
from midwatch.logbook.state import RunState
from midwatch.logbook.wire import Hyper, Mesh
from midwatch.operator.aftermath import hand_in
from midwatch.operator.cli.main import main
from midwatch.operator.cli.runs import load_state
from midwatch.operator.desk import FileDesk
from midwatch.operator.policy.decide import decide
from midwatch.operator.spec import RunSpec
from midwatch.operator.spec_file import spec_data
from midwatch.operator.spec_told import submission
from midwatch.operator.storage import run_id_of, storage_of
from midwatch.tests.support.builders import make_sample, make_spec, make_tags
from midwatch.tests.support.ranks import run_ranks
from midwatch.tests.support.training import make_step, small_config
from midwatch.trainer.environment import environment_of
from midwatch.trainer.export import import_hf
from msgspec.structs import replace

from tests.unit.checkpoints import models
from tests.unit.checkpoints.test_uploading import Heard

Cli = Callable[..., tuple[int, str, str]]
OLD, NEW = checkpoint_id(10, 1), checkpoint_id(20, 1)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["midwatch", "checkpoints", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return int(end.value.code or 0), out, err

    return run


def _save(rank: int, run_dir: str) -> int:
    """Save a small trained state at steps 10 and 20; return the bytes of one checkpoint."""
    config = small_config()
    train_step = make_step(config, Mesh(1, 1))
    saver_config = models.saver_config(run_dir, rank, Mesh(1, 1))
    fingerprint = environment_of(config)
    saver = Saver(replace(saver_config, fingerprint=fingerprint))
    size = 0
    for step in (10, 20):
        header = SaveHeader(
            step=step, data_step=step, hyper=Hyper(), tags=make_tags(), rng="counter-based"
        )
        outcome = saver.save(train_step.state_dict(), header, sync=True).result()
        assert outcome.stage == "committed"
        size = outcome.bytes
    saver.close()
    return size


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("saved")
    return folder, run_ranks(_save, 1, str(folder))[0]


class Run:
    """A run folder with two real checkpoints and the journal of the run that took them."""

    def __init__(self, folder: Path, saved: Path, size: int, **sections: Any) -> None:
        self.folder = folder
        shutil.copytree(saved / "checkpoints", folder / "checkpoints")
        # As load_spec leaves it: filled in by the trainer's own model.
        trainer = {"trainer": small_config().model_dump(mode="json")}
        self.spec: RunSpec = make_spec(**sections).model_copy(update=trainer)
        self.desk = FileDesk(folder)
        self.journal = Journal(folder / "journal", ev.Event)
        self.state = RunState()
        plan = AttemptPlan(1, Mesh(2, 2), (Placement("n0", 0, 4),), (), 0, Hyper())
        self.record(
            submission(self.spec, midwatch_version="", by="ann"),
            ev.NodeJoined("n0", "1", "host", 4),
            ev.DecisionMade(d.Decision("0/1", d.StartAttempt(plan), "because")),
            ev.ActionDone("0/1"),
            ev.AttemptResumed(1, 0, "", 0.1),
        )
        for step in range(1, 26):
            self.record(ev.StepDone(1, make_sample(step)))
            if step in (10, 20):
                name = checkpoint_id(step, 1)
                committed = ev.CheckpointCommitted(1, name, step, size, 0.1, 0.5, make_tags())
                self.record(committed, ev.CheckpointVerified(name))

    def record(self, *events: ev.Event) -> None:
        triples = [(time.time(), 1, event) for event in events]
        for record in self.journal.append(triples, sync=True):
            self.state = evolve(self.state, record.event, seq=record.seq, time_s=record.time_s)

    def decide(self, action: d.Action, *, is_done: bool = True, **more: Any) -> None:
        name = f"1/{self.state.num_decisions + 1}"
        self.record(ev.DecisionMade(d.Decision(name, action, "because", **more)))
        if is_done:
            self.record(ev.ActionDone(name))

    def end(self) -> None:
        """The run is completed, and its controller gone."""
        self.decide(d.EndRun(stopped=False, step=25))
        assert self.state.is_at_rest
        self.journal.close()

    def control(self, until: Callable[[], bool]) -> None:
        """Do as the controller does with requests, until a condition holds."""
        deadline_s = time.monotonic() + 30.0
        while not until() and time.monotonic() < deadline_s:
            self.record(*self.desk.requests())
            self.desk.settled()
            for decision in decide(self.state, self.spec, time.time()):
                self.record(ev.DecisionMade(decision))
                if isinstance(decision.action, d.VerifyCheckpoint):
                    self.record(ev.CheckpointVerified(decision.action.checkpoint, "shard-size: no"))
                elif not isinstance(decision.action, d.PruneCheckpoints):
                    self.record(ev.ActionDone(decision.id))
            time.sleep(0.01)


@pytest.fixture
def run(saved: tuple[Path, int], tmp_path: Path) -> Run:
    return Run(tmp_path, *saved)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shard(run: Run, checkpoint: str) -> Path:
    return next(checkpoint_dir(run.folder, checkpoint).glob("*.distcp"))


def test_the_list_says_where_how_healthy_and_why_kept(run: Run, cli: Cli) -> None:
    status, out, _ = cli("list", str(run.folder), "-o", "json")
    assert status == 0
    old, new = json.loads(out)
    assert (old["id"], new["id"]) == (OLD, NEW)
    assert old["tiers"] == ["disk"]
    assert old["verified"] is True
    assert old["outcome"] == "healthy for 15 steps"
    assert old["kept"] == "last good"
    assert new["kept"] == "newest verified"
    assert (
        new["bytes"]
        == sum(p.stat().st_size for p in shard(run, NEW).parent.iterdir())
        - (shard(run, NEW).parent / "manifest.json").stat().st_size
    )
    status, text, _ = cli("list", str(run.folder))
    assert status == 0
    assert NEW in text
    assert "healthy for 5 steps" in text


def test_what_only_the_disk_or_only_the_journal_knows_is_listed_too(run: Run, cli: Cli) -> None:
    manifest = checkpoint_dir(run.folder, OLD) / "manifest.json"
    manifest.rename(manifest.with_name("elsewhere"))
    run.record(ev.CheckpointsPruned((NEW,)))
    rows = {row["id"]: row for row in json.loads(cli("list", str(run.folder), "-o", "json")[1])}
    assert rows[OLD]["tiers"] == []
    assert (rows[NEW]["tiers"], rows[NEW]["verified"]) == (["disk"], None)
    assert "journal" in rows[NEW]["kept"]


def test_show_tells_everything_about_one(run: Run, cli: Cli) -> None:
    status, out, _ = cli("show", NEW, str(run.folder), "-o", "json")
    assert status == 0
    found = json.loads(out)
    assert found["known"]["tags"]["loss_scale"] == 64.0
    assert found["manifest"]["fingerprint"]["packages"]["numpy"]
    assert found["differs"] == []
    text = cli("show", NEW, str(run.folder))[1]
    for words in ("activation norm trend", "__0_0.distcp", "differs from here", "torch"):
        assert words in text


def test_show_says_what_differs_from_here(
    saved: tuple[Path, int], tmp_path: Path, cli: Cli
) -> None:
    run = Run(tmp_path, *saved)
    spec = spec_data(run.spec)
    spec["trainer"]["optimizer"]["lr"] = 0.5
    run.record(ev.RunSubmitted("night", spec, "", 3, "", "ann"))
    found = json.loads(cli("show", NEW, str(run.folder), "-o", "json")[1])
    assert found["differs"] == ["config.optimizer.lr: saved 0.001, now 0.5"]


def test_one_that_is_not_there_is_exit_status_3(run: Run, cli: Cli) -> None:
    for words in (["show"], ["verify"], ["export"]):
        more = [str(run.folder / "out")] if words == ["export"] else []
        status, out, err = cli(*words, checkpoint_id(30, 1), *more, str(run.folder))
        assert (status, out) == (3, "")
        assert "no-such-checkpoint" in err
        assert NEW in err


def test_verify_reads_every_byte_here(run: Run, cli: Cli) -> None:
    status, out, _ = cli("verify", NEW, str(run.folder))
    assert status == 0
    assert f"{NEW} is sound" in out
    flip(shard(run, NEW))
    status, out, err = cli("verify", NEW, str(run.folder))
    assert (status, out) == (1, "")
    assert "shard-checksum" in err


def ask(run: Run, cli: Cli, *words: str) -> tuple[int, str, str]:
    """Run a command that changes something beside a controller that answers it."""
    done = threading.Event()
    controller = threading.Thread(target=run.control, args=(done.is_set,))
    controller.start()
    try:
        return cli(*words, str(run.folder), "--reason", "test", "--timeout-s", "20")
    finally:
        done.set()
        controller.join()


def test_verify_by_the_controller_is_in_the_journal(run: Run, cli: Cli) -> None:
    status, out, _ = ask(run, cli, "verify", NEW, "--by-controller")
    assert status == 1
    assert "NOT sound: shard-size" in out
    assert run.state.checkpoints[NEW].verified is False


def test_pin_and_unpin_are_carried_out_by_the_controller(run: Run, cli: Cli) -> None:
    assert ask(run, cli, "pin", OLD)[0] == 0
    row = json.loads(cli("list", str(run.folder), "-o", "json")[1])[0]
    assert row["pin"].endswith("asked: test")
    assert "pinned" in cli("list", str(run.folder))[1]
    assert ask(run, cli, "unpin", OLD)[0] == 0
    assert not run.state.pins
    status, out, _ = ask(run, cli, "pin", checkpoint_id(30, 1))
    assert status == 4
    assert "no checkpoint" in out


def test_who_asks_of_an_ended_run_waits_only_for_what_was_asked(run: Run) -> None:
    draft = d.IncidentDraft("inc-0001", "spike", "a spike", 20, 0.0, 20)
    left = (d.VerifyCheckpoint(NEW), d.PruneCheckpoints((OLD,)))
    run.decide(d.Observe(), opens=draft, incident=draft.id)
    run.decide(d.CloseIncident(draft.id, "over"), incident=draft.id)
    for action in left:
        run.decide(action, is_done=False)
    flip(shard(run, NEW))
    run.end()
    hand_in(
        run.folder, ev.InterventionRequested("a", "ack", "ann", "seen", target=draft.id), run.state
    )
    state = told(run)
    assert state.incidents[draft.id].acknowledged
    assert [decision.action for decision in state.pending.values()] == list(left)
    assert state.checkpoints[NEW].verified is True
    assert shard(run, OLD).exists()
    hand_in(run.folder, ev.InterventionRequested("v", "verify", "ann", "?", target=NEW), state)
    state = told(run)
    assert "NOT sound" in state.interventions["v"].detail
    assert shard(run, OLD).exists()
    hand_in(run.folder, ev.InterventionRequested("p", "prune", "ann", "full"), state)
    assert told(run).interventions["p"].stage == "applied"
    assert not checkpoint_dir(run.folder, OLD).exists()


def test_a_change_needs_a_reason(run: Run, cli: Cli) -> None:
    status, _, err = cli("pin", OLD, str(run.folder))
    assert status == 2
    assert "--reason" in err


def test_a_request_nobody_answers_stands(run: Run, cli: Cli) -> None:
    words = ("pin", OLD, str(run.folder), "--reason", "test", "--timeout-s", "0.2")
    assert cli(*words)[0] == 5
    assert len(run.desk.requests()) == 1


def test_prune_says_before_what_it_would_do(
    saved: tuple[Path, int], tmp_path: Path, cli: Cli
) -> None:
    retention = {"keep_newest": 1, "max_age_hours": 1e-9}
    run = Run(tmp_path, *saved, retention=retention, numeric={"rollback_margin_steps": 0})
    # The first of its stretch stays for a creep that is named late, so a third is needed.
    run.record(ev.CheckpointCommitted(1, checkpoint_id(22, 1), 22, 9, 0.1, 0.5, make_tags()))
    run.record(ev.CheckpointVerified(checkpoint_id(22, 1)))
    status, out, _ = cli("prune", str(run.folder), "--dry-run", "-o", "json")
    assert status == 0
    plan = json.loads(out)
    assert [name for name, _ in plan["delete"]] == [NEW]
    assert OLD in [name for name, _ in plan["keep"]]
    assert "would delete" in cli("prune", str(run.folder), "--dry-run")[1]
    assert shard(run, NEW).exists()


def test_export_runs_the_trainers_exporter(run: Run, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "weights"
    status, said, _ = cli("export", NEW, str(out), str(run.folder))
    assert status == 0
    assert str(out) in said
    assert import_hf(out)[0] == small_config().model
    status, _, err = cli("export", NEW, str(out), str(run.folder))
    assert status == 2
    assert "out-not-empty" in err


def test_an_export_that_fails_says_so(run: Run, cli: Cli, tmp_path: Path) -> None:
    flip(shard(run, NEW))
    status, out, err = cli("export", NEW, str(tmp_path / "weights"), str(run.folder))
    assert (status, out) == (1, "")
    assert "shard-checksum" in err
    assert "export-failed" in err


def test_an_export_from_a_store_leaves_nothing_else_behind(
    saved: tuple[Path, int], tmp_path: Path, cli: Cli
) -> None:
    store = {"url": str(tmp_path / "store")}
    prepare_folder(tmp_path / "store")
    run = Run(tmp_path / "run", *saved, checkpoints={"store": store})
    run_id = run_id_of(run.folder)
    rewritten(run, run_id)
    storage = storage_of(run.spec, run.folder, run_id, "n0")
    assert storage is not None
    remote = RunObjects(open_store(storage), run.spec.name, run_id)
    uploader = Uploader(run.folder, remote, Heard(), run_id=run_id)
    while not {OLD, NEW} <= set(remote.committed()):
        uploader.turn()
    before = set(run.folder.rglob("*"))

    status, _, err = cli("export", NEW, str(tmp_path / "out" / "weights"), str(run.folder))
    assert status == 0, err
    assert import_hf(tmp_path / "out" / "weights")[0] == small_config().model
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights"]
    assert set(run.folder.rglob("*")) == before


def rewritten(run: Run, run_id: str) -> None:
    """Have the checkpoints say that they are of the run in this folder."""
    for name in (OLD, NEW):
        directory = checkpoint_dir(run.folder, name)
        commit_manifest(directory, replace(read_manifest(directory), run_id=run_id))


# --- when the run is over, and nobody is left to ask ---------------------------------------------


def told(run: Run) -> RunState:
    return load_state(run.folder)


def test_what_is_asked_of_a_run_that_is_over_is_done_at_once(run: Run, cli: Cli) -> None:
    run.end()
    why = (str(run.folder), "--reason", "the paper's", "--timeout-s", "5")
    assert cli("pin", OLD, *why)[0] == 0
    assert told(run).pins == {OLD: f"{getpass.getuser()} asked: the paper's"}
    assert cli("unpin", OLD, *why)[0] == 0
    assert told(run).pins == {}
    status, out, _ = cli("pin", checkpoint_id(30, 1), *why)
    assert status == 4
    assert "no checkpoint" in out
    assert cli("quarantine", OLD, *why)[0] == 0
    assert told(run).checkpoints[OLD].quarantined
    assert told(run).status.is_terminal
    # Nothing lies on the desk for a controller that may never come.
    assert run.desk.requests() == []


def test_a_checkpoint_is_read_back_into_the_journal_of_a_run_that_is_over(
    run: Run, cli: Cli
) -> None:
    run.end()
    flip(shard(run, NEW))
    words = (str(run.folder), "--by-controller", "--reason", "test")
    status, out, _ = cli("verify", NEW, *words)
    assert status == 1
    assert "NOT sound" in out
    assert told(run).checkpoints[NEW].verified is False
    assert cli("verify", OLD, *words)[0] == 0
    assert told(run).checkpoints[OLD].verified is True


def test_a_run_that_is_over_finds_its_store_without_the_keys_of_its_spec(
    saved: tuple[Path, int], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal does not hold them, and what it holds instead is not taken for them."""
    env = {"AWS_ACCESS_KEY_ID": "AKIA1", "AWS_SECRET_ACCESS_KEY": "hunter22"}
    store = {"url": "s3://bucket/prefix", "endpoint_url": "http://127.0.0.1:9"}
    run = Run(tmp_path, *saved, env=env, checkpoints={"store": store})
    run.end()
    for name in (*env, "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    why = (str(run.folder), "--reason", "test", "--timeout-s", "5")
    assert cli("pin", OLD, *why)[0] == 0
    assert told(run).pins.keys() == {OLD}
    status, _, err = cli("verify", OLD, "--by-controller", *why)
    assert status == 1
    assert "[credentials-missing]" in err


@pytest.fixture
def prunable(saved: tuple[Path, int], tmp_path: Path) -> Run:
    retention = {"keep_newest": 1, "max_age_hours": 1e-9}
    run = Run(tmp_path, *saved, retention=retention, numeric={"rollback_margin_steps": 0})
    run.record(ev.CheckpointCommitted(1, checkpoint_id(22, 1), 22, 9, 0.1, 0.5, make_tags()))
    run.record(ev.CheckpointVerified(checkpoint_id(22, 1)))
    run.end()
    return run


def test_old_checkpoints_of_a_run_that_is_over_are_deleted(prunable: Run, cli: Cli) -> None:
    why = (str(prunable.folder), "--reason", "room", "--timeout-s", "5")
    assert cli("prune", *why)[0] == 0
    assert not shard_folder(prunable, NEW).exists()
    assert shard_folder(prunable, OLD).exists()
    assert NEW not in told(prunable).checkpoints
    # Asked again, there is nothing to do.
    status, out, _ = cli("prune", *why)
    assert status == 0
    assert "retention keeps all" in out


def shard_folder(run: Run, checkpoint: str) -> Path:
    return checkpoint_dir(run.folder, checkpoint)


def test_what_cannot_be_deleted_is_said_and_not_called_gone(
    prunable: Run, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = (str(prunable.folder), "--reason", "room", "--timeout-s", "5")

    def refuse(store: LocalStore, checkpoint: str) -> None:
        raise PermissionError(13, "Permission denied", checkpoint)

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "delete", refuse)
        status, _, err = cli("prune", *why)
    assert status == 1
    assert "[not-deleted]" in err
    assert NEW in told(prunable).checkpoints
    # The decision stands in the journal, and whoever asks next carries it out.
    assert cli("prune", *why)[0] == 0
    assert not shard_folder(prunable, NEW).exists()


def test_a_living_controller_is_left_to_answer(run: Run, cli: Cli) -> None:
    """It has said that the run is over and still holds the journal."""
    name = f"1/{run.state.num_decisions + 1}"
    run.record(ev.DecisionMade(d.Decision(name, d.EndRun(stopped=False, step=25), "done")))
    status, _, err = cli("pin", OLD, str(run.folder), "--reason", "test", "--timeout-s", "0.2")
    assert status == 5
    assert "not yet seen by the controller" in err
    assert len(run.desk.requests()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lr", "--factor", "0.5"], "rejected: the run is completed"),
        (["stop"], "rejected: the run is completed"),
        (["resume"], "[run-is-over] resume needs a controller"),
    ],
)
def test_what_needs_a_run_that_goes_on_is_refused_at_once(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    run.end()
    argv = ["midwatch", words[0], str(run.folder), *words[1:], "--reason", "test"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capfd.readouterr()
    assert end.value.code == 4
    assert said in out + err
    assert run.desk.requests() == []
