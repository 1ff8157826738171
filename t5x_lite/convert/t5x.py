"""Import native T5X checkpoints of the T5 family: one msgpack file, alone or beside zarr arrays."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorstore
from flax import serialization
from flax.traverse_util import flatten_dict

from t5x_lite.convert.config_table import ForeignModel
from t5x_lite.convert.imported_run import check_new_run_dir, load_params, write_run
from t5x_lite.convert.imported_tokenizer import load_tokenizer
from t5x_lite.convert.model_type import OUTPUT_MATRIX
from t5x_lite.convert.t5 import T5
from t5x_lite.convert.weight_map import Modules, StackModules, WeightFormat, WeightMap, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.run_dir import Run

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
    check_new_run_dir(run_dir, file.parent)
    arrays = _open_arrays(file)
    model = _infer_model(file, {name: tuple(array.shape) for name, array in arrays.items()})
    table = GATED_WEIGHTS if GATE in arrays else PLAIN_WEIGHTS
    weight_map = WeightMap(model_spec(model), table)
    arrays[EMBEDDING_AS_KERNEL] = arrays.pop(EMBEDDING)
    weight_map.check_tensors(str(file), {name: tuple(array.shape) for name, array in arrays.items()})
    params = load_params(weight_map, lambda name: np.asarray(arrays[name]))
    return write_run(run_dir, model, "span_corruption", params, load_tokenizer(file.parent, "T5Tokenizer", {}))


def _open_arrays(file: Path) -> dict[str, StoredArray]:
    """Return the arrays of a checkpoint by name. Those beside the msgpack file are opened and not yet read.

    Raises:
        UserError: not a checkpoint, or an array that cannot be opened.
    """
    arrays: dict[str, StoredArray] = {}
    leaves = flatten_dict(_read_parameters(file), sep="/", is_leaf=_is_leaf)
    for name, leaf in leaves.items():
        arrays[name] = _open_zarr(leaf, file.parent) if isinstance(leaf, dict) else leaf
    return arrays


def _is_leaf(path: tuple[str, ...], tree: Mapping[str, Any]) -> bool:
    """Tell whether a dict describes an array beside the file, and not a part of the tree."""
    return "driver" in tree and "kvstore" in tree


def _read_parameters(file: Path) -> dict[str, Any]:
    """Return the tree of parameters in the msgpack file."""
    try:
        tree = serialization.msgpack_restore(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except Exception as error:  # msgpack raises ValueError, its own errors and bare Exception alike
        raise UserError(f"{file}: is not a T5X checkpoint: {error}") from None
    if not isinstance(tree, dict):
        tree = {}
    tree = tree.get("optimizer", tree)
    if not isinstance(tree.get("target"), dict):
        raise UserError(f"{file}: is not a T5X checkpoint: it has no optimizer/target")
    return tree["target"]


def _open_zarr(description: Mapping[str, Any], folder: Path) -> tensorstore.TensorStore:
    """Open an array in a folder beside the file. Its values are not yet read."""
    array_folder = folder / Path(description["kvstore"]["path"].rstrip("/")).name
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(array_folder)}}
    try:
        return tensorstore.open(spec, open=True, read=True).result()
    except ValueError as error:
        raise UserError(f"{array_folder}: this array of the checkpoint cannot be opened: {str(error)[:200]}") from None


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
    return ModelConfig.model_validate(T5.read_settings(ForeignModel(config, tensor_names)))


def _count_layers(side: str, names: Collection[str]) -> int:
    count = 0
    for name in names:
        match = re.match(rf"{side}/layers_(\d+)/", name)
        if match is not None:
            count = max(count, int(match[1]) + 1)
    return count
