"""The token corpus: documents as token ids in ArrayRecord shards, with an index for random access.

`prepare` writes it once, by many processes, each unit of text on its own; the folder's name is a fingerprint of text,
tokenizer and options, and only a folder with `corpus.json`, written last, is ever read.
"""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from t5x_lite.data import beam, sources
from t5x_lite.data.config import DataConfig, MixedSource
from t5x_lite.data.sources import FIELD_BORDER, REPLACEMENT, Unit
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.files import disk_error, replace_file
from t5x_lite.progress import track_progress

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
RECORD_TOKENS = 8192
"""Longer documents are several records, so that a short window of a book does not read the book."""
BATCH_CHARACTERS = 2**20
"""Text handed to the tokenizer at a time."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
PARTS: dict[str, Callable[[str], list[str]] | None] = {
    "none": None,
    "line": lambda text: [line for line in text.splitlines() if line.strip()],
    "punctuation": lambda text: [part for part in SENTENCE_END.split(text) if part.strip()],
    "fields": lambda text: text.split(FIELD_BORDER),
}
"""How a document is cut into the parts that `data.parts` names."""
COUNTED = ("documents", "tokens", "text_bytes", "replaced")
"""What is counted of a split; `replaced` are documents with bytes that were not UTF-8."""
FORMAT = 1
"""Changes when the files of a corpus change their meaning."""


class Corpus:
    """One split of a corpus that `prepare` has finished, as one long stream of tokens, readable at any place.

    `tokens`, `documents` and `text_bytes` (UTF-8 bytes of the text) are totals; `offsets` `[documents + 1]` says where
    in the stream each document starts, `parts` `[parts + 1]` where each sentence or field does (`data.parts`; without
    them it is `offsets`). Thread-safe; a copy sent to another process opens its files anew, each file when it is read.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        described = json.loads((folder / "corpus.json").read_text())
        self.folder, self.split, shards = folder, split, described["shards"]
        self.documents, self.tokens, self.text_bytes = (described["splits"][split][name] for name in COUNTED[:3])
        lengths = [np.load(folder / f"{shard}.{split}.npy") for shard in shards]
        index = np.concatenate(lengths)
        self._starts = np.concatenate([[0], np.cumsum(index[:, 0])]).astype(np.int64)
        counts = zip(shards, map(len, lengths), strict=True)  # told how many records there are, it opens no file yet
        self._records = ArrayRecordDataSource([f"{folder / shard}.{split}.array_record[0:{n}]" for shard, n in counts])
        begins = np.flatnonzero(index[:, 1])
        self.offsets = np.append(self._starts[begins], self._starts[-1])
        parts = [folder / f"{shard}.{split}.parts.npy" for shard in shards]
        self.parts = np.cumsum(np.concatenate([[0], *map(np.load, parts)])) if parts[0].is_file() else self.offsets

    def __reduce__(self) -> tuple[object, tuple[Path, Split]]:
        return Corpus, (self.folder, self.split)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `[start, stop)` of the stream (int32), and the number of the document of each (int64)."""
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        tokens = np.concatenate([_tokens(self._records[number]) for number in range(first, last + 1)])
        begin = int(self._starts[first])
        return tokens[start - begin : stop - begin], interval_numbers(self.offsets, start, stop)

    def document(self, number: int) -> np.ndarray:
        """Tokens of one document (int32), its EOS included."""
        return self.read(int(self.offsets[number]), int(self.offsets[number + 1]))[0]


def _tokens(record: bytes) -> np.ndarray:
    """The tokens of a record (int32), which begins with the bytes of each, 2 or 4, in four bytes."""
    return np.frombuffer(record, f"u{record[0]}", offset=4).astype(np.int32)


def interval_numbers(borders: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Of each place in `[start, stop)`, which of the stretches between sorted `borders` it lies in (int64)."""
    first, last = np.searchsorted(borders, (start, stop - 1), side="right") - 1
    if first == last:
        return np.full(stop - start, first)
    inner = np.clip(borders[first : last + 2], start, stop)
    return np.repeat(np.arange(first, last + 1), inner[1:] - inner[:-1])


