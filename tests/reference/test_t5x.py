"""Native T5X checkpoints: a real one, and one with arrays beside the msgpack file."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import tensorstore
from flax import serialization

import t5x_lite
from t5x_lite.cli import main
from t5x_lite.trees import flatten_names, unflatten_names

HEADS = 4
LAYERS = 2


@pytest.fixture(scope="module")
def checkpoint(real_data: Path) -> Path:
    return real_data / "t5x_testdata" / "test_t5_tiny.checkpoint_0"


@pytest.fixture(scope="module")
def stored_params(checkpoint: Path) -> dict:
    return serialization.msgpack_restore(checkpoint.read_bytes())["optimizer"]["target"]


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5x") / "run"
    assert main(["import", "t5x", str(checkpoint), str(folder)]) == 0
    return folder


def rms_norm(x: np.ndarray, params: dict) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["scale"]


def attention(queries_from: np.ndarray, keys_from: np.ndarray, params: dict, bias: np.ndarray) -> np.ndarray:
    query = split_heads(queries_from @ params["query"]["kernel"])
    key = split_heads(keys_from @ params["key"]["kernel"])
    value = split_heads(keys_from @ params["value"]["kernel"])
    scores = np.einsum("lhk,mhk->hlm", query, key) + bias
    probabilities = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    mixed_values = np.einsum("hlm,mhk->lhk", probabilities, value)
    return mixed_values.reshape(len(queries_from), -1) @ params["out"]["kernel"]


def split_heads(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), HEADS, -1)


def gated_mlp(x: np.ndarray, params: dict) -> np.ndarray:
    gate = x @ params["wi_0"]["kernel"]
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return (gelu * (x @ params["wi_1"]["kernel"])) @ params["wo"]["kernel"]


def encoder_bucket(offset: int) -> int:
    """T5's bucket of a distance below 8: one each, those of keys after the query in the upper half of 32."""
    assert abs(offset) < 8
    return abs(offset) + 16 if offset > 0 else abs(offset)


def decoder_bucket(offset: int) -> int:
    """T5's bucket of a distance below 8 where keys after the query do not count."""
    assert abs(offset) < 8
    return max(-offset, 0)


def offsets_between(length: int) -> np.ndarray:
    """Position of the key minus position of the query, `[query, key]`."""
    return np.arange(length)[None] - np.arange(length)[:, None]


def encoder_bias(params: dict, length: int) -> np.ndarray:
    buckets = np.vectorize(encoder_bucket)(offsets_between(length))
    return params["relpos_bias"]["rel_embedding"][:, buckets]


def decoder_bias(params: dict, length: int) -> np.ndarray:
    offsets = offsets_between(length)
    buckets = np.vectorize(decoder_bucket)(offsets)
    bias = params["relpos_bias"]["rel_embedding"][:, buckets]
    return np.where(offsets > 0, -1e9, bias)


def encode(params: dict, x: np.ndarray) -> np.ndarray:
    bias = encoder_bias(params, len(x))
    for n in range(LAYERS):
        layer = params[f"layers_{n}"]
        y = rms_norm(x, layer["pre_attention_layer_norm"])
        x = x + attention(y, y, layer["attention"], bias)
        x = x + gated_mlp(rms_norm(x, layer["pre_mlp_layer_norm"]), layer["mlp"])
    return rms_norm(x, params["encoder_norm"])


def decode(params: dict, x: np.ndarray, encoded: np.ndarray) -> np.ndarray:
    bias = decoder_bias(params, len(x))
    no_bias = np.zeros((1, len(x), len(encoded)))
    for n in range(LAYERS):
        layer = params[f"layers_{n}"]
        y = rms_norm(x, layer["pre_self_attention_layer_norm"])
        x = x + attention(y, y, layer["self_attention"], bias)
        y = rms_norm(x, layer["pre_cross_attention_layer_norm"])
        x = x + attention(y, encoded, layer["encoder_decoder_attention"], no_bias)
        x = x + gated_mlp(rms_norm(x, layer["pre_mlp_layer_norm"]), layer["mlp"])
    return rms_norm(x, params["decoder_norm"]) @ params["logits_dense"]["kernel"]


def as_float64(tree: dict) -> dict:
    converted = {}
    for name, part in tree.items():
        converted[name] = as_float64(part) if isinstance(part, dict) else np.asarray(part, np.float64)
    return converted


def test_logits_equal_t5_in_numpy_with_the_arrays_of_the_file(run: Path, stored_params: dict) -> None:
    """T5 1.1 in float64: scores without a scale, RMSNorm before sublayers, gated GELU, cross-attention."""
    inputs = np.array([5, 17, 900, 3, 1])
    targets = np.array([0, 32000, 44, 7])
    params = as_float64(stored_params)
    embedding = params["token_embedder"]["embedding"]
    encoded = encode(params["encoder"], embedding[inputs])
    expected = decode(params["decoder"], embedding[targets], encoded)
    logits = t5x_lite.load(run).logits(inputs, targets)[0]
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def write_arrays(tree: dict, folder: Path, prefix: str = "target") -> dict:
    """Write every array as zarr in a folder, and return the tree with the places of the arrays instead."""
    places = {}
    for name, part in tree.items():
        path = f"{prefix}.{name}"
        if isinstance(part, dict):
            places[name] = write_arrays(part, folder, path)
            continue
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(folder / path)},
            "metadata": {"shape": part.shape, "chunks": part.shape, "dtype": "<f4"},
        }
        tensorstore.open(spec, create=True).result().write(np.asarray(part)).result()
        places[name] = {"driver": "zarr", "dtype": "float32", "kvstore": {"driver": "gfile", "path": path}}
    return places


