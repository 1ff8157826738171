"""Import native T5X checkpoints of the T5 family: one msgpack file, alone or beside zarr arrays."""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
import tensorstore
from flax import serialization
from jaxtyping import Float
from pydantic import BaseModel, Field, ValidationError

from t5x_lite import schema
from t5x_lite.convert.config_table import ForeignModel
from t5x_lite.convert.imported_run import check_new_run_dir, load_params, write_run
from t5x_lite.convert.imported_tokenizer import load_tokenizer
from t5x_lite.convert.model_type import OUTPUT_MATRIX
from t5x_lite.convert.t5 import T5
from t5x_lite.convert.weight_map import Modules, StackModules, WeightFormat, WeightMap, WeightTable
from t5x_lite.errors import UserError, one_line
from t5x_lite.files import check_is_file
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.run_dir import Run
from t5x_lite.storage import tensorstore_location

StoredArray: TypeAlias = np.ndarray | tensorstore.TensorStore
"""An array of the msgpack file, or one beside it whose values are not yet read."""

# Weights.

T5X_FORMAT = WeightFormat(
    leaf_names={"weight": "kernel", "scale": "scale", "table": "rel_embedding"},
    matrices_are_transposed=False,
    transposed_leaves=("table",),
    separator="/",
)
"""Flax's names. Matrices are stored as [in, out], tables of relative positions as [heads, buckets]."""

OUTSIDE_LAYERS: Modules = {
    "encoder/encoder_norm": "encoder.stack.final_norm",
    "decoder/decoder_norm": "decoder.stack.final_norm",
    "encoder/relpos_bias": "encoder.stack.positions",
    "decoder/relpos_bias": "decoder.stack.positions",
    "decoder/logits_dense": "output.matrix",
    "token_embedder": "tokens",
}
ENCODER_ATTENTION: Modules = {
    "pre_attention_layer_norm": "attention_norm",
    "attention/query": "attention.query",
    "attention/key": "attention.key",
    "attention/value": "attention.value",
    "attention/out": "attention.out",
}
DECODER_ATTENTION: Modules = {
    "pre_self_attention_layer_norm": "attention_norm",
    "self_attention/query": "attention.query",
    "self_attention/key": "attention.key",
    "self_attention/value": "attention.value",
    "self_attention/out": "attention.out",
    "pre_cross_attention_layer_norm": "cross_norm",
    "encoder_decoder_attention/query": "cross_attention.query",
    "encoder_decoder_attention/key": "cross_attention.key",
    "encoder_decoder_attention/value": "cross_attention.value",
    "encoder_decoder_attention/out": "cross_attention.out",
}
PLAIN_FEED_FORWARD: Modules = {
    "pre_mlp_layer_norm": "feedforward_norm",
    "mlp/wi": "feedforward.up",
    "mlp/wo": "feedforward.down",
}
GATED_FEED_FORWARD: Modules = {
    "pre_mlp_layer_norm": "feedforward_norm",
    "mlp/wi_0": "feedforward.gate",
    "mlp/wi_1": "feedforward.up",
    "mlp/wo": "feedforward.down",
}


def _build_weight_table(feed_forward: Modules) -> WeightTable:
    return WeightTable(
        OUTSIDE_LAYERS,
        stacks=(
            StackModules("encoder/layers_{layer}", "encoder.stack.layers", {**ENCODER_ATTENTION, **feed_forward}),
            StackModules("decoder/layers_{layer}", "decoder.stack.layers", {**DECODER_ATTENTION, **feed_forward}),
        ),
        weight_format=T5X_FORMAT,
    )


PLAIN_WEIGHTS = _build_weight_table(PLAIN_FEED_FORWARD)
GATED_WEIGHTS = _build_weight_table(GATED_FEED_FORWARD)

# Checkpoints.

EMBEDDING = "token_embedder/embedding"
EMBEDDING_AS_KERNEL = "token_embedder/kernel"
"""The name of the token embedding in the weight table, which calls the array of every module `kernel`."""
RELATIVE_POSITIONS = "encoder/relpos_bias/rel_embedding"
QUERY = "encoder/layers_0/attention/query/kernel"
GATE = "encoder/layers_0/mlp/wi_0/kernel"
UNGATED_INPUT = "encoder/layers_0/mlp/wi/kernel"
UNTIED_OUTPUT = "decoder/logits_dense/kernel"


