"""The tokenizer of a run: loaded from a file, or trained on the run's text and cached."""

import hashlib
import io
import itertools
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import sentencepiece

from t5x_lite.data import sources, unit_readers
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.config import DataConfig
from t5x_lite.data.record_text import FIELD_BORDER
from t5x_lite.data.subword_training import train_byte_bpe, train_word_piece
from t5x_lite.data.tokenizer import SentencePiece, Tokenizer
from t5x_lite.data.tokenizer_config import (
    BPE,
    TOKENIZERS,
    ByteBPE,
    Character,
    TokenizerConfig,
    TokenizerFile,
    TrainedTokenizer,
    Unigram,
    WordPiece,
    Words,
)
from t5x_lite.data.tokenizer_config import Bytes as BytesConfig
from t5x_lite.data.tokenizer_files import from_file, has_tokenizer, load, with_extra_ids
from t5x_lite.data.word_vocabulary import read_words, train_words
from t5x_lite.errors import UserError
from t5x_lite.local_copies import check_writable, local_path, upload_changes, with_urls
from t5x_lite.schema import component_name
from t5x_lite.storage import join

SENTENCE_CHARACTERS = 1000
"""SentencePiece's trainer leaves out sentences above 4192 bytes; a character has at most four."""
CHARACTER_VOCAB = 2**20
"""Largest vocabulary of characters: more than there are characters."""
SAMPLED_UNITS = 512
"""Pieces of text that are read for a sample: a corpus of terabytes has 60,000, of which each may be a row group."""
TRAINER_THREADS = 2
"""Threads of SentencePiece's trainer. Its result depends on their number, so that it must not be that of the cores."""


def load_or_train_tokenizer(tokenizer: TokenizerConfig, data: DataConfig, *, tables_as_text: bool = False) -> Tokenizer:
    """Load a tokenizer from its file or from the cache, or train it on the text and cache it.

    The name of a trained tokenizer's folder is a hash of its settings and of the text's files.

    Args:
        tokenizer: the kind of tokenizer.
        data: names the text, and the folder of the cache.
        tables_as_text: read .csv and .tsv as text, for the records of tasks.

    Raises:
        UserError: the file is not a tokenizer; no text; a vocabulary that the text does not support.
    """
    if isinstance(tokenizer, TokenizerFile):
        return from_file(tokenizer)
    if isinstance(tokenizer, BytesConfig):
        return Bytes()
    if isinstance(tokenizer, Words) and tokenizer.file:
        return read_words(tokenizer)
    units_of_sources = [sources.units(source, tables_as_text=tables_as_text) for source in data.sources]
    units = list(itertools.chain.from_iterable(units_of_sources))
    folder = local_path(join(data.cache_dir, f"tokenizer-{_hash_settings(tokenizer, units)}"))
    if has_tokenizer(folder):
        return load(folder)
    max_bytes = math.inf
    if not isinstance(tokenizer, Character):
        max_bytes = tokenizer.sample_megabytes * 1e6
        units = _spread_units(units_of_sources)
    check_writable(data.cache_dir, "data.cache_dir")  # before the tokenizer is trained
    _log(f"training on {len(units)} pieces of text")
    trained = _train_kind(tokenizer, _refuse_empty(_sample_texts(units, max_bytes), units))
    _log(f"{trained.vocab} pieces, in {with_urls(str(trained.save(folder)))}")
    upload_changes()
    return trained


def _train_kind(config: TrainedTokenizer, texts: Iterable[str]) -> Tokenizer:
    """Train the kind of tokenizer that the config describes."""
    if isinstance(config, ByteBPE):
        return train_byte_bpe(config, texts)
    if isinstance(config, WordPiece):
        return train_word_piece(config, texts)
    if isinstance(config, Words):
        return train_words(config, texts)
    return train(config, texts)


def _hash_settings(tokenizer: TokenizerConfig, units: Sequence[sources.Unit]) -> str:
    """Return a hash of all that decides which tokenizer is trained."""
    lines = [repr(tokenizer)]
    for unit in units:
        lines.append(unit.identity)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _log(message: str) -> None:
    print(f"tokenizer: {message}", file=sys.stderr, flush=True)


