"""A corpus is deterministic, whole or absent, reused when equal, and never silently replaced."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from midwatch.logbook.errors import ConfigError, IntegrityError
from midwatch.trainer.data import corpus, shards
from midwatch.trainer.data.bpe import END_OF_DOCUMENT, Vocabulary
from midwatch.trainer.data.build import BuildConfig, build, main

SMALL = BuildConfig(vocab_size=300, max_bytes=200_000, valid_frac=0.2, shard_tokens=700)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with text, and with everything that must be left out of a corpus."""
    folder = tmp_path / "source"
    for number in range(10):
        path = folder / f"part{number % 3}" / f"text{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"def number_{number}():\n    return {number} * 'watch'\n" * (20 + number))
    for left_out in ("test/test_a.py", "site-packages/b.py", "__pycache__/c.py", "d.bin", "e.py"):
        path = folder / left_out
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if left_out == "e.py" else b"left out")
    (folder / "latin1.py").write_bytes(b"# caf\xe9\n")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equal_sources_give_equal_bytes_wherever_they_lie(source: Path, tmp_path: Path) -> None:
    build([source], tmp_path / "one", SMALL)
    moved = source.rename(tmp_path / "moved")
    build([moved], tmp_path / "two", SMALL)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_the_tokens_are_the_documents_in_order_each_ended(source: Path, tmp_path: Path) -> None:
    manifest = build([source], tmp_path / "out", SMALL)
    documents = corpus.collect([source], SMALL.max_bytes)
    assert len(documents) == 10
    train, valid = corpus.split_held_out(documents, SMALL.valid_frac)
    vocabulary = Vocabulary.load(tmp_path / "out" / "tokenizer.json", manifest.tokenizer_sha256)
    for name, members in (("train", train), ("valid", valid)):
        stream = shards.open_stream(tmp_path / "out", name)
        tokens = stream.read(0, stream.num_tokens)
        ends = np.flatnonzero(tokens == END_OF_DOCUMENT)
        pieces = np.split(tokens, ends + 1)[:-1]
        texts = [vocabulary.decode(piece.tolist()) for piece in pieces]
        assert texts == [corpus.read_text(document) for document in members]
    assert len(manifest.train.shards) > 1


def test_the_name_of_a_special_token_is_text_like_any_other(source: Path, tmp_path: Path) -> None:
    before = build([source], tmp_path / "before", SMALL).content_key
    text = "a BPE ends a text with </s> and starts it with <s>; <pad> fills, <unk> is unknown\n"
    (source / "part0" / "text0.py").write_text(text * 20)
    manifest = build([source], tmp_path / "out", SMALL)
    assert manifest.content_key != before
    vocabulary = Vocabulary.load(tmp_path / "out" / "tokenizer.json", manifest.tokenizer_sha256)
    (tokens,) = vocabulary.encode_documents([text])
    assert tokens.count(END_OF_DOCUMENT) == 1
    assert min(tokens[:-1]) > 3
    assert vocabulary.decode(tokens) == text


def test_documents_are_held_out_whole(source: Path) -> None:
    documents = corpus.collect([source], SMALL.max_bytes)
    train, valid = corpus.split_held_out(documents, 0.2)
    assert Counter(d.name for d in train + valid) == Counter(d.name for d in documents)
    assert valid
    assert sum(d.num_bytes for d in valid) <= 0.2 * sum(d.num_bytes for d in documents)
    assert corpus.split_held_out(documents[:1], 0.2) == (documents[:1], [])
    assert len(corpus.split_held_out(documents, 1e-9)[1]) == 1


def test_a_text_that_is_trained_on_is_not_held_out_under_another_name(
    source: Path, tmp_path: Path
) -> None:
    documents = corpus.collect([source], SMALL.max_bytes)
    _, valid = corpus.split_held_out(documents, 0.2)
    assert not corpus.has_copies_apart(documents, 0.2)
    # A copy far larger than what may be held out: the text comes with a name that is trained on.
    (source / "copies").mkdir()
    for number in range(30):
        (source / "copies" / f"again{number}.py").write_text(corpus.read_text(valid[0]))
    documents = corpus.collect([source], SMALL.max_bytes)
    assert corpus.has_copies_apart(documents, 0.2)
    train, valid = corpus.split_held_out(documents, 0.2)
    assert valid
    assert not {d.sha256 for d in train} & {d.sha256 for d in valid}
    assert Counter(d.name for d in train + valid) == Counter(d.name for d in documents)


def test_a_capped_corpus_stays_below_the_cap(source: Path) -> None:
    capped = corpus.collect([source], 5000)
    assert capped
    assert sum(document.num_bytes for document in capped) <= 5000