DEEPEST = 32
"""Levels of modules in a checkpoint; T5 has 5."""


class KeyValueStore(BaseModel, strict=True):
    """The place of an array: the folder's name is the last part of its path."""

    path: Annotated[str, Field(pattern=r"^(.*/)?[^/.\x00][^/\x00]*/*$")]


class ArrayReference(BaseModel, strict=True):
    """TensorStore's description of an array that is stored beside the msgpack file.

    Its other fields repeat what the metadata in the array's folder say, and are not read.
    """

    driver: Literal["zarr"]
    kvstore: KeyValueStore


def import_t5x(path: Path, run_dir: str | Path) -> Run:
    """Make a run directory from a T5X checkpoint of T5, T5 1.1 or mT5: the file, or the folder that holds it.

    The model follows from the arrays: heads and buckets from the table of relative positions, gates and a tied output
    from which arrays are there. The optimizer's state is left out. A checkpoint has no tokenizer; one beside it
    (tokenizer.json, spiece.model, tokenizer.model) is taken.

    Raises:
        UserError: not such a checkpoint, arrays that do not fit (all of them), or a run directory that exists.
    """
    file = path
    if path.is_dir():
        file = path / "checkpoint"
        if not file.exists():
            raise UserError(f"{path}: is no T5X checkpoint: it has no file `checkpoint`; name a folder checkpoint_STEP")
    check_new_run_dir(run_dir, file.parent)
    arrays = _open_arrays(file)
    model = _infer_model(file, {name: tuple(array.shape) for name, array in arrays.items()})
    table = GATED_WEIGHTS if GATE in arrays else PLAIN_WEIGHTS
    weight_map = WeightMap(model_spec(model), table)
    arrays[EMBEDDING_AS_KERNEL] = arrays.pop(EMBEDDING)
    weight_map.check_tensors(str(file), {name: tuple(array.shape) for name, array in arrays.items()})
    params = load_params(weight_map, lambda name: _read_array(file, name, arrays[name]))
    return write_run(run_dir, model, "span_corruption", params, load_tokenizer(file.parent, "T5Tokenizer", {}))


def _open_arrays(file: Path) -> dict[str, StoredArray]:
    """Return the arrays of a checkpoint by name. Those beside the msgpack file are opened and not yet read.

    Raises:
        UserError: not a checkpoint, or an array that cannot be opened.
    """
    arrays: dict[str, StoredArray] = {}
    for name, leaf in _leaves(_read_parameters(file), ()):
        if isinstance(leaf, dict):
            array: StoredArray = _open_zarr(file, name, leaf)
        elif isinstance(leaf, np.ndarray):
            array = leaf
        else:
            raise UserError(f"{file}: {name} is not an array but a {type(leaf).__name__}")
        if not _is_float(array):
            raise UserError(f"{file}: {name} is not an array of floats")
        arrays[name] = array
    return arrays


