"""Native T5X checkpoints: one msgpack file, alone or beside zarr arrays, into the T5 family."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from flax import serialization

from t5x_lite.convert import FAMILIES
from t5x_lite.convert.family import projections
from t5x_lite.convert.huggingface import Progress, params_of, tokenizer_of, write_run
from t5x_lite.convert.tensors import Dialect, Layers, Modules, Table, compare
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.transformer import blueprint
from t5x_lite.run import Run

T5X = Dialect(
    transposed=False,
    leaves={"weight": "kernel", "scale": "scale", "table": "rel_embedding"},
    flipped=("table",),
)
"""Flax's names; matrices are [in, out], the table of relative positions [heads, buckets]."""


PARTS = ("query", "key", "value", "out")
MLP: Modules = {"mlp/wi": "feedforward.up", "mlp/wo": "feedforward.down"}
GATED: Modules = {"mlp/wi_0": "feedforward.gate", "mlp/wi_1": "feedforward.up", "mlp/wo": "feedforward.down"}
ENCODER: Modules = {
    "pre_attention_layer_norm": "attention_norm",
    "pre_mlp_layer_norm": "feedforward_norm",
    **projections("attention/{}", PARTS),
}
DECODER: Modules = {
    "pre_self_attention_layer_norm": "attention_norm",
    "pre_cross_attention_layer_norm": "cross_norm",
    "pre_mlp_layer_norm": "feedforward_norm",
    **projections("self_attention/{}", PARTS),
    **projections("encoder_decoder_attention/{}", PARTS, "cross_attention"),
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


def import_t5x(path: Path, run_dir: Path, progress: Progress) -> Run:
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
    arrays = dict(_arrays(_target(file), file.parent))
    shapes = {name: tuple(leaf.shape) for name, leaf in arrays.items()}
    model = _model(file, shapes)
    structure = blueprint(model)
    gated = GATED if any("/wi_0/" in name for name in shapes) else MLP
    layers = [
        Layers("encoder/layers_{}", "encoder.stack.layers", {**ENCODER, **gated}),
        Layers("decoder/layers_{}", "decoder.stack.layers", {**DECODER, **gated}),
    ]
    named = Table(structure, T5X, OUTSIDE, layers, separator="/")
    own = {"token_embedder/kernel" if name == EMBEDDING else name: leaf for name, leaf in arrays.items()}
    compare(str(file), named.expected(), {name: leaf.shape for name, leaf in own.items()})
    params = params_of(structure, named, partial(_read, own), progress)
    return write_run(run_dir, model, "span_corruption", params, structure, tokenizer_of(file.parent, model))


def _target(file: Path) -> Mapping[str, Any]:
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


def _arrays(tree: Mapping[str, Any], folder: Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays by path; those that the file only points to are opened, not read."""
    for name, leaf in tree.items():
        if isinstance(leaf, dict) and {"driver", "kvstore"} <= leaf.keys():
            yield prefix + name, _zarr(folder / Path(leaf["kvstore"]["path"].rstrip("/")).name)
        elif isinstance(leaf, dict):
            yield from _arrays(leaf, folder, f"{prefix}{name}/")
        else:
            yield prefix + name, leaf


def _zarr(folder: Path) -> Any:
    try:
        return tensorstore.open(
            {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder)}}, open=True, read=True
        ).result()
    except ValueError as error:
        raise UserError(f"{folder}: this array of the checkpoint cannot be opened: {str(error)[:200]}") from None


def _read(arrays: Mapping[str, Any], name: str) -> np.ndarray:
    leaf = arrays[name]
    return np.asarray(leaf.read().result() if isinstance(leaf, tensorstore.TensorStore) else leaf)


def _model(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    def layers(side: str) -> int:
        found = [re.match(rf"{side}/layers_(\d+)/", name) for name in shapes]
        return 1 + max((int(match[1]) for match in found if match), default=-1)

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
