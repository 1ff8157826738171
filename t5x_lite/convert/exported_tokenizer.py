"""Write a run's tokenizer as `AutoTokenizer` of Transformers loads it: tokenizer.json and tokenizer_config.json."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from t5x_lite.data.huggingface_tokenizer import SPLITS_SPECIAL_TOKENS, HuggingFace
from t5x_lite.data.tokenizer import SETTINGS_FILE, SentencePiece, Settings, Tokenizer
from t5x_lite.data.tokenizer_settings import CHAT_TEMPLATE, copy_settings
from t5x_lite.data.vocabulary_files import add_special_tokens
from t5x_lite.errors import UserError
from t5x_lite.files import write_file
from t5x_lite.models.config import ModelConfig
from t5x_lite.objectives.masked import MASK
from t5x_lite.objectives.special_tokens import CLS, LAST_CLS, LAST_SEP, SEP
from t5x_lite.run_dir import Run

SENTENCEPIECE_FILES = {
    "T5Tokenizer": "spiece.model",
    "AlbertTokenizer": "spiece.model",
    "XLNetTokenizer": "spiece.model",
    "DebertaV2Tokenizer": "spm.model",
}
"""The name that classes look for a SentencePiece model by; all others look for tokenizer.model."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", *dict.fromkeys(SENTENCEPIECE_FILES.values()))
"""Files that an export may have."""
CONSTRUCTOR_SETTINGS = ("extra_ids", "sp_model_kwargs", "legacy", "add_prefix_space", "do_lower_case", "keep_accents")
"""Settings by which a tokenizer class builds itself from a SentencePiece model; they are part of tokenizer.json."""


def write_tokenizer(
    run: Run, folder: Path, model: ModelConfig, tokenizer_class: str, *, appends_eos: bool = False
) -> None:
    """Write the tokenizer of a run, if it has one.

    A `tokenizer.json` that was imported is written as it was, with its settings. All others are described by new ones.
    A text can name special tokens in all of them, as in a prompt for BERT with `[MASK]`; ids of other texts are ours.

    Args:
        run: the run.
        folder: the folder of the export.
        model: the model that is exported.
        tokenizer_class: Transformers' class for the model type.
        appends_eos: EOS follows each text, as in the examples of a decoder with a head, which may read its state.
    """
    copy_settings(run.folder, folder)
    tokenizer = run.stored_tokenizer
    if tokenizer is None:
        return
    imported_settings = {name: tokenizer.settings[name] for name in tokenizer.settings if name != SPLITS_SPECIAL_TOKENS}
    is_imported = bool(imported_settings.keys() - {CHAT_TEMPLATE})
    if isinstance(tokenizer, HuggingFace) and is_imported and not appends_eos:
        write_file(folder / tokenizer.file_name, tokenizer.file_bytes)
        return
    if isinstance(tokenizer, SentencePiece):
        name = SENTENCEPIECE_FILES.get(tokenizer_class, tokenizer.file_name)
        write_file(folder / name, tokenizer.file_bytes)
    try:
        backend = tokenizer.to_tokenizers()
    except UserError as error:
        print(f"export: no tokenizer.json: {error}", file=sys.stderr, flush=True)
        return
    if appends_eos or backend.post_processor is None:
        _add_special_tokens(backend, tokenizer, model, appends_eos=appends_eos)
    write_file(folder / "tokenizer.json", backend.to_str())
    settings = {**_describe(tokenizer, model), **imported_settings, "tokenizer_class": "PreTrainedTokenizerFast"}
    for name in CONSTRUCTOR_SETTINGS:
        settings.pop(name, None)
    write_file(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")


def _add_special_tokens(
    backend: tokenizers.Tokenizer, tokenizer: Tokenizer, model: ModelConfig, *, appends_eos: bool
) -> None:
    """Put the special tokens around a text that the model was trained with."""
    if model.family == "encoder" and _present(tokenizer, LAST_CLS):
        add_special_tokens(backend, None, _present(tokenizer, LAST_SEP), end=_present(tokenizer, LAST_CLS))
    elif model.family == "encoder":
        cls = _present(tokenizer, CLS)
        sep = _present(tokenizer, SEP)
        if cls and sep:
            add_special_tokens(backend, cls, sep)
    elif appends_eos and tokenizer.eos is not None:
        before_text = tokenizer.prefix_tokens().tolist()
        first = _name(tokenizer, before_text[0]) if before_text else None
        add_special_tokens(backend, first, _name(tokenizer, tokenizer.eos))
    elif model.family == "encoder_decoder" and tokenizer.eos is not None:
        add_special_tokens(backend, None, _name(tokenizer, tokenizer.eos))
    elif tokenizer.bos is not None:
        add_special_tokens(backend, _name(tokenizer, tokenizer.bos), None)


def _describe(tokenizer: Tokenizer, model: ModelConfig) -> Settings:
    """Return the settings of a tokenizer that came without."""
    bos = tokenizer.bos
    if bos is None and model.family == "decoder":
        bos = tokenizer.eos  # it separates the documents that the model was trained on
    ids = {"bos_token": bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad, "unk_token": tokenizer.unk}
    settings: Settings = {key: _name(tokenizer, token) for key, token in ids.items() if token is not None}
    inputs = ["input_ids", "attention_mask"]
    if model.family == "encoder":
        for key, names in {"cls_token": LAST_CLS + CLS, "sep_token": LAST_SEP + SEP, "mask_token": MASK}.items():
            settings[key] = _present(tokenizer, names)
        if model.token_types > 1:
            inputs.append("token_type_ids")
    named = set(settings.values())
    settings["additional_special_tokens"] = [name for name in tokenizer.special if name not in named]
    settings["model_input_names"] = inputs
    settings["clean_up_tokenization_spaces"] = False
    if model.max_length is not None:
        settings["model_max_length"] = model.max_length
    return settings


def _name(tokenizer: Tokenizer, token_id: int) -> str:
    """Return the name of a special token."""
    for name, special_id in tokenizer.special.items():
        if special_id == token_id:
            return name
    return tokenizer.piece(token_id)


def _present(tokenizer: Tokenizer, names: Sequence[str]) -> str | None:
    """Return the first of the names that the vocabulary has."""
    for name in names:
        if tokenizer.id_of(name) is not None:
            return name
    return None
