"""`generation_config.json`: the settings by which `generate` of Transformers begins, ends and pads."""

import json
from pathlib import Path

from t5x_lite.convert.config_table import ForeignConfig
from t5x_lite.files import read_json_object, write_file
from t5x_lite.generation_settings import GENERATION_FILE, adapted_run, generation_settings
from t5x_lite.models.config import ModelConfig
from t5x_lite.run_dir import Run

TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def copy_generation_config(source: Path, target: Path) -> None:
    """Copy the file of a folder of Transformers into a run directory, if there is one.

    Raises:
        UserError: it is damaged.
    """
    if (source / GENERATION_FILE).is_file():
        write_file(target / GENERATION_FILE, json.dumps(read_json_object(source / GENERATION_FILE), indent=2) + "\n")


def write_generation_config(run: Run, folder: Path, model: ModelConfig, config: ForeignConfig) -> None:
    """Write the file of an export, unless the model does not generate text.

    Args:
        run: the run; the file that its weights were imported with is the beginning.
        folder: the folder of the export.
        model: the model.
        config: the content of config.json, which names the special tokens.
    """
    if model.is_encoder_only or model.head is not None:
        return
    settings = generation_settings(run)
    for name in TOKEN_FIELDS:
        token_id = config.get(name)
        if token_id is not None:
            settings.setdefault(name, token_id)
    write_file(folder / GENERATION_FILE, json.dumps(settings, indent=2) + "\n")


def context_length(run: Run) -> int:
    """Return the longest texts that the weights of a run were trained on, which rotary positions do not limit."""
    length = max(stage.seq_len for stage in run.config.stages)
    source = adapted_run(run)
    if source is None:
        return length
    imported_length = source.huggingface_config.get("max_position_embeddings")
    if not isinstance(imported_length, int):
        imported_length = context_length(source)
    return max(length, imported_length)
