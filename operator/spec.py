"""The run spec: the one model behind YAML files, their validation and their documentation.

Sections that belong to the trainer (`trainer:`) are validated by the trainer's own model, named by
entry_points.config, so another trainer can stand in its place without a change here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ..health.numerics.config import PanelConfig
from .spec_api import ApiSpec
from .spec_base import Seconds, Section, at_least
from .spec_checkpoints import CheckpointsSpec, Retention
from .spec_detectors import NodeDetectors
from .spec_limits import Limits
from .spec_outward import AccountingSpec, NotifySpec, ObserveSpec


class MeshSpec(Section):
    """The device mesh: dp_shard * tp ranks."""

    dp_shard: int = Field(ge=1, le=65_536)
    """Ways in which parameters and data are sharded (FSDP)."""
    tp: int = Field(default=1, ge=1, le=64)
    """Ways in which each layer is split (tensor parallel)."""


class NodesSpec(Section):
    """The machines a run uses."""

    ranks_per_node: int = Field(ge=1, le=16)
    """Workers that one node carries; one GPU each where there are GPUs."""
    spares: int = Field(default=0, ge=0, le=64)
    """Warm nodes that carry no rank until one is lost."""
    spread: Literal["auto", "strict", "pack"] = "auto"
    """strict: a machine of its own for each node; pack: all may share one; auto: strict unless the
    cluster is a single machine."""
    when_short: Literal["wait", "shrink"] = "wait"
    """What to do when no spare is left: wait for a node, or shrink dp_shard to what fits."""
    watch_gpus: Literal["auto", "on", "off"] = "auto"
    """Watch GPUs through NVML once a second; auto: where an NVIDIA driver is loaded."""
    gpu_watts: float = Field(default=0.0, ge=0, le=10_000)
    """Declared power of one GPU (its TDP, 400 for an A100), from which energy is reckoned beside
    what GPUs measure themselves; 0: not reckoned."""
    kernel_log: str = "auto"
    """Kernel log that agents follow: a path, off, or auto: /dev/kmsg where GPUs are watched."""
    preflight: Literal["off", "quick", "full"] = "quick"
    """Try nodes out before they first carry ranks, and when they are suspected: arithmetic, memory,
    disk, clocks, network. quick: seconds; full: minutes."""
    preflight_scratch: str = "/tmp"
    """Folder on each node's own disk that a preflight writes to; empty leaves the disk out."""


class EntryPoints(Section):
    """Names, as `module:attribute`, of the code that trains."""

    worker: str = "midwatch.trainer.worker:main"
    """Called in each worker process with its WorkerStart."""
    preload: str = "midwatch.trainer.warmup:preload"
    """Called once per node, before any worker is forked, with the trainer section."""
    config: str = "midwatch.trainer.config:TrainConfig"
    """Pydantic model that validates the trainer section."""
    preflight: str = "midwatch.trainer.preflight:main"
    """Called in each worker process of a preflight with its WorkerStart."""
    check: str = "midwatch.trainer.inputs:check"
    """Called with the trainer section where the run is submitted; raises if an input is missing."""
    export: str = "midwatch.trainer.export_checkpoint:main"
    """Called with [SPEC, CHECKPOINT_DIR, OUT] to write weights for other programs; returns an exit
    status. Empty: this trainer has none."""


class RestartPolicy(Section):
    """How failures are answered, and the budgets that bound the answers."""

    max_restarts_per_hour: int = Field(default=20, ge=1, le=1000)
    """More restarts than this within an hour pause the run for a human."""
    max_barren_attempts: int = Field(default=3, ge=1, le=100)
    """This many attempts in a row without a completed step pause the run."""
    start_deadline_s: Seconds = 180.0
    """An attempt that has not completed its first step by then is a failed start."""
    settle_s: float = Field(default=1.0, ge=0, le=60)
    """How long to wait for the cause when only its consequences (broken peers) are known."""
    heartbeat_deadline_s: Seconds = 10.0
    """A node silent for longer is lost."""
    hang_multiple: float = Field(default=10.0, ge=4, le=1000)
    """A rank without progress for this multiple of the median step is hung."""
    hang_min_s: Seconds = 5.0
    """Lower bound of the progress deadline."""
    hang_max_s: Seconds = Field(default=1800.0, validate_default=True)
    """Upper bound of the progress deadline."""
    straggler_payback_s: float = Field(default=3600.0, ge=0, le=30 * 86_400)
    """A straggler is replaced at once, where a spare is ready, if the restart pays for itself
    within this time; otherwise it is left out at the next restart. 0: never at once."""
    quarantine_after_hangs: int = Field(default=2, ge=1, le=100)
    """A node blamed for this many hangs is quarantined."""

    @field_validator("hang_max_s")
    @classmethod
    def _hang_bounds_in_order(cls, hang_max_s: float, info: ValidationInfo) -> float:
        return at_least("hang_min_s", hang_max_s, info)


