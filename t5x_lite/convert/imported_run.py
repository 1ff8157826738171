"""Turn foreign weights into a run directory."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from t5x_lite import config as configuration
from t5x_lite import local_copies, schema, storage
from t5x_lite.checkpoint import Checkpoints
from t5x_lite.checkpoint_config import CheckpointConfig
from t5x_lite.config import MeshConfig, RunConfig
from t5x_lite.convert.classifier import ObjectiveSetting
from t5x_lite.convert.config_table import ForeignConfig
from t5x_lite.convert.generation_config import copy_generation_config
from t5x_lite.convert.weight_map import WeightMap
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.tokenizer_settings import copy_settings
from t5x_lite.errors import UserError
from t5x_lite.files import check_not_input, write_file
from t5x_lite.models.config import ModelConfig
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.memory import local_memory
from t5x_lite.progress import track_progress
from t5x_lite.run_dir import Run, open_run
from t5x_lite.run_layout import CONFIG_FILE, HUGGINGFACE_CONFIG, checkpoints_folder
from t5x_lite.trees import flatten_names, unflatten_names

MAX_SEQ_LEN = 512
"""The sequence length in the config of an imported run, in tokens, unless the model has fewer positions."""


def check_new_run_dir(run_dir: str | Path, source: Path) -> None:
    """Refuse a directory that holds a run, or the weights that are imported.

    Raises:
        UserError: it does.
    """
    folder = local_copies.local_path(run_dir)
    check_not_input(folder, source)
    if (folder / CONFIG_FILE).exists():
        raise UserError(f"{run_dir}: is a run already; give another directory")


def load_params(weight_map: WeightMap, read_tensor: Callable[[str], np.ndarray]) -> PyTree[jax.Array]:
    """Return our parameters as nested dicts of arrays on the devices.

    Each array is filled on the host and moved to the devices before the next.

    Args:
        weight_map: the foreign tensors of each of our arrays.
        read_tensor: returns a foreign tensor by name.

    Raises:
        UserError: they do not fit into memory.
    """
    spec = weight_map.spec
    mesh = meshes.make_mesh(MeshConfig())
    sharded_shapes = meshes.shape_structs(spec.shapes, meshes.shardings(mesh, spec.axes, spec.shapes))
    local_memory(mesh).check(
        meshes.shard_bytes(sharded_shapes),
        f"the weights of {spec.parameters:,} parameters",
        "import them on a larger machine",
    )
    params = {}
    arrays = flatten_names(sharded_shapes)
    with track_progress("reading") as advance:
        for name, array in arrays.items():
            values = weight_map.to_ours(name, read_tensor)
            params[name] = jax.device_put(values, array.sharding)
            advance(name, len(params), len(arrays))
    return unflatten_names(params)


def write_run(
    run_dir: str | Path,
    model: ModelConfig,
    objective: ObjectiveSetting,
    params: PyTree[jax.Array],
    tokenizer: Tokenizer | None,
    huggingface_config: ForeignConfig | None = None,
    source: Path | None = None,
) -> Run:
    """Write a run directory with all that `eval`, `generate` and `export` need: config, tokenizer and checkpoint 0.

    Args:
        run_dir: the directory, local or in an object store; it is created.
        model: the model.
        objective: the objective that the weights were trained on.
        params: the weights as nested dicts.
        tokenizer: the tokenizer, if there is one.
        huggingface_config: the config that the weights came with; an export starts from it.
        source: the folder that the weights came from; its settings of the tokenizer are kept.
    """
    config = _describe_run(run_dir, model, objective, tokenizer)
    config_text = configuration.dump(config)
    folder = local_copies.local_path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with closing(Checkpoints(checkpoints_folder(str(run_dir), None), CheckpointConfig())) as checkpoints:
        checkpoints.write(0, {"params": params}, {"config": config_text})
    if source is not None:
        copy_settings(source, folder)
        copy_generation_config(source, folder)
    if tokenizer is not None:
        tokenizer.save(folder)
    if huggingface_config is not None:
        (folder / HUGGINGFACE_CONFIG).write_text(json.dumps(huggingface_config, indent=2) + "\n", encoding="utf-8")
    write_file(folder / CONFIG_FILE, config_text)
    local_copies.upload_changes()
    return open_run(run_dir)


def _describe_run(
    run_dir: str | Path, model: ModelConfig, objective: ObjectiveSetting, tokenizer: Tokenizer | None
) -> RunConfig:
    length = min(model.max_length or MAX_SEQ_LEN, MAX_SEQ_LEN)
    data = {}
    if isinstance(objective, dict) and objective.get("masked", {}).get("sentences", "none") != "none":
        data = {"packing": "sentences", "parts": "punctuation"}
    tokenizer_name = "tokenizer.json" if tokenizer is None else tokenizer.file_name
    settings = {
        "model": model.model_dump(mode="json"),
        "objective": objective,
        "data": data,
        "tokenizer": {"file": {"path": storage.join(run_dir, tokenizer_name)}},
        "train": {"steps": 1, "batch_size": 8, "seq_len": length},
    }
    return schema.validate(RunConfig, schema.Sources(settings, {"": "import"}))
