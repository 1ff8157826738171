"""Native T5X checkpoints: a real one, and the layout of arrays beside the file."""

from pathlib import Path

import numpy as np
import pytest
import tensorstore
from flax import serialization

import t5x_lite
from t5x_lite.cli import main
from t5x_lite.trees import flatten_names


@pytest.fixture(scope="module")
def checkpoint(real_data: Path) -> Path:
    return real_data / "t5x_testdata" / "test_t5_tiny.checkpoint_0"


@pytest.fixture(scope="module")
def target(checkpoint: Path) -> dict:
    return serialization.msgpack_restore(checkpoint.read_bytes())["optimizer"]["target"]


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5x") / "run"
    assert main(["import", "t5x", str(checkpoint), str(folder)]) == 0
    return folder


def normed(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def attention(x: np.ndarray, source: np.ndarray, p: dict, bias: np.ndarray, heads: int) -> np.ndarray:
    q, k, v = (
        (y @ p[name]["kernel"]).reshape(len(y), heads, -1)
        for y, name in ((x, "query"), (source, "key"), (source, "value"))
    )
    scores = np.einsum("lhd,mhd->hlm", q, k) + bias
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return np.einsum("hlm,mhd->lhd", shares, v).reshape(len(x), -1) @ p["out"]["kernel"]


def mlp(x: np.ndarray, p: dict) -> np.ndarray:
    gate = x @ p["wi_0"]["kernel"]
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return (gelu * (x @ p["wi_1"]["kernel"])) @ p["wo"]["kernel"]


def bucket(offset: int, *, both_ways: bool) -> int:
    """T5's buckets of short distances: one each, keys after the query in the upper half."""
    assert abs(offset) < 8
    return (16 * (offset > 0) if both_ways else 0) + (abs(offset) if both_ways else max(-offset, 0))


def biases(p: dict, length: int, *, both_ways: bool) -> np.ndarray:
    offsets = np.arange(length)[None] - np.arange(length)[:, None]
    found = p["relpos_bias"]["rel_embedding"][:, np.vectorize(lambda o: bucket(o, both_ways=both_ways))(offsets)]
    return found if both_ways else np.where(offsets > 0, -1e9, found)


def test_logits_are_those_of_t5_written_out_over_the_files_own_arrays(run: Path, target: dict) -> None:
    """T5 1.1 in NumPy, float64: unscaled scores, pre-RMSNorm, gated GELU, a decoder with cross-attention."""
    inputs, targets = np.array([5, 17, 900, 3, 1]), np.array([0, 32000, 44, 7])
    p = {name: _double(part) for name, part in target.items()}
    table, heads = p["token_embedder"]["embedding"], 4
    encoder, decoder = p["encoder"], p["decoder"]
    x = table[inputs]
    for n in range(2):
        layer = encoder[f"layers_{n}"]
        y = normed(x, layer["pre_attention_layer_norm"]["scale"])
        x = x + attention(y, y, layer["attention"], biases(encoder, 5, both_ways=True), heads)
        x = x + mlp(normed(x, layer["pre_mlp_layer_norm"]["scale"]), layer["mlp"])
    memory = normed(x, encoder["encoder_norm"]["scale"])
    x = table[targets]
    for n in range(2):
        layer = decoder[f"layers_{n}"]
        y = normed(x, layer["pre_self_attention_layer_norm"]["scale"])
        x = x + attention(y, y, layer["self_attention"], biases(decoder, 4, both_ways=False), heads)
        y = normed(x, layer["pre_cross_attention_layer_norm"]["scale"])
        x = x + attention(y, memory, layer["encoder_decoder_attention"], np.zeros((1, 4, 5)), heads)
        x = x + mlp(normed(x, layer["pre_mlp_layer_norm"]["scale"]), layer["mlp"])
    expected = normed(x, decoder["decoder_norm"]["scale"]) @ decoder["logits_dense"]["kernel"]
    found = t5x_lite.load(run).logits(inputs, targets)[0]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def _double(tree: dict) -> dict:
    return {k: _double(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()}


def test_arrays_that_lie_beside_the_file_are_read_too(run: Path, target: dict, tmp_path: Path) -> None:
    """A checkpoint of a real run is a folder: large arrays are zarr, the file points to them."""

    def moved(tree: dict, prefix: str = "target") -> dict:
        made = {}
        for name, leaf in tree.items():
            path = f"{prefix}.{name}"
            if isinstance(leaf, dict):
                made[name] = moved(leaf, path)
                continue
            spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(tmp_path / path)}}
            metadata = {"metadata": {"shape": leaf.shape, "chunks": leaf.shape, "dtype": "<f4"}}
            store = tensorstore.open(spec | metadata, create=True).result()
            store.write(np.asarray(leaf)).result()
            made[name] = {"driver": "zarr", "dtype": "float32", "kvstore": {"driver": "gfile", "path": path}}
        return made

    tree = {"version": 3, "optimizer": {"state": {}, "target": moved(target)}}
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    assert main(["import", "t5x", str(tmp_path), str(tmp_path / "run")]) == 0
    one, other = (flatten_names(t5x_lite.load(folder).params) for folder in (run, tmp_path / "run"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("content", [b"no msgpack", serialization.msgpack_serialize({"a": 1})])
def test_another_file_is_one_line(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(content)
    assert main(["import", "t5x", str(tmp_path / "file"), str(tmp_path / "run")]) == 2
    assert "is not a T5X checkpoint" in capsys.readouterr().err
