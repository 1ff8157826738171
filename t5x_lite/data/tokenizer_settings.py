"""Settings that Hugging Face folders have beside a tokenizer's file: its special tokens, and what surrounds a text.

Transformers takes what the files leave out from the tokenizer's class; `CLASSES` has these defaults.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from t5x_lite.data.tokenizer import SETTINGS_FILE, Settings, Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.files import read_json_object

SPECIAL_TOKENS_FILE = "special_tokens_map.json"
CHAT_TEMPLATE = "chat_template"
"""The setting that holds the chat template."""
CHAT_TEMPLATE_FILE = "chat_template.jinja"
"""File whose chat template comes before that of the settings, as in Transformers."""
COPIED_FILES = (
    SETTINGS_FILE,
    SPECIAL_TOKENS_FILE,
    "added_tokens.json",
    "generation_config.json",
    CHAT_TEMPLATE_FILE,
)
"""Files that an import keeps in the run directory, and an export gives back."""
SPECIAL_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Settings that name a special token, in the order in which Transformers adds tokens that a vocabulary lacks."""
ADDITIONAL_KEYS = ("additional_special_tokens", "extra_special_tokens")
_BERT = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_T5 = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_DEBERTA = {**_BERT, "bos_token": "[CLS]", "eos_token": "[SEP]"}
_ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
CLASSES: dict[str, Settings] = {
    "AlbertTokenizer": {
        **_BERT,
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    },
    "BartTokenizer": _ROBERTA,
    "BertTokenizer": _BERT,
    "ByT5Tokenizer": _T5,
    "DebertaTokenizer": _DEBERTA,
    "DebertaV2Tokenizer": _DEBERTA,
    "ElectraTokenizer": _BERT,
    "GPT2Tokenizer": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "Qwen2Tokenizer": {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "RobertaTokenizer": _ROBERTA,
    "T5Tokenizer": _T5,
    "XLNetTokenizer": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "<sep>",
        "pad_token": "<pad>",
        "cls_token": "<cls>",
        "mask_token": "<mask>",
        "additional_special_tokens": ["<eop>", "<eod>"],
    },
}
"""Special tokens of Transformers' tokenizer classes (version 5)."""


def read_tokenizer_settings(folder: Path) -> Settings:
    """Return the content of `tokenizer_config.json`, with the chat template of `chat_template.jinja` if there is one.

    Raises:
        UserError: a file cannot be read.
    """
    path = folder / SETTINGS_FILE
    settings = read_json_object(path) if path.is_file() else {}
    template_path = folder / CHAT_TEMPLATE_FILE
    if template_path.is_file():
        settings[CHAT_TEMPLATE] = read_chat_template(template_path)
    return settings


def read_chat_template(path: Path) -> str:
    """Return the content of a Jinja file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"chat template {path}: cannot be read: {error}") from None


def complete_settings(folder: Path, class_name: str) -> Settings:
    """Return the settings of a folder, with the defaults of its tokenizer class for what its files leave out.

    Args:
        folder: has the files, if there are any.
        class_name: the class if the files do not name it.

    Raises:
        UserError: a file cannot be read.
    """
    settings = read_tokenizer_settings(folder)
    path = folder / SPECIAL_TOKENS_FILE
    if path.is_file() and "added_tokens_decoder" not in settings:
        settings.update(read_json_object(path))
    class_name = str(settings.get("tokenizer_class") or class_name).removesuffix("Fast")
    return {**CLASSES.get(class_name, {}), **settings, "tokenizer_class": class_name}


def added_tokens(settings: Settings) -> Iterator[AddedToken]:
    """Yield the special tokens that settings name, in the order in which Transformers adds them to a vocabulary."""
    added = settings.get("added_tokens_decoder")
    if isinstance(added, dict):
        numbers = sorted(int(number) for number in added if number.isdecimal())
        for number in numbers:
            if token_name(added.get(str(number))):
                yield _read_token(added[str(number)])
    values = [settings.get(key) for key in SPECIAL_TOKEN_KEYS]
    for key in ADDITIONAL_KEYS:
        additional = settings.get(key)
        if isinstance(additional, list):
            values += additional
    for value in values:
        if token_name(value):
            token = _read_token(value)
            token.special = True
            yield token


def _read_token(value: object) -> AddedToken:
    """Return a token that settings give by its name, or as an object with its name and how it is matched."""
    flags = {"normalized": False, "special": True}
    if isinstance(value, dict):
        for name in ("lstrip", "rstrip", "single_word", "normalized", "special"):
            if isinstance(value.get(name), bool):
                flags[name] = value[name]
    return AddedToken(str(token_name(value)), **flags)


def token_name(value: object) -> str | None:
    """Return the name of a token that settings give by its name or as an object; None for any other value."""
    if isinstance(value, dict):
        value = value.get("content")
    if isinstance(value, str):
        return value
    return None


def apply_settings(tokenizer: Tokenizer, settings: Settings, model_config: dict[str, Any]) -> None:
    """Set the settings of a tokenizer, its end-of-text token, and the token that begins every text.

    Args:
        tokenizer: is changed.
        settings: the content of `tokenizer_config.json`, whose names come first.
        model_config: the content of `config.json`, whose ids are taken where no name is given.
    """
    tokenizer.settings = settings
    eos = _find_token(tokenizer, settings.get("eos_token"), model_config.get("eos_token_id"))
    if eos is not None:
        tokenizer.eos = eos
    if settings.get("add_bos_token") is True:
        tokenizer.bos = _find_token(tokenizer, settings.get("bos_token"), model_config.get("bos_token_id"))


def copy_settings(source: Path, target: Path) -> None:
    """Copy the files beside a tokenizer from one folder to another."""
    for name in COPIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _find_token(tokenizer: Tokenizer, value: object, token_id: object) -> int | None:
    """Return the id of a token that is given by name, as an object with its name, or else by id."""
    name = token_name(value)
    if name is not None:
        return tokenizer.id_of(name)
    if isinstance(token_id, list) and token_id:
        token_id = token_id[0]
    if isinstance(token_id, int) and not isinstance(token_id, bool) and 0 <= token_id < tokenizer.vocab:
        return token_id
    return None
