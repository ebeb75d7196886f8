"""Finding a run on disk, and folding its journal as it grows."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ...logbook import events as ev
from ...logbook.errors import MidwatchError
from ...logbook.fold import evolve
from ...logbook.pulse import pulse_s
from ...logbook.reader import Follower, Rewound, last_seq
from ...logbook.record import Record
from ...logbook.state import RunState
from ...logbook.state_file import load_saved_state

if TYPE_CHECKING:
    from ..spec import RunSpec

RUNS = "runs"


class NotFoundError(MidwatchError):
    """What a command names does not exist; exit status 3."""


def run_dir_of(spec: RunSpec) -> Path:
    """Return the absolute folder of a run."""
    return Path(spec.run_dir or Path(RUNS) / spec.name).absolute()


def find_run(name: str | None) -> Path:
    """Return the folder of a run given by name or path; None means the newest under runs/.

    Raises: NotFoundError[no-such-run].
    """
    if name is None:
        found = sorted(Path(RUNS).glob("*/journal"), key=os.path.getmtime)
        if found:
            return found[-1].parent.absolute()
        raise NotFoundError(
            "no-such-run", f"there is no run under {RUNS}/.", remedy="Start one: midwatch run SPEC."
        )
    for folder in (Path(name), Path(RUNS) / name):
        if (folder / "journal").is_dir():
            return folder.absolute()
    known = ", ".join(sorted(p.parent.name for p in Path(RUNS).glob("*/journal"))) or "none"
    raise NotFoundError(
        "no-such-run",
        f"{name!r} is neither the folder of a run nor the name of one under {RUNS}/.",
        remedy=f"Known runs: {known}.",
    )


class StateFollower:
    """The RunState of a run on disk, brought up to date by poll().

    It starts from the newest state that the controller has saved, so the first poll returns what
    came after that, and records before it are not checked.
    """

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / "journal"
        self._begin()

    def _begin(self) -> None:
        self.state = load_saved_state(self._directory, up_to_seq=last_seq(self._directory))
        self._follower: Follower[ev.Event] = Follower(
            self._directory, ev.Event, from_seq=self.state.seq + 1
        )

    @property
    def alive_s(self) -> float:
        """The last pulse of the controller, 0.0 where there is none."""
        return pulse_s(self._directory)

    def close(self) -> None:
        """Let go of the journal's files; the state stays."""
        self._follower.close()

    def poll(self) -> list[Record[ev.Event]]:
        """Fold everything new and return it."""
        new: list[Record[ev.Event]] = []
        try:
            while records := self._follower.poll():
                for record in records:
                    self.state = evolve(
                        self.state, record.event, seq=record.seq, time_s=record.time_s
                    )
                new += records
        except Rewound:
            # Records the writer never acknowledged were withdrawn: what was built on them goes.
            self._follower.close()
            self._begin()
            return self.poll()
        return new


def load_state(run_dir: Path) -> RunState:
    """Return the state of a run as its journal stands now."""
    with closing(StateFollower(run_dir)) as follower:
        follower.poll()
        return follower.state
