"""Build a tokenised corpus from folders of text.

The command line is `python -m midwatch.trainer.data.build DIR --out OUT`, or
`midwatch data build`, which starts it.

A build is made in a temporary folder next to its destination and renamed into place, so a reader
sees a whole corpus or none. It is keyed by what went in; the same inputs are never built twice.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from ...logbook.errors import ConfigError, Fatal, IntegrityError, MidwatchError
from . import corpus, shards
from .bpe import Vocabulary, train_vocabulary
from .shards import MANIFEST_NAME, TOKENIZER_NAME, Manifest, Shard, ShardWriter, Split

# (stage, documents done, documents in all); stages in order: "learn", "encode".
Progress = Callable[[str, int, int], None]
_DOCUMENTS_PER_BATCH = 64


@dataclass(frozen=True)
class BuildConfig:
    """Settings that shape the tokens; all of them are part of the content key."""

    vocab_size: int = 4096
    max_bytes: int = 6 << 20
    valid_frac: float = 0.02
    shard_tokens: int = 1 << 20


def build(
    source_dirs: Sequence[Path],
    out_dir: Path,
    config: BuildConfig | None = None,
    *,
    force: bool = False,
    on_progress: Progress | None = None,
) -> Manifest:
    """Tokenise source_dirs into out_dir and return the manifest; reuse an equal build.

    force replaces a different corpus in out_dir. Without it that is refused, because a run that
    resumed on it would silently read other data than it began with.

    Raises: ConfigError[corpus-missing], ConfigError[corpus-empty], ConfigError[corpus-differs],
            ConfigError[vocab-too-small], Fatal[corpus-write-failed].
    """
    config = config or BuildConfig()
    documents = corpus.collect(source_dirs, config.max_bytes)
    key = content_key(documents, config)
    reusable = _existing(out_dir, key, force)
    if reusable is not None:
        return reusable
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".corpus-", dir=out_dir.parent) as temporary:
            fresh = Path(temporary) / "corpus"
            fresh.mkdir()
            manifest = _write(fresh, documents, key, config, on_progress or _silent)
            return _publish(fresh, out_dir, Path(temporary) / "replaced", manifest)
    except OSError as error:
        raise Fatal(
            "corpus-write-failed",
            f"the corpus could not be written to {out_dir}: {error.strerror or error}.",
            remedy="Free space or choose another --out; what stood there before is untouched.",
        ) from error


def content_key(documents: Sequence[corpus.Document], config: BuildConfig) -> str:
    """Return the identity of a build: its settings and every document's name and bytes."""
    digest = hashlib.sha256(msgspec.json.encode([shards.FORMAT_VERSION, asdict(config)]))
    for document in documents:
        digest.update(f"{document.name!a} {document.sha256}\n".encode())
    if corpus.has_copies_apart(documents, config.valid_frac):
        # An older build of these documents held out what it trained on; every other build stands.
        digest.update(b"copies are trained on together")
    if any(document.names_special for document in documents):
        # An older build took such names for the tokens.
        digest.update(b"special tokens are spelt out")
    return digest.hexdigest()


def _existing(out_dir: Path, key: str, force: bool) -> Manifest | None:
    """Return the whole, equal corpus already in out_dir; None when it is to be (re)built."""
    if not out_dir.exists():
        return None
    if not (out_dir / MANIFEST_NAME).exists():
        if any(out_dir.iterdir()):
            raise ConfigError(
                "corpus-differs",
                f"{out_dir} holds files that are no corpus; they would be overwritten.",
                remedy="Choose another --out.",
            )
        return None
    try:
        manifest = shards.read_manifest(out_dir)
    except IntegrityError:
        manifest = None
    if manifest is not None and manifest.content_key == key:
        # An equal build that is damaged is rebuilt in place: it comes out the same.
        with contextlib.suppress(IntegrityError):
            shards.verify_checksums(out_dir, manifest)
            return manifest
        return None
    if not force:
        raise ConfigError(
            "corpus-differs",
            f"{out_dir} holds a corpus built from other sources or settings.",
            remedy="Choose another --out, or replace it with --force (no run must be using it).",
        )
    return None