def prepare_corpus(source: MixedSource, data: DataConfig, tokenizer: Tokenizer, runner: str | None = None) -> Path:
    """The folder of the token corpus of `source`: found complete, or made, or what an earlier call left out added.

    Made by processes of this machine, or by a `runner` of Apache Beam.

    Raises:
        UserError: no text, a line that cannot be read, a full disk; finished units stay, and a rerun continues.
    """
    pieces = _pieces(source, data)
    key = [str(FORMAT), tokenizer.fingerprint, _options(data), *(f"{role} {u.identity}" for role, u in pieces)]
    folder = Path(data.cache_dir) / f"{source.name}-{hashlib.sha256(chr(10).join(key).encode()).hexdigest()[:16]}"
    marker = folder / "corpus.json"
    if marker.is_file():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process makes a corpus; the others wait and find it made
            if not marker.is_file():
                _make(folder, pieces, data, tokenizer, runner)
    except OSError as error:
        raise disk_error(folder, error, "finished pieces are kept: run the same command again") from error
    return folder


def _pieces(source: MixedSource, data: DataConfig) -> list[tuple[str, Unit]]:
    """Every unit with its role: to be split, or all train, or all validation."""
    apart = bool(data.validation_files or data.validation_split)
    whole_files = data.validation_by == "position"
    main = [("train" if apart else "split", unit) for unit in sources.units(source, whole_files=whole_files)]
    if not apart:
        return main
    named = {"files": data.validation_files, "split": data.validation_split}
    other = source.model_copy(update={name: value for name, value in named.items() if value})
    return main + [("validation", unit) for unit in sources.units(other)]


def _options(data: DataConfig) -> str:
    """The options that decide which tokens are written and into which split."""
    parts = "" if data.parts == "none" else f" {data.parts}"
    return f"{data.end_of_document} {data.validation_fraction} {data.validation_by}{parts}"


def _make(
    folder: Path, pieces: list[tuple[str, Unit]], data: DataConfig, tokenizer: Tokenizer, runner: str | None
) -> None:
    names = [f"{number:06d}" for number in range(len(pieces))]
    todo = [(name, piece) for name, piece in zip(names, pieces, strict=True) if not (folder / f"{name}.json").is_file()]
    work = partial(_tokenise_unit, folder, data, tokenizer)
    processes = min(data.prepare_processes or os.cpu_count() or 1, max(len(todo), 1))
    total, done = len(pieces), len(pieces) - len(todo)
    if not sys.stderr.isatty():
        print(f"corpus: tokenising {len(todo)} of {total} pieces of text into {folder}", file=sys.stderr, flush=True)
    with track_progress("tokenising") as advance:
        advance("", done, total)
        for _ in _run(work, todo, processes) if runner is None else beam.run(work, todo, runner):
            done += 1
            advance("", done, total)
    counts = {split: Counter(dict.fromkeys(COUNTED, 0)) for split in SPLITS}
    for name in names:
        for split, own in json.loads((folder / f"{name}.json").read_text()).items():
            counts[split].update(own)
    if not counts["train"]["tokens"] + counts["validation"]["tokens"]:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"the corpus is empty: {len(pieces)} files hold no text ({pieces[0][1].path}, …); set data.files"
        )
    replace_file(folder / "corpus.json", json.dumps({"shards": names, "splits": counts}))
    documents, replaced = (sum(one[name] for one in counts.values()) for name in ("documents", "replaced"))
    print(
        f"corpus: {counts['train']['tokens']:,} training and {counts['validation']['tokens']:,} validation tokens of "
        f"{documents:,} documents in {folder}"
        + (f"; {replaced:,} documents held invalid UTF-8, replaced by U+FFFD" if replaced else ""),
        file=sys.stderr,
        flush=True,
    )


