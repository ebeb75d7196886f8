"""Every command that changes a run: what it asks for, tried out by the policy on a run on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from midwatch.logbook import decisions as d
from midwatch.logbook.errors import MidwatchError
from midwatch.logbook.events import InterventionRequested
from midwatch.logbook.state import Touch
from midwatch.operator.cli.channel import FolderChannel
from midwatch.operator.cli.main import command_line
from midwatch.operator.cli.output import Output, one_clear_error
from midwatch.operator.cli.steer import make_request, submit
from midwatch.tests.support.synthetic_run import SyntheticRun
from typer.testing import CliRunner

WHY = ["--reason", "to see"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyntheticRun]:
    run = SyntheticRun(tmp_path_factory.mktemp("run"), nodes=2, spares=1, slots=2)
    run.start("the first attempt")
    run.train(130)
    run.steer("earlier", "lr-factor", 0.5)
    run.train(140)
    run.decide(
        d.Observe(), "seen", opens=d.IncidentDraft("inc-0001", "creep", "it creeps", 140, 0.0, 130)
    )
    yield run
    run.close()


def call(*words: str) -> tuple[int, str]:
    """Run a command in this process; return its status and what it wrote."""
    result = CliRunner().invoke(command_line(words[0]), list(words))
    if isinstance(result.exception, Exception):
        with pytest.raises(SystemExit) as end, one_clear_error():
            raise result.exception
        return int(str(end.value.code)), str(result.exception)
    return result.exit_code, result.output


def tried(run: SyntheticRun, *words: str) -> dict[str, Any]:
    """The decision that a dry run of a command shows."""
    name, *more = words
    subject = [more.pop(0)] if name in ("quarantine", "release", "ack", "revert") else []
    done = [name, *subject, str(run.folder), *more, *WHY, "--dry-run", "-o", "json"]
    status, text = call(*done)
    decision: dict[str, Any] = json.loads(text.splitlines()[-1])[0]
    is_refused = decision["action"]["type"] == "reject-intervention"
    assert status == (4 if is_refused else 0), text
    return decision


@pytest.mark.parametrize(
    ("words", "kind", "expected"),
    [
        (["lr", "--to", "1e-4"], "lr", {"value": 1e-4}),
        (["lr", "--factor", "0.5", "--at-step", "150"], "lr-factor", {"at_step": 150}),
        (["clip", "--to", "0.3", "--for-steps", "20"], "grad-clip", {"for_steps": 20}),
        (["scaler", "--reset", "8"], "scaler", {"values": {"loss-scale": 8.0}}),
        (["scaler", "--floor", "0.5"], "scaler", {"values": {"loss-scale-floor": 0.5}}),
        (
            ["optimizer", "--beta2", "0.98", "--weight-decay", "0.05"],
            "optimizer",
            {"values": {"beta2": 0.98, "weight-decay": 0.05}},
        ),
        (["skip", "--data-steps", "200:210"], "skip", {"target": "200:210"}),
        (["skip", "--samples", "8000:8200"], "skip", {"target": "samples 8000:8200"}),
        (["revert", "earlier"], "revert", {"target": "earlier"}),
        (["checkpoint"], "checkpoint", {}),
        (["pause", "--at-step", "160"], "pause", {"at_step": 160}),
        (["stop"], "stop", {}),
    ],
)
def test_an_order_to_the_ranks_says_what_and_when(
    run: SyntheticRun, words: list[str], kind: str, expected: dict[str, Any]
) -> None:
    action = tried(run, *words)["action"]
    assert action["type"] == "send-command"
    assert action["command"]["kind"] == kind
    assert expected.items() <= action["command"].items()


@pytest.mark.parametrize(
    ("words", "tag", "expected"),
    [
        (["quarantine", "n001"], "quarantine-node", {"node": "n001"}),
        (["ack", "inc-0001"], "acknowledge-incident", {"incident": "inc-0001"}),
        (["rollback", "--to", "step-00000100.a0001"], "start-attempt", {}),
        (["rollback", "--to-step", "99"], "start-attempt", {}),
        (["lr", "--to", "50"], "reject-intervention", {}),
        (["clip", "--to", "0.3", "--at-step", "9"], "reject-intervention", {}),
        (["optimizer", "--beta2", "0.1"], "reject-intervention", {}),
        (["scaler", "--reset", "8", "--for-steps", "5"], "reject-intervention", {}),
        (["skip", "--data-steps", "1:5"], "reject-intervention", {}),
        (["rollback", "--to-step", "7"], "reject-intervention", {}),
        (["revert", "nobody"], "reject-intervention", {}),
        (["ack", "inc-0099"], "reject-intervention", {}),
        (["lr", "--to", "1e-4", "--expect", "0.5"], "reject-intervention", {}),
    ],
)
def test_what_the_controller_does_by_itself_or_refuses(
    run: SyntheticRun, words: list[str], tag: str, expected: dict[str, Any]
) -> None:
    decision = tried(run, *words)
    assert decision["action"]["type"] == tag, decision["reason"]
    assert expected.items() <= decision["action"].items()


def test_a_factor_is_shown_with_the_rate_that_it_makes(run: SyntheticRun) -> None:
    last = run.state.last
    assert last is not None
    evidence = dict(tried(run, "lr", "--factor", "0.5")["evidence"])
    assert evidence["lr-factor"] == "0.5 -> 0.25", "factors multiply"
    assert evidence["lr"] == f"{last.lr:.6g}, on the same schedule {last.lr / 2:.6g}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["clip", "--to", "0.3", "--at-step", "500"],
            ["would send grad-clip 0.3 at step 500 as command 2", "from step: 500 of 2000"],
        ),
        (
            ["lr", "--factor", "0.1", "--at-step", "500", "--for-steps", "20"],
            ["lr-factor: 0.5 -> 0.05", "for: 20 steps, up to step 519; then as before"],
        ),
        (
            ["scaler", "--reset", "8", "--floor", "0.01"],
            [
                "would send scaler loss-scale 8 loss-scale-floor 0.01 as command 2",
                "loss-scale: 16384 -> 8",
                "loss-scale-floor: not read back -> 0.01",
                "from step: 141 of 2000, or the first after it that all ranks agree on",
            ],
        ),
        (
            ["skip", "--data-steps", "500:510"],
            ["would send skip 500:510", "left out: data steps 500 up to 509, 10 in all"],
        ),
        (["stop", "--at-step", "600"], ["would send stop at step 600", "600 of 2000 is completed"]),
        (["pause"], ["would send pause as command 2", "from step: 141 of 2000"]),
        (
            ["revert", "earlier"],
            ["taken back: lr-factor 0.5 of ann (to see), applied from step 131", "0.5 -> 1"],
        ),
    ],
)
def test_a_dry_run_says_what_would_be_changed_from_what_to_what_and_when(
    run: SyntheticRun, words: list[str], expected: list[str]
) -> None:
    name, *more = words
    subject = [more.pop(0)] if name == "revert" else []
    status, text = call(name, *subject, str(run.folder), *more, *WHY, "--dry-run")
    assert status == 0
    assert text.count("asked: to see") == 1
    missing = [each for each in expected if each not in text]
    assert not missing, text


def test_whoever_asks_a_run_that_does_not_train_is_told_that_it_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = SyntheticRun(tmp_path, nodes=2, spares=1, slots=2)
    run.start("the first attempt")
    run.train(30)
    run.decide(d.PauseRun("asked"), "ann asked")
    run.close()
    request = make_request("grad-clip", "to see", value=0.3)
    with pytest.raises(MidwatchError, match="may still apply") as late:
        submit(FolderChannel(tmp_path), request, False, 0.01, Output.TEXT)
    assert late.value.code == "timed-out"
    assert f"{request.id}: the run is not training" in capsys.readouterr().err


def test_a_rollback_goes_to_the_checkpoint_named_or_the_newest_up_to_the_step(
    run: SyntheticRun,
) -> None:
    named = tried(run, "rollback", "--to", "step-00000100.a0001")["action"]["plan"]
    assert (named["resume_step"], named["checkpoints"][0]) == (100, "step-00000100.a0001")
    before = tried(run, "rollback", "--to-step", "99")["action"]["plan"]
    assert before["resume_step"] == 50
    # What was changed since stays in force.
    assert before["hyper"]["lr_changes"][0]["cause"] == "earlier"


@pytest.mark.parametrize(
    "words",
    [
        ["lr"],
        ["lr", "--to", "1e-4", "--factor", "0.5"],
        ["clip"],
        ["scaler"],
        ["optimizer"],
        ["skip"],
        ["skip", "--data-steps", "9:3"],
        ["rollback"],
        ["rollback", "--to-step", "3", "--to", "x"],
    ],
)
def test_what_says_too_little_or_too_much_is_a_usage_error(
    run: SyntheticRun, words: list[str]
) -> None:
    name, *more = words
    status, text = call(name, str(run.folder), *more, *WHY)
    assert (status, "[usage]" in text) == (2, True), text


def test_a_reason_of_blanks_is_none(run: SyntheticRun) -> None:
    status, text = call("pause", str(run.folder), "--reason", "  ")
    assert (status, "[usage]" in text) == (2, True), text


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["lr", "--to", "nan", *WHY], "request-unreadable"),
        (["optimizer", "--eps", "inf", *WHY], "request-unreadable"),
        (["clip", "--to", "0.3", "--expect", "nan", *WHY], "request-unreadable"),
        (["pause", "--reason", "no \udcff Unicode"], "request-unreadable"),
        (["pause", "--reason", "x" * 70_000], "request-too-large"),
    ],
)
def test_what_no_controller_could_read_is_refused_at_once(
    run: SyntheticRun, words: list[str], code: str
) -> None:
    name, *more = words
    status, text = call(name, str(run.folder), *more)
    assert (status, f"[{code}]" in text) == (2, True), text
    assert list((run.folder / "requests").iterdir()) == []


def test_a_request_names_the_newest_event_that_its_author_could_see(run: SyntheticRun) -> None:
    status, _ = call("clip", str(run.folder), "--to", "0.3", *WHY, "--timeout-s", "0")
    assert status == 0
    (path,) = (run.folder / "requests").glob("*.json")
    request = msgspec.json.decode(path.read_bytes(), type=InterventionRequested)
    path.unlink()
    assert (request.action, request.value, request.reason) == ("grad-clip", 0.3, "to see")
    assert request.seen_seq == run.state.seq


def test_all_changes_are_listed_with_who_why_and_what_was_read_back(run: SyntheticRun) -> None:
    status, text = call("interventions", str(run.folder), "-o", "json")
    assert status == 0
    (known,) = json.loads(text)
    assert (known["request"]["id"], known["stage"], known["at_step"]) == ("earlier", "applied", 131)
    assert (known["previous"]["lr"], known["readback"]["lr"]) == (1.0, 0.5)


class Elsewhere:
    """A run that is reached some other way: what a command needs of it, and nothing else."""

    def __init__(self, channel: FolderChannel) -> None:
        self._near = channel
        self.posted: list[InterventionRequested] = []

    def seq(self) -> int:
        return 41

    def plan(self, request: InterventionRequested) -> list[d.Decision]:
        return self._near.plan(request)

    def post(self, request: InterventionRequested) -> dict[str, Touch]:
        self.posted.append(request)
        return {"grad-clip": Touch(40, 0.0, "bob", "clip-2 (spikes)")}

    def look(self, name: str) -> Any:
        return None


def test_a_command_reaches_a_run_by_any_channel(
    run: SyntheticRun, capsys: pytest.CaptureFixture[str]
) -> None:
    far = Elsewhere(FolderChannel(run.folder))
    request = make_request("grad-clip", "to see", value=0.3)
    submit(far, request, dry_run=False, timeout_s=0.0, output=Output.TEXT)
    assert [(r.id, r.seen_seq) for r in far.posted] == [(request.id, 41)]
    told = capsys.readouterr()
    assert f"requested as {request.id}" in told.out
    met = "grad-clip was changed by bob at 1970-01-01 00:00:00 with clip-2 (spikes), event 40"
    assert met in told.err


@pytest.mark.parametrize(("minutes", "is_told"), [(10.0, True), (70.0, False)])
def test_who_changes_what_was_just_changed_is_told_by_whom(
    tmp_path: Path, minutes: float, is_told: bool
) -> None:
    run = SyntheticRun(tmp_path, nodes=2, spares=1, slots=2)
    run.now_s = time.time() - 60 * minutes - 40.0 * 40
    run.start("the first attempt")
    run.train(40)
    run.steer("ann-1", "lr-factor", 0.5)
    run.close()
    words = ["lr", str(tmp_path), "--factor", "0.5", *WHY]
    status, text = call(*words, "--dry-run")
    assert (status, "lr-factor: 0.5 -> 0.25" in text) == (0, True), text
    assert ("just before: lr was changed by ann at " in text) is is_told, text
    status, text = call(*words, "--timeout-s", "0")
    assert ("just before, lr was changed by ann at " in text) is is_told, text
