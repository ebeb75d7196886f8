"""Find the documents of a corpus: which files, in which order, and which of them are held out.

Everything here is a pure function of the files' names and bytes, so two machines with the same
files agree on the same corpus. Documents are ordered by a hash of their name rather than by the
name itself: a capped corpus is then a fair sample of the tree, not its first letters.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...logbook.errors import ConfigError, IntegrityError
from .bpe import SPECIAL_TOKENS

TEXT_SUFFIXES = (".py", ".txt", ".md", ".rst")
# Installed packages differ between machines, tests are mostly data, and caches are not text.
LEFT_OUT_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "node_modules"}
)


@dataclass(frozen=True)
class Document:
    """One text file of the corpus; name is its path relative to the source folder.

    names_special: whether a special token's name stands in its text.
    """

    name: str
    path: Path
    num_bytes: int
    sha256: str
    names_special: bool = False


def stdlib_dir() -> Path:
    """Return the folder of the running interpreter's standard library, the default corpus."""
    return Path(sysconfig.get_path("stdlib"))


def collect(source_dirs: Sequence[Path], max_bytes: int) -> list[Document]:
    """Return the documents under source_dirs, in corpus order, at most max_bytes together.

    Files that are not UTF-8 text or are empty are left out. A file that would overrun max_bytes
    is left out and smaller ones after it may still fit.

    Raises: ConfigError[corpus-missing] for a folder that does not exist,
            ConfigError[corpus-empty] when no document remains.
    """
    chosen: list[Document] = []
    room = max_bytes
    for name, path in sorted(_candidates(source_dirs), key=_corpus_order):
        if path.stat().st_size > room:
            continue
        document = _as_document(name, path)
        if document is not None:
            chosen.append(document)
            room -= document.num_bytes
    if not chosen:
        folders = ", ".join(str(folder) for folder in source_dirs)
        raise ConfigError(
            "corpus-empty",
            f"no UTF-8 text file ({' '.join(TEXT_SUFFIXES)}) of at most {max_bytes} bytes "
            f"in {folders}.",
            remedy="Name a folder that holds text, raise --max-bytes, or use --stdlib.",
        )
    return chosen


def read_text(document: Document) -> str:
    """Return the text of document. Raises IntegrityError[corpus-corrupt] if the file changed."""
    raw = document.path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != document.sha256:
        raise IntegrityError(
            "corpus-corrupt",
            f"{document.path} changed while the corpus was being built.",
            remedy="Run the build again when nothing writes to the source folder.",
        )
    return raw.decode("utf-8")


def split_held_out(
    documents: Sequence[Document], valid_frac: float
) -> tuple[list[Document], list[Document]]:
    """Return (train, valid): whole documents, about valid_frac of the bytes held out.

    At least one document is held out when there are two or more, and none when there is one. A copy
    of a text that is trained on is trained on as well, whatever its name.
    """
    names = _held_out_names(documents, valid_frac)
    trained = {document.sha256 for document in documents if document.name not in names}
    train: list[Document] = []
    valid: list[Document] = []
    for document in documents:
        is_held_out = document.name in names and document.sha256 not in trained
        (valid if is_held_out else train).append(document)
    return train, valid


def has_copies_apart(documents: Sequence[Document], valid_frac: float) -> bool:
    """Whether names alone would hold a text out that is trained on under another name."""
    return len(split_held_out(documents, valid_frac)[1]) < len(
        _held_out_names(documents, valid_frac)
    )


def _held_out_names(documents: Sequence[Document], valid_frac: float) -> set[str]:
    if len(documents) < 2 or valid_frac <= 0.0:
        return set()
    room = valid_frac * sum(document.num_bytes for document in documents)
    held_out: set[str] = set()
    for document in documents:
        if document.num_bytes <= room:
            held_out.add(document.name)
            room -= document.num_bytes
    return held_out or {min(documents, key=lambda document: document.num_bytes).name}


def _candidates(source_dirs: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    for number, source in enumerate(source_dirs):
        if not source.is_dir():
            raise ConfigError(
                "corpus-missing",
                f"the corpus folder {source} does not exist.",
                remedy="Name an existing folder, or use --stdlib for the default corpus.",
            )
        for folder, subfolders, files in os.walk(source):
            subfolders[:] = sorted(
                name
                for name in subfolders
                if name not in LEFT_OUT_FOLDERS and not name.startswith(".")
            )
            for file in files:
                path = Path(folder) / file
                if path.suffix in TEXT_SUFFIXES and path.is_file():
                    yield f"{number}/{path.relative_to(source).as_posix()}", path


def _corpus_order(candidate: tuple[str, Path]) -> tuple[bytes, str]:
    name = candidate[0]
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest(), name


def _as_document(name: str, path: Path) -> Document | None:
    try:
        raw = path.read_bytes()
        raw.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if not raw.strip():
        return None
    names_special = any(token.encode() in raw for token in SPECIAL_TOKENS)
    return Document(name, path, len(raw), hashlib.sha256(raw).hexdigest(), names_special)
