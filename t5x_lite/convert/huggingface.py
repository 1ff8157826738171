"""Import Hugging Face folders (config.json, safetensors, tokenizer files) as runs, and export runs as such folders."""

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np

from t5x_lite import schema
from t5x_lite.config import MeshConfig
from t5x_lite.convert import MODEL_TYPES
from t5x_lite.convert.classifier import LABEL_FIELDS, TASK_HEADS, architectures_of, read_objective, write_labels
from t5x_lite.convert.config_table import ForeignConfig, ForeignModel
from t5x_lite.convert.exported_tokenizer import TOKENIZER_FILES, write_tokenizer
from t5x_lite.convert.generation_config import context_length, write_generation_config
from t5x_lite.convert.imported_run import check_new_run_dir, load_params, write_run
from t5x_lite.convert.imported_tokenizer import load_tokenizer
from t5x_lite.convert.matching import find_model_type
from t5x_lite.convert.model_card import PICTURE_FILE, write_model_card
from t5x_lite.convert.model_type import ModelType
from t5x_lite.convert.safetensors_files import (
    INDEX_FILE,
    NUMPY_DTYPES,
    StoredTensor,
    check_types,
    list_tensors,
    split_into_files,
    write_index,
    write_tensors,
)
from t5x_lite.convert.sentence_transformers import (
    MODULES_FILE,
    SentenceEncoder,
    find_sentence_encoder,
    is_sentence_head,
    write_sentence_encoder,
)
from t5x_lite.convert.task_heads import check_task_head
from t5x_lite.convert.weight_map import TensorMapping
from t5x_lite.data.tokenizer_settings import COPIED_FILES
from t5x_lite.errors import UserError, suggest
from t5x_lite.files import check_not_input, read_json_object
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.electra import discriminator_weights
from t5x_lite.models.positions.rotary import Rotary
from t5x_lite.objectives.masked import MASK
from t5x_lite.parallel import mesh as meshes
from t5x_lite.progress import track_progress
from t5x_lite.run_dir import Run, open_run
from t5x_lite.run_layout import CONFIG_FILE, checkpoints_folder
from t5x_lite.run_weights import merged_weights

MAX_FILE_BYTES = 5 * 10**9
"""The largest file of an export, as in Transformers."""


def import_hf(folder: Path, run_dir: str | Path, *, without_head: bool = False) -> Run:
    """Make a run directory from a Hugging Face folder: config, tokenizer (if there is one), checkpoint 0.

    Args:
        folder: a folder of Transformers or of sentence-transformers.
        run_dir: the run directory; it is created.
        without_head: import the encoder alone, and leave out what it predicts.

    Raises:
        UserError: not such a folder, a model type or a config field that is not supported, tensors that do not fit (all
            of them), or a run directory that exists.
    """
    check_new_run_dir(run_dir, folder)
    sentence_encoder = find_sentence_encoder(folder)
    if sentence_encoder is not None:
        folder = sentence_encoder.transformer
        without_head = True
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of a Hugging Face model")
    config_path = folder / "config.json"
    if not config_path.is_file():
        is_run = (folder / CONFIG_FILE).is_file()
        remedy = "it is a run already" if is_run else "name the folder of a Hugging Face model"
        raise UserError(f"{folder}: has no config.json; {remedy}")
    config = read_json_object(config_path)
    model_type = MODEL_TYPES.get(str(config.get("model_type", "")))
    if model_type is None:
        name = config.get("model_type")
        nearest = suggest(str(name), MODEL_TYPES, cutoff=0.5)
        raise UserError(f"{config_path}: model_type {name!r} is not one of {', '.join(MODEL_TYPES)}{nearest}")
    tensors = _rename_tensors(list_tensors(folder), model_type)
    unused = _match_names(tensors, model_type.unused_tensors)
    not_weights = unused | _match_names(tensors, model_type.ignored_tensors)  # masks may be integers
    check_types({name: tensor for name, tensor in tensors.items() if name not in not_weights})
    if without_head:
        tensors = _select_base_model(config_path, tensors, model_type)
    check_task_head(config_path, model_type, config, tensors)
    ignored = _find_ignored_tensors(tensors, model_type, config)
    # Ignored tensors tell nothing about the model: a stored copy of a tied matrix does not make the model untied.
    source = ForeignModel(config, tensors.keys() - ignored)
    model = _read_model(config_path, model_type, source)
    if sentence_encoder is not None:
        model = _add_sentence_head(config_path, model, sentence_encoder)
    weight_map = model_type.build_weight_map(model)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    mapped = {mapping.tensor for mapping in weight_map.mappings}
    weight_map.check_tensors(str(folder), shapes, ignored | (unused - mapped))
    check_types({name: tensors[name] for name in sorted(mapped & not_weights)})  # those that this model does use
    params = load_params(weight_map, lambda name: tensors[name].read_finite())
    config["dtype"] = _most_common_dtype(tensors)
    objective = model_type.select_architecture(model).objective
    if model.head is not None and model.head.outputs:
        objective = read_objective(config, model.head)
    tokenizer = load_tokenizer(folder, model_type.tokenizer_class, config)
    return write_run(run_dir, model, objective, params, tokenizer, config, folder)