def test_an_equal_build_is_reused(source: Path, tmp_path: Path) -> None:
    first = build([source], tmp_path / "out", SMALL)
    inode = (tmp_path / "out" / "manifest.json").stat().st_ino
    stages: list[str] = []
    again = build([source], tmp_path / "out", SMALL, on_progress=lambda s, d, t: stages.append(s))
    assert again == first
    assert (tmp_path / "out" / "manifest.json").stat().st_ino == inode
    assert stages == []


def test_a_damaged_equal_build_is_made_again(source: Path, tmp_path: Path) -> None:
    build([source], tmp_path / "out", SMALL)
    before = files_of(tmp_path / "out")
    shard = tmp_path / "out" / "train-00000.bin"
    shard.write_bytes(b"\0" * len(before["train-00000.bin"]))
    build([source], tmp_path / "out", SMALL)
    assert files_of(tmp_path / "out") == before


def test_a_different_corpus_is_replaced_only_by_force(source: Path, tmp_path: Path) -> None:
    first = build([source], tmp_path / "out", SMALL)
    (source / "more.py").write_text("more = 1\n" * 50)
    with pytest.raises(ConfigError) as caught:
        build([source], tmp_path / "out", SMALL)
    assert caught.value.code == "corpus-differs"
    assert shards.read_manifest(tmp_path / "out") == first
    second = build([source], tmp_path / "out", SMALL, force=True)
    assert second.content_key != first.content_key
    assert shards.read_manifest(tmp_path / "out") == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_folder_of_other_files_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "out"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        build([source], other, SMALL, force=True)
    assert caught.value.code == "corpus-differs"
    assert files_of(other) == {"thesis.txt": b"mine"}


BUILD_ON_A_FULL_DISK = """
import resource, signal, sys
from midwatch.trainer.data.build import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
sys.exit(main(sys.argv[1:]))
"""


def test_a_build_without_room_leaves_no_corpus(source: Path, tmp_path: Path) -> None:
    arguments = [str(source), "--out", str(tmp_path / "out"), "--vocab-size", "300"]
    ended = subprocess.run(
        [sys.executable, "-c", BUILD_ON_A_FULL_DISK, *arguments], capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "corpus-write-failed" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_missing_and_empty_sources_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build([tmp_path / "nowhere"], tmp_path / "out", SMALL)
    assert caught.value.code == "corpus-missing"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        build([tmp_path / "empty"], tmp_path / "out", SMALL)
    assert caught.value.code == "corpus-empty"


def test_a_vocabulary_without_room_for_every_byte_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build([source], tmp_path / "out", BuildConfig(vocab_size=200))
    assert caught.value.code == "vocab-too-small"


def test_opening_no_corpus_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        shards.open_stream(tmp_path)
    assert caught.value.code == "corpus-missing"
    assert "midwatch data build" in caught.value.remedy


@pytest.mark.parametrize(
    ("file", "damage", "needs_checksums"),
    [
        ("train-00001.bin", lambda raw: raw[:-1], False),
        ("train-00000.bin", lambda raw: None, False),
        ("tokenizer.json", lambda raw: None, False),
        ("manifest.json", lambda raw: raw[: len(raw) // 2], False),
        ("manifest.json", lambda raw: raw.replace(b'"train"', b'"trian"'), False),
        ("train-00000.bin", lambda raw: bytes([raw[0] ^ 1]) + raw[1:], True),
        ("tokenizer.json", lambda raw: raw.replace(b"a", b"b", 1), True),
    ],
)
def test_damage_is_found_on_opening(
    source: Path, tmp_path: Path, file: str, damage: object, needs_checksums: bool
) -> None:
    build([source], tmp_path / "out", SMALL)
    path = tmp_path / "out" / file
    damaged = damage(path.read_bytes())  # type: ignore[operator]
    path.unlink() if damaged is None else path.write_bytes(damaged)
    with pytest.raises(IntegrityError) as caught:
        shards.open_stream(tmp_path / "out", checksums=needs_checksums)
    assert caught.value.code == "corpus-corrupt"


def test_command_line_builds_and_answers_errors(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(source), "--out", str(out), "--vocab-size", "300"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["content_key"] == shards.read_manifest(out).content_key
    assert main([str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "corpus-missing" in captured.err
    with pytest.raises(SystemExit) as usage:
        main(["--out", str(out)])
    assert usage.value.code == 2


def test_the_default_corpus_is_the_interpreters_own_library() -> None:
    documents = corpus.collect([corpus.stdlib_dir()], 300_000)
    assert 200_000 < sum(document.num_bytes for document in documents) <= 300_000
    assert not any("/test/" in f"/{d.name}" or "site-packages" in d.name for d in documents)
