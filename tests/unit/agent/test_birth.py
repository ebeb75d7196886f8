"""What a worker is born with: its own descriptors, group, output and environment, and no others."""

from __future__ import annotations

import ast
import os
import re
import socket
from pathlib import Path

import msgspec
from midwatch.logbook.wire import Finished, Resumed, StepSample, WorkerFailed
from midwatch.operator.agent.plan import Preload
from midwatch.operator.agent.reports import (
    AgentStatus,
    StartFailed,
    WorkerExited,
    WorkersStarted,
)
from midwatch.tests.support.agents import FAKE, Site, is_running, site, wait_gone


def test_workers_are_forked_from_the_preloaded_process(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1))
    started = agent.recorder.wait(WorkersStarted)
    assert sorted(started.pids) == [0, 1]
    preloaded, env, fake = agent.wait_log(1, 0, "preloaded")
    assert int(preloaded) == agent.forkserver_pid()
    assert (env, fake) == ("env", "yes")
    agent.recorder.wait_message(Resumed, 1, rank=1)
    agent.recorder.wait_message(StepSample, 1, rank=0)


def test_a_worker_leads_its_own_group_and_has_one_thread(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1))
    pids = agent.recorder.wait(WorkersStarted).pids
    group, _, pid, _, parent = agent.wait_log(1, 1, "group")
    assert int(group) == int(pid) == pids[1]
    assert int(parent) == agent.forkserver_pid()
    assert agent.wait_log(1, 1, "threads")[0] == "1"


def open_files(agent: Site, rank: int) -> dict[int, str]:
    agent.wait_log(1, rank, "links")
    links = re.search(r"^links (.*)$", agent.log(1, rank), re.MULTILINE)
    assert links is not None
    found: dict[int, str] = ast.literal_eval(links[1])
    return found


def test_a_worker_holds_nothing_of_its_siblings(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1, ranks=(0, 1, 2)))
    files = {rank: open_files(agent, rank) for rank in (0, 1, 2)}
    pipes = {
        rank: {name for name in held.values() if name.startswith("pipe:")}
        for rank, held in files.items()
    }
    for rank, mine in pipes.items():
        assert len(mine) == 2, files[rank]
        assert all(not (mine & theirs) for other, theirs in pipes.items() if other != rank)
    sockets = {
        rank: [name for name in held.values() if name.startswith("socket:")]
        for rank, held in files.items()
    }
    assert len(sockets[0]) == 1
    assert sockets[1] == sockets[2] == []
    assert files[0][0] == "/dev/null"
    assert not [name for held in files.values() for name in held.values() if "anon_inode" in name]


