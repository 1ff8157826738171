"""Tokenise one unit of text into its rows of a token corpus: one row for each split."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, pairwise
from typing import Literal

import numpy as np
from jaxtyping import Int32

from t5x_lite.data import unit_readers
from t5x_lite.data.chunked_arrays import MAX_LENGTH, ArrayWriter
from t5x_lite.data.cleaning.clean_unit import CleaningJob, cleaned_documents
from t5x_lite.data.config import DataConfig
from t5x_lite.data.conversations import Conversation, read_conversations
from t5x_lite.data.corpus_files import SPLITS, CorpusFiles, Split, save_arrays, token_type
from t5x_lite.data.record_text import FIELD_BORDER
from t5x_lite.data.sources import Unit
from t5x_lite.data.token_documents import token_documents
from t5x_lite.data.token_files import TOKEN_FILES
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.unit_readers import REPLACEMENT
from t5x_lite.errors import UserError

Role = Literal["split", "train", "validation"]
BATCH_CHARACTERS = 2**20
"""Amount of text that is tokenised in one call."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class TokeniseJob:
    """A unit of text to tokenise.

    Attributes:
        number: that of its rows.
        role: the split of all of its documents; `split` assigns each document by `data.validation_by`.
        unit: the text.
        cleaning: how it is cleaned; None if it is taken as it is.
    """

    number: int
    role: Role
    unit: Unit
    cleaning: CleaningJob | None = None

    def documents(self, folder: str) -> Iterator[tuple[str, str]]:
        """Yield the file and the text of each document, without what cleaning drops; see `unit_readers.documents`."""
        if self.cleaning is None:
            return unit_readers.documents(self.unit)
        return cleaned_documents(self.cleaning, folder)

    @property
    def name(self) -> str:
        """The name of its file in the corpus folder."""
        return unit_name(self.number)


def unit_name(number: int) -> str:
    """Return the name of the files of a unit of text."""
    return f"{number:06d}"


def tokenise_unit(
    job: TokeniseJob, files: CorpusFiles, data: DataConfig, tokenizer: Tokenizer, prefix_tokens: tuple[int, ...] = ()
) -> None:
    """Write the tokens of one unit, and then the file that marks the unit as complete.

    Args:
        job: the unit.
        files: of the corpus.
        data: says how documents are split and how they end.
        tokenizer: makes token ids.
        prefix_tokens: ids before each document; a conversation has those of its chat template.

    Raises:
        UserError: text that cannot be read; a tokenizer without EOS for `data.end_of_document`; a store that cannot be
            written.
        OSError: a file that cannot be written.
    """
    writers = {split: UnitWriter(files, split, job.number, data, tokenizer, prefix_tokens) for split in SPLITS}
    if job.unit.format in TOKEN_FILES:
        for tokens in token_documents(job.unit, tokenizer):
            writers[_split_of_document(job, tokens.tobytes(), data)].add_tokens(tokens)
    elif data.parts == "turns":
        for conversation in read_conversations(job.unit, tokenizer):
            split = _split_of_document(job, conversation.text.encode("utf-8", errors="replace"), data)
            writers[split].add_conversation(conversation)
    else:
        for split, text in _assign_splits(job, files.folder, data):
            writers[split].add(text)
    arrays: dict[str, np.ndarray] = {}
    for split, writer in writers.items():
        for name, values in writer.finish().items():
            arrays[f"{split}.{name}"] = values
    save_arrays(files.unit(job.name), arrays)


def _assign_splits(job: TokeniseJob, folder: str, data: DataConfig) -> Iterator[tuple[Split, str]]:
    """Yield each document with its split."""
    if job.role == "split" and data.validation_by == "position":
        yield from _split_by_position(partial(job.documents, folder), data.validation_fraction)
        return
    for _, text in job.documents(folder):
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


def _split_by_position(
    documents: Callable[[], Iterator[tuple[str, str]]], validation_fraction: float
) -> Iterator[tuple[Split, str]]:
    """Hold out the tail of each file. The document that holds the border is cut in two."""
    file_characters = Counter[str]()
    for path, text in documents():
        file_characters[path] += len(text)
    characters_before = Counter[str]()
    for path, text in documents():
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