def _write(
    folder: Path,
    documents: Sequence[corpus.Document],
    key: str,
    config: BuildConfig,
    on_progress: Progress,
) -> Manifest:
    train, valid = corpus.split_held_out(documents, config.valid_frac)
    # The vocabulary is learned from the training documents alone: held out means held out.
    tokenizer_json = train_vocabulary(_texts(train, on_progress), config.vocab_size)
    vocabulary = Vocabulary(tokenizer_json)
    (folder / TOKENIZER_NAME).write_text(tokenizer_json, "utf-8")
    dtype = shards.token_dtype(vocabulary.size)
    splits: dict[str, Split] = {}
    done = 0
    for name, members in (("train", train), ("valid", valid)):
        writer = ShardWriter(folder, name, dtype, config.shard_tokens)
        for first in range(0, len(members), _DOCUMENTS_PER_BATCH):
            batch = members[first : first + _DOCUMENTS_PER_BATCH]
            writer.add(vocabulary.encode_documents([corpus.read_text(item) for item in batch]))
            done += len(batch)
            on_progress("encode", done, len(documents))
        splits[name] = writer.finish()
    manifest = Manifest(
        format_version=shards.FORMAT_VERSION,
        content_key=key,
        vocab_size=vocabulary.size,
        dtype=dtype,
        tokenizer_sha256=vocabulary.sha256,
        source_bytes=sum(document.num_bytes for document in documents),
        train=splits["train"],
        valid=splits["valid"],
    )
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (folder / MANIFEST_NAME).write_bytes(encoded + b"\n")
    return manifest


def _texts(documents: Sequence[corpus.Document], on_progress: Progress) -> Iterator[str]:
    for done, document in enumerate(documents, start=1):
        yield corpus.read_text(document)
        on_progress("learn", done, len(documents))


def _publish(fresh: Path, out_dir: Path, aside: Path, manifest: Manifest) -> Manifest:
    """Rename fresh to out_dir; what stood there goes to aside and is deleted with it."""
    _flush(fresh, (*manifest.train.shards, *manifest.valid.shards))
    if (out_dir / MANIFEST_NAME).exists():
        out_dir.rename(aside)
    try:
        fresh.rename(out_dir)
    except OSError:
        # Another build of the same sources may have won the race; then its result is ours.
        with contextlib.suppress(MidwatchError):
            if shards.read_manifest(out_dir).content_key == manifest.content_key:
                return manifest
        if aside.exists() and not out_dir.exists():
            aside.rename(out_dir)
        raise
    if aside.exists():
        shutil.rmtree(aside)
    return manifest


def _flush(folder: Path, written: tuple[Shard, ...]) -> None:
    """Force the files to disk before the rename makes them visible."""
    for name in (*(shard.file for shard in written), TOKENIZER_NAME, MANIFEST_NAME, "."):
        descriptor = os.open(folder / name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def _print_progress(stage: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{stage} {done}/{total} documents", end=end, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    defaults = BuildConfig()
    parser = argparse.ArgumentParser(
        prog="midwatch data build",
        description="Tokenise folders of text into a corpus the trainer can read.",
    )
    parser.add_argument("sources", nargs="*", type=Path, metavar="DIR", help="folders of text")
    parser.add_argument(
        "--stdlib", action="store_true", help="the Python standard library's own sources"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the corpus")
    parser.add_argument("--vocab-size", type=int, default=defaults.vocab_size)
    parser.add_argument("--max-bytes", type=int, default=defaults.max_bytes)
    parser.add_argument("--valid-frac", type=float, default=defaults.valid_frac)
    parser.add_argument("--shard-tokens", type=int, default=defaults.shard_tokens)
    parser.add_argument("--force", action="store_true", help="replace another corpus in --out")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Build a corpus from the command line; print its manifest's summary as JSON to stdout.

    Returns: 0 ok, 1 failed, 2 usage.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    sources = [*options.sources, *([corpus.stdlib_dir()] if options.stdlib else [])]
    if not sources:
        parser.error("name at least one DIR, or --stdlib")
    config = BuildConfig(
        options.vocab_size, options.max_bytes, options.valid_frac, options.shard_tokens
    )
    try:
        manifest = build(
            sources, options.out, config, force=options.force, on_progress=_print_progress
        )
    except MidwatchError as error:
        print(f"midwatch data build: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    summary = {
        "out": str(options.out),
        "content_key": manifest.content_key,
        "vocab_size": manifest.vocab_size,
        "source_bytes": manifest.source_bytes,
        "train_tokens": manifest.train.tokens,
        "valid_tokens": manifest.valid.tokens,
    }
    print(msgspec.json.encode(summary).decode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
