"""`generation_config.json` of imported weights: the settings by which `generate` of Transformers ends a text."""

import contextlib

from t5x_lite.checkpoint import JsonObject
from t5x_lite.errors import UserError
from t5x_lite.files import read_json_object
from t5x_lite.run_dir import Run, open_run, split_step

GENERATION_FILE = "generation_config.json"


def adapted_run(run: Run) -> Run | None:
    """Return the run that a run adapts, if it is still there."""
    if run.config.adapt is None:
        return None
    with contextlib.suppress(UserError):
        return open_run(split_step(run.config.adapt.source)[0])
    return None


def generation_settings(run: Run) -> JsonObject:
    """Return the settings that the weights of a run were imported with; empty if there are none.

    A run that adapts another one has the other's.

    Raises:
        UserError: the file is damaged.
    """
    return _read_settings(_imported_run(run))


def end_tokens(run: Run) -> tuple[int, ...]:
    """Return the tokens after which Transformers ends a text, of which a chat model has several.

    Raises:
        UserError: the file of the settings is damaged.
    """
    imported = _imported_run(run)
    default = imported.huggingface_config.get("eos_token_id")
    token_ids = _read_settings(imported).get("eos_token_id", default)
    if not isinstance(token_ids, list):
        token_ids = [token_ids]
    vocab = run.config.model.vocab or 0
    return tuple(token_id for token_id in token_ids if isinstance(token_id, int) and 0 <= token_id < vocab)


def _read_settings(run: Run) -> JsonObject:
    path = run.folder / GENERATION_FILE
    return read_json_object(path) if path.is_file() else {}


def _imported_run(run: Run) -> Run:
    """Return the run that has the settings: of a run that adapts another one with its tokenizer, the other."""
    source = adapted_run(run)
    if source is None or (run.config.adapt is not None and run.config.adapt.new_tokenizer):
        return run
    return _imported_run(source)
