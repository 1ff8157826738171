"""Folders of sentence-transformers: a Transformer, how its states become the vector of a text, and the longest text.

`modules.json` lists the modules that a text passes: a Transformer, a Pooling and perhaps a Normalize, each with its
folder (Reimers & Gurevych 2019).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from t5x_lite.convert.config_table import Settings
from t5x_lite.data.tokenizer_settings import read_tokenizer_settings
from t5x_lite.errors import UserError
from t5x_lite.files import read_json, read_json_object
from t5x_lite.models.head_config import HeadConfig
from t5x_lite.schema import first_problem

MODULES_FILE = "modules.json"
PROMPTS_FILE = "config_sentence_transformers.json"
TRANSFORMER_FILE = "sentence_bert_config.json"
POOLING_FOLDER = "1_Pooling"
NORMALIZE_FOLDER = "2_Normalize"
UNLIMITED = 10**6
"""The `model_max_length` of tokenizers from which on it stands for no limit; Transformers writes 1e30."""
SUPPORTED_MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])

POOLS: Mapping[str, Literal["first", "last", "mean", "max"]] = {
    "cls": "first",
    "lasttoken": "last",
    "mean": "mean",
    "max": "max",
}
"""Modes of pooling, and ours."""
MODE_OF_FLAG = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Fields of older pooling configs, each of which turns a mode on, and the mode."""


class _Module(BaseModel, extra="forbid", strict=True):
    """An entry of modules.json."""

    idx: int
    name: str
    path: str
    type: str
    kwargs: list[str] = []

    @property
    def kind(self) -> str:
        """The last part of the class's name, whose package has changed between versions."""
        return self.type.rpartition(".")[2]


class _Transformer(BaseModel, extra="forbid", strict=True):
    """The content of sentence_bert_config.json."""

    max_seq_length: int | None = None
    do_lower_case: bool = False


@dataclass(frozen=True)
class SentenceEncoder:
    """A folder of sentence-transformers.

    Attributes:
        transformer: the folder of the Transformer.
        head: the settings of `model.head`.
        width: the width of the vectors.
    """

    transformer: Path
    head: Settings
    width: int


def find_sentence_encoder(folder: Path) -> SentenceEncoder | None:
    """Return what a folder of sentence-transformers describes; None for a folder of Transformers alone.

    Raises:
        UserError: modules, or settings of them, that are not supported.
    """
    path = folder / MODULES_FILE
    if not path.exists():
        return None
    modules = _read_modules(path)
    kinds = [module.kind for module in modules]
    if kinds not in SUPPORTED_MODULES:
        raise UserError(
            f"{path}: the modules {', '.join(kinds)} are not supported; only Transformer, Pooling and perhaps "
            "Normalize, in this order, are"
        )
    _check_prompts(folder / PROMPTS_FILE)
    transformer = folder / modules[0].path
    pool, width = _read_pooling(folder / modules[1].path / "config.json")
    head = {"outputs": 0, "pool": pool, "normalize": "Normalize" in kinds, "length": _read_max_length(transformer)}
    return SentenceEncoder(transformer, head, width)


def _read_modules(path: Path) -> list[_Module]:
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: is not a list of modules")
    try:
        modules = [_Module.model_validate(entry) for entry in entries]
    except ValidationError as error:
        raise UserError(f"{path}: the field {first_problem(error)}") from None
    for module in modules:
        if Path(module.path).is_absolute() or ".." in Path(module.path).parts:
            raise UserError(f"{path}: names the folder {module.path[:80]!r}, which is not in its folder")
        if module.kwargs:
            raise UserError(f"{path}: kwargs={module.kwargs} of {module.kind} are not supported")
    return modules


def _check_prompts(path: Path) -> None:
    """Refuse a prompt that every text is put behind."""
    if not path.is_file():
        return
    name = read_json_object(path).get("default_prompt_name")
    if name is not None:
        raise UserError(
            f"{path}: default_prompt_name={name!r} is not supported: set it to null, and put the prompt into the texts"
        )


def _read_pooling(path: Path) -> tuple[str, int]:
    """Return our name of the pooling, and the width of the vectors.

    Raises:
        UserError: another mode, several modes, or a field that is not known.
    """
    config = read_json_object(path)
    modes = []
    mode = config.pop("pooling_mode", None)
    if mode is not None:
        modes.append(str(mode))
    for flag, name in MODE_OF_FLAG.items():
        if config.pop(flag, False) and name not in modes:
            modes.append(name)
    width = config.pop("word_embedding_dimension", None) or config.pop("embedding_dimension", None)
    if config.pop("include_prompt", True) is not True:
        raise UserError(f"{path}: include_prompt=false is not supported: all tokens of a text are pooled")
    if config:
        raise UserError(f"{path}: the fields {', '.join(sorted(config))} are not known")
    if len(modes) != 1 or modes[0] not in POOLS:
        raise UserError(
            f"{path}: pooling by {' and '.join(modes) or 'nothing'} is not supported; only by one of "
            f"{', '.join(POOLS)} is"
        )
    if not isinstance(width, int):
        raise UserError(f"{path}: the field 'word_embedding_dimension' is missing")
    return POOLS[modes[0]], width


def _read_max_length(transformer: Path) -> int | None:
    """Return the longest text in tokens, the special ones included; None where it is not limited.

    Raises:
        UserError: a field that is not known, or texts made lowercase before a tokenizer that keeps capitals.
    """
    path = transformer / TRANSFORMER_FILE
    settings = _Transformer()
    tokenizer_settings = read_tokenizer_settings(transformer)
    if path.is_file():
        try:
            settings = _Transformer.model_validate(read_json_object(path))
        except ValidationError as error:
            raise UserError(f"{path}: the field {first_problem(error)}") from None
    if settings.do_lower_case and tokenizer_settings.get("do_lower_case") is not True:
        raise UserError(f"{path}: do_lower_case=true is not supported with a tokenizer that keeps capitals")
    if settings.max_seq_length is not None:
        return settings.max_seq_length
    tokenizer_length = tokenizer_settings.get("model_max_length")
    if isinstance(tokenizer_length, int) and tokenizer_length < UNLIMITED:
        return tokenizer_length
    return None


def is_sentence_head(head: HeadConfig | None) -> bool:
    """Return whether a head gives what the modules of sentence-transformers give: pooled states."""
    return head is not None and not head.outputs and not head.transform and head.pool in POOLS.values()


def write_sentence_encoder(folder: Path, head: HeadConfig, width: int) -> None:
    """Write the files of sentence-transformers beside an exported Transformer."""
    kinds = ["Transformer", "Pooling"]
    folders = ["", POOLING_FOLDER]
    if head.normalize:
        kinds.append("Normalize")
        folders.append(NORMALIZE_FOLDER)
    modules = []
    for number, (kind, path) in enumerate(zip(kinds, folders, strict=True)):
        (folder / path).mkdir(exist_ok=True)
        kind_name = f"sentence_transformers.models.{kind}"
        modules.append({"idx": number, "name": str(number), "path": path, "type": kind_name})
    (mode,) = (mode for mode, pool in POOLS.items() if pool == head.pool)
    pooling: dict[str, object] = {"word_embedding_dimension": width}
    for flag, name in MODE_OF_FLAG.items():
        pooling[flag] = name == mode
    _write_json(folder / MODULES_FILE, modules)
    _write_json(folder / POOLING_FOLDER / "config.json", {**pooling, "include_prompt": True})
    _write_json(folder / TRANSFORMER_FILE, {"max_seq_length": head.length, "do_lower_case": False})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