def test_arrays_beside_the_msgpack_file_are_read(run: Path, stored_params: dict, tmp_path: Path) -> None:
    """A checkpoint of a real run is a folder: large arrays are zarr, and the file has their places."""
    places = write_arrays(stored_params, tmp_path)
    tree = {"version": 3, "optimizer": {"state": {}, "target": places}}
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    assert main(["import", "t5x", str(tmp_path), str(tmp_path / "run")]) == 0
    expected = flatten_names(t5x_lite.load(run).params)
    params = flatten_names(t5x_lite.load(tmp_path / "run").params)
    assert params.keys() == expected.keys()
    for name, values in params.items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize("content", [b"no msgpack", serialization.msgpack_serialize({"a": 1})])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(content)
    assert main(["import", "t5x", str(tmp_path / "file"), str(tmp_path / "run")]) == 2
    assert "is not a T5X checkpoint" in capsys.readouterr().err


def import_in_one_line(source: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Import a checkpoint that is refused, and return the error."""
    capsys.readouterr()
    assert main(["import", "t5x", str(source), str(source.parent / "refused")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("t5x-lite: ")]
    assert len(errors) == 1
    assert not (source.parent / "refused").exists()
    return errors[0]


def zarr(path: object, **changes: object) -> dict[str, object]:
    return {"driver": "zarr", "kvstore": {"driver": "gfile", "path": path}, **changes}


def nested(depth: int) -> object:
    tree: object = np.zeros(1, np.float32)
    for _ in range(depth):
        tree = {"m": tree}
    return tree


QUERY = "encoder.layers_0.attention.query.kernel"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (QUERY, 3, "encoder/layers_0/attention/query/kernel is not an array but a int"),
        (QUERY, "text", "is not an array but a str"),
        (QUERY, np.zeros((4, 4), np.int32), "is not an array of floats"),
        (QUERY, np.zeros(4, np.float32), r"query/kernel is of shape \[4\], expected a matrix"),
        (QUERY, np.zeros((0, 4), np.float32), r"is of shape \[0, 4\], expected a matrix"),
        (QUERY, zarr(7), "this reference to an array has a wrong kvstore.path"),
        (QUERY, zarr("target/.."), "this reference to an array has a wrong kvstore.path"),
        (QUERY, zarr("x", driver="n5"), "this reference to an array has a wrong driver"),
        (QUERY, zarr("x", kvstore=[]), "this reference to an array has a wrong kvstore"),
        (QUERY, zarr("x\0"), "this reference to an array has a wrong kvstore.path"),
        (QUERY, zarr("not_there"), "cannot be opened"),
        (
            "encoder.layers_999999999.mlp.wi_0.kernel",
            np.zeros((4, 4), np.float32),
            "num_layers=1000000000 is not a number from 1 to 10,000",
        ),
        ("encoder.extra", nested(100), "nested at most 32 deep"),
    ],
)
def test_checkpoints_of_another_shape_are_refused_in_one_line(
    name: str, value: object, message: str, stored_params: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = unflatten_names({**flatten_names(stored_params), name: value})
    (tmp_path / "file").write_bytes(serialization.msgpack_serialize({"optimizer": {"state": {}, "target": target}}))
    assert re.search(message, import_in_one_line(tmp_path / "file", capsys))


def test_values_that_are_no_numbers_are_refused(
    stored_params: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = flatten_names(stored_params)
    changed = np.array(flat[QUERY])
    changed[0, 0] = np.nan
    content = {"optimizer": {"state": {}, "target": unflatten_names({**flat, QUERY: changed})}}
    (tmp_path / "file").write_bytes(serialization.msgpack_serialize(content))
    assert "query/kernel has values that are NaN or infinite" in import_in_one_line(tmp_path / "file", capsys)


def test_arrays_beside_the_file_that_are_damaged_are_refused(
    stored_params: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing chunk would be read as zeros, and metadata may name a size that no memory holds."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    places = write_arrays(stored_params, folder)
    content = serialization.msgpack_serialize({"optimizer": {"state": {}, "target": places}})
    (folder / "checkpoint").write_bytes(content)
    array = folder / f"target.{QUERY}"
    chunk = (array / "0.0").read_bytes()
    (array / "0.0").write_bytes(chunk[: len(chunk) // 2])
    assert "query/kernel cannot be read" in import_in_one_line(folder, capsys)
    (array / "0.0").unlink()
    assert "some chunks of the array encoder/layers_0/attention/query/kernel" in import_in_one_line(folder, capsys)
    metadata = (array / ".zarray").read_text()
    (array / ".zarray").write_text("[" * 10_000)
    assert f"{array}: this array of the checkpoint cannot be opened" in import_in_one_line(folder, capsys)
    (array / ".zarray").write_text(metadata)
    vocab = len(stored_params["token_embedder"]["embedding"])
    for name in ("token_embedder.embedding", "decoder.logits_dense.kernel"):
        huge = folder / f"target.{name}/.zarray"
        huge.write_text(huge.read_text().replace(f"{vocab}", "2000000000"))
    assert "of memory; import them on a larger machine" in import_in_one_line(folder, capsys)


def test_a_pipe_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "file")
    assert "file: is not a file" in import_in_one_line(tmp_path / "file", capsys)
