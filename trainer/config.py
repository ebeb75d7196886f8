"""The trainer section of a run spec: what is trained, how, and what fits together.

`TrainConfig.model_validate(section)` checks a whole section without importing torch, so that a spec
is refused before anything starts; `check_mesh` then says whether the model fits a device mesh.
A preset supplies defaults; every value written in the section wins over it. A validated config
survives `model_validate(config.model_dump())` unchanged, which is how it reaches the workers.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ..logbook.errors import ConfigError
from ..logbook.wire import Mesh
from .presets import preset_defaults, preset_names

VOCAB_MULTIPLE = 8
"""The embedding table has its rows rounded up to this, on every mesh alike."""


class Section(BaseModel):
    """Base of every config model: frozen, and a misspelt field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    """Shape of an OPT decoder. Source: arXiv 2205.01068 section 2.1."""

    layers: int = Field(ge=1, le=1024)
    """Number of decoder blocks."""
    width: int = Field(ge=8, le=65_536)
    """Width of the residual stream."""
    heads: int = Field(ge=1, le=1024)
    """Attention heads; must divide width."""
    vocab: int = Field(ge=2, le=1_000_000)
    """Tokens of the vocabulary; the embedding table has them rounded up to a multiple of 8."""
    ffn_width: int = Field(default=0, ge=0, le=1_000_000)
    """Width of the feed-forward layer; 0 means 4 x width."""
    max_positions: int = Field(default=2048, ge=1, le=1_000_000)
    """Longest sequence the learned position table can serve (OPT's offset of 2 comes on top)."""
    pre_norm: bool = True
    """Layer norm before each sub-layer and once at the end; False is OPT-350M's post-norm."""
    embed_width: int | None = Field(default=None, ge=8, le=65_536)
    """Width of the token embedding when it is projected to width and back, as in OPT-350M."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on attention probabilities and residual branches, never on embeddings.

    The paper's presets use 0.1. The masks are a pure function of (seed, step, microbatch,
    data-parallel rank), so a resumed run draws the same ones.
    """
    init_std: float = Field(default=0.006, gt=0.0, le=1.0)
    """Standard deviation of the initial weights; output layers are scaled by 1/sqrt(2 layers)."""

    @field_validator("heads")
    @classmethod
    def _heads_divide_width(cls, heads: int, info: ValidationInfo) -> int:
        width = info.data.get("width", heads)
        if width % heads:
            allowed = [n for n in range(1, width + 1) if width % n == 0 and width // n >= 8]
            raise ValueError(f"heads must divide width {width}: got {heads}, allowed {allowed}")
        return heads

    @field_validator("ffn_width")
    @classmethod
    def _default_ffn_width(cls, ffn_width: int, info: ValidationInfo) -> int:
        return ffn_width or 4 * int(info.data.get("width", 8))

    # The default 0 must pass through the validator too.
    @model_validator(mode="before")
    @classmethod
    def _ask_for_ffn_width(cls, section: Any) -> Any:
        return {"ffn_width": 0, **section} if isinstance(section, dict) else section

    @model_validator(mode="after")
    def _post_norm_and_projection_go_together(self) -> ModelConfig:
        if self.pre_norm == (self.embed_width is not None):
            raise ValueError(
                "pre_norm: false and embed_width (OPT-350M's quirk) go together; set both or"
                f" neither: got pre_norm {self.pre_norm}, embed_width {self.embed_width}"
            )
        return self

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding table: vocab rounded up to VOCAB_MULTIPLE."""
        return -(-self.vocab // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class OptimizerConfig(Section):
    """AdamW and gradient clipping. Source: arXiv 2205.01068 section 2.2."""

    lr: float = Field(gt=0.0, le=10.0)
    """Peak learning rate."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Decay of Adam's first moment."""
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    """Decay of Adam's second moment."""
    eps: float = Field(default=1e-8, gt=0.0, le=1.0)
    """Added to the root of Adam's second moment."""
    weight_decay: float = Field(default=0.1, ge=0.0, le=10.0)
    """Decoupled decay of matrices and embeddings; biases and layer norms have none."""
    grad_clip: float = Field(default=1.0, gt=0.0, le=1e6)
    """Largest global gradient norm that reaches the optimizer."""


class ScheduleConfig(Section):
    """Linear warm-up to the peak, then linear decay to a fraction of it."""

    warmup_steps: int = Field(default=0, ge=0)
    """The rate reaches its peak at this step."""
    decay_steps: int = Field(ge=1)
    """The rate reaches its end at this step, warm-up included; the trainer's steps by default."""
    end_lr_frac: float = Field(default=0.1, ge=0.0, le=1.0)
    """End rate over peak rate."""

    @model_validator(mode="after")
    def _warmup_ends_before_decay(self) -> ScheduleConfig:
        if self.warmup_steps >= self.decay_steps:
            raise ValueError(
                f"warmup_steps must be below decay_steps {self.decay_steps}:"
                f" got {self.warmup_steps}"
            )
        return self


class LossScalerConfig(Section):
    """Dynamic loss scaling in fp16. Source: metaseq#115 for the values of the window and floor."""

    init: float = Field(default=4.0, gt=0.0, le=2.0**24)
    """Scale of the first step."""
    factor: float = Field(default=2.0, gt=1.0, le=16.0)
    """The scale is divided by this on overflow, multiplied by it after a clean window."""
    window: int = Field(default=256, ge=1, le=1_000_000)
    """Clean steps before growth at the initial scale; doubles and halves as the scale does."""
    floor: float = Field(default=2.0**-5, gt=0.0)
    """The scale never goes below this; dwelling here is the sign of a collapse."""
    max: float = Field(default=2.0**16, gt=0.0, le=2.0**24)
    """The scale never goes above this."""

    @model_validator(mode="after")
    def _init_between_floor_and_max(self) -> LossScalerConfig:
        if not self.floor <= self.init <= self.max:
            raise ValueError(
                f"init must lie between floor {self.floor} and max {self.max}: got {self.init}"
            )
        return self


class DataConfig(Section):
    """Where the tokens come from."""

    dir: str = "data"
    """Folder written by `midwatch data build`."""
    split: Literal["train", "valid"] = "train"
    """Which part of the corpus is trained on."""


class CheckpointConfig(Section):
    """When and how state is saved."""

    interval_steps: int = Field(default=50, ge=1)
    """Save each time this many steps have been completed."""
    async_save: bool = True
    """Write in the background while training goes on."""


class ValidationConfig(Section):
    """Perplexity on held-out text: how often it is measured, and on how much.

    The text is the valid split of the corpus, which `midwatch data build` holds out.
    """

    interval_steps: int = Field(default=0, ge=0, le=100_000_000)
    """Measure each time this many steps have been completed, and at the end; 0 measures never."""
    sequences: int = Field(default=64, ge=1, le=10_000_000)
    """Sequences of seq_len tokens measured each time, always the same; all there are when fewer."""


class TrainConfig(Section):
    """The whole trainer section."""

    preset: str | None = None
    """Name of the model whose values are the defaults of every field below."""
    model: ModelConfig
    """Shape of the model; with a preset, only what differs from it."""
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Type of matrix products and activations; master weights and Adam state are float32 always."""
    fp16_emulation: Literal["auto", "native", "float32-product"] = "auto"
    """How fp16 products are made.

    native: in fp16. float32-product: in float32 and then rounded to fp16, which overflows and
    underflows as fp16 does and is many times faster on CPUs. auto: native on GPUs only.
    """
    seq_len: int = Field(ge=1, le=1_000_000)
    """Tokens per sequence."""
    micro_batch_size: int = Field(default=1, ge=1, le=65_536)
    """Sequences per rank and microbatch."""
    grad_accum: int = Field(default=1, ge=1, le=65_536)
    """Microbatches per step when global_batch_size is not given."""
    global_batch_size: int | None = Field(default=None, ge=1, le=10_000_000)
    """Sequences per step over all ranks; the microbatches per step then follow from the mesh.

    A run that may shrink to fewer ranks needs it, so that its batches stay the same.
    """
    optimizer: OptimizerConfig
    """AdamW and clipping."""
    schedule: ScheduleConfig
    """Learning rate over steps."""
    loss_scaler: LossScalerConfig = LossScalerConfig()
    """Loss scaling; used in fp16 only."""
    activation_checkpointing: bool = False
    """Keep only the input of each block in the forward pass and compute it again in backward."""
    blocks_per_unit: int = Field(default=1, ge=1, le=1024)
    """Blocks whose weights FSDP gathers, and whose gradients it reduces, in one collective."""
    reshard_after_forward: bool = True
    """Free a block's gathered weights after its forward and gather them again in backward.

    False keeps them: one collective less per block and step, for models that fit so.
    """
    steps: int = Field(ge=1, le=100_000_000)
    """Steps of the whole run."""
    init_from: str | None = None
    """Folder in Hugging Face's OPT format whose weights the run starts with; none draws them."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides initial weights, order of data and dropout."""
    data: DataConfig = DataConfig()
    """The corpus."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving."""
    validation: ValidationConfig = ValidationConfig()
    """Measuring on held-out text."""
    threads: int = Field(default=1, ge=1, le=1024)
    """CPU threads per rank for tensor operations."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU when there is one."""

    @model_validator(mode="before")
    @classmethod
    def _lay_preset_under(cls, section: Any) -> Any:
        if not isinstance(section, dict):
            return section
        filled = dict(section)
        preset = filled.get("preset")
        if preset is not None:
            # Under an unknown name any preset will do: the name is then the only complaint.
            known = preset if preset in preset_names() else "nano"
            filled = _merge(_preset_under(known, filled), filled)
        if isinstance(filled.get("schedule", {}), dict) and "steps" in filled:
            filled["schedule"] = {"decay_steps": filled["steps"], **filled.get("schedule", {})}
        return filled

    @field_validator("preset")
    @classmethod
    def _preset_is_known(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in preset_names():
            raise ValueError(f"unknown preset {preset!r}: allowed {', '.join(preset_names())}")
        return preset

    @field_validator("seq_len")
    @classmethod
    def _positions_reach(cls, seq_len: int, info: ValidationInfo) -> int:
        model = info.data.get("model")
        if isinstance(model, ModelConfig) and seq_len > model.max_positions:
            raise ValueError(
                f"seq_len must be at most model.max_positions {model.max_positions}: got {seq_len}"
            )
        return seq_len

    @field_validator("global_batch_size")
    @classmethod
    def _microbatches_fill_the_batch(cls, size: int | None, info: ValidationInfo) -> int | None:
        micro = info.data.get("micro_batch_size", 1)
        if size is not None and size % micro:
            raise ValueError(
                f"global_batch_size must be a multiple of micro_batch_size {micro}: got {size}"
            )
        return size

    @field_validator("validation")
    @classmethod
    def _held_out_means_held_out(
        cls, validation: ValidationConfig, info: ValidationInfo
    ) -> ValidationConfig:
        data = info.data.get("data")
        if validation.interval_steps and isinstance(data, DataConfig) and data.split == "valid":
            raise ValueError(
                "a run that trains on data.split valid cannot be measured on it: got"
                f" interval_steps {validation.interval_steps}, allowed 0"
            )
        return validation

    def microbatches(self, mesh: Mesh) -> int:
        """Return the microbatches each rank runs per step on this mesh.

        Raises: ConfigError[mesh-does-not-fit] when the global batch cannot be split so.
        """
        if self.global_batch_size is None:
            return self.grad_accum
        per_round = self.micro_batch_size * mesh.dp_shard
        if self.global_batch_size % per_round:
            raise _does_not_fit(
                f"global_batch_size {self.global_batch_size} is no multiple of micro_batch_size"
                f" {self.micro_batch_size} x dp_shard {mesh.dp_shard}",
                "Change micro_batch_size, global_batch_size or dp_shard.",
            )
        return self.global_batch_size // per_round

    def sequences_per_step(self, mesh: Mesh) -> int:
        """Return the sequences that all data-parallel ranks together consume per step."""
        return self.microbatches(mesh) * self.micro_batch_size * mesh.dp_shard


def check_mesh(config: TrainConfig, mesh: Mesh, world_size: int | None = None) -> None:
    """Refuse a mesh on which this model cannot be trained, with the reason.

    FSDP may shard unevenly, so dp_shard only has to divide the batch; tensor parallelism splits
    heads, feed-forward columns and vocabulary rows exactly, so tp must divide each of them.
    Raises: ConfigError[mesh-does-not-fit].
    """
    if mesh.dp_shard < 1 or mesh.tp < 1:
        raise _does_not_fit(
            f"dp_shard {mesh.dp_shard} and tp {mesh.tp} must both be at least 1",
            "Give each mesh axis a size of 1 or more.",
        )
    if world_size is not None and mesh.world_size != world_size:
        raise _does_not_fit(
            f"dp_shard {mesh.dp_shard} x tp {mesh.tp} makes {mesh.world_size} ranks,"
            f" but the job has {world_size}",
            "Make dp_shard x tp equal the number of ranks.",
        )
    model = config.model
    split = {"heads": model.heads, "ffn_width": model.ffn_width, "padded vocab": model.padded_vocab}
    for name, size in split.items():
        if size % mesh.tp:
            allowed = [n for n in range(1, 65) if all(s % n == 0 for s in split.values())]
            raise _does_not_fit(
                f"tp {mesh.tp} does not divide {name} {size}", f"Set tp to one of {allowed}."
            )
    config.microbatches(mesh)


def _does_not_fit(reason: str, remedy: str) -> ConfigError:
    return ConfigError("mesh-does-not-fit", f"{reason}.", remedy=remedy)


def _preset_under(name: str, section: dict[str, Any]) -> dict[str, Any]:
    """Return the preset's values that the section leaves room for."""
    defaults = preset_defaults(name)
    if "grad_accum" in section:
        defaults.pop("global_batch_size", None)
    steps = section.get("steps")
    if isinstance(steps, int):
        # A run cut to another length decays over that length unless it says otherwise.
        schedule = defaults["schedule"]
        schedule.pop("decay_steps", None)
        schedule["warmup_steps"] = min(schedule["warmup_steps"], steps // 2)
    return defaults


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return over laid on under, section by section."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merge(below, value)
        merged[key] = value
    return merged
