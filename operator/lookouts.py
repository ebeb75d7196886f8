"""Everything that tells others of a run, started beside its controller and closed with it.

Each has a thread of its own and reads the state as it stands; none is ever waited for by a tick,
and none that fails takes the controller with it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from ..logbook.errors import MidwatchError
from ..logbook.events import Event
from ..logbook.state import RunState
from .api.keeper import Keeper
from .api.order import order_of
from .exporter import Exporter
from .heartbeat import Heartbeat
from .messenger import Messenger
from .spec import RunSpec

_log = logging.getLogger(__name__)


class Lookouts:
    """What the spec asks for of metrics, messages, heartbeat and HTTP API.

    state_of: returns the state of the moment, one immutable value, from any thread.
    is_turning: whether the controller's ticks go by.
    """

    def __init__(
        self,
        spec: RunSpec,
        run_dir: Path,
        state_of: Callable[[], RunState],
        is_turning: Callable[[], bool],
    ) -> None:
        self.exporter: Exporter | None = None
        observe, notify = spec.observe, spec.notify
        if observe.metrics_port is not None:
            try:
                self.exporter = Exporter(observe.metrics_host, observe.metrics_port, state_of)
                _log.info("metrics at %s:%d", observe.metrics_host, self.exporter.port)
            except MidwatchError as error:
                _log.error("no metrics: %s", error)
        has_webhook, has_heartbeat = notify.webhook is not None, notify.heartbeat is not None
        self._messenger = Messenger(notify, run_dir, state_of) if has_webhook else None
        self._heartbeat = Heartbeat(notify, is_turning) if has_heartbeat else None
        self._keeper: Keeper | None = None
        if spec.api.enabled:
            # The parent of an actor's process is the Ray of its node, which outlives controllers.
            self._keeper = Keeper(order_of(spec.api, str(run_dir), while_pid=os.getppid()))

    def news(self) -> list[Event]:
        """Return what is to be written down of them since the last call."""
        return self._keeper.news() if self._keeper is not None else []

    def close(self, timeout_s: float) -> None:
        """Tell what is left to tell for at most timeout_s, then fall silent; 0 at once.

        The run is served on for a while, for those who look only now and then.
        """
        if self._heartbeat is not None:
            self._heartbeat.close()
        if self._messenger is not None and not self._messenger.close(timeout_s):
            _log.warning("the run is over, and not all messages about it were taken")
        if self.exporter is not None:
            self.exporter.close()
        if self._keeper is not None:
            self._keeper.close()