class UnitWriter:
    """Writes the tokens of a unit that are in one split, and collects the lengths of its documents.

    A document of which the tokenizer makes no token, such as a zero-width space, is left out and not counted.

    Args:
        files: of the corpus.
        split: the split.
        number: that of the unit.
        data: says how documents are cut into parts, and how they end.
        tokenizer: makes token ids.
        prefix_tokens: ids before each document.

    Raises:
        UserError: the tokenizer has no EOS, but documents must end with it.
    """

    def __init__(
        self,
        files: CorpusFiles,
        split: Split,
        number: int,
        data: DataConfig,
        tokenizer: Tokenizer,
        prefix_tokens: tuple[int, ...] = (),
    ) -> None:
        if data.end_of_document and tokenizer.eos is None:
            raise UserError("the tokenizer has no end-of-document token; set data.end_of_document=false")
        self._tokenizer = tokenizer
        self._has_parts = data.parts != "none"
        self._split_parts = PART_SPLITTERS.get(data.parts, _keep_whole)
        self._border = sentence_border(tokenizer, data)
        self._prefix_tokens = np.array(prefix_tokens, np.int32)
        self._eos = tokenizer.eos if data.end_of_document else None
        spec = files.tokens(split, token_type(tokenizer.vocab))
        self._tokens = ArrayWriter(spec, spec.create([MAX_LENGTH, MAX_LENGTH])[number])
        self._hash = hashlib.sha256()
        self._text_bytes = 0
        self._replaced = 0
        self._waiting_documents: list[_WaitingDocument] = []
        self._waiting_characters = 0
        self._document_lengths: list[int] = []
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
        """Add a document that is tokenised already, without its EOS; it may have its beginning.

        An empty one is left out.
        """
        if not len(tokens):
            return
        self._text_bytes += len(self._tokenizer.decode(tokens).encode("utf-8", errors="replace"))
        if not np.array_equal(tokens[: len(self._prefix_tokens)], self._prefix_tokens):
            tokens = np.concatenate([self._prefix_tokens, tokens])
        if self._eos is not None:
            tokens = np.append(tokens, np.int32(self._eos))
        self._document_lengths.append(len(tokens))
        self._append(tokens)

    def add_conversation(self, conversation: Conversation) -> None:
        """Add a conversation, whose parts are its turns."""
        self._text_bytes += len(conversation.text.encode("utf-8", errors="replace"))
        self._replaced += REPLACEMENT in conversation.text
        self._document_lengths.append(len(conversation.tokens))
        self._part_lengths += conversation.part_lengths.tolist()
        self._append(conversation.tokens)

    def finish(self) -> dict[str, np.ndarray]:
        """Write what is left, and return what is known of the unit.

        Returns:
            `documents` and `parts`: their lengths; `text`: what was counted of the text; `hash`: the SHA-256 of the
            tokens and the lengths.
        """
        self._flush()
        self._tokens.finish()
        arrays = {
            "documents": np.array(self._document_lengths, np.int64),
            "text": np.array([self._text_bytes, self._replaced]),
        }
        if self._has_parts:
            arrays["parts"] = np.array(self._part_lengths, np.int64)
        for name in ("documents", "parts"):
            if name in arrays:
                self._hash.update(arrays[name].astype("<i8").tobytes())
        arrays["hash"] = np.frombuffer(self._hash.digest(), np.uint8)
        return arrays

    def _append(self, tokens: Int32[np.ndarray, "_"]) -> None:
        self._hash.update(tokens.astype("<i4").tobytes())
        self._tokens.append(tokens)

    def _flush(self) -> None:
        """Tokenise and write the documents that are waiting."""
        if not self._waiting_documents:
            return
        waiting = self._waiting_documents
        self._waiting_documents = []
        self._waiting_characters = 0
        ids_of_all = iter(self._tokenizer.encode_batch(list(chain.from_iterable(item.parts for item in waiting))))
        documents = []
        part_ids: list[np.ndarray] = []
        for document in waiting:
            ids = list(islice(ids_of_all, len(document.parts)))
            if any(map(len, ids)):
                documents.append(document)
                part_ids += ids
        if not documents:
            return
        part_lengths = np.array(list(map(len, part_ids)), np.int64)
        part_stops = np.cumsum([len(document.parts) for document in documents])
        last_parts = part_stops - 1
        stream = np.concatenate(part_ids)
        if len(self._prefix_tokens):
            first_parts = np.concatenate([[0], part_stops[:-1]])
            starts = (np.cumsum(part_lengths) - part_lengths)[first_parts]
            beginnings = np.tile(self._prefix_tokens, len(documents))
            stream = np.insert(stream, starts.repeat(len(self._prefix_tokens)), beginnings)
            part_lengths[first_parts] += len(self._prefix_tokens)
        if self._eos is not None:
            stream = np.insert(stream, np.cumsum(part_lengths)[last_parts], self._eos)
            part_lengths[last_parts] += 1
        token_places = pairwise([0, *np.cumsum(part_lengths)[last_parts].tolist()])
        part_places = pairwise([0, *part_stops.tolist()])
        for document, (start, stop), (first_part, part_stop) in zip(documents, token_places, part_places, strict=True):
            self._document_lengths.append(stop - start)
            self._text_bytes += document.text_bytes
            self._replaced += document.is_replaced
            self._part_lengths += part_lengths[first_part:part_stop].tolist()
        self._append(stream)
