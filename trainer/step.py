"""One training step on every rank: forward and backward, one agreement, then the optimizer.

    forward_backward   loss and gradients of this rank's microbatches
    agree              one small all-gather: is any gradient not finite, what is the global norm,
                       up to which command has every rank heard
    apply              update, or skip on all ranks alike; then the loss scaler

The scaled quantity is the sum of the token losses of a microbatch, as in metaseq, so loss scales
mean here what they mean in OPT's logbooks (a scale of 1.0 there is healthy, 2**-5 is the floor).
Gradients become those of the mean over the whole global batch when they are unscaled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from ..logbook.wire import Hyper, Mesh, Phase
from .collectives import CommClock
from .config import TrainConfig, check_mesh
from .dtensors import local
from .export import import_hf
from .loss_scaler import LossScaler
from .mesh import build_mesh, coordinates, share_cores
from .model import Forward
from .optim import MOMENTS, OptimizerValues, ShardedAdamW
from .outcome import Agreement, Ballot, LocalResult, StepOutcome, Vote, conclude
from .parallelize import build_model
from .schedule import lr_at
from .timing import COMM, Laps
from .weights import initialize, load_whole

__all__ = ["Agreement", "Ballot", "LocalResult", "StepOutcome", "TrainStep", "ignore_phase"]


def ignore_phase(phase: Phase) -> None:
    """Note nothing: the default progress hook."""


class TrainStep:
    """Model, optimizer and loss scaler of one rank for one attempt.

    The default process group must exist, with mesh.world_size ranks. Weights are drawn from the
    seed, alike on every mesh, or read from config.init_from. Steps count from 1.
    Raises: ConfigError[mesh-does-not-fit], and what import_hf and load_whole raise.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: Mesh,
        hyper: Hyper,
        device: torch.device,
        note: Callable[[Phase], None] = ignore_phase,
    ) -> None:
        check_mesh(config, mesh, dist.get_world_size())
        self.config = config
        self.mesh = mesh
        self.device = device
        self._note = note
        self._dp_index, _ = coordinates(mesh, dist.get_rank())
        self._microbatches = config.microbatches(mesh)
        self._rank_tokens = self._microbatches * config.micro_batch_size * config.seq_len

        self._comm = CommClock()
        self._laps = Laps(device, self._comm)
        self.model = build_model(config, build_mesh(mesh, device), device, self._comm)
        if device.type == "cpu":
            share_cores()
        self.parameters = dict(self.model.named_parameters())
        if config.init_from is None:
            initialize(self.parameters, config.model, config.seed)
        else:
            load_whole(self.parameters, import_hf(Path(config.init_from))[1])
        # FSDP may move shards into padded memory when it first gathers; do that before the
        # optimizer takes hold of them.
        assert isinstance(self.model, FSDPModule)
        self.model.unshard()
        self.model.reshard()
        self.optimizer = ShardedAdamW(self.parameters, config.optimizer)
        # Made once: the tensors of the state are the same from the first step to the last.
        self._tensors = {
            "model": {name: p.detach() for name, p in self.parameters.items()},
            **self.optimizer.moments(),
        }
        self.scaler = LossScaler(config.loss_scaler) if config.precision == "fp16" else None
        self.set_hyper(hyper)
        self._reset_scale()

    # --- the step ---------------------------------------------------------------------------------

    def run(self, step: int, batches: Sequence[Tensor], ballot: Ballot) -> StepOutcome:
        """Make step `step` and return what came of it; every rank must call it alike.

        Shapes:  batches: config.microbatches(mesh) tensors (micro_batch_size, seq_len + 1) int64;
                 the ranks of one tp group bring the same ones.
        """
        self.prepare(step)
        loss_scale = self.loss_scale
        self._laps.start()
        result = self.forward_backward(step, batches)
        agreed = self.agree(result, ballot)
        self.apply(agreed)
        self._laps.end("optimizer")
        spent_s = self._laps.seconds()
        return StepOutcome(
            step=step,
            loss=agreed.loss,
            grad_norm=agreed.grad_norm,
            activation_norm=agreed.activation_norm,
            found_inf=agreed.found_inf,
            skipped=agreed.found_inf,
            loss_scale=loss_scale,
            lr=self._lr_at(step),
            tokens=self._rank_tokens * self.mesh.dp_shard,
            agreed_command_seq=agreed.command_seq,
            agreed_memory_level=agreed.memory_level,
            local_loss=agreed.local_loss,
            local_grad_norm=agreed.local_grad_norm,
            local_found_inf=agreed.local_found_inf,
            forward_s=spent_s["forward"],
            backward_s=spent_s["backward"],
            comm_s=spent_s[COMM],
            optimizer_s=spent_s["optimizer"],
        )

    def forward_backward(self, step: int, batches: Sequence[Tensor]) -> LocalResult:
        """Run every microbatch forward and backward; the gradients stay in the optimizer.

        FSDP reduces the gradients of each microbatch at once instead of keeping whole ones until
        the last, so accumulation needs no more memory than one microbatch does.
        """
        shape = (self.config.micro_batch_size, self.config.seq_len + 1)
        shapes = [tuple(tokens.shape) for tokens in batches]
        assert shapes == [shape] * self._microbatches, f"{shapes} != {self._microbatches} x {shape}"
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        for index, tokens in enumerate(batches):
            self._seed_dropout(step, index)
            tokens = tokens.to(self.device, non_blocking=True)
            self._note(Phase.FORWARD)
            out = self.model(tokens[:, :-1], tokens[:, 1:])
            assert isinstance(out, Forward)
            self._laps.end("forward")
            self._note(Phase.BACKWARD)
            (out.loss_sum * (self.loss_scale or 1.0)).backward()
            self._laps.end("backward")
            losses.append(out.loss_sum.detach())
            norms.append(out.activation_norm_sum)
        squares = self.optimizer.take_grads()
        self._laps.end("backward")
        return LocalResult(torch.stack(losses).sum(), torch.stack(norms).sum(), squares)

    def agree(self, mine: LocalResult, ballot: Ballot) -> Agreement:
        """Exchange one short row per rank, from which all ranks draw the same conclusions.

        A gather instead of reductions: one collective gives maximum, minimum and sums at once, and
        the sums are taken in the order of ranks, so they are the same bit for bit everywhere.
        """
        self._note(Phase.VOTE)
        vote = torch.cat(  # the columns of Vote, in their order
            [
                torch.stack([mine.loss_sum, mine.activation_norm_sum]).double(),
                mine.squares,
                torch.tensor(
                    [ballot.highest_command_seq, ballot.memory_level], dtype=torch.float64
                ).to(self.device),
            ]
        )
        votes = vote.new_zeros(self.mesh.world_size * vote.numel())
        dist.all_gather_single(votes, vote)
        gathered: list[list[float]] = votes.view(self.mesh.world_size, -1).tolist()
        self._laps.end(COMM)
        return conclude(
            [Vote(*values) for values in gathered],
            dist.get_rank(),
            tp=self.mesh.tp,
            rank_tokens=self._rank_tokens,
            unscale=self._unscale,
        )

    def apply(self, agreed: Agreement) -> None:
        """Update the weights, or on found_inf leave weights and moments untouched bit for bit."""
        self._note(Phase.OPTIMIZER)
        if agreed.found_inf:
            self.optimizer.drop_grads()
        else:
            clip = min(1.0, self._grad_clip / (agreed.grad_norm + 1e-6))
            self.optimizer.step(self._unscale * clip)
        if self.scaler is not None:
            self.scaler.update(agreed.found_inf)

    @property
    def loss_scale(self) -> float | None:
        """The loss scale of the next step; None outside fp16."""
        return None if self.scaler is None else self.scaler.scale

    @property
    def _unscale(self) -> float:
        """What turns the gradients at hand into those of the mean loss over the global batch.

        FSDP has averaged over data-parallel ranks the sums over each rank's own tokens.
        """
        return 1.0 / ((self.loss_scale or 1.0) * self._rank_tokens)

    def _seed_dropout(self, step: int, microbatch: int) -> None:
        """Make this microbatch's masks a pure function of where in the run it stands.

        The ranks of a tp group draw alike, as their whole activations need; heads that stand at the
        same place on different tp ranks therefore share their attention masks.
        """
        if self.config.model.dropout > 0.0:
            place = (self.config.seed, step, microbatch, self._dp_index)
            torch.manual_seed(_mix(place))

    # --- hyperparameters --------------------------------------------------------------------------

    def set_hyper(self, hyper: Hyper, next_step: int = 1) -> None:
        """Use these changes, those first that hold at the next step."""
        self._hyper = hyper
        self.prepare(next_step)

    def prepare(self, step: int) -> None:
        """Put what holds at a step into optimizer, clip and scaler; twice is like once.

        A reset of the scaler that was ordered for this very step is made here.
        """
        hyper, config = self._hyper, self.config.optimizer

        def at(parameter: str, otherwise: float) -> float:
            value = hyper.value_at(parameter, step)
            return otherwise if value is None else value

        self.optimizer.set_values(
            OptimizerValues(
                lr=self._lr_at(step),
                beta1=at("beta1", config.beta1),
                beta2=at("beta2", config.beta2),
                eps=at("eps", config.eps),
                weight_decay=at("weight-decay", config.weight_decay),
            )
        )
        self._grad_clip = at("grad-clip", config.grad_clip)
        if self.scaler is not None:
            self.scaler.set_floor(at("loss-scale-floor", self.config.loss_scaler.floor))
            scale = hyper.struck_at("loss-scale", step)
            if scale is not None:
                self.scaler.reset(scale)

    def readback(self, step: int) -> dict[str, float]:
        """Return the values that step `step` will run under, read from the live objects.

        They are first set where run() would set them, and then read from there.
        """
        self.prepare(step)
        values = {**self.optimizer.readback(), "grad_clip": self._grad_clip}
        if self.scaler is not None:
            values["loss_scale"] = self.scaler.scale
            values["loss_scale_floor"] = self.scaler.floor
        return values

    def _lr_at(self, step: int) -> float:
        config = self.config
        return lr_at(step, config.optimizer, config.schedule, self._hyper.lr_changes)

    def _reset_scale(self) -> None:
        if self.scaler is not None and self._hyper.loss_scale is not None:
            self.scaler.reset(self._hyper.loss_scale)

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the live state: a tree that torch.distributed.checkpoint saves and loads in place.

        "model", "exp_avg", "exp_avg_sq": parameter name -> float32 DTensor, sharing memory with the
        trainer. "scalars": JSON-ready plain values (Adam's step count, loss scaler).
        To load: state = state_dict(); dcp.load(state); load_state_dict(state).
        """
        scaler = {} if self.scaler is None else self.scaler.state_dict()
        return {
            **{part: dict(tensors) for part, tensors in self._tensors.items()},
            "scalars": {"updates": self.optimizer.updates, "scaler": scaler},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of any mesh, resharded to this one as by torch.distributed.checkpoint.

        Hyper.loss_scale, when given, then resets the scaler. A state saved without a scaler (bf16,
        fp32) leaves this one's as it is.
        """
        mine = self.state_dict()
        with torch.no_grad():
            for part in ("model", *MOMENTS):
                for name, tensor in mine[part].items():
                    _copy_unless_same(local(tensor), local(state[part][name]))
        self.optimizer.updates = int(state["scalars"]["updates"])
        if self.scaler is not None and state["scalars"]["scaler"]:
            self.scaler.load_state_dict(state["scalars"]["scaler"])
        self._reset_scale()


def _copy_unless_same(target: Tensor, source: Tensor) -> None:
    if target.data_ptr() != source.data_ptr():
        target.copy_(source)


def _mix(place: tuple[int, ...]) -> int:
    """Return 63 bits that depend on every number of a place."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
