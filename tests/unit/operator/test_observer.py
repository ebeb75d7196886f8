"""From reports to events: fenced, joined with last words, taken once in whatever order."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from midwatch.health.nodes.evidence import Sign, SignSource
from midwatch.health.nodes.liveness import RankProgress
from midwatch.logbook import events as ev
from midwatch.logbook import wire
from midwatch.logbook.findings import Severity
from midwatch.logbook.state import RunState
from midwatch.logbook.tiers import TierRefused
from midwatch.operator.agent import reports as rp
from midwatch.operator.observer import REMEMBERED_REPORTS, Observer, SeenReports
from midwatch.operator.ports import CommitFound, NodeGone, NodeSigns
from midwatch.tests.support.builders import fold, make_sample, started

STATE = fold([ev.AttemptResumed(1, 0, "", 0.1)], started())


class Watch:
    """An observer, and reports of one agent with rising numbers."""

    def __init__(self) -> None:
        self.dumps: dict[str, str] = {}
        self.observer = Observer(self._attach, lambda machine: "")
        self.seq = 0

    def _attach(self, name: str, text: str) -> str:
        self.dumps[name] = text
        return f"evidence/{name}"

    def stamp(self, report: Any) -> Any:
        self.seq += 1
        return msgspec.structs.replace(report, node="n0", agent="a", seq=self.seq)

    def see(self, report: Any, state: RunState = STATE) -> list[ev.Event]:
        return self.observer.observe(state, self.stamp(report))


def said(rank: int, *messages: wire.WorkerMessage, attempt: int = 1) -> rp.WorkerMessages:
    batch = tuple((rank, message) for message in messages)
    return rp.WorkerMessages(attempt=attempt, batch=batch)


def exited(
    rank: int, code: int | None = 1, signal: int | None = None, attempt: int = 1
) -> rp.WorkerExited:
    return rp.WorkerExited(
        attempt=attempt,
        exit=rp.Exit(rank, 100 + rank, code, signal),
        cause="exit",
        step=7,
        phase=wire.Phase.VOTE,
        log_tail="x" * 5000,
    )


def test_an_exit_carries_the_workers_last_words() -> None:
    watch = Watch()
    assert not watch.see(said(1, wire.WorkerFailed(1, "out-of-memory", "no room")))
    [event] = watch.see(exited(1))
    assert isinstance(event, ev.WorkerExited)
    assert (event.rank, event.code, event.message, event.step) == (1, "out-of-memory", "no room", 7)
    assert len(event.log_tail) == 2000
    [other] = watch.see(exited(2))
    assert isinstance(other, ev.WorkerExited)
    assert other.code == "", "words belong to the rank that said them"


def test_an_exit_of_which_nobody_learned_the_status_is_no_clean_one() -> None:
    [event] = Watch().see(exited(1, code=None))
    assert isinstance(event, ev.WorkerExited)
    assert event.exit_code == -1


@pytest.mark.parametrize(
    "report",
    [
        exited(1, attempt=9),
        said(0, wire.StepSample(**msgspec.structs.asdict(make_sample(1))), attempt=9),
        rp.StartFailed(attempt=9, code="fork-failed", message=""),
        rp.WorkersStarted(attempt=9, pids={0: 1}),
    ],
)
def test_what_another_attempt_says_is_recorded_as_stale_and_no_more(report: Any) -> None:
    [event] = Watch().see(report)
    assert isinstance(event, ev.StaleIgnored)
    assert event.attempt == 9


def test_the_expected_end_of_an_old_attempt_is_not_worth_a_line() -> None:
    assert not Watch().see(rp.AttemptStopped(attempt=9, exits=()))


def test_a_late_commit_is_a_fact_whoever_made_it() -> None:
    stage = wire.CheckpointStage("step-00000010.a0009", 10, "committed")
    [event] = Watch().see(said(0, stage, attempt=9))
    assert isinstance(event, ev.CheckpointCommitted)


def test_only_rank_0_says_where_the_attempt_resumed() -> None:
    watch = Watch()
    assert watch.see(said(0, wire.Resumed(0, 5, "c")))
    assert not watch.see(said(1, wire.Resumed(1, 5, "c")))


def test_confirmations_of_one_node_become_one_event_and_must_agree() -> None:
    def applied(rank: int, lr: float) -> wire.Applied:
        return wire.Applied(rank, 1, 6, {"lr": lr})

    batch = ((0, applied(0, 0.5)), (1, applied(1, 0.5)))
    [event] = Watch().see(rp.WorkerMessages(attempt=1, batch=batch))
    assert isinstance(event, ev.CommandApplied)
    assert (event.ranks, event.error) == ((0, 1), "")
    batch = ((0, applied(0, 0.5)), (1, applied(1, 0.6)))
    [event] = Watch().see(rp.WorkerMessages(attempt=1, batch=batch))
    assert isinstance(event, ev.CommandApplied)
    assert "different values" in event.error


def test_reports_are_taken_once_although_they_come_again_and_out_of_order() -> None:
    watch = Watch()
    first, second, third = (watch.stamp(exited(rank)) for rank in range(3))
    taken = [len(watch.observer.observe(STATE, r)) for r in (third, first, second, third, first)]
    assert taken == [1, 1, 1, 0, 0]


def test_the_memory_of_reports_is_bounded() -> None:
    seen = SeenReports()
    assert all(seen.is_new(seq) for seq in range(1, 4 * REMEMBERED_REPORTS))
    assert not seen.is_new(1), "too old to be remembered counts as seen"
    assert not seen.is_new(4 * REMEMBERED_REPORTS - 1)
    assert len(seen._seen) <= 2 * REMEMBERED_REPORTS + 1


def test_the_loss_of_a_former_agent_of_a_node_is_no_news() -> None:
    watch = Watch()
    assert watch.observer.observe(STATE, NodeGone("n0", "1", "died"))
    assert not watch.observer.observe(STATE, NodeGone("n0", "0", "died"))
    assert not watch.observer.observe(STATE, NodeGone("n9", "1", "died"))


def test_a_hangs_stacks_are_kept_as_evidence() -> None:
    watch = Watch()
    report = rp.HangSuspected(
        attempt=1,
        rank=None,
        reason="",
        waited_s=6.0,
        deadline_s=5.0,
        median_step_s=0.5,
        rows=(RankProgress(0, 7, wire.Phase.VOTE, 6.0, "S", True),),
        stacks={0: "Thread 0x1"},
    )
    [event] = watch.see(report)
    assert isinstance(event, ev.HangSuspected)
    assert event.stacks == "evidence/stacks-attempt1-n0.txt"
    assert "Thread 0x1" in watch.dumps["stacks-attempt1-n0.txt"]
    assert event.rows == (ev.HangRow(0, 7, "VOTE", 6.0, "S", True),)


def test_a_node_that_cannot_load_the_code_says_why_once() -> None:
    status = rp.AgentStatus(
        attempt=0,
        rows=(),
        pids={},
        forkserver="failed",
        forkserver_error="ImportError: no module",
        threads=0,
        rendezvous_host="",
        rendezvous_port=0,
        samples_dropped_total=0,
        reports_dropped_total=0,
        reports_lost_total=0,
    )
    watch = Watch()
    [event] = watch.see(status)
    assert isinstance(event, ev.FindingSeen)
    assert "ImportError" in event.finding.message
    assert not watch.see(status)


def test_uploads_are_facts_whoevers_attempt_it_was() -> None:
    watch = Watch()
    for attempt in (0, 1):
        stored = rp.CheckpointStored(attempt=attempt, checkpoint="c", bytes=7, upload_s=2.0)
        assert watch.see(stored) == [ev.CheckpointUploaded("c", "n0", 7, 2.0)]
        trouble = rp.UploadTrouble(
            attempt=attempt, code="store-denied", message="x" * 5000, since_s=3.0
        )
        (failed,) = watch.see(trouble)
        assert failed == ev.UploadFailed("n0", "store-denied", "x" * 1000, 3.0)


def test_an_upload_that_every_node_tells_of_is_one_event() -> None:
    watch = Watch()
    stored = rp.CheckpointStored(attempt=1, checkpoint="c", bytes=7, upload_s=2.0)
    state = fold(watch.see(stored), STATE)
    assert watch.see(stored, state) == []


def test_a_commit_that_was_found_is_told_once() -> None:
    watch = Watch()
    commit = ev.CheckpointCommitted(1, "step-00000005.a0001", 5, 1, 0.0, 0.0)
    assert watch.observer.observe(STATE, CommitFound(commit)) == [commit]
    known = fold([commit], STATE)
    assert watch.observer.observe(known, CommitFound(commit)) == []
    gone = fold([ev.CheckpointsPruned((commit.checkpoint,))], known)
    assert watch.observer.observe(gone, CommitFound(commit)) == []
    held = rp.PartHeld(attempt=1, commit=commit, held=("a",), num_files=2)
    assert watch.see(held) == []


# --- what a dead worker's text is about ---

ECC = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
USER = 'Traceback (most recent call last):\n  File "train.py", line 3\nKeyError: "tokens"'


def death(watch: Watch, rank: int, text: str, code: str = "worker-raised") -> list[ev.Event]:
    watch.see(said(rank, wire.WorkerFailed(rank, code, text.splitlines()[-1], text)))
    report = msgspec.structs.replace(exited(rank), log_tail="")
    return watch.see(report)


def test_a_text_that_blames_the_node_is_a_finding_against_it() -> None:
    event, found = death(Watch(), 1, ECC)
    assert isinstance(event, ev.WorkerExited)
    assert "node" in event.label
    assert isinstance(found, ev.FindingSeen)
    finding = found.finding
    assert (finding.detector, finding.node, finding.rank) == ("failure-text", "n0", 1)
    assert finding.action in ("drain", "evict")
    assert "ECC" in finding.message


@pytest.mark.parametrize("text", [USER, "AssertionError: loss is wrong", "something else"])
def test_the_programs_own_failure_never_costs_a_node(text: str) -> None:
    [event] = death(Watch(), 1, text)
    assert isinstance(event, ev.WorkerExited)


def test_what_peers_say_of_a_broken_connection_is_not_read() -> None:
    [event] = death(Watch(), 1, ECC, code="collective-failed")
    assert isinstance(event, ev.WorkerExited)
    assert event.label == ""


def test_one_attempt_costs_one_node_at_most() -> None:
    watch = Watch()
    assert len(death(watch, 0, ECC)) == 2
    assert len(death(watch, 1, ECC)) == 1


# --- what the cluster says ---


def test_a_standing_condition_of_the_cluster_is_one_finding() -> None:
    watch = Watch()
    sign = Sign(SignSource.CONDITION, "KernelDeadlock", "True")
    found = [watch.observer.observe(STATE, NodeSigns("n0", (sign,), t)) for t in (1.0, 61.0, 121.0)]
    assert [len(events) for events in found] == [1, 0, 0]
    [event] = found[0]
    assert isinstance(event, ev.FindingSeen)
    assert (event.finding.detector, event.finding.node) == ("cluster", "n0")
    assert event.finding.action == "drain"


def test_ranks_that_ended_together_are_one_event_without_their_echoes() -> None:
    watch = Watch()
    for rank in range(3):
        watch.see(said(rank, wire.WorkerFailed(rank, "collective-failed", "peer gone" * 100)))
    rows = tuple(
        rp.ExitRow(rp.Exit(rank, 9, 1, None), "exit", 7, wire.Phase.VOTE, "tail")
        for rank in range(3)
    )
    [event] = watch.see(rp.WorkersExited(attempt=1, rows=rows))
    assert isinstance(event, ev.WorkersExited)
    assert [e.rank for e in event.exits] == [0, 1, 2]
    assert all(e.log_tail == "" and len(e.message) <= 200 for e in event.exits)
    state = fold([event], STATE)
    assert state.attempt is not None
    assert len(state.attempt.exits) == 3


def test_a_node_without_memory_for_the_tier_is_told_of_once() -> None:
    watch = Watch()
    refused = TierRefused(0, "memory-too-small", "takes 9 MiB, 1 MiB are to be had. Raise it.")
    (event,) = watch.see(said(0, refused))
    assert isinstance(event, ev.FindingSeen)
    assert (event.finding.detector, event.finding.kind) == ("memory-tier", "memory-too-small")
    assert event.finding.severity is Severity.WARN
    assert event.finding.node == "n0"
    assert watch.see(said(1, msgspec.structs.replace(refused, rank=1))) == []


def test_what_ranks_hold_after_a_load_is_told_for_each_node() -> None:
    def loaded(rank: int, beta2: float) -> wire.Resumed:
        return wire.Resumed(rank, 20, "x", readback={"beta2": beta2})

    watch = Watch()
    report = said(0, loaded(0, 0.98))
    both = msgspec.structs.replace(report, batch=((0, loaded(0, 0.98)), (1, loaded(1, 0.98))))
    resumed, event = watch.see(both)
    assert isinstance(resumed, ev.AttemptResumed)
    assert isinstance(event, ev.CommandApplied)
    assert (event.phase, event.ranks, event.at_step, event.error) == ("loaded", (0, 1), 21, "")
    odd = msgspec.structs.replace(report, batch=((2, loaded(2, 0.98)), (3, loaded(3, 0.95))))
    [event] = watch.see(odd)
    assert isinstance(event, ev.CommandApplied)
    assert "ranks read back different values" in event.error
