"""The served API against its own description: what a generator makes of it finds no surprise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from midwatch.operator.api.tokens import Role
from midwatch.tests.support.api_server import ApiServer
from midwatch.tests.support.synthetic_run import SyntheticRun
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
)

# The budget: so many requests an address, the same ones in every run.
EXAMPLES = 12
BUDGET = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
# A stream has no end of its own, and tests of its own.
ADDRESSES = (
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("GET", "/v1/status"),
    ("GET", "/v1/state"),
    ("GET", "/v1/events"),
    ("GET", "/v1/incidents"),
    ("GET", "/v1/incidents/{name}"),
    ("GET", "/v1/incidents/{name}/note"),
    ("GET", "/v1/incidents/{name}/plot"),
    ("POST", "/v1/incidents/{name}/remarks"),
    ("GET", "/v1/interventions"),
    ("GET", "/v1/interventions/{name}"),
    ("POST", "/v1/interventions"),
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    run = SyntheticRun(tmp_path_factory.mktemp("fuzzed") / "run", nodes=2, spares=1, slots=2)
    run.start("the first attempt")
    run.train(20)
    run.crash(rank=1)
    with ApiServer(run.folder, waiting=100_000) as server:
        yield server
    run.close()


@pytest.fixture(scope="module")
def schema(fuzzed: ApiServer) -> Any:
    with fuzzed.http(None) as http:
        return schemathesis.openapi.from_dict(http.get("/openapi.json").json())


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("method", "path"), ADDRESSES)
def test_answers_are_as_described(
    fuzzed: ApiServer, schema: Any, method: str, path: str, mode: GenerationMode
) -> None:
    operation = schema[path][method]
    if mode is GenerationMode.NEGATIVE and not (
        list(operation.iter_parameters()) or operation.body
    ):
        pytest.skip("nothing is asked for that could be wrong")
    judging = (
        positive_data_acceptance if mode is GenerationMode.POSITIVE else negative_data_rejection
    )
    headers = {"Authorization": f"Bearer {fuzzed.token(Role.OPERATOR)}"}
    asked = 0

    @BUDGET
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        nonlocal asked
        asked += 1
        case.call_and_validate(
            base_url=fuzzed.endpoint.url, headers=headers, checks=[*CHECKS, judging], timeout=60
        )

    ask()
    assert asked >= 1
    assert "Traceback" not in fuzzed.log
