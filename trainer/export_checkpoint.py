"""Write a committed checkpoint as a Hugging Face folder, on one machine without a process group.

python -m midwatch.trainer.export_checkpoint SPEC CHECKPOINT_DIR OUT
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.dcp import load
from ..logbook.errors import MidwatchError
from .config import ModelConfig
from .export import export_hf, parameter_shapes
from .standalone import read_spec
from .worker import validated

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def export_checkpoint(
    checkpoint: Path, config: ModelConfig, folder: Path, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write the weights of a checkpoint of any mesh to a folder that transformers loads.

    The whole model is held in memory as float32.
    Raises: IntegrityError when the checkpoint's bytes are not those that were saved;
            ConfigError[state-mismatch] when it is of another model.
    """
    weights: dict[str, Tensor] = {
        name: torch.empty(shape) for name, shape in parameter_shapes(config).items()
    }
    load(checkpoint, {"model": weights})
    export_hf(folder, config, weights, dtype=dtype)


def main(arguments: list[str] | None = None) -> int:
    """Export what the command line names. Returns: 0 ok, 1 failed."""
    parser = argparse.ArgumentParser(
        prog="python -m midwatch.trainer.export_checkpoint",
        description="Write a checkpoint as a folder that transformers' from_pretrained loads.",
    )
    parser.add_argument("spec", type=Path, help="run spec of the run that saved the checkpoint")
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="float16")
    args = parser.parse_args(arguments)
    try:
        config = validated(read_spec(args.spec).trainer).model
        export_checkpoint(args.checkpoint, config, args.out, dtype=_DTYPES[args.dtype])
    except MidwatchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
