"""Tokenise one unit of text into the shards of a token corpus: one shard for each split."""

import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Int32

from t5x_lite.data import sources
from t5x_lite.data.config import DataConfig
from t5x_lite.data.conversations import Conversation, read_conversations
from t5x_lite.data.shards import SPLITS, ShardFiles, Split, encode_record
from t5x_lite.data.sources import FIELD_BORDER, REPLACEMENT, Unit
from t5x_lite.data.token_documents import token_documents
from t5x_lite.data.token_files import TOKEN_FILES
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.files import replace_file

Role = Literal["split", "train", "validation"]
RECORD_TOKENS = 8192
"""Tokens of a record at most. Long documents are several records, so that a window of a book does not read the book."""
BATCH_CHARACTERS = 2**20
"""Amount of text that is tokenised in one call."""
COUNTS = ("documents", "tokens", "text_bytes", "replaced")
"""Counts of a split. `replaced` counts the documents with bytes that were not UTF-8."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class TokeniseJob:
    """A unit of text to tokenise.

    `name` is the name of its files in the corpus folder. By its `role` all documents are in one split, or each document
    is assigned to a split by `data.validation_by`.
    """

    name: str
    role: Role
    unit: Unit


def tokenise_unit(
    job: TokeniseJob, folder: Path, data: DataConfig, tokenizer: Tokenizer, record_tokens: int = RECORD_TOKENS
) -> None:
    """Write the shards of one unit into the corpus folder, and then the file that marks the unit as complete.

    Args:
        job: the unit.
        folder: the folder of the corpus.
        data: says how documents are split and how they end.
        tokenizer: makes token ids.
        record_tokens: largest number of tokens in a record.

    Raises:
        UserError: text that cannot be read; a tokenizer without EOS for `data.end_of_document`.
        OSError: a file that cannot be written.
    """
    writers: dict[Split, ShardWriter] = {}
    for split in SPLITS:
        writers[split] = ShardWriter(ShardFiles(folder, job.name, split), data, tokenizer, record_tokens)
    try:
        if job.unit.format in TOKEN_FILES:
            for tokens in token_documents(job.unit, tokenizer):
                writers[_split_of_document(job, tokens.tobytes(), data)].add_tokens(tokens)
        elif data.parts == "turns":
            for conversation in read_conversations(job.unit, tokenizer):
                split = _split_of_document(job, conversation.text.encode("utf-8", errors="replace"), data)
                writers[split].add_conversation(conversation)
        else:
            for split, text in _assign_splits(job, data):
                writers[split].add(text)
        counts = {split: writer.finish() for split, writer in writers.items()}
        replace_file(unit_marker(folder, job.name), json.dumps(counts))
    except RuntimeError as error:  # ArrayRecord's error for a write that failed
        raise OSError(str(error)) from error
    finally:
        for writer in writers.values():
            writer.discard()


def unit_marker(folder: Path, name: str) -> Path:
    """Return the file with the counts of a unit, which exists if the unit's shards are complete."""
    return folder / f"{name}.json"


def _assign_splits(job: TokeniseJob, data: DataConfig) -> Iterator[tuple[Split, str]]:
    """Yield each document with its split."""
    if job.role == "split" and data.validation_by == "position":
        yield from _split_by_position(job.unit, data.validation_fraction)
        return
    for _, text in sources.documents(job.unit):
        yield _split_of_document(job, text.encode("utf-8", errors="replace"), data), text


def _split_of_document(job: TokeniseJob, content: bytes, data: DataConfig) -> Split:
    """Return the split of a document: that of its unit, or one by a hash of its content."""
    if job.role == "split":
        return _split_by_hash(content, data.validation_fraction)
    return job.role


def _split_by_hash(content: bytes, validation_fraction: float) -> Split:
    digest = hashlib.blake2b(content, digest_size=8).digest()
    if int.from_bytes(digest, "big") / 2**64 < validation_fraction:
        return "validation"
    return "train"


def _split_by_position(unit: Unit, validation_fraction: float) -> Iterator[tuple[Split, str]]:
    """Hold out the tail of each file. The document that holds the border is cut in two."""
    file_characters = Counter[str]()
    for path, text in sources.documents(unit):
        file_characters[path] += len(text)
    characters_before = Counter[str]()
    for path, text in sources.documents(unit):
        train_characters = int(file_characters[path] * (1 - validation_fraction))
        cut = min(max(train_characters - characters_before[path], 0), len(text))
        characters_before[path] += len(text)
        if text[:cut]:
            yield "train", text[:cut]
        if text[cut:]:
            yield "validation", text[cut:]


def _split_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _split_sentences(text: str) -> list[str]:
    return [sentence for sentence in SENTENCE_END.split(text) if sentence.strip()]


def _split_fields(text: str) -> list[str]:
    return text.split(FIELD_BORDER)


def _keep_whole(text: str) -> list[str]:
    return [text]


PART_SPLITTERS: dict[str, Callable[[str], list[str]]] = {
    "none": _keep_whole,
    "line": _split_lines,
    "punctuation": _split_sentences,
    "fields": _split_fields,
}
"""Functions that cut a document into its parts, by `data.parts`."""


def sentence_border(tokenizer: Tokenizer, data: DataConfig) -> str:
    """Return the text before each part of a document but the first: the space between two sentences."""
    if data.parts in {"line", "punctuation"}:
        return tokenizer.sentence_border
    return ""


