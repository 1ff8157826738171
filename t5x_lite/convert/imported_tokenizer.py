"""The tokenizer in a folder of foreign weights, as Transformers reads it."""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import normalizers

from t5x_lite.convert.config_table import ForeignConfig
from t5x_lite.data import sentencepiece_conversion
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.huggingface_tokenizer import HuggingFace
from t5x_lite.data.tokenizer import SentencePiece, Settings, Tokenizer
from t5x_lite.data.tokenizer_config import TokenizerFile
from t5x_lite.data.tokenizer_files import from_file, unreadable_as_user_error, with_extra_ids
from t5x_lite.data.tokenizer_settings import added_tokens, apply_settings, complete_settings, token_name
from t5x_lite.data.vocabulary_files import add_special_tokens, mark_special_tokens, read_byte_level, read_word_piece
from t5x_lite.errors import UserError

MOSES_TOKENIZER = "XLMTokenizer"
SENTINELS = 100
"""The number of sentinel tokens that T5's tokenizer adds to its SentencePiece model."""

XLNET = "XLNetTokenizer"


def load_tokenizer(folder: Path, class_name: str, config: ForeignConfig) -> Tokenizer | None:
    """Return the tokenizer beside foreign weights, if there is one.

    Args:
        folder: the folder of the weights.
        class_name: Transformers' tokenizer class for the model type; the settings or the config may name another.
        config: the content of `config.json`.

    Raises:
        UserError: the files are not a tokenizer.
    """
    settings = complete_settings(folder, str(config.get("tokenizer_class") or class_name))
    with unreadable_as_user_error(folder):
        tokenizer = _read(folder, settings)
        if tokenizer is not None:
            apply_settings(tokenizer, tokenizer.settings, config)
    return tokenizer


def _read(folder: Path, settings: Settings) -> Tokenizer | None:
    """Read the first of the files that Transformers looks for."""
    if settings["tokenizer_class"] == "ByT5Tokenizer":
        tokenizer: Tokenizer = Bytes()
        tokenizer.settings = settings
        return tokenizer
    if (folder / "tokenizer.json").is_file():
        return from_file(TokenizerFile(path=str(folder / "tokenizer.json")))
    if (folder / "spiece.model").is_file():
        return _read_spiece((folder / "spiece.model").read_bytes(), settings)
    if (folder / "spm.model").is_file():
        return _read_deberta((folder / "spm.model").read_bytes(), settings)
    if (folder / "tokenizer.model").is_file():
        return from_file(TokenizerFile(path=str(folder / "tokenizer.model")))
    if (folder / "vocab.json").is_file():
        if settings["tokenizer_class"] == MOSES_TOKENIZER:
            raise UserError(
                f"{folder / 'vocab.json'}: the merges of XLM follow rules of Moses, which are not read; move the file "
                "away to import the weights without a tokenizer"
            )
        return read_byte_level(folder / "vocab.json", folder / "merges.txt", settings)
    if (folder / "vocab.txt").is_file():
        return read_word_piece(folder / "vocab.txt", settings)
    return None


def _read_spiece(model: bytes, settings: Settings) -> Tokenizer:
    tokenizer = SentencePiece(model)
    if settings["tokenizer_class"] in {"AlbertTokenizer", XLNET}:
        return _read_albert(model, settings)
    if settings["tokenizer_class"] == "T5Tokenizer" and not tokenizer.sentinels():
        tokenizer = SentencePiece(with_extra_ids(model, _count_sentinels(settings)))
    tokenizer.settings = settings
    return tokenizer


def _count_sentinels(settings: Settings) -> int:
    """Return the number of sentinels that T5's tokenizer appends to a model that has none."""
    count = settings.get("extra_ids")
    if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= 10**6:
        return count
    names = {token.content for token in added_tokens(settings)}
    named = [name for name in names if re.fullmatch("<extra_id_[0-9]+>", name)]
    return len(named) or SENTINELS


def _read_albert(model: bytes, settings: Settings) -> HuggingFace:
    """Read ALBERT's or XLNet's model, before which their tokenizers replace quotation marks and accents (their code).

    ALBERT's replaces capitals too, and they put other tokens around a text.
    """
    lowers = settings["tokenizer_class"] != XLNET
    steps: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if settings.get("keep_accents") is not True:
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", lowers) is not False:
        steps.append(normalizers.Lowercase())
    return _read_with_special_tokens(model, steps, settings)


def _read_deberta(model: bytes, settings: Settings) -> HuggingFace:
    """Read DeBERTa v2's or v3's model, which lacks [MASK]: its tokenizer appends that."""
    steps: list[normalizers.Normalizer] = []
    if settings.get("do_lower_case") is True:
        steps.append(normalizers.Lowercase())
    return _read_with_special_tokens(model, steps, settings)


def _read_with_special_tokens(model: bytes, steps: Sequence[normalizers.Normalizer], settings: Settings) -> HuggingFace:
    """Read a SentencePiece model with first steps of normalisation, and special tokens around each text.

    XLNet's are all at the end.
    """
    tokenizer = sentencepiece_conversion.to_tokenizers(model, steps)
    mark_special_tokens(tokenizer, added_tokens(settings))
    cls = token_name(settings.get("cls_token"))
    sep = token_name(settings.get("sep_token"))
    if settings["tokenizer_class"] == XLNET:
        add_special_tokens(tokenizer, None, sep, end=cls)
    else:
        add_special_tokens(tokenizer, cls, sep)
    return HuggingFace(tokenizer.to_str().encode(), settings)
