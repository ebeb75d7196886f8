"""AdamW over the shards of this rank, and the state that a checkpoint keeps of it.

The optimizer works on plain tensors that share memory with the shards of the DTensor parameters:
an update is element by element, so it needs to know nothing of the mesh, and plain tensors spare it
the dispatch of a DTensor operation per parameter. State leaves and enters as DTensors with the
placements of their parameters, so any mesh can load what another has saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import OptimizerConfig
from .dtensors import is_split_over_tp, like, local

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class OptimizerValues:
    """What one update is made with."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


class ShardedAdamW:
    """AdamW on one rank's shards. Source: arXiv 1711.05101; weight decay on matrices only."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        self._parameters = dict(parameters)
        self._locals = {name: nn.Parameter(local(p)) for name, p in parameters.items()}
        decayed = [self._locals[name] for name, p in parameters.items() if p.ndim > 1]
        others = [self._locals[name] for name, p in parameters.items() if p.ndim == 1]
        self.torch = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        self._device = decayed[0].device
        self._allocate_state()
        self._split = [is_split_over_tp(p) for p in self._parameters.values()]

    def _allocate_state(self) -> None:
        """Make the moments now, as torch would at the first step, so that a load finds them."""
        for parameter in self._locals.values():
            self.torch.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def take_grads(self) -> Tensor:
        """Take the gradients that backward left, and return their sums of squares on this rank.

        Shapes:  (2,) float64: over weights split across tp, over those that all tp ranks hold
                 alike. A sum that is not finite means that a gradient is not.
        """
        split: list[Tensor] = []
        alike: list[Tensor] = []
        for (name, parameter), is_split in zip(self._parameters.items(), self._split, strict=True):
            assert parameter.grad is not None, f"{name} took no part in the loss"
            grad = local(parameter.grad)
            self._locals[name].grad = grad
            (split if is_split else alike).append(grad)
            parameter.grad = None
        return torch.stack([self._sum_of_squares(split), self._sum_of_squares(alike)])

    def _sum_of_squares(self, grads: list[Tensor]) -> Tensor:
        """Return the sum in float64 of squares whose sums per tensor are float32."""
        if not grads:
            return torch.zeros((), dtype=torch.float64, device=self._device)
        return torch.stack(torch._foreach_norm(grads)).double().square().sum()

    def drop_grads(self) -> None:
        """Forget the gradients; parameters and moments stay as they are, bit for bit."""
        for parameter in self._locals.values():
            parameter.grad = None

    def step(self, grad_factor: float) -> None:
        """Multiply the gradients by a factor and make one update with them."""
        grads = [p.grad for p in self._locals.values() if p.grad is not None]
        with torch.no_grad():
            torch._foreach_mul_(grads, grad_factor)
        self.torch.step()
        self.drop_grads()

    def set_values(self, values: OptimizerValues) -> None:
        """Have the next update made with these values."""
        for group in self.torch.param_groups:
            group["lr"] = values.lr
            group["betas"] = (values.beta1, values.beta2)
            group["eps"] = values.eps
        self.torch.param_groups[0]["weight_decay"] = values.weight_decay

    def readback(self) -> dict[str, float]:
        """Return the values in force, read from torch's own optimizer."""
        decayed, _ = self.torch.param_groups
        beta1, beta2 = decayed["betas"]
        return {
            "lr": float(decayed["lr"]),
            "beta1": float(beta1),
            "beta2": float(beta2),
            "eps": float(decayed["eps"]),
            "weight_decay": float(decayed["weight_decay"]),
        }

    @property
    def updates(self) -> int:
        """Updates made so far; skipped steps do not count."""
        first = next(iter(self._locals.values()))
        return int(self.torch.state[first]["step"].item())

    @updates.setter
    def updates(self, count: int) -> None:
        for parameter in self._locals.values():
            self.torch.state[parameter]["step"].fill_(float(count))

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return moment -> parameter name -> DTensor, sharing memory with the live state."""
        return {
            moment: {
                name: like(parameter, self.torch.state[self._locals[name]][moment])
                for name, parameter in self._parameters.items()
            }
            for moment in MOMENTS
        }