@dataclass(frozen=True)
class _WaitingDocument:
    """The parts of a document that is not tokenised yet, and what is counted of its text."""

    parts: list[str]
    text_bytes: int
    is_replaced: bool


class ShardWriter:
    """Writes the records and the index of one shard, under a temporary name until `finish`.

    A document of which the tokenizer makes no token, such as a zero-width space, is left out and not counted.

    Raises:
        UserError: the tokenizer has no EOS, but documents must end with it.
    """

    def __init__(self, files: ShardFiles, data: DataConfig, tokenizer: Tokenizer, record_tokens: int) -> None:
        if data.end_of_document and tokenizer.eos is None:
            raise UserError("the tokenizer has no end-of-document token; set data.end_of_document=false")
        self._files = files
        self._tokenizer = tokenizer
        self._record_tokens = record_tokens
        self._has_parts = data.parts != "none"
        self._split_parts = PART_SPLITTERS.get(data.parts, _keep_whole)
        self._border = sentence_border(tokenizer, data)
        self._eos = tokenizer.eos if data.end_of_document else None
        self._token_bytes = 2
        if tokenizer.vocab > 2**16:
            self._token_bytes = 4
        self._temporary = files.records.with_suffix(f".tmp{os.getpid()}")
        self._writer = ArrayRecordWriter(str(self._temporary), "group_size:1,uncompressed")
        self._counts = Counter(dict.fromkeys(COUNTS, 0))
        self._waiting_documents: list[_WaitingDocument] = []
        self._waiting_characters = 0
        self._record_index: list[tuple[int, int]] = []
        self._part_lengths: list[int] = []

    def add(self, text: str) -> None:
        """Add a document. An empty one is left out."""
        if not text.strip():
            return
        first_part, *other_parts = self._split_parts(text)
        parts = [first_part, *(self._border + part for part in other_parts)]
        text_bytes = len(text.encode("utf-8", errors="replace"))
        self._waiting_documents.append(_WaitingDocument(parts, text_bytes, REPLACEMENT in text))
        self._waiting_characters += len(text)
        if self._waiting_characters > BATCH_CHARACTERS:
            self._flush()

    def add_tokens(self, tokens: Int32[np.ndarray, "_"]) -> None:
        """Add a document that is tokenised already, without its EOS."""
        self._counts["documents"] += 1
        self._counts["text_bytes"] += len(self._tokenizer.decode(tokens).encode("utf-8", errors="replace"))
        if self._eos is not None:
            tokens = np.append(tokens, np.int32(self._eos))
        self._counts["tokens"] += len(tokens)
        self._write_document(tokens)

    def add_conversation(self, conversation: Conversation) -> None:
        """Add a conversation, whose parts are its turns."""
        self._counts["documents"] += 1
        self._counts["text_bytes"] += len(conversation.text.encode("utf-8", errors="replace"))
        self._counts["tokens"] += len(conversation.tokens)
        self._part_lengths += conversation.part_lengths.tolist()
        self._write_document(conversation.tokens)

    def finish(self) -> Counter[str]:
        """Write what is left, give the files their names, and return the counts of the shard."""
        self._flush()
        self._writer.close()
        self._temporary.replace(self._files.records)
        self._save(self._files.index, np.array(self._record_index, np.int64).reshape(-1, 2))
        if self._has_parts:
            self._save(self._files.parts, np.array(self._part_lengths, np.int64))
        return self._counts

    def discard(self) -> None:
        """Remove the temporary file, if it exists."""
        with contextlib.suppress(Exception):  # closing a writer after an error raises again; that error is on its way
            self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _save(self, path: Path, values: np.ndarray) -> None:
        with self._temporary.open("wb") as file:
            np.save(file, values)
        self._temporary.replace(path)

    def _flush(self) -> None:
        """Tokenise and write the documents that are waiting."""
        if not self._waiting_documents:
            return
        documents = self._waiting_documents
        part_ids = self._tokenizer.encode_batch(list(chain.from_iterable(document.parts for document in documents)))
        part_lengths = np.array(list(map(len, part_ids)), np.int64)
        part_stops = np.cumsum([len(document.parts) for document in documents])
        last_parts = part_stops - 1
        stream = np.concatenate(part_ids)
        if self._eos is not None:
            stream = np.insert(stream, np.cumsum(part_lengths)[last_parts], self._eos)
            part_lengths[last_parts] += 1
        token_places = pairwise([0, *np.cumsum(part_lengths)[last_parts].tolist()])
        part_places = pairwise([0, *part_stops.tolist()])
        for document, (start, stop), (first_part, part_stop) in zip(documents, token_places, part_places, strict=True):
            if start == stop:
                continue
            self._counts["documents"] += 1
            self._counts["tokens"] += stop - start
            self._counts["text_bytes"] += document.text_bytes
            self._counts["replaced"] += document.is_replaced
            self._part_lengths += part_lengths[first_part:part_stop].tolist()
            self._write_document(stream[start:stop])
        self._waiting_documents = []
        self._waiting_characters = 0

    def _write_document(self, tokens: Int32[np.ndarray, "tokens"]) -> None:
        for start in range(0, len(tokens), self._record_tokens):
            record = tokens[start : start + self._record_tokens]
            self._writer.write(encode_record(record, self._token_bytes))
            begins_document = int(start == 0)
            self._record_index.append((len(record), begins_document))