def _run(work: "partial[None]", todo: list[tuple[str, tuple[str, Unit]]], processes: int) -> Iterable[None]:
    if processes == 1:
        yield from map(work, todo)
        return
    with ProcessPoolExecutor(processes - 1, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {pool.submit(work, job): job for job in todo}
        try:
            for job in reversed(list(jobs)):  # the others take a second to start: this process works too
                if job.cancel():
                    yield work(jobs.pop(job))
                for done in [other for other in jobs if other.done()]:
                    del jobs[done]
                    yield done.result()
            for job in as_completed(jobs):
                yield job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _tokenise_unit(folder: Path, data: DataConfig, tokenizer: Tokenizer, job: tuple[str, tuple[str, Unit]]) -> None:
    """Write one unit's shards; `NAME.json`, written last, says that they are whole."""
    name, (role, unit) = job
    writers = {split: _SplitWriter(folder, name, split, tokenizer, data) for split in SPLITS}
    try:
        for split, text in _assigned(unit, role, data):
            writers[split].add(text)
        counts = {split: writer.finish() for split, writer in writers.items()}
        replace_file(folder / f"{name}.json", json.dumps(counts))
    except RuntimeError as error:  # so ArrayRecord says that a write has failed
        raise OSError(str(error)) from error
    finally:
        for writer in writers.values():
            writer.discard()


def _assigned(unit: Unit, role: str, data: DataConfig) -> Iterator[tuple[Split, str]]:
    """Each document with its split. By position, the document that holds the border is cut in two."""
    if role == "split" and data.validation_by == "position":
        yield from _by_position(unit, data.validation_fraction)
        return
    for _, text in sources.documents(unit):
        if role == "split":
            digest = hashlib.blake2b(text.encode("utf-8", errors="replace"), digest_size=8).digest()
            held_out = int.from_bytes(digest, "big") / 2**64 < data.validation_fraction
        else:
            held_out = role == "validation"
        yield ("validation" if held_out else "train"), text


def _by_position(unit: Unit, fraction: float) -> Iterator[tuple[Split, str]]:
    characters = Counter[str]()
    for path, text in sources.documents(unit):
        characters[path] += len(text)
    at = Counter[str]()
    for path, text in sources.documents(unit):
        cut = min(max(int(characters[path] * (1 - fraction)) - at[path], 0), len(text))
        at[path] += len(text)
        if text[:cut]:
            yield "train", text[:cut]
        if text[cut:]:
            yield "validation", text[cut:]


class _SplitWriter:
    """Records and index of one split of one unit, under temporary names until `finish`."""

    def __init__(self, folder: Path, name: str, split: Split, tokenizer: Tokenizer, data: DataConfig) -> None:
        self.records, self.index = folder / f"{name}.{split}.array_record", folder / f"{name}.{split}.npy"
        self.cut, self.part_index = PARTS[data.parts], folder / f"{name}.{split}.parts.npy"
        self.part_lengths = list[int]()
        self.temporary = self.records.with_suffix(f".tmp{os.getpid()}")
        if data.end_of_document and tokenizer.eos is None:
            raise UserError("the tokenizer has no end-of-document token; set data.end_of_document=false")
        self.tokenizer = tokenizer
        self.end = np.array([tokenizer.eos] if data.end_of_document else [], np.int32)
        self.width = 2 if tokenizer.vocab <= 2**16 else 4
        self.writer = ArrayRecordWriter(str(self.temporary), "group_size:1,uncompressed")
        self.counts = Counter(dict.fromkeys(COUNTED, 0))
        self.waiting, self.characters = list[list[str]](), 0
        self.lengths: list[tuple[int, int]] = []

    def add(self, text: str) -> None:
        if not text.strip():
            return
        self.counts["documents"] += 1
        self.counts["text_bytes"] += len(text.encode("utf-8", errors="replace"))
        self.counts["replaced"] += REPLACEMENT in text
        self.waiting.append([text] if self.cut is None else self.cut(text))
        self.characters += len(text)
        if self.characters > BATCH_CHARACTERS:
            self._flush()

    def finish(self) -> Counter[str]:
        self._flush()
        self.writer.close()
        self.temporary.replace(self.records)
        self._save(self.index, np.array(self.lengths, np.int64).reshape(-1, 2))
        if self.cut is not None:
            self._save(self.part_index, np.array(self.part_lengths, np.int64))
        return self.counts

    def _save(self, path: Path, values: np.ndarray) -> None:
        with self.temporary.open("wb") as file:
            np.save(file, values)
        self.temporary.replace(path)

    def discard(self) -> None:
        with contextlib.suppress(Exception):  # closing a writer that failed fails again; its error is on its way
            self.writer.close()
        self.temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self.waiting:
            return
        parts = self.tokenizer.encode_batch([part for parts in self.waiting for part in parts])
        lengths = np.array([len(part) for part in parts], np.int64)
        last = np.cumsum([len(parts) for parts in self.waiting]) - 1
        stream = np.concatenate(parts)
        if len(self.end):
            stream = np.insert(stream, np.cumsum(lengths)[last], self.end)
        lengths[last] += len(self.end)
        self.part_lengths += lengths.tolist()
        self.counts["tokens"] += len(stream)
        written, width = stream.astype(f"u{self.width}").tobytes(), self.width
        for start, stop in pairwise([0, *np.cumsum(lengths)[last].tolist()]):
            for at in range(start, stop, RECORD_TOKENS):
                end = min(at + RECORD_TOKENS, stop)
                self.writer.write(bytes([width, 0, 0, 0]) + written[at * width : end * width])
                self.lengths.append((end - at, int(at == start)))
        self.waiting, self.characters = [], 0
