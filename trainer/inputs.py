"""What a run needs to find before it starts, checked where it is submitted. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..logbook.errors import ConfigError
from .config import TrainConfig
from .data.held_out import check_held_out
from .data.shards import Manifest, read_manifest, verify_sizes


def check(section: dict[str, Any]) -> None:
    """Refuse a trainer section whose corpus is missing, damaged, too rich or without held-out text.

    Raises: ConfigError[corpus-missing], IntegrityError[corpus-corrupt],
            ConfigError[vocab-too-small], ConfigError[no-held-out-text].
    """
    config = TrainConfig.model_validate(section)
    folder = Path(config.data.dir)
    manifest = read_manifest(folder)
    verify_sizes(folder, manifest)
    check_vocab(config, folder, manifest)
    if config.validation.interval_steps:
        check_held_out(manifest, config.seq_len)


def check_vocab(config: TrainConfig, folder: Path, manifest: Manifest) -> None:
    """Refuse a corpus with token ids that the model has no row for."""
    if manifest.vocab_size > config.model.vocab:
        raise ConfigError(
            "vocab-too-small",
            f"the corpus in {folder} has {manifest.vocab_size} token ids, "
            f"the model's vocab is {config.model.vocab}.",
            remedy="Raise trainer.model.vocab, or build the corpus with a smaller --vocab-size.",
        )
