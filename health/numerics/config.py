"""What can be set about the detectors; the defaults fit the recorded runs.

A window counted in _points counts logged points, so that one setting serves a log with a line
every step and a log with a line every 500. A window counted in _steps counts optimizer updates.
_z is in units of the series' own noise, _frac a share of the reference.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["act", "shadow", "off"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Frac = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A part of the settings: unknown fields are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DetectorConfig(Section):
    """Common to all detectors."""

    mode: Mode = "act"
    """act: the policy may act on findings; shadow: they are recorded, marked; off: none."""


class LrWatchConfig(Section):
    """When the learning rate counts as on its way up: in warm-up, at a restart of the schedule."""

    rise_factor: Positive = 1.5
    """It is this many times what it was window_points before."""
    window_points: Count = 64
    """How far back it is compared."""
    hold_steps: Count = 1000
    """A rise counts no longer than this after the rate last grew."""


class SpikeConfig(DetectorConfig):
    """When a loss counts as out of the ordinary, and when as back in it."""

    centre_points: Count = 16
    """The reference is the median of so many ordinary points; short, to follow a falling loss."""
    noise_points: Count = 64
    """The noise is taken from about so many ordinary points."""
    ready_points: Count = 12
    """Judge only large rises before so many ordinary points."""
    open_z: Positive = 6.0
    """A single point that far above the reference opens an excursion."""
    run_points: Count = 4
    """So many points in a row above heal_z open one too."""
    heal_z: Positive = 3.0
    """An excursion heals once the median of heal_points is below this, and half the least rise."""
    heal_points: Count = 5
    """Points whose median tells whether an excursion has healed."""
    min_rise_frac: Positive = 0.05
    """Least rise that counts, so that a noiseless loss does not alarm about nothing."""
    min_rise_nats: Positive = 0.05
    """Least rise that counts in absolute terms, so that a loss near zero may wiggle."""
    begin_nats: Positive = 10.0
    """The same holds for a run that began at this loss; one that began lower has less of it."""
    lr_rise_frac: Positive = 0.25
    """Least rise that counts while the learning rate is on its way up."""
    early_points: Count = 4
    """Before ready_points, a large rise over so many points opens an excursion."""
    early_factor: Positive = 5.0
    """A rise is large when it is this many times the least that counts. The same holds after a
    restart, over what the loss was before the step that the run went back to."""
    adopt_points: Count = 200
    """An excursion that lasts longer is the new normal, and the reference starts anew."""


class UnrestConfig(Section):
    """When a loss that jumps up and down counts, though every excursion heals."""

    window_points: Count = 32
    """Points that are looked at together."""
    high_frac: Frac = 0.4
    """Share of them that must be high."""
    min_returns: Count = 2
    """How often the loss must have come down and gone up again among them."""
    min_rise_frac: Positive = 0.15
    """Rise of their mean that is a warning, and once it has stood for as many again, a rollback."""


class LevelShiftConfig(DetectorConfig):
    """How long an excursion of the loss may take to heal.

    In a log that is a running average one bad point echoes for many: it is seen from how alike
    neighbouring points are, and given more points.
    """

    warn_points: Count = 5
    """Warn of an excursion that has not healed at this point of it."""
    rollback_points: Count = 8
    """Roll back an excursion that has not healed at this point of it."""
    high_frac: Frac = 0.75
    """Share of its points that must be high: a series of separate spikes is no shift."""
    least_z: Positive = 6.0
    """Least height, in units of what the median of a few points usually strays."""
    unrest: UnrestConfig = UnrestConfig()
    """When excursions that heal count taken together."""


class CreepConfig(DetectorConfig):
    """When a slow rise of the loss counts."""

    block_points: Count = 8
    """Points averaged into a block; a level is the mean of three blocks."""
    window_blocks: Count = 64
    """The level is compared with the lowest one of so many."""
    ready_blocks: Count = 18
    """Say nothing before so many levels."""
    warn_z: Positive = 9.0
    """Rise in units of what the level usually wanders."""
    min_rise_frac: Positive = 0.018
    """Least rise that counts."""
    min_rise_nats: Positive = 0.02
    """Least rise that counts in absolute terms."""
    stay_blocks: Count = 12
    """Roll back a rise that still counts so many blocks after the warning, not halved since."""


class JumpConfig(SpikeConfig):
    """When a jump of the logarithm of a norm opens an excursion."""

    min_rise_frac: Positive = 1e-6
    """Not used: shares of a logarithm mean nothing."""
    min_rise_nats: Positive = 0.2
    """Least rise that counts, as a difference of logarithms."""
    begin_nats: Positive = 1e-6
    """Not used: where a norm begins says nothing about it."""
    adopt_points: Count = 400
    """An excursion that lasts longer is the new normal, and the reference starts anew."""


class NormConfig(DetectorConfig):
    """When the growth of a norm counts: by a jump, or by a bend of its trend.

    All on the logarithm of the norm: a rise of 0.69 is a factor of 2.
    """

    jump: JumpConfig = JumpConfig()
    """When a jump opens an excursion."""
    note_rise: Positive = 1.1
    """A jump at least that large is a note at once."""
    note_points: Count = 4
    """A smaller jump is a note when it lasts so many points."""
    warn_rise: Positive = 1.0
    """A jump at least that large that stays is a warning."""
    warn_points: Count = 16
    """A jump stays if it lasts so many points."""
    sparse_points: Count = 16
    """Or so many points, if they span sparse_steps."""
    sparse_steps: Count = 16
    """Span of sparse_points that counts as staying, in a log whose points lie far apart."""
    block_points: Count = 8
    """Points averaged into a block; a level is the mean of three blocks."""
    window_blocks: Count = 32
    """Levels that are remembered."""
    ready_blocks: Count = 18
    """Say nothing about the trend before so many levels."""
    span_blocks: Count = 12
    """Growth over so many blocks is compared with that over as many before."""
    bend_z: Positive = 9.0
    """Growth in excess of the growth before, in units of what a level usually wanders."""
    bend_rise: Positive = 0.2
    """Excess growth that is a note."""
    bend_warn_rise: Positive = 2.0
    """Excess growth that is a warning."""


class ActivationJumpConfig(JumpConfig):
    """When a jump of the activation norm opens an excursion."""

    min_rise_nats: Positive = 0.02
    """Least rise that counts, as a difference of logarithms."""


class ActivationNormConfig(NormConfig):
    """When the growth of the activation norm counts: a smooth series, a few per cent tell."""

    jump: ActivationJumpConfig = ActivationJumpConfig()
    """When a jump opens an excursion."""
    note_rise: Positive = 0.05
    """A jump at least that large is a note at once."""
    note_points: Count = 2
    """A smaller jump is a note when it lasts so many points."""
    warn_rise: Positive = 0.05
    """A jump at least that large that stays is a warning."""
    warn_points: Count = 8
    """A jump stays if it lasts so many points."""
    sparse_points: Count = 3
    """Or so many points, if they span sparse_steps."""
    sparse_steps: Count = 50
    """Span of sparse_points that counts as staying, in a log whose points lie far apart."""
    bend_rise: Positive = 0.005
    """Excess growth that is a note."""
    bend_warn_rise: Positive = 0.01
    """Excess growth that is a warning."""


class ScalerConfig(DetectorConfig):
    """When a dynamic loss scaler is in trouble; independent of the loss."""

    floor: Positive = 2.0**-5
    """Smallest scale it takes; one that stays put while it skips counts as at its floor too."""
    floor_dwell_steps: Count = 20
    """So many steps at the floor, or without one that was not skipped, are a collapse."""
    low_scale: Positive = 1.0
    """A settled scale that falls below this is a note, below half of it a warning."""
    settle_steps: Count = 20
    """Steps without a skip after which it has settled; before, it comes down from its start."""
    unsettled_steps: Count = 200
    """A scale still low after so many steps is judged though it was never higher."""
    skip_window_points: Count = 50
    """Skips are counted over so many points."""
    skip_warn_frac: Frac = 0.3
    """Share of skipped steps that is a warning."""
    skip_rollback_frac: Frac = 0.5
    """Share of skipped steps that is a collapse."""
    fall_factor: Positive = 256.0
    """Warn when the scale falls by this factor within skip_window_points."""
    high_factor: Positive = 8.0
    """Warn when the scale climbs this far above what the run has been used to."""
    high_history_steps: Count = 2000
    """Steps in which a run gets used to a scale."""


class NonFiniteConfig(DetectorConfig):
    """How many points without a finite loss (or, without a scaler, gradient) matter.

    Non-finite points add up; finite ones in between count them down by a fifth each.
    """

    warn_points: Count = 3
    """Warn at so many."""
    rollback_points: Count = 8
    """Roll back at so many."""
    sparse_points: Count = 3
    """Enough for a rollback where points lie so far apart that they span twice rollback_points."""
    presence_frac: Frac = 0.95
    """A loss in at least this share of the first points counts as lost when it is missing."""


class CrossRankConfig(DetectorConfig):
    """When one rank disagrees with the others."""

    history_steps: Count = 50
    """A rank's usual distance from the median rank is averaged over so many steps."""
    ready_steps: Count = 20
    """Say nothing before so many steps."""
    outlier_z: Positive = 8.0
    """Departure from the usual distance, in units of what ranks usually scatter."""
    min_ratio: Annotated[float, Field(gt=1)] = 1.2
    """And by at least this factor."""
    gross_ratio: Annotated[float, Field(gt=1)] = 20.0
    """A departure that no batch explains: a warning at once, like an infinite gradient."""
    repeat_count: Count = 3
    """So many departures of one rank's gradient, its loss being in place, within repeat_steps are
    suspected silent corruption."""
    repeat_steps: Count = 10
    """Steps within which departures of one rank's gradient add up."""
    lasting_count: Count = 25
    """So many departures of any kind within lasting_steps are a warning: longer than one document.
    A loss that is zero or NaN on one rank alone counts here only; its batch may have no labels."""
    lasting_steps: Count = 60
    """Steps within which departures of one rank add up to a warning."""
    min_ranks: Count = 3
    """Fewer ranks have no majority."""


