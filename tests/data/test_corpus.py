"""The token corpus: equal to tokenising document by document, complete or absent, never stale."""

import hashlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from pyarrow.parquet import ParquetFile

from t5x_lite import storage
from t5x_lite.data import corpus_files, sources, tokenizer_files, vocabulary
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.config import DataConfig
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.corpus_files import SPLITS
from t5x_lite.data.files import open_parquet
from t5x_lite.data.huggingface_tokenizer import HuggingFace
from t5x_lite.data.open_data import prepare_sources
from t5x_lite.data.prepare import _run_jobs, prepare_corpus
from t5x_lite.data.subword_training import train_byte_bpe, train_word_piece
from t5x_lite.data.tokenizer import SentencePiece, Tokenizer
from t5x_lite.data.tokenizer_config import BPE, ByteBPE, Character, Unigram, WordPiece
from t5x_lite.data.training_data import PipelineSettings
from t5x_lite.data.vocabulary_files import add_special_tokens
from t5x_lite.errors import UserError
from t5x_lite.models.config import Family
from t5x_lite.objectives import ExampleContext
from t5x_lite.objectives.prefix import Prefix


@pytest.fixture(scope="module")
def tokenizer(prose: Path) -> SentencePiece:
    return vocabulary.train(Unigram(vocab=300), [path.read_text() for path in sorted(prose.glob("*.txt"))])


def prepare(
    files: Path | str,
    cache: Path,
    tokenizer: Tokenizer,
    *,
    sizes: dict[str, int] | None = None,
    **settings: object,
) -> Path:
    """Prepare the corpus of some files, a fifth of them for validation, and return its folder."""
    defaults = {"files": str(files), "cache_dir": str(cache), "prepare_processes": 1, "validation_fraction": 0.2}
    data = DataConfig.model_validate({**defaults, **settings})
    return Path(prepare_corpus(data.sources[0], data, tokenizer, **(sizes or {})))


def test_documents_come_back_with_their_end_in_the_split_of_their_hash(
    prose: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder = prepare(prose / "*.txt", tmp_path, tokenizer)
    expected: dict[str, list[str]] = {"train": [], "validation": []}
    for path in sorted(prose.glob("*.txt")):
        text = path.read_text()
        share = int(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), 16) / 2**64
        expected["validation" if share < 0.2 else "train"].append(text)
    for split in SPLITS:
        corpus = Corpus(folder, split)
        documents = [corpus.document(number) for number in range(corpus.documents)]
        assert [tokenizer.decode(ids) for ids in documents] == expected[split]
        assert all(ids[-1] == tokenizer.eos and tokenizer.eos not in ids[:-1] for ids in documents)
        assert corpus.tokens == sum(map(len, documents)) == corpus.offsets[-1]
        assert corpus.text_bytes == sum(len(text.encode()) for text in expected[split])
        stream = np.concatenate(documents)
        for start, stop in ((0, 1), (3, 90), (corpus.tokens - 5, corpus.tokens), (0, corpus.tokens)):
            tokens = corpus.read_spans([(start, stop)])
            numbers = corpus.offsets.intervals(start, stop)
            np.testing.assert_array_equal(tokens, stream[start:stop])
            expected_numbers = np.searchsorted(corpus.offsets[:], np.arange(start, stop), "right") - 1
            assert numbers.tolist() == expected_numbers.tolist()


def test_documents_of_a_decoder_begin_with_bos_where_the_tokenizer_puts_it(tmp_path: Path) -> None:
    library = train_byte_bpe(ByteBPE(vocab=268, controls=("<s>", "</s>")), ["two lines", "of a text"]).to_tokenizers()
    add_special_tokens(library, "<s>", None)
    tokenizer = HuggingFace(library.to_str().encode())
    texts = [("one line",), ("two lines", "of a text")]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": "\n".join(lines)}) + "\n" for lines in texts))
    expected = []
    for first, *others in texts:
        ids = library.encode(first).ids  # begins with <s>
        for line in others:
            ids = ids + library.encode(f" {line}", add_special_tokens=False).ids
        expected.append([*ids, library.token_to_id("</s>")])
    data = DataConfig.model_validate(
        {"files": str(file), "format": "jsonl", "cache_dir": str(tmp_path), "parts": "line", "validation_fraction": 0}
    )
    families: tuple[Family, ...] = ("decoder", "encoder_decoder")
    for family in families:
        context = ExampleContext(8, tokenizer.vocabulary(), family)
        (source,) = prepare_sources(PipelineSettings(data, Prefix(), context, 0, 1), tokenizer)
        corpus = Corpus(source.folder, "train")
        documents = [corpus.document(number).tolist() for number in range(corpus.documents)]
        assert documents == [row if family == "decoder" else row[1:] for row in expected]
        second_line = len(expected[0]) + len(library.encode("two lines").ids)
        if family == "encoder_decoder":
            second_line -= 2
        assert corpus.parts[:].tolist()[2] == second_line


