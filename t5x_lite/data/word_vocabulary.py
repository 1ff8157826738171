"""Words as tokens: the most frequent words of a text, or the first ones of a file."""

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from t5x_lite.data.huggingface_tokenizer import SPLITS_SPECIAL_TOKENS, HuggingFace
from t5x_lite.data.subword_training import text_blocks
from t5x_lite.data.tokenizer_config import Words
from t5x_lite.errors import UserError
from t5x_lite.local_copies import local_file

UNKNOWN = "<unk>"


def train_words(config: Words, texts: Iterable[str]) -> HuggingFace:
    """Return a vocabulary of the most frequent words; of equally frequent ones, the first in alphabetical order.

    Raises:
        UserError: no text, or a vocabulary that is too large for the text; names the largest possible.
    """
    counted = _tokenizer(config, {UNKNOWN: 0})
    limit = config.vocab + len(config.controls)
    counted.train_from_iterator(text_blocks(texts), trainers.WordLevelTrainer(vocab_size=limit, show_progress=False))
    ids = counted.get_vocab()
    return _finish(config, sorted(ids, key=ids.__getitem__), "this text supports")


def read_words(config: Words) -> HuggingFace:
    """Return a vocabulary of the first words of a file, one a line, which is in the order of their frequency.

    Raises:
        UserError: the file cannot be read, or has fewer words than the vocabulary.
    """
    path = local_file(config.file)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"tokenizer.words.file {config.file}: cannot be read: {error}") from None
    words = dict.fromkeys(line.strip() for line in lines)
    words.pop("", None)
    return _finish(config, list(words), f"{config.file} has")


def _tokenizer(config: Words, ids: dict[str, int]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    if config.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    if config.split == "spaces":
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _finish(config: Words, words: Sequence[str], source: str) -> HuggingFace:
    """Return the tokenizer of the first words: <unk>, the words, and the other special tokens.

    These come last because a model of words has no other way to keep text from spelling them.
    """
    words = [word for word in words if word not in config.controls]
    count = config.vocab - len(config.controls)
    if len(words) < count:
        raise UserError(f"tokenizer.words.vocab is more than {source}: at most {len(words) + len(config.controls)}")
    ids = {word: number for number, word in enumerate([UNKNOWN, *words[:count]])}
    tokenizer = _tokenizer(config, ids)
    tokenizer.add_special_tokens(list(config.controls))
    return HuggingFace(tokenizer.to_str().encode(), {SPLITS_SPECIAL_TOKENS: True})
