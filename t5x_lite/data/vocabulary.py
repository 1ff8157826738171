"""The tokenizer of a run: a file's, or a SentencePiece model trained on its text and kept."""

import hashlib
import io
import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from t5x_lite.config import RunConfig
from t5x_lite.data import sources
from t5x_lite.data.config import BPE, Character, TokenizerFile, Unigram
from t5x_lite.data.config import Bytes as ByteLevel
from t5x_lite.data.tokenizer import Bytes, SentencePiece, Tokenizer, from_file, load, with_extra_ids
from t5x_lite.errors import UserError

SENTENCE_CHARACTERS = 1000
"""SentencePiece's trainer leaves out sentences above 4192 bytes: a character has four at most."""


def train(config: Unigram | BPE | Character, texts: Iterable[str]) -> SentencePiece:
    """Train a SentencePiece model with T5's special ids: pad 0, eos 1, unk 2.

    Under `identity` the model gives every text back exactly, byte for byte where `byte_fallback` is on, but for U+2581,
    which is SentencePiece's own sign for a space.

    Raises:
        UserError: no text, or a vocabulary larger than the text supports (the largest possible is named).
    """
    if isinstance(config, Character):
        kind, pieces, byte_fallback, normalization = "char", 2**20, False, "identity"
        texts = _with_alphabet(texts)
    else:
        kind = "unigram" if isinstance(config, Unigram) else "bpe"
        pieces = config.vocab - config.extra_ids - len(config.controls)
        byte_fallback, normalization = config.byte_fallback, config.normalization
    identity = normalization == "identity"
    sentences = (cut for text in texts for cut in _sentences(text))
    first = next(sentences, None)
    if first is None:
        raise UserError("the corpus holds no text to train a tokenizer on")
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], sentences),
            model_writer=written,
            model_type=kind,
            vocab_size=pieces,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            user_defined_symbols=list(config.symbols),
            character_coverage=1.0 if kind == "char" else 0.9995,
            remove_extra_whitespaces=not identity,
            add_dummy_prefix=not identity,
            allow_whitespace_only_pieces=identity,
            num_threads=os.cpu_count() or 1,
            minloglevel=2,
            hard_vocab_limit=kind != "char",
            byte_fallback=byte_fallback,
            normalization_rule_name=normalization,
        )
    except (RuntimeError, ValueError) as error:
        raise _explained(error, kind, config.extra_ids + len(config.controls)) from None
    return SentencePiece(with_extra_ids(written.getvalue(), config.extra_ids, config.controls))


def _explained(error: Exception, kind: str, extra_ids: int) -> UserError:
    most = re.search(r"<= (\d+)", str(error))
    if most:
        return UserError(f"tokenizer.{kind}.vocab is more than this text supports: at most {int(most[1]) + extra_ids}")
    least = re.search(r"\d+ vs (\d+)", str(error))
    if least:
        return UserError(
            f"tokenizer.{kind}.vocab is less than the text's characters and the special pieces; "
            f"{int(least[1]) + extra_ids} is the smallest possible"
        )
    return UserError(f"tokenizer.{kind}: SentencePiece cannot be trained: {str(error).splitlines()[-1]}")


def _with_alphabet(texts: Iterable[str]) -> Iterator[str]:
    """The texts, and every character that they hold once more, so that cut sentences lose none."""
    alphabet: set[str] = set()
    for text in texts:
        alphabet.update(text)
        yield text[: 10 * SENTENCE_CHARACTERS]
    if alphabet:
        yield "".join(sorted(alphabet))


def _sentences(text: str) -> Iterator[str]:
    """Pieces that the trainer takes whole: it leaves out long sentences and those with a NUL."""
    for start in range(0, len(text), SENTENCE_CHARACTERS):
        yield text[start : start + SENTENCE_CHARACTERS].replace("\0", " ")


def load_or_train_tokenizer(config: RunConfig) -> Tokenizer:
    """The run's tokenizer: a file's, or one trained on its text and kept in the cache under a fingerprint of both."""
    if isinstance(config.tokenizer, TokenizerFile):
        return from_file(config.tokenizer)
    if isinstance(config.tokenizer, ByteLevel):
        return Bytes()
    pieces = [unit for source in config.data.sources for unit in sources.units(source)]
    key = hashlib.sha256("\n".join([repr(config.tokenizer), *(unit.identity for unit in pieces)]).encode())
    folder = Path(config.data.cache_dir) / f"tokenizer-{key.hexdigest()[:16]}"
    if (folder / SentencePiece.file_name).is_file():
        return load(folder)
    limit = np.inf if isinstance(config.tokenizer, Character) else config.tokenizer.sample_megabytes * 1e6
    print(f"tokenizer: training on {len(pieces)} pieces of text", file=sys.stderr, flush=True)
    tokenizer = train(config.tokenizer, _sample(pieces, limit))
    print(f"tokenizer: {tokenizer.vocab} pieces, in {tokenizer.save(folder)}", file=sys.stderr, flush=True)
    return tokenizer


def _sample(pieces: Sequence[sources.Unit], limit: float) -> Iterator[str]:
    """The beginning of every piece, an equal share of `limit` bytes for each."""
    for unit in pieces:
        left = limit / len(pieces)
        for _, text in sources.documents(unit):
            yield text[: int(min(left, len(text)))].replace(sources.FIELD_BORDER, " ")
            left -= len(text.encode())
            if left <= 0:
                break
