"""Where the checkpoints of a run lie, as a process that can see its folder finds them."""

from __future__ import annotations

from pathlib import Path

from ..logbook.errors import MidwatchError
from ..logbook.state import RunState
from ..logbook.tui.controls import Places
from .checkpoint_view import tiers_of
from .spec import RunSpec
from .store import list_tiers


def look_for_checkpoints(state: RunState, run_dir: Path) -> Places:
    """List every tier that is seen from here; what cannot be seen is told as trouble."""
    try:
        tiers, trouble = list_tiers(RunSpec.model_validate(state.spec), run_dir)
    except (MidwatchError, OSError, ValueError) as error:
        return Places({}, str(error))
    return Places(tiers_of(tiers), trouble)
