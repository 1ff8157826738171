"""Settings that Hugging Face folders have beside a tokenizer's file: its special tokens, and what surrounds a text."""

import shutil
from pathlib import Path
from typing import Any

from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.files import read_json_object

SETTINGS_FILE = "tokenizer_config.json"
COPIED_FILES = (
    SETTINGS_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""Files that an import keeps in the run directory, and an export gives back."""


def read_tokenizer_settings(folder: Path) -> dict[str, Any]:
    """Return the content of `tokenizer_config.json`; empty if there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / SETTINGS_FILE
    return read_json_object(path) if path.is_file() else {}


def apply_settings(tokenizer: Tokenizer, settings: dict[str, Any], model_config: dict[str, Any]) -> None:
    """Set the end-of-text token of a tokenizer, and the token that begins every text.

    Args:
        tokenizer: is changed.
        settings: the content of `tokenizer_config.json`, whose names come first.
        model_config: the content of `config.json`, whose ids are taken where no name is given.
    """
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


def _find_token(tokenizer: Tokenizer, token: object, token_id: object) -> int | None:
    """Return the id of a token that is given by name, as an object with its name, or else by id."""
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str):
        return tokenizer.id_of(token)
    if isinstance(token_id, list) and token_id:
        token_id = token_id[0]
    if isinstance(token_id, int) and not isinstance(token_id, bool) and 0 <= token_id < tokenizer.vocab:
        return token_id
    return None
