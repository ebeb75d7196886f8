"""The numbers of a run as TensorBoard event files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from .chronicle import Chronicle
from .errors import ConfigError

_TAGS = {
    "train/loss": "loss",
    "train/learning_rate": "lr",
    "train/grad_norm": "grad_norm",
    "train/activation_norm": "activation_norm",
    "train/loss_scale": "loss_scale",
    "train/tokens_per_s": "tokens_per_s",
}


def write_tensorboard(chronicle: Chronicle, folder: Path) -> int:
    """Write the steps that stand in the final lineage to a folder; return how many values.

    Steps that a restart went back past are left out, so each step has one value. The folder must be
    empty or hold an earlier export, which is replaced: two exports in one folder would be shown as
    one curve.
    Raises: ConfigError[export-not-empty, export-failed].
    """
    from tensorboardX import SummaryWriter

    if folder.exists() and (not folder.is_dir() or not _is_export(folder)):
        raise ConfigError(
            "export-not-empty",
            f"{folder} holds other things than an earlier export.",
            remedy="Name an empty folder, or one that does not exist.",
        )
    curves, written = chronicle.curves, 0
    try:
        if folder.exists():
            shutil.rmtree(folder)
        with SummaryWriter(str(folder)) as writer:
            for tag, name in _TAGS.items():
                column: Sequence[float] = getattr(curves, name)
                for step, value, time_s in zip(curves.steps, column, curves.times_s, strict=True):
                    if tag == "train/loss_scale" and value != value:
                        continue
                    writer.add_scalar(tag, value, step, walltime=time_s)
                    written += 1
            for measured in chronicle.validation:
                at = {"global_step": measured.step, "walltime": measured.ended_s}
                writer.add_scalar("validation/loss", measured.loss, **at)
                writer.add_scalar("validation/perplexity", measured.perplexity, **at)
                written += 2
    except OSError as error:
        raise ConfigError(
            "export-failed", f"cannot write to {folder}: {error.strerror}."
        ) from error
    return written


def _is_export(folder: Path) -> bool:
    return all(path.name.startswith("events.out.tfevents.") for path in folder.iterdir())
