"""The token corpus: equal to tokenising by hand, whole or not there, never stale."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.data import corpus as corpora
from t5x_lite.data import sources, vocabulary
from t5x_lite.data import tokenizer as tk
from t5x_lite.data.config import Character, DataConfig, Unigram
from t5x_lite.data.corpus import Corpus, prepare_corpus
from t5x_lite.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(prose: Path) -> tk.Tokenizer:
    return vocabulary.train(Unigram(vocab=300), [path.read_text() for path in sorted(prose.glob("*.txt"))])


def make(files: Path | str, cache: Path, tokenizer: tk.Tokenizer, **settings: object) -> Path:
    values = {
        "files": str(files),
        "cache_dir": str(cache),
        "prepare_processes": 1,
        "validation_fraction": 0.2,
    } | settings
    data = DataConfig.model_validate(values)
    return prepare_corpus(data.sources[0], data, tokenizer)


def test_documents_come_back_with_their_end_in_the_split_that_their_hash_says(
    prose: Path, tmp_path: Path, tokenizer: tk.Tokenizer
) -> None:
    folder = make(prose / "*.txt", tmp_path, tokenizer)
    splits = {name: Corpus(folder, name) for name in corpora.SPLITS}
    expected: dict[str, list[str]] = {"train": [], "validation": []}
    for path in sorted(prose.glob("*.txt")):
        text = path.read_text()
        share = int(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), 16) / 2**64
        expected["validation" if share < 0.2 else "train"].append(text)
    for name, texts in expected.items():
        own = splits[name]
        found = [own.document(n) for n in range(own.documents)]
        assert [tokenizer.decode(ids) for ids in found] == texts
        assert all(ids[-1] == tokenizer.eos and tokenizer.eos not in ids[:-1] for ids in found)
        assert own.tokens == sum(map(len, found)) == own.offsets[-1]
        assert own.text_bytes == sum(len(text.encode()) for text in texts)
        stream = np.concatenate(found)
        for start, stop in ((0, 1), (3, 90), (own.tokens - 5, own.tokens), (0, own.tokens)):
            tokens, documents = own.read(start, stop)
            np.testing.assert_array_equal(tokens, stream[start:stop])
            assert documents.tolist() == [
                int(np.searchsorted(own.offsets, at, "right")) - 1 for at in range(start, stop)
            ]


def test_long_documents_are_cut_into_records_and_read_across_them(
    tmp_path: Path, tokenizer: tk.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "RECORD_TOKENS", 16)
    (tmp_path / "a.txt").write_text("the quick brown fox " * 60)
    own = Corpus(make(tmp_path / "a.txt", tmp_path / "c", tokenizer, validation_fraction=0.0), "train")
    whole = own.document(0)
    assert (own.documents, len(whole)) == (1, own.tokens)
    np.testing.assert_array_equal(own.read(10, 50)[0], whole[10:50])


def test_any_number_of_processes_writes_the_same_corpus(
    prose: Path, tmp_path: Path, tokenizer: tk.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SMALLEST_UNIT", 2000)
    folders = [make(prose / "*.txt", tmp_path / str(n), tokenizer, prepare_processes=n) for n in (1, 2)]
    assert folders[0].name == folders[1].name
    names = [sorted(path.name for path in folder.iterdir() if path.name != "lock") for folder in folders]
    assert names[0] == names[1]
    assert len(names[0]) > 10
    for name in names[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_by_position_the_last_tenth_of_the_characters_is_held_out(tmp_path: Path) -> None:
    text = "".join(chr(97 + n % 26) for n in range(1003))
    (tmp_path / "a.txt").write_text(text)
    characters = vocabulary.train(Character(), [text])
    folder = make(
        tmp_path / "a.txt",
        tmp_path,
        characters,
        validation_by="position",
        validation_fraction=0.1,
        end_of_document=False,
    )
    train, validation = (characters.decode(Corpus(folder, name).document(0)) for name in corpora.SPLITS)
    assert (train, validation) == (text[: int(1003 * 0.9)], text[int(1003 * 0.9) :])


def test_separate_validation_files(prose: Path, tmp_path: Path, tokenizer: tk.Tokenizer) -> None:
    (tmp_path / "v.txt").write_text("held out text")
    folder = make(prose / "0*.txt", tmp_path, tokenizer, validation_files=str(tmp_path / "v.txt"))
    assert (Corpus(folder, "train").documents, Corpus(folder, "validation").documents) == (10, 1)


def test_a_stale_corpus_is_never_read(prose: Path, tmp_path: Path, tokenizer: tk.Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("the quick brown fox")
    folders = [make(tmp_path / "a.txt", tmp_path, tokenizer), make(tmp_path / "a.txt", tmp_path, tokenizer)]
    assert folders[0] == folders[1]
    other = vocabulary.train(Unigram(vocab=310), [path.read_text() for path in sorted(prose.glob("*.txt"))])
    folders.append(make(tmp_path / "a.txt", tmp_path, other))
    folders.append(make(tmp_path / "a.txt", tmp_path, tokenizer, end_of_document=False))
    folders.append(make(tmp_path / "a.txt", tmp_path, tokenizer, validation_fraction=0.3))
    (tmp_path / "a.txt").write_text("the quick brown fix")
    folders.append(make(tmp_path / "a.txt", tmp_path, tokenizer))
    assert len(set(folders)) == 5


def test_a_half_written_corpus_is_finished_and_not_taken_for_whole(
    prose: Path, tmp_path: Path, tokenizer: tk.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SMALLEST_UNIT", 2000)
    whole = make(prose / "*.txt", tmp_path / "whole", tokenizer)
    done: list[str] = []
    work = corpora._tokenise_unit

    def dies(*arguments: object) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        work(*arguments)
        done.append("unit")

    monkeypatch.setattr(corpora, "_tokenise_unit", dies)
    with pytest.raises(KeyboardInterrupt):
        make(prose / "*.txt", tmp_path / "half", tokenizer)
    half = tmp_path / "half" / whole.name
    assert not (half / "corpus.json").exists()
    untouched = {path: path.stat().st_mtime_ns for path in half.glob("00000[012].json")}
    assert len(untouched) == 3
    monkeypatch.setattr(corpora, "_tokenise_unit", work)
    assert make(prose / "*.txt", tmp_path / "half", tokenizer) == half
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    assert (half / "corpus.json").read_text() == (whole / "corpus.json").read_text()
    one, other = (Corpus(folder, "train") for folder in (half, whole))
    np.testing.assert_array_equal(one.read(0, one.tokens)[0], other.read(0, other.tokens)[0])


def test_killed_at_any_moment_prepare_goes_on(tmp_path: Path, prose: Path) -> None:
    (tmp_path / "texts").mkdir()
    for n in range(40):
        (tmp_path / "texts" / f"{n:02d}.txt").write_text(f"document {n}: " + (prose / "00.txt").read_text() * 400)
    config = tmp_path / "c.yaml"
    settings = {
        "model": {"layers": 1, "embed": 8, "heads": 1},
        "data": {"files": f"{tmp_path}/texts/*.txt", "cache_dir": str(tmp_path / "cache"), "prepare_processes": 1},
        "tokenizer": {"bpe": {"vocab": 300, "sample_megabytes": 0.1}},
        "train": {"steps": 1, "batch_size": 1, "seq_len": 8},
    }
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "t5x_lite", "prepare", str(config)]
    for wait in (1.2, 1.6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    own = Corpus(Path(done.stdout.splitlines()[-1].partition(": ")[2]), "train")
    held = Corpus(own.folder, "validation")
    assert own.documents + held.documents == 40
    tokenizer = tk.load(next((tmp_path / "cache").glob("tokenizer-*")))
    texts = [tokenizer.decode(split.document(n)) for split in (own, held) for n in range(split.documents)]
    assert sorted(texts) == sorted(path.read_text() for path in (tmp_path / "texts").iterdir())


def test_invalid_utf8_is_counted(tmp_path: Path, tokenizer: tk.Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine")
    (tmp_path / "b.txt").write_bytes(b"not \xff fine")
    folder = make(tmp_path / "*.txt", tmp_path, tokenizer, validation_fraction=0.0)
    assert json.loads((folder / "corpus.json").read_text())["splits"]["train"]["replaced"] == 1
    assert "1 documents held invalid UTF-8" in capsys.readouterr().err


def test_an_empty_corpus_is_refused(tmp_path: Path, tokenizer: tk.Tokenizer) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(UserError, match="the corpus is empty"):
        make(tmp_path / "a.txt", tmp_path / "cache", tokenizer)


def test_a_full_disk_is_one_line_and_a_rerun_goes_on(
    prose: Path, tmp_path: Path, tokenizer: tk.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on file size makes writes fail as a full disk does (EFBIG), without a disk to fill."""
    texts = tmp_path / "texts"
    texts.mkdir()
    rng = np.random.default_rng(0)
    for n in range(3):
        (texts / f"{n}.txt").write_text("".join(rng.choice(list("abcdefgh "), 20_000 if n < 2 else 400_000)))
    monkeypatch.setattr(sources, "SMALLEST_UNIT", 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written: the disk is full.*run the same command again"):
            make(texts / "*.txt", tmp_path / "cache", tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder = make(texts / "*.txt", tmp_path / "cache", tokenizer, validation_fraction=0.2)
    assert sum(Corpus(folder, split).documents for split in corpora.SPLITS) == 3
    assert not [path for path in folder.iterdir() if ".tmp" in path.name and str(os.getpid()) in path.name]