def test_what_a_preload_opened_stays_open(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.touch()
    preload = Preload(f"{FAKE}:preload", {"open": str(kept)})
    with site(tmp_path, preload=(preload,)) as agent:
        agent.supervisor.start(agent.plan(1, ranks=(1,)))
        assert str(kept) in open_files(agent, 1).values()


def test_rank_0_gets_the_listening_socket_and_a_fresh_one_is_reserved(agent: Site) -> None:
    host, port = agent.supervisor.rendezvous
    with socket.create_connection((host, port), timeout=10):
        pass  # It already listens, before any worker lives.
    agent.supervisor.start(agent.plan(1))
    assert agent.wait_log(1, 0, "listening") == [str(port)]
    agent.recorder.wait(
        AgentStatus, lambda status: status.attempt == 1 and status.rendezvous_port != port
    )
    with socket.create_connection((host, port), timeout=10):
        pass  # The same socket, now in rank 0's hands.
    assert agent.supervisor.rendezvous[1] != port


def test_a_rank_0_elsewhere_leaves_the_reserve_alone(agent: Site) -> None:
    port = agent.supervisor.rendezvous[1]
    agent.supervisor.start(agent.plan(1, ranks=(1, 2)))
    agent.recorder.wait_message(Resumed, 1, rank=2)
    assert agent.supervisor.rendezvous[1] == port


def test_a_port_that_somebody_else_has_fails_the_start(agent: Site) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        plan = agent.plan(1)
        starts = [
            msgspec.structs.replace(start, rendezvous_port=taken.getsockname()[1])
            for start in plan.workers
        ]
        agent.supervisor.start(msgspec.structs.replace(plan, workers=tuple(starts)))
        failed = agent.recorder.wait(StartFailed)
    assert failed.code == "rendezvous-port-lost"


def test_environment_of_single_ranks_is_added(agent: Site) -> None:
    plan = msgspec.structs.replace(agent.plan(1), rank_env={1: {"FAKE": "one"}})
    agent.supervisor.start(plan)
    assert agent.wait_log(1, 0, "preloaded")[2] == "yes"
    assert agent.wait_log(1, 1, "preloaded")[2] == "one"


def test_an_entry_point_that_cannot_be_loaded_says_so(agent: Site) -> None:
    plan = msgspec.structs.replace(agent.plan(1), entry_point="no.such.module:main")
    agent.supervisor.start(plan)
    last_words = agent.recorder.wait_message(WorkerFailed, 1, rank=0)
    assert last_words.code == "bad-entry-point"
    assert "no.such.module" in last_words.message
    exited = agent.recorder.wait(WorkerExited)
    assert exited.exit.exit_code == 70
    assert "no.such.module" in exited.log_tail


def test_a_finished_worker_exits_with_0_after_its_last_words(agent: Site) -> None:
    agent.supervisor.start(agent.plan(1, ranks=(0,), steps=3))
    exited = agent.recorder.wait(WorkerExited)
    assert exited.exit.exit_code == 0
    assert exited.exit.signal is None
    assert (exited.step, exited.phase.name) == (3, "DONE")
    finished = agent.recorder.wait_message(Finished, 1)
    assert finished.step == 3


def test_the_agent_s_import_path_and_additions_reach_the_workers(tmp_path: Path) -> None:
    folder = tmp_path / "extra"
    folder.mkdir()
    code = "import os\ndef main(start): print('value', os.environ['THREADS_OF_TEST'])\n"
    (folder / "trainer_of_test.py").write_text(code)
    changes = {"python_path": (str(folder),), "env": {"THREADS_OF_TEST": "1"}}
    with site(tmp_path, **changes) as agent:
        plan = msgspec.structs.replace(
            agent.plan(1, ranks=(1,)), entry_point="trainer_of_test:main"
        )
        agent.supervisor.start(plan)
        exited = agent.recorder.wait(WorkerExited)
    assert exited.exit.exit_code == 0
    assert exited.log_tail == "value 1\n"
    assert "THREADS_OF_TEST" not in os.environ


def test_closing_ends_the_forkserver_and_its_workers(tmp_path: Path) -> None:
    with site(tmp_path) as agent:
        agent.supervisor.start(agent.plan(1))
        pids = [*agent.recorder.wait(WorkersStarted).pids.values(), agent.forkserver_pid()]
        assert all(is_running(pid) for pid in pids)
    assert not any(is_running(pid) for pid in pids)
    wait_gone(pids)


# --- preloads ---


def test_a_preload_that_raises_fails_the_start_with_its_traceback(tmp_path: Path) -> None:
    preload = Preload(f"{FAKE}:preload", {"raise": "no such library"})
    with site(tmp_path, preload=(preload,)) as agent:
        agent.supervisor.start(agent.plan(1))
        failed = agent.recorder.wait(StartFailed)
        status = agent.recorder.wait(AgentStatus, lambda status: status.forkserver == "failed")
    assert failed.code == "preload-failed"
    assert "RuntimeError: no such library" in failed.message
    assert "fake_trainer.py" in failed.message
    assert "no such library" in status.forkserver_error


def test_a_preload_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with site(tmp_path, preload=(Preload("no.such:thing"),)) as agent:
        agent.supervisor.start(agent.plan(1))
        failed = agent.recorder.wait(StartFailed)
    assert failed.code == "preload-failed"
    assert "no.such:thing" in failed.message


def test_threads_left_by_a_preload_are_shown(tmp_path: Path) -> None:
    preload = Preload(f"{FAKE}:preload", {"thread": True})
    with site(tmp_path, preload=(preload,)) as agent:
        status = agent.recorder.wait(AgentStatus, lambda status: status.forkserver == "ready")
        assert status.threads == 2


def test_a_preload_that_takes_too_long_fails_the_start(tmp_path: Path) -> None:
    preload = Preload(f"{FAKE}:preload", {"sleep_s": 600})
    with site(tmp_path, preload=(preload,), ready_deadline_s=0.3) as agent:
        agent.supervisor.start(agent.plan(1))
        assert agent.recorder.wait(StartFailed).code == "forkserver-not-ready"


def test_a_spare_needs_no_forkserver_to_take_an_empty_plan(tmp_path: Path) -> None:
    preload = Preload(f"{FAKE}:preload", {"raise": "x"})
    with site(tmp_path, preload=(preload,)) as agent:
        agent.supervisor.start(agent.plan(1, ranks=()))
        assert agent.recorder.wait(WorkersStarted).pids == {}
