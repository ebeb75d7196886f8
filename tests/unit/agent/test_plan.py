"""Plans that contradict themselves are refused; reports survive their encoding."""

from __future__ import annotations

import msgspec
import pytest
from midwatch.health.nodes.liveness import RankProgress
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.wire import Phase
from midwatch.operator.agent.plan import LocalPlan, check_plan
from midwatch.operator.agent.reports import AgentReport, Exit, HangSuspected, WorkerExited
from midwatch.tests.support.agents import worker_start


def plan(*ranks: int, attempt: int = 2, entry_point: str = "a:b") -> LocalPlan:
    workers = tuple(worker_start(2, rank, 0, 2) for rank in ranks)
    return LocalPlan(attempt=attempt, workers=workers, entry_point=entry_point, log_dir="x")


@pytest.mark.parametrize(
    "bad", [plan(0, 0), plan(0, attempt=3), plan(0, entry_point="a.b")], ids=str
)
def test_a_plan_that_contradicts_itself_is_refused(bad: LocalPlan) -> None:
    with pytest.raises(ConfigError) as refused:
        check_plan(bad)
    assert refused.value.code == "bad-plan"


def test_sound_plans_pass() -> None:
    check_plan(plan(0, 1))
    check_plan(plan())


def test_reports_survive_their_encoding() -> None:
    reports: list[AgentReport] = [
        WorkerExited(
            attempt=3,
            exit=Exit(1, 77, None, 9),
            cause="signal",
            step=4,
            phase=Phase.BACKWARD,
            log_tail="x",
        ),
        HangSuspected(
            attempt=3,
            rank=1,
            reason="r",
            waited_s=1.0,
            deadline_s=0.5,
            median_step_s=0.1,
            rows=(RankProgress(1, 2, Phase.DATA, 0.5),),
            stacks={1: "s"},
        ),
    ]
    data = msgspec.msgpack.encode(reports)
    assert msgspec.msgpack.decode(data, type=list[AgentReport]) == reports
