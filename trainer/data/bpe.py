"""Byte-level BPE: learn a vocabulary from text, and turn text into token ids.

The special tokens and their ids are OPT's: <s> 0, <pad> 1, </s> 2, <unk> 3. As in OPT's training
data, documents are joined into one stream with </s> between them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ...logbook.errors import ConfigError, IntegrityError

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
END_OF_DOCUMENT = 2
# Every byte needs a token of its own, so that any text can be encoded.
VOCAB_SIZE_MIN = 256 + len(SPECIAL_TOKENS)


def train_vocabulary(texts: Iterable[str], vocab_size: int) -> str:
    """Return the JSON of a tokenizer learned from texts; equal texts give equal JSON.

    Raises: ConfigError[vocab-too-small].
    """
    if vocab_size < VOCAB_SIZE_MIN:
        raise ConfigError(
            "vocab-too-small",
            f"a byte-level vocabulary of {vocab_size} was asked for, "
            f"at least {VOCAB_SIZE_MIN} are needed.",
            remedy="Raise --vocab-size.",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


class Vocabulary:
    """A learned tokenizer, identified by the SHA-256 of its JSON."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer: Any = Tokenizer.from_str(tokenizer_json)
        # Who writes </s> in a text does not end it.
        self._tokenizer.encode_special_tokens = True
        self.sha256 = hashlib.sha256(tokenizer_json.encode("utf-8")).hexdigest()

    @classmethod
    def load(cls, path: Path, sha256: str) -> Vocabulary:
        """Return the tokenizer stored at path. Raises IntegrityError[corpus-corrupt]."""
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _corrupt(path, str(error)) from error
        if hashlib.sha256(text.encode("utf-8")).hexdigest() != sha256:
            raise _corrupt(path, "its SHA-256 is not the one in manifest.json")
        return cls(text)

    @property
    def size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, each ended by END_OF_DOCUMENT."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [[*encoding.ids, END_OF_DOCUMENT] for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def _corrupt(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        "corpus-corrupt",
        f"the tokenizer {path} is unusable: {reason}.",
        remedy="Build the corpus again: midwatch data build.",
    )