def _select_base_model(
    config_path: Path, tensors: Mapping[str, StoredTensor], model_type: ModelType
) -> dict[str, StoredTensor]:
    """Return the tensors of the base model alone.

    Raises:
        UserError: the model type has no encoder to import alone.
    """
    if model_type.headless is None:
        raise UserError(
            f"{config_path}: model_type {model_type.name!r} is not imported without its output; encoders are"
        )
    return {name: tensor for name, tensor in tensors.items() if name.startswith(model_type.base_model_prefix)}


def _add_sentence_head(config_path: Path, model: ModelConfig, encoder: SentenceEncoder) -> ModelConfig:
    """Return an encoder whose output is the vector of a text.

    Raises:
        UserError: the vectors have another width than the states.
    """
    if encoder.width != model.embed:
        raise UserError(f"{config_path}: has states of width {model.embed}, and its pooling is for {encoder.width}")
    settings = {**model.model_dump(mode="json"), "head": encoder.head}
    return schema.validate(ModelConfig, schema.Sources(settings, {"": str(config_path)}))


def _rename_tensors(tensors: Mapping[str, StoredTensor], model_type: ModelType) -> dict[str, StoredTensor]:
    """Return the tensors by the names that newer files with the base model's prefix give them."""
    prefix = model_type.base_model_prefix
    outside = (*model_type.head_prefixes, *TASK_HEADS)  # the base model's prefix is never theirs
    has_prefix = any(name.startswith(prefix) for name in tensors)
    renamed_tensors = {}
    for stored_name, tensor in tensors.items():
        name = stored_name
        if not has_prefix and not name.startswith(outside):
            name = prefix + name
        for older, newer in model_type.renamed_tensors.items():
            name = re.sub(older, newer, name)
        for ours, theirs in model_type.variants.values():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        renamed_tensors[name] = tensor
    return renamed_tensors


def _match_names(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """Return the names that one of the regular expressions matches."""
    return {name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)}


def _find_ignored_tensors(
    tensors: Mapping[str, StoredTensor], model_type: ModelType, config: ForeignConfig
) -> set[str]:
    """Return the names of tensors that add no information: masks, copies of other tensors, and biases of zero.

    The output matrix of a model that says not to be tied is no copy, whatever its values.
    """
    ignored = _match_names(tensors, model_type.ignored_tensors)
    for name in tensors.keys() & set(model_type.zero_tensors):
        if not tensors[name].read().any():
            ignored.add(name)
    for name, original in model_type.copies.items():
        is_untied = name == model_type.output_matrix and config.get("tie_word_embeddings") is False
        if name not in tensors or original not in tensors or is_untied:
            continue
        if np.array_equal(tensors[name].read(), tensors[original].read()):
            ignored.add(name)
    return ignored


def _read_model(config_path: Path, model_type: ModelType, source: ForeignModel) -> ModelConfig:
    try:
        settings = model_type.read_settings(source)
    except UserError as error:
        raise UserError(f"{config_path}: {error}") from None
    return schema.validate(ModelConfig, schema.Sources(settings, {"": str(config_path)}))


def _most_common_dtype(tensors: Mapping[str, StoredTensor]) -> str:
    dtype = statistics.mode(tensor.dtype for tensor in tensors.values())
    return NUMPY_DTYPES.get(dtype, "float32")


def export_hf(
    run_dir: str | Path,
    folder: Path,
    step: int | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    hub_name: str | None = None,
) -> Path:
    """Write a run as Transformers reads it, with a model card; of ELECTRA's pair, the discriminator.

    Args:
        run_dir: the run.
        folder: the folder to write; it is created.
        step: the step of the checkpoint; None takes the newest.
        max_file_bytes: the size above which weights are split into several files.
        hub_name: its name on the Hugging Face Hub, for the model card.

    Raises:
        UserError: a model that none of the known model types can hold, with what stands in the way; a file in the place
            of the folder.
    """
    if folder.is_file():
        raise UserError(f"{folder}: is a file; name a folder for the model")
    run = open_run(run_dir)
    check_not_input(folder, run.folder, Path(checkpoints_folder(str(run.folder), run.config.checkpoint.folder)))
    imported_config: ForeignConfig = run.huggingface_config
    model = run.config.model
    if model.family == "electra":
        model = model.discriminator_model
    sentence_head = model.head if is_sentence_head(model.head) else None
    # The head of a policy estimates rewards in its training, and is no part of the model.
    is_policy = run.config.policy_objective is not None
    if sentence_head is not None or is_policy:
        model = model.model_copy(update={"head": None})
    model_type = find_model_type(model, imported_config.get("model_type"))
    weight_map = model_type.build_weight_map(model)
    dtype = np.dtype(imported_config.get("dtype", "float32"))
    exported_step, arrays = _load_arrays(run, step)
    folder.mkdir(parents=True, exist_ok=True)
    mappings = _rename_as_imported(weight_map.mappings, model_type, imported_config)
    files = split_into_files(mappings, dtype.itemsize, max_file_bytes)
    _remove_model(folder)
    _write_files(folder, files, dtype, arrays)
    if len(files) > 1:
        write_index(folder / INDEX_FILE, files, dtype.itemsize)
    config = _build_config(run, model, model_type, imported_config, dtype)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    appends_eos = model.family == "decoder" and run.config.model.head is not None and not is_policy
    write_tokenizer(run, folder, model, model_type.tokenizer_class, appends_eos=appends_eos)
    if sentence_head is not None and model_type.select_architecture(model).settings.get("head") is None:
        write_sentence_encoder(folder, sentence_head, model.embed)
    write_generation_config(run, folder, model, config)
    write_model_card(run, exported_step, folder, config, hub_name or folder.resolve().name)
    return folder


