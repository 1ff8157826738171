"""Weights in int8: their rounding error, their bytes, and what has none."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array, Float, PyTree

import t5x_lite
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.int8_weights import Int8Matrix, quantize_weights
from t5x_lite.models.layers import Linear, Weight
from t5x_lite.models.spec import init_params, model_spec
from t5x_lite.trees import flatten_names

SIZES = {"layers": 2, "embed": 32, "heads": 4, "vocab": 50, "positions": "rotary", "feedforward": "glu", "bias": False}


def decoder_config(**settings: object) -> ModelConfig:
    return ModelConfig.model_validate({**SIZES, **settings})


def test_the_error_of_a_product_is_within_half_a_step_of_each_weight() -> None:
    """A weight is at most half of its scale off: max|w| / 254 of its output."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(32, 4, 8)).astype(np.float32)
    matrix[:, 0, 0] = 0
    config = decoder_config()
    linear = Linear(config, [("embed", 32)], [("heads", 4), ("head_dim", 8)], rngs=nnx.Rngs(0))
    axes = {"attention": {"query": {"weight": linear.weight.axes}}}
    params = {"attention": {"query": {"weight": jnp.asarray(matrix)}}}
    quantized = quantize_weights(config, {"x": axes}, {"x": params})["x"]["attention"]["query"]["weight"]
    assert isinstance(quantized, Int8Matrix)
    x = rng.normal(size=(5, 7, 32)).astype(np.float32)
    linear.weight = Weight(quantized, axes=linear.weight.axes)
    error = np.abs(np.asarray(linear(jnp.asarray(x))) - np.einsum("bld,dhk->blhk", x, matrix))
    bound = np.abs(x).sum(-1)[..., None, None] * np.abs(matrix).max(0) / 254
    assert (error <= bound * 1.0001 + 1e-5).all()
    assert error.max() > 0.02 * bound.max()


@pytest.mark.parametrize("settings", [{}, {"feedforward": {"moe": {"experts": 4}}}, {"family": "encoder_decoder"}])
def test_logits_are_those_of_the_rounded_weights(settings: dict[str, object]) -> None:
    """The weights are rounded here in NumPy: per layer, expert and output, over the inputs."""
    config = decoder_config(**settings)
    spec = model_spec(config)
    params = init_params(config, jax.random.key(0))
    rounded = {}
    axes_by_name = flatten_names(spec.axes)
    rounded_bytes = 0
    float_bytes = 0
    for name, array in flatten_names(params).items():
        axes = axes_by_name[name]
        value = np.array(array)
        float_bytes += value.nbytes
        if axes.inputs and ".layers." in name and "router" not in name:
            first = value.ndim - len(axes.names) + axes.stacked
            inputs = tuple(range(first, first + axes.inputs))
            step = np.abs(value).max(inputs, keepdims=True) / 127
            rounded_bytes += value.size + step.nbytes
            value = np.round(value / step) * step
        else:
            rounded_bytes += value.nbytes
        rounded[name] = value
    quantized = quantize_weights(config, spec.axes, params)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(quantized)) == rounded_bytes < float_bytes / 2
    expected_params = jax.tree.unflatten(
        jax.tree.structure(spec.shapes), [jnp.asarray(value) for value in rounded.values()]
    )
    tokens = np.random.default_rng(0).integers(1, 50, (2, 9))

    inputs = (tokens, tokens) if config.family == "encoder_decoder" else (tokens,)

    @jax.jit
    def logits(params: PyTree) -> Float[Array, "b l v"]:
        model = spec.model(params)
        return model.logits(model(*inputs))

    np.testing.assert_allclose(logits(quantized), logits(expected_params), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "encoder"}, "a model of family encoder does not generate"),
        ({"feedforward": {"moe": {"dispatch": "dropless"}}}, "multiplied in groups, as floats only"),
        ({"pattern": [{"mixer": "mamba2", "feedforward": "none"}]}, "no matrices of attention or feed-forward"),
    ],
)
def test_models_without_such_weights_are_refused(settings: dict[str, object], message: str) -> None:
    config = decoder_config(**settings)
    spec = model_spec(config)
    with pytest.raises(UserError, match=message):
        quantize_weights(config, spec.axes, init_params(config, jax.random.key(0)))


def test_a_run_generates_with_int8_weights(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact = t5x_lite.load(tiny_run)
    model = t5x_lite.load(tiny_run, quantization="int8")
    tokens = [exact.tokenizer.encode("the quick brown").tolist()]
    expected = exact.logits(tokens)
    assert np.abs(model.logits(tokens) - expected).max() < 0.02 * np.abs(expected).max()
    text = model.generate("the quick", tokens=8, temperature=0)[0]
    words = ["generate", str(tiny_run), "--prompt=the quick", "--tokens=8", "--temperature=0", "--quantization=int8"]
    assert main(words) == 0
    assert text.strip() in capsys.readouterr().out
