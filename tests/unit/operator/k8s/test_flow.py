"""The whole flow in process: a real kopf on a real API server's protocol, a real run's state."""

from __future__ import annotations

import pytest
from midwatch.tests.support.kube_operator import stage
from midwatch.tests.support.kube_run import make_run

pytestmark = pytest.mark.asyncio


async def test_a_run_gets_its_cluster_its_controller_and_a_status() -> None:
    async with stage() as st, st.operator():
        await st.submit(make_run())
        await st.bring_up()
        run = st.training_run()
        assert run is not None
        assert run["metadata"]["finalizers"] == ["midwatch.dev/finalizer"]
        assert run["status"]["run"]["step"] == 10
