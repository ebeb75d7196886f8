"""The manifest survives the way to disk and back, with every value a run can have."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy
import pytest
from midwatch.checkpoints.fingerprint import config_digest, differences, take_fingerprint
from midwatch.checkpoints.manifest import (
    FORMAT,
    FileEntry,
    Manifest,
    checkpoint_id,
    decode,
    encode,
    parse_checkpoint_id,
)
from midwatch.logbook.errors import IntegrityError
from midwatch.logbook.wire import CheckpointTags, Hyper, LrChange, Mesh

from tests.unit.checkpoints import models


def manifest_with(**changes: Any) -> Manifest:
    manifest = Manifest(
        id=checkpoint_id(120, 3),
        run="opt",
        attempt=3,
        created_s=1.75e9 + 0.1,
        mesh=Mesh(2, 2),
        world_size=4,
        header=models.header(120),
        fingerprint=models.FINGERPRINT,
        files=(FileEntry("__0_0.distcp", 10, "ab"),),
        total_bytes=10,
    )
    return msgspec.structs.replace(manifest, **changes)


def test_it_comes_back_equal() -> None:
    hyper = Hyper((LrChange(7, 0.1 + 0.2, "incident-1"),), 0.3, ((5, 9),), None)
    header = msgspec.structs.replace(models.header(120), hyper=hyper)
    manifest = manifest_with(header=header)
    assert decode(encode(manifest)) == manifest


def test_values_that_json_cannot_say_come_back() -> None:
    tags = CheckpointTags(math.nan, math.inf, -math.inf, None, 1e-300)
    header = msgspec.structs.replace(models.header(120), tags=tags)
    back = decode(encode(manifest_with(header=header))).header.tags
    assert math.isnan(back.loss)
    assert (back.grad_norm, back.activation_norm) == (math.inf, -math.inf)
    assert (back.loss_scale, back.lr) == (None, 1e-300)


def test_a_newer_format_is_not_called_corrupt() -> None:
    newer = encode(manifest_with()).replace(b'"format":%d' % FORMAT, b'"format":%d' % (FORMAT + 1))
    with pytest.raises(IntegrityError) as caught:
        decode(newer)
    assert caught.value.code == "manifest-format"


@pytest.mark.parametrize(
    ("step", "attempt", "name"),
    [
        (0, 0, "step-00000000.a0000"),
        (120, 3, "step-00000120.a0003"),
        (123_456_789, 12_345, "step-123456789.a12345"),
    ],
)
def test_ids_name_step_and_attempt(step: int, attempt: int, name: str) -> None:
    assert checkpoint_id(step, attempt) == name
    assert parse_checkpoint_id(name) == (step, attempt)


@pytest.mark.parametrize(
    "name", ["", "step-1.a1", "step-00000120.a0003.tmp", "../step-00000120.a0003", "latest"]
)
def test_other_names_are_no_ids(name: str) -> None:
    assert parse_checkpoint_id(name) is None


def test_the_fingerprint_tells_what_differs() -> None:
    config = {"preset": "tiny", "seed": 1}
    here = take_fingerprint(config, torch_version="2.13.0", gpu=None)
    assert differences(here, here) == ()
    other = take_fingerprint({**config, "seed": 2}, torch_version="2.12.0", gpu="H200")
    lines = differences(other, here)
    assert "torch: saved 2.12.0, now 2.13.0" in lines
    assert "gpu: saved H200, now None" in lines
    assert "config.seed: saved 2, now 1" in lines
    assert len(lines) == 3


def test_packages_and_drivers_are_compared_where_both_recorded_them() -> None:
    here = take_fingerprint({}, libraries={"nccl": "2.27.3"})
    assert here.packages["nccl"] == "2.27.3"
    assert here.packages["numpy"] == numpy.__version__
    older = msgspec.structs.replace(
        here, packages={**here.packages, "numpy": "1.0", "driver": "550.54"}
    )
    lines = differences(older, here)
    assert f"numpy: saved 1.0, now {numpy.__version__}" in lines
    assert len(lines) == (1 if here.packages.get("driver") == "550.54" else 2)
    assert differences(msgspec.structs.replace(here, packages={}), here) == (), (
        "not recorded is not another"
    )


def test_many_changed_fields_are_counted_and_old_manifests_compare_by_digest() -> None:
    before = take_fingerprint({"model": {f"f{n}": n for n in range(40)}})
    now = take_fingerprint({"model": {f"f{n}": n + 1 for n in range(40)}})
    lines = differences(before, now)
    assert lines[0] == "config.model.f0: saved 0, now 1"
    assert lines[-1] == "config: 20 fields more"
    [line] = differences(msgspec.structs.replace(before, config={}), now)
    assert line.startswith("config_digest: saved ")


def test_the_config_digest_ignores_the_order_of_keys() -> None:
    assert config_digest({"a": 1, "b": {"c": 2, "d": 3}}) == config_digest(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )
    assert config_digest({"a": 1}) != config_digest({"a": 2})


def test_the_installed_torch_is_found_without_importing_it() -> None:
    import torch

    assert take_fingerprint({}).torch.split("+")[0] == torch.__version__.split("+")[0]
