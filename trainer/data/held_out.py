"""The held-out text, cut into sequences and dealt to ranks: the same ones at every measurement.

    sequence i          ->  tokens [i * seq_len, (i + 1) * seq_len] of the valid split
    round r, dp rank k  ->  sequences [(r * dp_size + k) * rows, ... + rows), as far as there are

No document of the valid split is in the train split (corpus.split_held_out), and the vocabulary was
learned without it. Which sequences are measured knows nothing of the mesh, so numbers of runs on
different meshes can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ...logbook.errors import ConfigError
from .shards import Manifest, TokenStream


class HeldOut:
    """Some sequences of the valid split, as many as there are when fewer than asked for.

    Raises: ConfigError[no-held-out-text] when there is not one.
    """

    def __init__(self, stream: TokenStream, seq_len: int, sequences: int) -> None:
        self._stream = stream
        self.seq_len = seq_len
        self.sequences = min(sequences, _whole_sequences(stream.num_tokens, seq_len))

    @property
    def tokens(self) -> int:
        """Tokens that are predicted in one measurement."""
        return self.sequences * self.seq_len

    def num_rounds(self, dp_size: int, rows: int) -> int:
        """Return how many batches each rank runs, all ranks alike."""
        return -(-self.sequences // (dp_size * rows))

    def rounds(
        self, dp_rank: int, dp_size: int, rows: int
    ) -> Iterator[tuple[npt.NDArray[np.int64], bool]]:
        """Yield what data-parallel rank dp_rank runs in each round, and whether it counts.

        A rank for which a round has nothing left runs the first sequence, which does not count:
        the others could not gather their weights without it.
        Shapes: (up to rows, seq_len + 1) int64.
        """
        for number in range(self.num_rounds(dp_size, rows)):
            first = min((number * dp_size + dp_rank) * rows, self.sequences)
            mine = range(first, min(first + rows, self.sequences))
            yield np.stack([self._sequence(index) for index in mine or (0,)]), bool(mine)

    def _sequence(self, index: int) -> npt.NDArray[np.int64]:
        return self._stream.read(index * self.seq_len, self.seq_len + 1)


def check_held_out(manifest: Manifest, seq_len: int) -> None:
    """Refuse a corpus without one held-out sequence. Raises: ConfigError[no-held-out-text]."""
    _whole_sequences(manifest.valid.tokens, seq_len)


def _whole_sequences(tokens: int, seq_len: int) -> int:
    count = max(tokens - 1, 0) // seq_len
    if count == 0:
        raise ConfigError(
            "no-held-out-text",
            f"trainer.validation is on, but the corpus holds {tokens} tokens out, and one sequence "
            f"takes {seq_len + 1}.",
            remedy="Build the corpus anew with a larger --valid-frac (from two documents on), or "
            "set trainer.validation.interval_steps: 0.",
        )
    return count
