"""The environment that this process trains in, as the manifest of every checkpoint records it."""

from __future__ import annotations

import torch

from ..checkpoints.fingerprint import take_fingerprint
from ..checkpoints.manifest import Fingerprint
from .config import TrainConfig


def environment_of(config: TrainConfig) -> Fingerprint:
    """Return the fingerprint of this process, trained configuration included.

    The preload looks versions up, so that a worker forked from it inherits them.
    """
    has_gpu = torch.cuda.is_available()
    libraries: dict[str, str] = {}
    if torch.version.cuda is not None:
        libraries["cuda"] = torch.version.cuda
    if has_gpu:
        libraries["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return take_fingerprint(
        config.model_dump(mode="json"),
        torch_version=str(torch.__version__),
        gpu=torch.cuda.get_device_name() if has_gpu else None,
        libraries=libraries,
    )
