"""What can be set about the detectors; the defaults fit the recorded runs.

A window counted in _points counts logged points, so that one setting serves a log with a line
every step and a log with a line every 500. A window counted in _steps counts optimizer updates.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["act", "shadow", "off"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Frac = Annotated[float, Field(gt=0, le=1)]


class DetectorConfig(BaseModel):
    """Common to all detectors.

    mode: "act": the policy may act on its findings. "shadow": findings are recorded, marked, and
          change nothing. "off": the detector does not run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Mode = "act"


class LrWatchConfig(BaseModel):
    """When the learning rate counts as on its way up, as in warm-up or a restart of the schedule.

    rise_factor, window_points: it is this many times what it was so many points before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rise_factor: Positive = 1.5
    window_points: Count = 64


class SpikeConfig(DetectorConfig):
    """When a loss counts as out of the ordinary, and when as back in it.

    centre_points: the reference is the median of so many ordinary points; short, so that it
        follows a loss that is falling fast.
    noise_points: the noise is taken from the distances of so many ordinary points to their
        reference.
    ready_points: say nothing before so many ordinary points.
    open_z: a point that far above the reference, in noise units, opens an excursion.
    min_rise_frac, min_rise_nats: and at least so far, as a share of the reference and absolutely;
        keeps a loss near zero or a noiseless one from alarming about nothing.
    run_points: so many fairly high points (heal_z noise units) in a row open one too.
    heal_z: an excursion is over once the median of heal_points falls below this many noise units
        (and below half of the minimum rise).
    lr_rise_frac: while the learning rate is on its way up (see lr), only a rise of this share of
        the reference counts.
    adopt_points: an excursion that lasts so long is the new normal and the reference starts anew.
    """

    centre_points: Count = 16
    noise_points: Count = 64
    ready_points: Count = 12
    open_z: Positive = 6.0
    min_rise_frac: Positive = 0.05
    min_rise_nats: Positive = 0.05
    run_points: Count = 4
    heal_z: Positive = 3.0
    heal_points: Count = 5
    lr_rise_frac: Positive = 0.25
    adopt_points: Count = 200


class LevelShiftConfig(DetectorConfig):
    """How long an excursion of the loss may take to heal.

    warn_points, rollback_points: an excursion that has not healed at its n-th point. In a log that
        is a running average one bad point echoes for many: give it more points there.
    high_frac: share of its points that must have stayed high, so that a series of separate spikes
        is not taken for a shift.
    """

    warn_points: Count = 5
    rollback_points: Count = 8
    high_frac: Frac = 0.75


class CreepConfig(DetectorConfig):
    """When a slow rise of the loss counts.

    block_points: points averaged into a block; a level is the mean of three blocks.
    window_blocks: the level is compared with the lowest one of so many.
    ready_blocks: say nothing before so many blocks.
    warn_z: rise in units of the usual wander of the level.
    min_rise_frac, min_rise_nats: and at least so much.
    stay_blocks: after a warning, roll back if the rise still counts after so many blocks. It is
        over once it has halved from its peak.
    """

    block_points: Count = 8
    window_blocks: Count = 64
    ready_blocks: Count = 18
    warn_z: Positive = 9.0
    min_rise_frac: Positive = 0.018
    min_rise_nats: Positive = 0.02
    stay_blocks: Count = 12


class NormConfig(DetectorConfig):
    """When the growth of a norm counts, by a jump or by a bend of its trend; both on its logarithm.

    jump: when a jump opens an excursion; its min_rise_nats is a difference of logarithms.
    note_rise: a jump at least that large is a note at once, a smaller one after note_points.
    warn_rise: a jump at least that large that stays is a warning.
    warn_points: it stays if it lasts so many points,
    sparse_points, sparse_steps: or so many that span so many steps, where points lie far apart.
    block_points, window_blocks, ready_blocks: as for creep.
    span_blocks: growth over so many blocks is compared with that over as many before.
    bend_z, bend_rise, bend_warn_rise: excess growth that is a note, and one that is a warning.
    """

    jump: SpikeConfig = SpikeConfig(min_rise_frac=1e-6, min_rise_nats=0.2, adopt_points=400)
    note_rise: Positive = 1.1
    note_points: Count = 4
    warn_rise: Positive = 1.0
    warn_points: Count = 16
    sparse_points: Count = 16
    sparse_steps: Count = 16
    block_points: Count = 8
    window_blocks: Count = 32
    ready_blocks: Count = 18
    span_blocks: Count = 12
    bend_z: Positive = 9.0
    bend_rise: Positive = 0.2
    bend_warn_rise: Positive = 2.0


GRAD_NORM = NormConfig()
ACTIVATION_NORM = NormConfig(
    jump=SpikeConfig(min_rise_frac=1e-6, min_rise_nats=0.02, adopt_points=400),
    note_rise=0.05,
    note_points=2,
    warn_rise=0.05,
    warn_points=8,
    sparse_points=3,
    sparse_steps=50,
    bend_rise=0.005,
    bend_warn_rise=0.01,
)


class PlateauConfig(DetectorConfig):
    """When a loss that no longer falls counts.

    block_points: points averaged before they are compared.
    min_gain_frac: the best average must improve by this share to count as progress.
    stall_points: note a plateau after so many points without progress.
    """

    block_points: Count = 32
    min_gain_frac: Positive = 0.002
    stall_points: Count = 1500


class CrossRankConfig(DetectorConfig):
    """When one rank disagrees with the others.

    history_steps: a rank's usual distance from the median rank is averaged over so many steps.
    ready_steps: say nothing before so many.
    outlier_z: distance from its usual one, in units of what ranks usually scatter.
    min_ratio: and at least so many times the median rank (or so many times below it).
    gross_ratio: a value that far off, or not finite where all others are, is a warning at once.
    repeat_count, repeat_steps: outliers of one rank within so many steps that are suspected silent
        corruption. A single one is a note: a rank's batch can be odd.
    min_ranks: fewer ranks than this have no majority.
    """

    history_steps: Count = 50
    ready_steps: Count = 20
    outlier_z: Positive = 8.0
    min_ratio: Positive = 1.2
    gross_ratio: Positive = 20.0
    repeat_count: Count = 3
    repeat_steps: Count = 10
    min_ranks: Count = 3


class NonFiniteConfig(DetectorConfig):
    """How many points in a row without a finite loss (or, without a scaler, gradient) matter.

    sparse_points: where points lie so far apart that sparse_points of them span rollback_points
        steps, so many are enough.
    presence_frac: a loss that was in at least this share of the points and is now missing counts
        as not finite: some frameworks drop the field when it is NaN.
    """

    warn_points: Count = 3
    rollback_points: Count = 8
    sparse_points: Count = 3
    presence_frac: Frac = 0.95


class ScalerConfig(DetectorConfig):
    """When a dynamic loss scaler is in trouble; independent of the loss.

    floor: smallest scale the scaler can take. A scale that stays put while steps are skipped is
        taken for pinned at the floor whatever its value.
    floor_dwell_steps: so many steps at the floor are a collapse.
    low_scale: below this scale gradients no longer fit well: a note once a settled scaler falls
        below it, a warning below half of it.
    settle_steps: steps without a skip after which a scaler counts as settled. Before that it is
        on its way down from its initial value, and skips are normal.
    unsettled_steps: warn if it has not settled by then.
    skip_window_points, skip_warn_frac, skip_rollback_frac: share of skipped steps.
    fall_factor: warn when the scale falls by this factor within skip_window_points.
    high_factor: warn when the scale climbs this far above what the run has been used to, judged
        over high_history_steps.
    """

    floor: Positive = 2.0**-5
    floor_dwell_steps: Count = 20
    low_scale: Positive = 1.0
    settle_steps: Count = 20
    unsettled_steps: Count = 200
    skip_window_points: Count = 50
    skip_warn_frac: Frac = 0.3
    skip_rollback_frac: Frac = 0.5
    fall_factor: Positive = 256.0
    high_factor: Positive = 8.0
    high_history_steps: Count = 2000


class PanelConfig(BaseModel):
    """One section per detector; the section names are the detector names with underscores.

    cooldown_steps: a warning repeated within so many steps of the last one of its family is
        recorded as an observation.
    agreement_points: warnings of independent detectors agree when raised within so many points.
    shadow_horizon_points: a shadow finding is refuted when so many points pass without a rollback.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: LrWatchConfig = LrWatchConfig()
    spike: SpikeConfig = SpikeConfig()
    level_shift: LevelShiftConfig = LevelShiftConfig()
    creep: CreepConfig = CreepConfig()
    grad_norm: NormConfig = GRAD_NORM
    activation_norm: NormConfig = ACTIVATION_NORM
    plateau: PlateauConfig = PlateauConfig()
    cross_rank: CrossRankConfig = CrossRankConfig()
    non_finite: NonFiniteConfig = NonFiniteConfig()
    scaler: ScalerConfig = ScalerConfig()
    cooldown_steps: Count = 200
    agreement_points: Count = 50
    shadow_horizon_points: Count = 500