class PlateauConfig(DetectorConfig):
    """When a loss that no longer falls is worth a note."""

    block_points: Count = 32
    """Points averaged before they are compared."""
    min_gain_frac: Positive = 0.002
    """The best average must improve by this share to count as progress."""
    stall_points: Count = 1500
    """Points without progress that are a plateau."""


class PanelConfig(Section):
    """Settings of all detectors: one section each, and how they are merged."""

    lr: LrWatchConfig = LrWatchConfig()
    """When the learning rate is on its way up."""
    spike: SpikeConfig = SpikeConfig()
    """The loss leaves its usual range."""
    level_shift: LevelShiftConfig = LevelShiftConfig()
    """It does not come back."""
    creep: CreepConfig = CreepConfig()
    """The loss rises slowly."""
    grad_norm: NormConfig = NormConfig()
    """The gradient norm grows."""
    activation_norm: ActivationNormConfig = ActivationNormConfig()
    """The norm of the last layer's output grows."""
    scaler: ScalerConfig = ScalerConfig()
    """The loss scaler collapses, or climbs unusually high."""
    non_finite: NonFiniteConfig = NonFiniteConfig()
    """Loss or gradients are not finite."""
    cross_rank: CrossRankConfig = CrossRankConfig()
    """One rank disagrees with the others."""
    plateau: PlateauConfig = PlateauConfig()
    """The loss no longer falls."""
    cooldown_steps: Count = 200
    """A warning of one family repeated within so many steps is recorded as a note."""
    agreement_points: Count = 50
    """Warnings of independent detectors agree when raised within so many points."""
    shadow_horizon_points: Count = 500
    """A shadow finding is refuted when so many points pass without a rollback."""
