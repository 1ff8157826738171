"""Native T5X checkpoints: one msgpack file, alone or beside zarr arrays, into the T5 family."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from flax import serialization
from flax.traverse_util import flatten_dict

from t5x_lite.convert import FAMILIES
from t5x_lite.convert.family import PROJECTIONS, projections
from t5x_lite.convert.huggingface import params_of, tokenizer_of, write_run
from t5x_lite.convert.tensors import Dialect, Layers, Modules, Table
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.transformer import model_spec
from t5x_lite.run_dir import Run

T5X = Dialect(
    transposed=False,
    leaves={"weight": "kernel", "scale": "scale", "table": "rel_embedding"},
    flipped=("table",),
    separator="/",
)
"""Flax's names; matrices are [in, out], the table of relative positions [heads, buckets]."""

MLP: Modules = {"mlp/wi": "feedforward.up", "mlp/wo": "feedforward.down"}
GATED: Modules = {"mlp/wi_0": "feedforward.gate", "mlp/wi_1": "feedforward.up", "mlp/wo": "feedforward.down"}
ENCODER: Modules = {
    "pre_attention_layer_norm": "attention_norm",
    "pre_mlp_layer_norm": "feedforward_norm",
    **projections("attention/{}", PROJECTIONS),
}
DECODER: Modules = {
    "pre_self_attention_layer_norm": "attention_norm",
    "pre_cross_attention_layer_norm": "cross_norm",
    "pre_mlp_layer_norm": "feedforward_norm",
    **projections("self_attention/{}", PROJECTIONS),
    **projections("encoder_decoder_attention/{}", PROJECTIONS, "cross_attention"),
}
OUTSIDE: Modules = {
    "encoder/encoder_norm": "encoder.stack.final_norm",
    "decoder/decoder_norm": "decoder.stack.final_norm",
    "encoder/relpos_bias": "encoder.stack.positions",
    "decoder/relpos_bias": "decoder.stack.positions",
    "decoder/logits_dense": "output.matrix",
    "token_embedder": "tokens",
}
EMBEDDING = "token_embedder/embedding"


def import_t5x(path: Path, run_dir: Path) -> Run:
    """Make a run directory from a T5X checkpoint of T5, T5 1.1 or mT5: the file, or the folder that holds it.

    The model follows from the arrays: heads and buckets from the table of relative positions, gates and a tied output
    from which arrays are there. Optimizer state is left behind. The checkpoint has no tokenizer; one that lies beside
    it (tokenizer.json, spiece.model, tokenizer.model) is taken.

    Raises:
        UserError: not such a checkpoint, arrays that do not fit (all of them), or a run directory that exists.
    """
    if (run_dir / "config.yaml").exists():
        raise UserError(f"{run_dir}: is a run already; give another directory")
    file = path / "checkpoint" if path.is_dir() else path
    # A large array lies beside the file, which holds where: a dictionary too.
    leaves = flatten_dict(_target(file), sep="/", is_leaf=lambda _, tree: {"driver", "kvstore"} <= tree.keys())
    arrays = {name: _zarr(leaf, file.parent) if isinstance(leaf, dict) else leaf for name, leaf in leaves.items()}
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    model = _model(file, shapes)
    gated = GATED if any("/wi_0/" in name for name in shapes) else MLP
    layers = [
        Layers("encoder/layers_{}", "encoder.stack.layers", {**ENCODER, **gated}),
        Layers("decoder/layers_{}", "decoder.stack.layers", {**DECODER, **gated}),
    ]
    table = Table(model_spec(model), T5X, OUTSIDE, layers)
    own = {"token_embedder/kernel" if name == EMBEDDING else name: array for name, array in arrays.items()}
    table.check(str(file), {name: array.shape for name, array in own.items()})
    params = params_of(table, lambda name: np.asarray(own[name]))
    return write_run(run_dir, model, "span_corruption", params, tokenizer_of(file.parent, model))


def _target(file: Path) -> dict[str, Any]:
    """The parameters' tree of the msgpack file."""
    try:
        tree = serialization.msgpack_restore(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except Exception as error:  # msgpack raises ValueError, its own errors and bare Exception alike
        raise UserError(f"{file}: is not a T5X checkpoint: {error}") from None
    tree = tree.get("optimizer", tree) if isinstance(tree, dict) else {}
    if not isinstance(tree.get("target"), dict):
        raise UserError(f"{file}: is not a T5X checkpoint: it holds no optimizer/target")
    return tree["target"]


def _zarr(place: Mapping[str, Any], beside: Path) -> tensorstore.TensorStore:
    """An array that lies beside the file, opened and not yet read."""
    folder = beside / Path(place["kvstore"]["path"].rstrip("/")).name
    store = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder)}}
    try:
        return tensorstore.open(store, open=True, read=True).result()
    except ValueError as error:
        raise UserError(f"{folder}: this array of the checkpoint cannot be opened: {str(error)[:200]}") from None


def _model(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """The model that arrays of these shapes make."""

    def layers(side: str) -> int:
        numbers = re.findall(rf"^{side}/layers_(\d+)/", "\n".join(shapes), re.MULTILINE)
        return 1 + max(map(int, numbers), default=-1)

    needed = ("encoder/relpos_bias/rel_embedding", "encoder/layers_0/attention/query/kernel", EMBEDDING)
    missing = [name for name in needed if name not in shapes]
    if missing:
        have = ", ".join(sorted(shapes)[:5])
        raise UserError(f"{file}: is not a T5 with layers of their own: {', '.join(missing)} missing, found {have}, …")
    heads, buckets = shapes[needed[0]]
    embed, inner = shapes[needed[1]]
    gated = "encoder/layers_0/mlp/wi_0/kernel" in shapes
    as_saved_by_transformers = {
        "vocab_size": shapes[EMBEDDING][0],
        "d_model": embed,
        "d_kv": inner // heads,
        "d_ff": shapes[f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel"][1],
        "num_layers": layers("encoder"),
        "num_decoder_layers": layers("decoder"),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }
    untied = ["lm_head.weight"] if "decoder/logits_dense/kernel" in shapes else []
    return ModelConfig.model_validate(FAMILIES["t5"].model(as_saved_by_transformers, untied))
