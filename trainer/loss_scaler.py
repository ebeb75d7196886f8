"""The dynamic loss scale of fp16 training, as a state machine that every rank runs alike.

Each rank feeds it the found_inf on which all ranks have agreed, so all scales stay equal without
being exchanged. The scale falls by a factor on every overflow and grows by it after a clean window;
the window doubles and halves with the scale, because a scale ten times higher has had less evidence
that it is safe, and one that has fallen far should find its way back soon. At the floor it keeps
skipping and counts how long: whether that is a collapse is for a monitor to say, so nothing raises.
Source: metaseq#115 for the window that follows the scale and for a floor that does not raise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from .config import LossScalerConfig


@dataclass(frozen=True)
class ScalerState:
    """Everything the scaler remembers.

    good_steps: clean steps since the scale last changed.
    consecutive_skips: skipped steps up to now without a clean one between.
    floor_dwell_steps: steps completed at the floor, skipped or not, since the scale came there.
    """

    scale: float
    good_steps: int = 0
    skips_total: int = 0
    consecutive_skips: int = 0
    floor_dwell_steps: int = 0


def window_at(scale: float, config: LossScalerConfig) -> int:
    """Return the clean steps after which this scale may grow."""
    return max(1, round(config.window * scale / config.init))


def advance(state: ScalerState, found_inf: bool, config: LossScalerConfig) -> ScalerState:
    """Return the state after one more step, which was skipped if found_inf."""
    dwell = state.floor_dwell_steps + 1 if state.scale <= config.floor else 0
    if found_inf:
        lowered = replace(
            state,
            good_steps=0,
            skips_total=state.skips_total + 1,
            consecutive_skips=state.consecutive_skips + 1,
            floor_dwell_steps=dwell,
        )
        return replace(lowered, scale=max(state.scale / config.factor, config.floor))
    clean = replace(
        state, good_steps=state.good_steps + 1, consecutive_skips=0, floor_dwell_steps=dwell
    )
    can_grow = state.scale < config.max
    if can_grow and clean.good_steps >= window_at(state.scale, config):
        grown = min(state.scale * config.factor, config.max)
        return replace(clean, scale=grown, good_steps=0, floor_dwell_steps=0)
    return clean


class LossScaler:
    """The live scaler of one rank."""

    def __init__(self, config: LossScalerConfig) -> None:
        self._config = config
        self._state = ScalerState(scale=config.init)

    @property
    def state(self) -> ScalerState:
        return self._state

    @property
    def scale(self) -> float:
        """Factor of the loss in the next step."""
        return self._state.scale

    @property
    def floor(self) -> float:
        """What the scale does not go below."""
        return self._config.floor

    def set_floor(self, floor: float) -> None:
        """Let the scale go down to another floor from now on, and no further."""
        if floor != self._config.floor:
            self._config = self._config.model_copy(update={"floor": floor})
        if self._state.scale < floor:
            self._state = replace(self._state, scale=floor, floor_dwell_steps=0)

    def update(self, found_inf: bool) -> None:
        """Take note of one completed step; found_inf must be the value agreed by all ranks."""
        self._state = advance(self._state, found_inf, self._config)

    def reset(self, scale: float) -> None:
        """Begin anew at a scale, held between floor and max; totals are kept."""
        held = min(max(scale, self._config.floor), self._config.max)
        self._state = ScalerState(scale=held, skips_total=self._state.skips_total)

    def state_dict(self) -> dict[str, float | int]:
        return asdict(self._state)

    def load_state_dict(self, saved: dict[str, float | int]) -> None:
        """Take over a saved state; a scale outside the configured bounds is moved inside."""
        state = ScalerState(
            scale=float(saved["scale"]),
            good_steps=int(saved["good_steps"]),
            skips_total=int(saved["skips_total"]),
            consecutive_skips=int(saved["consecutive_skips"]),
            floor_dwell_steps=int(saved["floor_dwell_steps"]),
        )
        held = min(max(state.scale, self._config.floor), self._config.max)
        self._state = replace(state, scale=held)