def _spread_units(units_of_sources: Sequence[Sequence[sources.Unit]]) -> list[sources.Unit]:
    """Return all units, or about `SAMPLED_UNITS` of them, evenly spread over each source, and one of each at least."""
    step = max(sum(len(units) for units in units_of_sources) / SAMPLED_UNITS, 1)
    spread: list[sources.Unit] = []
    for units in units_of_sources:
        count = math.ceil(len(units) / step)
        spread += [units[number * len(units) // count] for number in range(count)]
    return spread


def _sample_texts(units: Sequence[sources.Unit], max_bytes: float) -> Iterator[str]:
    """Yield text from the beginning of every unit, an equal share of `max_bytes` from each."""
    if math.isinf(max_bytes):  # all of it does not fit in memory
        for unit in units:
            for _, text in unit_readers.documents(unit):
                yield text.replace(FIELD_BORDER, " ")
        return
    with ThreadPoolExecutor(sources.FILES_AT_ONCE) as pool:
        for texts in pool.map(partial(_prefix_tokens, max_bytes / len(units)), units):
            yield from texts


def _prefix_tokens(max_bytes: float, unit: sources.Unit) -> list[str]:
    """Return the first `max_bytes` of a unit's text."""
    texts = []
    bytes_left = max_bytes
    for _, text in unit_readers.documents(unit):
        characters = int(min(bytes_left, len(text)))
        texts.append(text[:characters].replace(FIELD_BORDER, " "))
        bytes_left -= len(text.encode())
        if bytes_left <= 0:
            break
    return texts


def _refuse_empty(texts: Iterable[str], units: Sequence[sources.Unit]) -> Iterator[str]:
    """Yield the texts of units.

    Raises:
        UserError: none of them has a character; names the files.
    """
    has_text = False
    for text in texts:
        has_text = has_text or bool(text)
        yield text
    if not has_text:
        raise UserError(f"no text to train a tokenizer on in {sources.name_files(units)}; set data.files")


def train(config: Unigram | BPE | Character, texts: Iterable[str]) -> SentencePiece:
    """Train a SentencePiece model with T5's special ids: pad 0, eos 1, unk 2.

    With normalisation `identity` the model decodes every text exactly as it was (byte for byte with `byte_fallback`),
    except for U+2581, which is SentencePiece's own symbol for a space.

    Raises:
        UserError: no text, or a vocabulary that is too large or too small for the text; names the nearest possible.
    """
    if isinstance(config, Character):
        texts = _with_alphabet(texts)
    sentences = _cut_sentences(texts)
    first_sentence = next(sentences, None)
    if first_sentence is None:
        raise UserError("the corpus holds no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first_sentence], sentences),
            model_writer=model,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            user_defined_symbols=list(config.symbols),
            num_threads=TRAINER_THREADS,
            minloglevel=2,
            **_trainer_options(config),
        )
    except (RuntimeError, ValueError) as error:
        raise _explain_failure(error, config) from None
    return SentencePiece(with_extra_ids(model.getvalue(), config.extra_ids, config.controls))


def _trainer_options(config: Unigram | BPE | Character) -> dict[str, Any]:
    """Return the options of SentencePiece's trainer that differ between the kinds of tokenizers."""
    if isinstance(config, Character):
        return {
            "model_type": "char",
            "vocab_size": CHARACTER_VOCAB,
            "hard_vocab_limit": False,
            "character_coverage": 1.0,
            "byte_fallback": False,
            **_normalization_options("identity"),
        }
    return {
        "model_type": "unigram" if isinstance(config, Unigram) else "bpe",
        "vocab_size": config.vocab - _count_appended(config),
        "hard_vocab_limit": True,
        "character_coverage": 0.9995,
        "byte_fallback": config.byte_fallback,
        **_normalization_options(config.normalization),
    }


def _normalization_options(rule: str) -> dict[str, Any]:
    keeps_text = rule == "identity"
    return {
        "normalization_rule_name": rule,
        "remove_extra_whitespaces": not keeps_text,
        "add_dummy_prefix": not keeps_text,
        "allow_whitespace_only_pieces": keeps_text,
    }


def _count_appended(config: Unigram | BPE | Character) -> int:
    """Return the number of pieces that are appended to a trained model."""
    return config.extra_ids + len(config.controls)


def _explain_failure(error: Exception, config: Unigram | BPE | Character) -> UserError:
    """Return the error of the user that SentencePiece's error points to."""
    name = component_name(TOKENIZERS, config)
    key = f"tokenizer.{name}"
    largest = re.search(r"<= (\d+)", str(error))
    if largest:
        vocab = int(largest[1]) + _count_appended(config)
        return UserError(f"{key}.vocab is more than this text supports: at most {vocab}")
    smallest = re.search(r"\d+ vs (\d+)", str(error))
    if smallest:
        vocab = int(smallest[1]) + _count_appended(config)
        return UserError(
            f"{key}.vocab is less than the text's characters and the special pieces; {vocab} is the smallest possible"
        )
    return UserError(f"{key}: SentencePiece cannot be trained: {str(error).splitlines()[-1]}")


def _with_alphabet(texts: Iterable[str]) -> Iterator[str]:
    """Yield the beginning of each text, and then all characters that occur, so that shortening loses none."""
    alphabet: set[str] = set()
    for text in texts:
        alphabet.update(text)
        yield text[: 10 * SENTENCE_CHARACTERS]
    if alphabet:
        yield "".join(sorted(alphabet))


def _cut_sentences(texts: Iterable[str]) -> Iterator[str]:
    """Cut texts into sentences that the trainer accepts: it leaves out long ones, and those with a NUL."""
    for text in texts:
        for start in range(0, len(text), SENTENCE_CHARACTERS):
            yield text[start : start + SENTENCE_CHARACTERS].replace("\0", " ")