def _leaves(tree: Mapping[Any, object], path: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    """Yield the leaves of a tree with their names: arrays, and dicts that describe arrays beside the file."""
    if len(path) > DEEPEST:
        raise UserError(f"{'/'.join(path)}: modules of a checkpoint are nested at most {DEEPEST} deep")
    for key, node in tree.items():
        node_path = (*path, str(key))
        if isinstance(node, dict) and not ("driver" in node and "kvstore" in node):
            yield from _leaves(node, node_path)
        else:
            yield "/".join(node_path), node


def _is_float(array: StoredArray) -> bool:
    dtype = array.dtype.numpy_dtype if isinstance(array, tensorstore.TensorStore) else array.dtype
    return bool(jnp.issubdtype(dtype, jnp.floating))


def _read_parameters(file: Path) -> dict[str, Any]:
    """Return the tree of parameters in the msgpack file."""
    check_is_file(file)
    try:
        tree = serialization.msgpack_restore(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except Exception as error:  # msgpack raises ValueError, its own errors and bare Exception alike
        raise UserError(f"{file}: is not a T5X checkpoint: {one_line(error)}") from None
    if not isinstance(tree, dict):
        tree = {}
    state = tree.get("optimizer", tree)
    target = state.get("target") if isinstance(state, dict) else None
    if not isinstance(target, dict):
        raise UserError(f"{file}: is not a T5X checkpoint: it has no optimizer/target")
    return target


def _open_zarr(file: Path, name: str, description: Mapping[str, Any]) -> tensorstore.TensorStore:
    """Open an array in a folder beside the file. Its values are not yet read."""
    try:
        reference = ArrayReference.model_validate(description)
    except ValidationError as error:
        problem = schema.first_problem(error)
        raise UserError(f"{file}: {name}: this reference to an array has a wrong {problem}") from None
    array_folder = file.parent / Path(reference.kvstore.path).name
    spec = {"driver": "zarr", "kvstore": tensorstore_location(str(array_folder))}
    try:
        return tensorstore.open(spec, open=True, read=True).result()
    except Exception as error:  # TensorStore raises ValueError, OverflowError and errors of its own
        reason = one_line(error)
        raise UserError(f"{array_folder}: this array of the checkpoint cannot be opened: {reason}") from None


def _read_array(file: Path, name: str, array: StoredArray) -> Float[np.ndarray, "..."]:
    """Return the values of an array.

    Raises:
        UserError: parts of it are missing or damaged, or values are NaN or infinite.
    """
    if isinstance(array, tensorstore.TensorStore):
        try:
            is_complete = array.storage_statistics(query_fully_stored=True).result().fully_stored
            values = np.asarray(array.read().result())
        except Exception as error:  # TensorStore raises ValueError and errors of its own
            raise UserError(f"{file}: {name} cannot be read: {one_line(error)}") from None
        if not is_complete:  # they would be read as zeros
            raise UserError(f"{file}: some chunks of the array {name} are missing beside it; copy the folder again")
    else:
        values = array
    if not np.isfinite(values.astype(np.float32, copy=False)).all():
        raise UserError(f"{file}: {name} has values that are NaN or infinite")
    return values


def _infer_model(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Return the model that has arrays of these shapes.

    Raises:
        UserError: arrays are missing that every such model has.
    """
    first_matrix = GATE if GATE in shapes else UNGATED_INPUT
    missing = [name for name in (RELATIVE_POSITIONS, QUERY, EMBEDDING, first_matrix) if name not in shapes]
    if missing:
        examples = ", ".join(sorted(shapes)[:5])
        raise UserError(
            f"{file}: is not a T5 with unstacked layers: {', '.join(missing)} missing; it has {examples}, …"
        )
    for name in (RELATIVE_POSITIONS, QUERY, EMBEDDING, first_matrix):
        if len(shapes[name]) != 2 or 0 in shapes[name]:
            raise UserError(f"{file}: {name} is of shape {list(shapes[name])}, expected a matrix")
    heads, buckets = shapes[RELATIVE_POSITIONS]
    embed, heads_times_head_dim = shapes[QUERY]
    projection = "relu"
    if GATE in shapes:
        projection = "gated-gelu"
    tensor_names = []
    if UNTIED_OUTPUT in shapes:
        tensor_names.append(OUTPUT_MATRIX)
    config = {
        "vocab_size": shapes[EMBEDDING][0],
        "d_model": embed,
        "d_kv": heads_times_head_dim // heads,
        "d_ff": shapes[first_matrix][1],
        "num_layers": _count_layers("encoder", shapes),
        "num_decoder_layers": _count_layers("decoder", shapes),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": projection,
        "scale_decoder_outputs": UNTIED_OUTPUT not in shapes,
    }
    settings = T5.read_settings(ForeignModel(config, tensor_names))
    return schema.validate(ModelConfig, schema.Sources(settings, {"": str(file)}))


def _count_layers(side: str, names: Collection[str]) -> int:
    count = 0
    for name in names:
        match = re.match(rf"{side}/layers_(\d+)/", name)
        if match is not None:
            count = max(count, int(match[1]) + 1)
    return count