def test_the_corpus_of_files_in_a_bucket_is_found_by_their_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(storage.EXTRAS, "memory", ("test", "fsspec"))
    opened: list[str] = []

    def open_and_note(path: str) -> AbstractContextManager[ParquetFile]:
        opened.append(path)
        return open_parquet(path)

    monkeypatch.setattr(sources, "open_parquet", open_and_note)
    bucket, _ = storage.open_store("memory://texts")
    tables = []
    for text in ("the first text", "another one", "yet another text"):
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.table({"text": [text]}), buffer)
        tables.append(buffer.getvalue())
    bucket.pipe({f"/texts/{number}.parquet": table for number, table in enumerate(tables[:2])})

    def prepare_bucket(**options: object) -> Path:
        opened.clear()
        monkeypatch.setattr(storage, "_listed", {})
        return prepare("memory://texts/*.parquet", tmp_path, Bytes(), **options)

    first = prepare_bucket()
    assert opened
    assert prepare_bucket() == first
    assert not opened
    assert prepare_bucket(end_of_document=False) != first
    bucket.pipe_file("/texts/1.parquet", tables[2])
    assert prepare_bucket() != first
    shutil.rmtree(first)
    bucket.pipe_file("/texts/1.parquet", tables[1])
    assert prepare_bucket() == first
    assert opened


