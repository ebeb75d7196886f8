"""What the screen looks like, as pictures that a person has looked at.

After a wanted change: MIDWATCH_RENEW_PICTURES=1 pytest THIS_FILE, look at every picture, commit it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from midwatch.tests.support.screens import RecordingControls, compare_picture, drive, watching
from midwatch.tests.support.synthetic_run import SyntheticRun

PICTURES = Path(__file__).with_name("pictures")
SMALL, LARGE = (80, 24), (120, 40)

VIEWS = [
    ("charts-large", LARGE, ()),
    ("charts-small", SMALL, ()),
    ("charts-zoomed", SMALL, ("down", "enter", "left_square_bracket", "plus")),
    ("fleet-large", LARGE, ("2", "n")),
    ("fleet-small", SMALL, ("2", "n")),
    ("timeline-small", SMALL, ("3", "up", "up")),
    ("incidents-large", LARGE, ("4", "down")),
    ("checkpoints-small", SMALL, ("5", "down")),
    ("keys-large", LARGE, ("question_mark",)),
    ("form-small", SMALL, ("L", *"7e-5", "down", *"grad norm creeps")),
    ("confirm-small", SMALL, ("S", *"maintenance", "enter")),
]


def take(
    run: SyntheticRun, name: str, size: tuple[int, int], keys: tuple[str, ...], drawn: Path
) -> None:
    """Press keys and compare the screen with the picture of that name."""

    async def scenario() -> None:
        async with watching(run, size, RecordingControls()) as pilot:
            await pilot.press(*("space" if key == " " else key for key in keys))
            await pilot.pause(0.1)
            await compare_picture(pilot, PICTURES / f"{name}.svg", drawn / f"{name}.svg")

    drive(scenario())


@pytest.mark.parametrize(("name", "size", "keys"), VIEWS, ids=[view[0] for view in VIEWS])
def test_a_view_looks_as_it_did(
    night: SyntheticRun, tmp_path: Path, name: str, size: tuple[int, int], keys: tuple[str, ...]
) -> None:
    take(night, name, size, keys, tmp_path)


@pytest.mark.parametrize(("name", "keys"), [("charts-plain", ()), ("fleet-plain", ("2", "n"))])
def test_without_colour_it_says_the_same(
    night: SyntheticRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    keys: tuple[str, ...],
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    take(night, name, SMALL, keys, tmp_path)


def test_a_fleet_of_16384_gpus_is_folded_to_nodes(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", nodes=2046, spares=2, slots=8)
    run.start("the first attempt")
    run.train(3)
    run.crash(rank=4000)
    take(run, "fleet-16384", LARGE, ("2", "n"), tmp_path)
    run.close()