def _imported_variant(model_type: ModelType, imported_config: ForeignConfig) -> str | None:
    """Return the variant of a model type that weights were imported from; None if it was none."""
    for name in architectures_of(imported_config):
        if name in model_type.variants:
            return name
    return None


def _rename_as_imported(
    mappings: Sequence[TensorMapping], model_type: ModelType, imported_config: ForeignConfig
) -> list[TensorMapping]:
    """Return the tensors by the names of the variant that the weights were imported from."""
    variant = _imported_variant(model_type, imported_config)
    if variant is None:
        return list(mappings)
    ours, theirs = model_type.variants[variant]
    return [replace(mapping, tensor=theirs + mapping.tensor.removeprefix(ours)) for mapping in mappings]


def _load_arrays(run: Run, step: int | None) -> tuple[int, dict[str, jax.Array]]:
    """Return the step and the run's arrays by name; of ELECTRA's pair, those of the discriminator, as of a model."""
    mesh = meshes.make_mesh(MeshConfig())
    loaded_step, arrays = merged_weights(run, mesh, step)
    if run.config.model.family == "electra":
        arrays = discriminator_weights(arrays)
    return loaded_step, arrays


def _remove_model(folder: Path) -> None:
    """Remove the files of an earlier export, of which this one may lack some.

    Readers take weights from an index, or from a file without one, in an order of their own, and a tokenizer from
    whichever of its files is there.
    """
    weights = ("model.safetensors", INDEX_FILE, MODULES_FILE)
    names = (*weights, *COPIED_FILES, *TOKENIZER_FILES, PICTURE_FILE)
    for path in [*(folder / name for name in names), *folder.glob("model-*-of-*.safetensors")]:
        path.unlink(missing_ok=True)


def _write_files(
    folder: Path, files: Mapping[str, Sequence[TensorMapping]], dtype: np.dtype, arrays: Mapping[str, jax.Array]
) -> None:
    @lru_cache(maxsize=1)  # the experts of an array are written one after the other
    def read_array(name: str) -> np.ndarray:
        return np.asarray(arrays[name])

    total = sum(len(mappings) for mappings in files.values())
    written = 0
    with track_progress("writing") as advance:
        for file_name, mappings in files.items():
            for mapping in write_tensors(folder / file_name, mappings, dtype, read_array):
                written += 1
                advance(mapping.tensor, written, total)


def _build_config(
    run: Run, model: ModelConfig, model_type: ModelType, imported_config: ForeignConfig, dtype: np.dtype
) -> ForeignConfig:
    """Return the config.json of an export: the imported one, if any, updated with what describes the model.

    Rates of dropout stay as they were imported, because one setting of ours stands for several of theirs.
    """
    config = _special_token_ids(run)
    config.update(imported_config)
    config.update(model_type.write_config(model))
    if model.attention_dropout is not None:
        for name in config:
            if "drop" in name and name.startswith("att"):
                config[name] = model.attention_dropout
    for name, value in imported_config.items():
        if "drop" in name:
            config[name] = value
    if model.head is not None:
        config.update(write_labels(model.head.outputs, run.config.objective))
        config.update({name: imported_config[name] for name in LABEL_FIELDS if name in imported_config})
    variant = _imported_variant(model_type, imported_config)
    if variant is not None:
        config["architectures"] = [variant]
    config["model_type"] = model_type.name
    config["dtype"] = str(dtype)
    if isinstance(model.positions, Rotary):
        config.setdefault("max_position_embeddings", context_length(run))
    return config


def _special_token_ids(run: Run) -> ForeignConfig:
    """Return the token ids that Transformers needs, from the run's tokenizer.

    Without a tokenizer they are null: the defaults of a model type may lie outside the vocabulary.
    """
    tokenizer = run.stored_tokenizer
    if tokenizer is None:
        return dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"))
    before_text = tokenizer.prefix_tokens().tolist()
    bos = before_text[0] if before_text else tokenizer.eos
    ids = {"eos_token_id": tokenizer.eos, "bos_token_id": bos, "pad_token_id": tokenizer.pad}
    named = tokenizer.vocabulary().named
    for mask in MASK:
        if mask in named:
            ids["mask_token_id"] = named[mask]
    return {name: token_id for name, token_id in ids.items() if token_id is not None}