class NumericPolicy(Section):
    """How divergence, creep and loss-scaler collapse are answered."""

    lr_ladder: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.9, 0.84, 0.667, 0.5)
    """Factor on the remaining LR schedule at each recurrence (OPT-175B's own steps)."""
    clip_at_rung: int | None = Field(default=None, ge=1, le=16)
    """From this recurrence on gradients are also clipped at clip_to; null leaves clipping alone."""
    clip_to: float = Field(default=0.3, gt=0, le=10)
    """Clip value of clip_at_rung (OPT went from 1.0 to 0.3)."""
    recurrence_steps: int = Field(default=2000, ge=1)
    """A divergence within this many steps of the last one climbs the ladder."""
    rollback_margin_steps: int = Field(default=10, ge=0)
    """A checkpoint must lie at least this far before the onset to be trusted."""
    min_loss_scale: float = Field(default=1.0, gt=0)
    """First part of the restart rule: the loss scale at the checkpoint (OPT, section 2.5)."""
    recover_after_steps: int = Field(default=2000, ge=1)
    """After this many healthy steps the LR climbs back one rung toward the schedule."""
    heal_steps: int = Field(default=20, ge=1)
    """A numeric incident is closed once this many steps past its onset were healthy."""


class RunSpec(Section):
    """Everything a run is submitted with."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    """Name of the run, unique in its cluster; a DNS label."""
    run_dir: str = ""
    """Folder of journal, checkpoints and notes; empty means runs/NAME. On a cluster: shared."""
    mesh: MeshSpec
    nodes: NodesSpec
    trainer: dict[str, Any]
    """The trainer's own section, validated by entry_points.config."""
    entry_points: EntryPoints = EntryPoints()
    restart: RestartPolicy = RestartPolicy()
    numeric: NumericPolicy = NumericPolicy()
    limits: Limits = Limits()
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    """Where the state of the run is kept besides the run folder, and how often it is saved."""
    retention: Retention = Retention()
    detectors: PanelConfig = PanelConfig()
    """Thresholds and mode (act, shadow, off) of every numeric detector."""
    node_detectors: NodeDetectors = NodeDetectors()
    """Mode (act, shadow, off) of every node detector."""
    accounting: AccountingSpec = AccountingSpec()
    """What GPU time costs, for notes and reports."""
    observe: ObserveSpec = ObserveSpec()
    """What the controller shows to monitoring."""
    api: ApiSpec = ApiSpec()
    """Whether the run is served over HTTP, where, and to whom."""
    notify: NotifySpec = NotifySpec()
    """Whom the controller tells."""
    prepare: tuple[str, ...] = ()
    """Command run once where the run is submitted, before anything starts; "python" is this one."""
    env: dict[str, str] = Field(default={})
    """Environment variables given to every worker. What looks like a secret is not journaled."""

    @property
    def world_size(self) -> int:
        return self.mesh.dp_shard * self.mesh.tp

    @property
    def num_nodes(self) -> int:
        """Nodes that carry ranks, spares not counted."""
        return self.world_size // self.nodes.ranks_per_node

    @model_validator(mode="after")
    def _ranks_fill_nodes(self) -> RunSpec:
        if self.world_size % self.nodes.ranks_per_node:
            raise ValueError(
                f"mesh {self.mesh.dp_shard} x {self.mesh.tp} gives {self.world_size} ranks, which "
                f"nodes.ranks_per_node = {self.nodes.ranks_per_node} does not divide; "
                f"use a divisor of {self.world_size}"
            )
        return self
