"""Train byte-level BPE and WordPiece vocabularies with the `tokenizers` library."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from t5x_lite.data.huggingface_tokenizer import SPLITS_SPECIAL_TOKENS, HuggingFace
from t5x_lite.data.tokenizer import BETWEEN_WORDS, BLOCK_CHARACTERS, cut_blocks
from t5x_lite.data.tokenizer_config import ByteBPE, WordPiece
from t5x_lite.data.vocabulary_files import GPT4_WORDS, byte_level_words
from t5x_lite.errors import UserError

UNKNOWN = "[UNK]"
INSIDE_WORD = "##"
"""Prefix of the pieces of WordPiece that do not begin a word."""
WORDS = {"gpt2": "", "gpt4": GPT4_WORDS}
"""Patterns of the setting `split`."""


def train_byte_bpe(config: ByteBPE, texts: Iterable[str]) -> HuggingFace:
    """Train a byte-level BPE (Radford et al. 2019, §2.2). Ids: special tokens, the 256 bytes, merges, sentinels.

    Raises:
        UserError: no text, or a vocabulary that is too large or too small for the text; names the nearest possible.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = config.vocab - config.extra_ids
    _check_smallest("byte_bpe", len(config.controls) + len(alphabet), size, config.extra_ids)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level_words(WORDS[config.split])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(config.controls), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text_blocks(texts), trainer)
    return _finish("byte_bpe", tokenizer, size, config.extra_ids)


def train_word_piece(config: WordPiece, texts: Iterable[str]) -> HuggingFace:
    """Train a WordPiece vocabulary. Ids: special tokens, characters, `##` characters, merges, sentinels.

    The library's trainer numbers the `##` characters in the order of a hash table, which differs from process to
    process, and breaks ties between merges by these numbers. Here a first pass finds all characters, and the second
    starts from them in alphabetical order.

    Raises:
        UserError: no text, or a vocabulary that is too large or too small for the text; names the nearest possible.
    """
    blocks = list(text_blocks(texts))  # at most the sample
    normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    characters = _most_frequent_characters(normalizer, blocks, config.alphabet)
    inside_words = _characters_inside_words(normalizer, blocks) & set(characters)
    first_pieces = [*characters, *(INSIDE_WORD + character for character in sorted(inside_words))]
    size = config.vocab - config.extra_ids
    _check_smallest("wordpiece", len(config.controls) + len(first_pieces), size, config.extra_ids)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*config.controls, *first_pieces],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    trained = _word_piece(models.WordPiece(unk_token=UNKNOWN), normalizer)
    trained.train_from_iterator(blocks, trainer)
    # Only `controls` are special tokens of the result.
    vocabulary = trained.get_vocab(with_added_tokens=True)
    tokenizer = _word_piece(models.WordPiece(vocabulary, unk_token=UNKNOWN), normalizer)
    tokenizer.add_special_tokens(list(config.controls))
    return _finish("wordpiece", tokenizer, size, config.extra_ids)


def _word_piece(model: models.WordPiece, normalizer: normalizers.Normalizer) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=INSIDE_WORD)
    return tokenizer


def _most_frequent_characters(normalizer: normalizers.Normalizer, blocks: Sequence[str], count: int) -> list[str]:
    """Return the most frequent characters of the words in alphabetical order; of equally frequent ones, the first."""
    frequency: Counter[str] = Counter()
    for block in blocks:
        frequency.update(normalizer.normalize_str(block))
    for character in list(frequency):
        if character.isspace():
            del frequency[character]
    by_frequency = sorted(frequency, key=lambda character: (-frequency[character], character))
    return sorted(by_frequency[:count])


def _characters_inside_words(normalizer: normalizers.Normalizer, blocks: Sequence[str]) -> set[str]:
    """Return the characters that do not begin a word somewhere: the vocabulary before any merge has them."""
    tokenizer = _word_piece(models.WordPiece(unk_token=UNKNOWN), normalizer)
    tokenizer.train_from_iterator(blocks, trainers.WordPieceTrainer(vocab_size=0, show_progress=False))
    length = len(INSIDE_WORD) + 1
    return {piece[-1] for piece in tokenizer.get_vocab() if len(piece) == length and piece.startswith(INSIDE_WORD)}


def text_blocks(texts: Iterable[str]) -> Iterator[str]:
    """Cut texts where no word is cut, so that the library holds a little of them at a time.

    Raises:
        UserError: there is no text.
    """
    has_text = False
    for text in texts:
        has_text = has_text or bool(text)
        yield from cut_blocks(text, BLOCK_CHARACTERS, BETWEEN_WORDS)
    if not has_text:
        raise UserError("the corpus holds no text to train a tokenizer on")


def _check_smallest(kind: str, smallest: int, size: int, extra_ids: int) -> None:
    if size < smallest:
        raise UserError(
            f"tokenizer.{kind}.vocab is less than the text's characters and the special tokens; "
            f"{smallest + extra_ids} is the smallest possible"
        )


def _finish(kind: str, tokenizer: tokenizers.Tokenizer, size: int, extra_ids: int) -> HuggingFace:
    """Append the sentinels, <extra_id_0> last as in T5 (Raffel et al. 2020, §3.1.4).

    Raises:
        UserError: the text has fewer pieces than the vocabulary should have.
    """
    largest = tokenizer.get_vocab_size(with_added_tokens=True)
    if largest < size:
        raise UserError(f"tokenizer.{kind}.vocab is more than this text supports: at most {largest + extra_ids}")
    tokenizer.add_special_tokens([f"<extra_id_{number}>" for number in reversed(range(extra_ids))])
    return HuggingFace(tokenizer.to_str().encode(), {SPLITS_SPECIAL_TOKENS: True})
