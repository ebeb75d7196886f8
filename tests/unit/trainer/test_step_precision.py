"""fp16 on CPU overflows, underflows and collapses as fp16 does; runs repeat bit for bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from midwatch.logbook.errors import ConfigError
from midwatch.logbook.wire import Mesh
from midwatch.trainer.precision import Float32Product, Native, arithmetic_for
from midwatch.trainer.step import StepOutcome

from tests.support.ranks import run_ranks
from tests.support.training import make_step, run_steps, small_config

HALF = torch.float16


def test_emulated_product_is_the_fp16_product() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 64, generator=generator).to(HALF)
    weight = torch.randn(32, 64, generator=generator).to(HALF)
    bias = torch.randn(32, generator=generator).to(HALF)
    emulated = Float32Product().linear(x, weight, bias)
    exact = x.double() @ weight.double().T + bias.double()
    assert emulated.dtype == HALF
    # Rounded once from a float32 sum: within one unit in the last place of the exact result.
    assert torch.all((emulated.double() - exact).abs() <= exact.abs() * 2**-10 + 2**-24)


def test_forward_overflows_and_underflows_as_fp16() -> None:
    big = torch.full((1, 4), 200.0, dtype=HALF)
    assert Float32Product().linear(big, big, None).item() == math.inf
    small = torch.full((1, 4), 1e-5, dtype=HALF)
    assert Float32Product().linear(small, small, None).item() == 0.0


def test_weight_gradient_is_rounded_to_fp16_too() -> None:
    x = torch.full((8, 4), 100.0, dtype=HALF)
    for upstream, expected in ((100.0, math.inf), (1e-7, 0.0), (1.0, 800.0)):
        weight = torch.zeros(2, 4, dtype=HALF, requires_grad=True)
        x_small = x * 1e-3 if upstream == 1e-7 else x
        out = Float32Product().linear(x_small, weight, None)
        out.backward(torch.full_like(out, upstream * 0.01 if upstream == 1e-7 else upstream))
        assert weight.grad is not None
        assert weight.grad.dtype == HALF
        assert weight.grad.unique().tolist() == [expected]


def test_native_and_emulated_training_agree() -> None:
    native = run_ranks(_train, 1, {"fp16_emulation": "native"}, 3)[0]
    emulated = run_ranks(_train, 1, {"fp16_emulation": "float32-product"}, 3)[0]
    for here, there in zip(native, emulated, strict=True):
        assert here.loss == pytest.approx(there.loss, rel=1e-3)
        assert here.grad_norm == pytest.approx(there.grad_norm, rel=2e-2)


def test_auto_emulates_on_cpus_only() -> None:
    assert isinstance(arithmetic_for(small_config(), "cpu"), Float32Product)
    assert isinstance(arithmetic_for(small_config(), "cuda"), Native)
    assert isinstance(arithmetic_for(small_config(precision="bf16"), "cpu"), Native)
    with pytest.raises(ConfigError) as caught:
        arithmetic_for(small_config(precision="bf16", fp16_emulation="float32-product"), "cpu")
    assert caught.value.code == "fp16-emulation-without-fp16"


def _train(rank: int, overrides: dict[str, Any], steps: int) -> list[StepOutcome]:
    config = small_config(**{"global_batch_size": 4, **overrides})
    return run_steps(make_step(config, Mesh(1, 1)), rank, range(1, steps + 1))


def test_true_overflow_lowers_the_scale_until_gradients_fit() -> None:
    scaler = {"init": 2.0**24, "max": 2.0**24, "window": 1_000_000}
    outcomes = run_ranks(_train, 1, {"loss_scaler": scaler}, 16)[0]
    skipped = [o.skipped for o in outcomes]
    fell = skipped.index(False)
    assert 2 <= fell < 16
    assert all(skipped[:fell])
    assert not any(skipped[fell:])
    assert [o.loss_scale for o in outcomes[: fell + 1]] == [
        2.0 ** (24 - i) for i in range(fell + 1)
    ]
    # The loss itself was finite all along: only the scaled gradients were not.
    assert all(math.isfinite(o.loss) for o in outcomes)


def _train_meshed(rank: int, overrides: dict[str, Any], steps: int) -> list[list[float]]:
    train_step = make_step(small_config(**overrides), Mesh(2, 2))
    outcomes = run_steps(train_step, rank, range(1, steps + 1))
    return [[o.loss, o.grad_norm, o.activation_norm, o.local_loss] for o in outcomes]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_two_runs_with_one_seed_are_equal_bit_for_bit(dropout: float) -> None:
    overrides = {"model": {"dropout": dropout}, "activation_checkpointing": dropout > 0}
    first = run_ranks(_train_meshed, 4, overrides, 6)
    assert first == run_ranks(_train_meshed, 4, overrides, 6)
    assert first[0] != run_ranks(_train_meshed, 4, overrides | {"seed": 1}, 6)[0]


def test_a_rate_far_too_high_collapses_the_loss_scale() -> None:
    overrides = {"optimizer": {"lr": 1.0}, "loss_scaler": {"init": 4096.0}}
    outcomes = run_ranks(_train, 1, overrides, 60)[0]
    scales = [o.loss_scale for o in outcomes if o.loss_scale is not None]
    assert outcomes[0].loss < 6.0
    assert max(o.loss for o in outcomes if math.isfinite(o.loss)) > 2 * outcomes[0].loss
    # It takes 17 halvings from 4096 to the floor, and there it stays, skipping every step.
    assert scales[-10:] == [2.0**-5] * 10
    assert all(o.skipped for o in outcomes[-10:])
    assert math.isnan(outcomes[-1].loss)