def test_long_documents_are_read_across_chunks_and_shards(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_files, "CHUNK_TOKENS", 16)
    monkeypatch.setattr(corpus_files, "SHARD_TOKENS", 64)
    (tmp_path / "a.txt").write_text("the quick brown fox " * 60)
    folder = prepare(tmp_path / "a.txt", tmp_path / "c", tokenizer, validation_fraction=0.0)
    corpus = Corpus(folder, "train")
    document = corpus.document(0)
    assert (corpus.documents, len(document)) == (1, corpus.tokens)
    assert len(list((folder / "train.tokens" / "c" / "0").iterdir())) == -(-corpus.tokens // 64) > 3
    for start, stop in ((0, 5), (10, 50), (63, 65), (60, 200), (corpus.tokens - 1, corpus.tokens)):
        np.testing.assert_array_equal(corpus.read_spans([(start, stop)]), document[start:stop])


def test_any_number_of_processes_writes_the_same_corpus(prose: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    folders: list[Path] = []
    for processes in (1, 2):
        cache = tmp_path / str(processes)
        folder = prepare(prose / "*.txt", cache, tokenizer, prepare_processes=processes, sizes={"smallest_unit": 2000})
        folders.append(folder)
    assert folders[0].name == folders[1].name
    names = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "lock")
        for folder in folders
    ]
    assert names[0] == names[1]
    assert len(names[0]) > 10
    for name in names[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_by_position_the_last_tenth_of_the_characters_is_held_out(tmp_path: Path) -> None:
    text = "".join(chr(97 + n % 26) for n in range(1003))
    (tmp_path / "a.txt").write_text(text)
    characters = vocabulary.train(Character(), [text])
    folder = prepare(
        tmp_path / "a.txt",
        tmp_path,
        characters,
        validation_by="position",
        validation_fraction=0.1,
        end_of_document=False,
    )
    train, validation = (characters.decode(Corpus(folder, split).document(0)) for split in SPLITS)
    assert (train, validation) == (text[: int(1003 * 0.9)], text[int(1003 * 0.9) :])


def test_separate_validation_files(prose: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "v.txt").write_text("held out text")
    folder = prepare(prose / "0*.txt", tmp_path, tokenizer, validation_files=str(tmp_path / "v.txt"))
    assert (Corpus(folder, "train").documents, Corpus(folder, "validation").documents) == (10, 1)


def test_a_corpus_of_an_older_version_is_named_and_tokenised_again(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("the quick brown fox")
    with monkeypatch.context() as patch:
        patch.setattr("t5x_lite.data.prepare.FORMAT", 2)
        old_folder = prepare(tmp_path / "a.txt", tmp_path, tokenizer)
    capsys.readouterr()
    assert prepare(tmp_path / "a.txt", tmp_path, tokenizer) != old_folder
    assert f"{old_folder} is of an older version, is not read any more and can be deleted" in capsys.readouterr().err


def test_a_stale_corpus_is_never_read(prose: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "a.txt"
    file.write_text("the quick brown fox")
    folders = [prepare(file, tmp_path, tokenizer), prepare(file, tmp_path, tokenizer)]
    assert folders[0] == folders[1]
    other = vocabulary.train(Unigram(vocab=310), [path.read_text() for path in sorted(prose.glob("*.txt"))])
    folders.append(prepare(file, tmp_path, other))
    folders.append(prepare(file, tmp_path, tokenizer, end_of_document=False))
    folders.append(prepare(file, tmp_path, tokenizer, validation_fraction=0.3))
    file.write_text("the quick brown fix")
    folders.append(prepare(file, tmp_path, tokenizer))
    assert len(set(folders)) == 5


def test_another_end_of_text_in_the_settings_makes_another_corpus(prose: Path, tmp_path: Path) -> None:
    """The file beside a tokenizer may name another token than the usual one, `<|endoftext|>` with the id 0."""
    config = ByteBPE(vocab=270, controls=("<|endoftext|>", "<turn>"))
    tokenizer_file = train_byte_bpe(config, [path.read_text() for path in prose.glob("*.txt")]).save(tmp_path)
    folders: list[Path] = []
    ends: list[int] = []
    for settings in ({}, {"eos_token": "<|endoftext|>"}, {"eos_token": "<turn>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = tokenizer_files.load(tokenizer_file)
        folders.append(prepare(prose / "00.txt", tmp_path, tokenizer, validation_fraction=0.0))
        ends.append(int(Corpus(folders[-1], "train").document(0)[-1]))
    assert ends == [0, 0, 1]
    assert folders[0] == folders[1] != folders[2]
    without_end = prepare(prose / "00.txt", tmp_path, tokenizer, end_of_document=False)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = tokenizer_files.load(tokenizer_file)
    assert prepare(prose / "00.txt", tmp_path, tokenizer, end_of_document=False) == without_end


class InterruptedTokenizer(SentencePiece):
    """Is interrupted, as by Ctrl-C, once three units of a corpus are complete."""

    cache: Path

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        if len(list(self.cache.glob("*/00*.npz"))) == 3:
            raise KeyboardInterrupt
        return super().encode_batch(texts)


def test_an_incomplete_corpus_is_completed_and_not_read_before(
    prose: Path, tmp_path: Path, tokenizer: SentencePiece
) -> None:
    sizes = {"smallest_unit": 2000}
    undisturbed = prepare(prose / "*.txt", tmp_path / "undisturbed", tokenizer, sizes=sizes)
    interrupted = InterruptedTokenizer(tokenizer.file_bytes)
    interrupted.cache = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        prepare(prose / "*.txt", interrupted.cache, interrupted, sizes=sizes)
    folder = interrupted.cache / undisturbed.name
    assert not (folder / "corpus.json").exists()
    complete_units = {path: path.stat().st_mtime_ns for path in folder.glob("00000[012].npz")}
    assert len(complete_units) == 3
    assert prepare(prose / "*.txt", interrupted.cache, tokenizer, sizes=sizes) == folder
    assert {path: path.stat().st_mtime_ns for path in complete_units} == complete_units
    assert (folder / "corpus.json").read_text() == (undisturbed / "corpus.json").read_text()
    corpus = Corpus(folder, "train")
    expected = Corpus(undisturbed, "train")
    np.testing.assert_array_equal(corpus.read_spans([(0, corpus.tokens)]), expected.read_spans([(0, expected.tokens)]))


def test_prepare_continues_after_it_is_killed_at_any_moment(tmp_path: Path, prose: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for n in range(40):
        (texts / f"{n:02d}.txt").write_text(f"document {n}: " + (prose / "00.txt").read_text() * 400)
    config = tmp_path / "c.yaml"
    settings = {
        "model": {"layers": 1, "embed": 8, "heads": 1},
        "data": {"files": f"{texts}/*.txt", "cache_dir": str(tmp_path / "cache"), "prepare_processes": 1},
        "tokenizer": {"bpe": {"vocab": 300, "sample_megabytes": 0.1}},
        "train": {"steps": 1, "batch_size": 1, "seq_len": 8},
    }
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "t5x_lite", "prepare", str(config)]
    for seconds in (1.2, 1.6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    folder = Path(completed.stdout.splitlines()[-1].partition(": ")[2])
    splits = [Corpus(folder, split) for split in SPLITS]
    assert sum(corpus.documents for corpus in splits) == 40
    tokenizer = tokenizer_files.load(next((tmp_path / "cache").glob("tokenizer-*")))
    decoded = [tokenizer.decode(corpus.document(n)) for corpus in splits for n in range(corpus.documents)]
    assert sorted(decoded) == sorted(path.read_text() for path in texts.iterdir())


def test_invalid_utf8_is_counted(tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine")
    (tmp_path / "b.txt").write_bytes(b"not \xff fine")
    folder = prepare(tmp_path / "*.txt", tmp_path, tokenizer, validation_fraction=0.0)
    assert json.loads((folder / "corpus.json").read_text())["splits"]["train"]["replaced"] == 1
    assert "1 documents held invalid UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("parts", ["none", "line"])
def test_a_document_without_tokens_is_left_out_and_not_counted(prose: Path, tmp_path: Path, parts: str) -> None:
    """WordPiece drops control characters, such as a zero-width space (U+200B), and U+FFFD."""
    word_piece = train_word_piece(WordPiece(vocab=100), [path.read_text() for path in sorted(prose.glob("*.txt"))])
    texts = ["\u200b", "the quick brown fox", "\u200b\ufffd\u200b\n\u200b", "jumps", "\u200b"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    folder = prepare(
        tmp_path / "*.txt",
        tmp_path / "cache",
        word_piece,
        parts=parts,
        end_of_document=False,
        validation_fraction=0.0,
    )
    corpus = Corpus(folder, "train")
    decoded = [word_piece.decode(corpus.document(number)) for number in range(corpus.documents)]
    assert decoded == [texts[1], texts[3]]
    assert corpus.text_bytes == 19 + 5
    assert len(corpus.parts) == 3
    assert json.loads((folder / "corpus.json").read_text())["splits"]["train"]["replaced"] == 0
    ended = prepare(tmp_path / "*.txt", tmp_path / "cache", word_piece, validation_fraction=0.0)
    assert Corpus(ended, "train").documents == 2


def test_an_empty_corpus_is_refused_with_the_names_of_its_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.txt").write_text(" \n")
    with pytest.raises(UserError) as caught:
        prepare(tmp_path / "a.txt", tmp_path / "cache", tokenizer)
    assert str(caught.value) == f"the corpus is empty: no text in {tmp_path}/a.txt; set data.files"
    with pytest.raises(UserError) as caught:
        prepare(tmp_path / "*.txt", tmp_path / "cache", tokenizer)
    names = ", ".join(str(tmp_path / f"{name}.txt") for name in "abc")
    assert str(caught.value) == f"the corpus is empty: no text in {names} and 2 more; set data.files"


def test_a_full_disk_is_one_line_and_a_rerun_continues(prose: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A limit on file size makes writes fail as a full disk does (EFBIG), without a disk to fill."""
    texts = tmp_path / "texts"
    texts.mkdir()
    rng = np.random.default_rng(0)
    for n in range(3):
        characters = 20_000 if n < 2 else 400_000
        (texts / f"{n}.txt").write_text("".join(rng.choice(list("abcdefgh "), characters)))
    sizes = {"smallest_unit": 1}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written: the disk is full.*run the same command again"):
            prepare(texts / "*.txt", tmp_path / "cache", tokenizer, sizes=sizes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder = prepare(texts / "*.txt", tmp_path / "cache", tokenizer, sizes=sizes)
    assert sum(Corpus(folder, split).documents for split in SPLITS) == 3
    assert not [path for path in folder.rglob("*") if "tmp" in path.name or path.name.endswith(".__lock")]


def kill_workers(seconds: float) -> None:
    """Kill the process that runs this as the kernel does when memory is short, unless it is that of the test."""
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(seconds)


def test_a_worker_that_is_killed_is_one_line_and_the_others_end() -> None:
    """Two workers have the first two jobs while this process takes others from the end of the queue."""
    children = set(multiprocessing.active_children())
    message = "tokenising: one of 3 processes was killed, .*; lower data.prepare_processes; finished pieces are kept"
    with pytest.raises(UserError, match=message):
        _run_jobs("tokenising", kill_workers, [0.2] * 100, None, 3)
    assert set(multiprocessing.active_children()) == children


@pytest.mark.parametrize("config", [BPE(vocab=295), Character(), None], ids=lambda config: type(config).__name__)
def test_sentences_of_a_document_are_divided_by_a_space(config: BPE | Character | None, tmp_path: Path) -> None:
    """Without normalisation SentencePiece puts no space before a text."""
    text = "The fox jumps. It was great! She said hello? Yes."
    (tmp_path / "text.txt").write_text("\n".join([text] * 40))
    settings = {"files": str(tmp_path / "text.txt"), "document": "line", "parts": "punctuation"}
    data = DataConfig.model_validate({**settings, "validation_fraction": 0, "cache_dir": str(tmp_path / "cache")})
    tokenizer: Tokenizer = Bytes()
    if config is not None:
        tokenizer = vocabulary.load_or_train_tokenizer(config, data)
    corpus = Corpus(prepare_corpus(data.sources[0], data, tokenizer), "train")
    assert tokenizer.decode(corpus.document(0)) == text
