"""Products in 8 bits: their values by definition, what they leave alone, and the program that they make."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import config as configuration
from t5x_lite.models.quantization import quantized_product
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.train.steps import make_steps

pytest.importorskip("qwix", reason="needs the extra quantization: pip install -e '.[quantization]'")

LARGEST = {"int8": 127.5, "e4m3": 448.0, "e5m2": 57344.0}
"""What the largest value is scaled to: the end of the last integer's bucket, and the largest finite value of the floats
(Micikevicius et al. 2022, Table 1)."""
FLOATS = {"e4m3": jnp.float8_e4m3fn, "e5m2": jnp.float8_e5m2}


def round_trip(values: np.ndarray, kind: str, contracted: tuple[int, ...]) -> np.ndarray:
    """Quantize by the definition: each slice along the contracted axes is scaled by its largest absolute value."""
    scale = np.abs(values).max(axis=contracted, keepdims=True) / LARGEST[kind]
    if kind == "int8":
        return np.clip(np.round(values / scale), -128, 127) * scale
    return (values / scale).astype(FLOATS[kind]).astype(np.float32) * scale


@pytest.mark.parametrize(("quantization", "value", "gradient"), [("int8", "int8", "int8"), ("fp8", "e4m3", "e5m2")])
def test_a_product_and_its_gradients_are_those_of_the_quantized_operands(
    quantization: str, value: str, gradient: str
) -> None:
    rng = np.random.default_rng(0)

    # The largest value of each slice is positive: -127.5 is a tie, which rounding errors break.
    def draw(*shape: int) -> np.ndarray:
        return (rng.exponential(size=shape) - 0.5).astype(np.float32)

    x = draw(2, 3, 16)
    matrix = draw(16, 8)
    upstream = draw(2, 3, 8)
    result, pullback = jax.vjp(lambda x, matrix: quantized_product(x, matrix, quantization), x, matrix)
    x_gradient, matrix_gradient = pullback(upstream)
    expected = round_trip(x, value, (2,)) @ round_trip(matrix, value, (0,))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    expected_x = round_trip(upstream, gradient, (2,)) @ round_trip(matrix, value, (1,)).T
    np.testing.assert_allclose(x_gradient, expected_x, rtol=1e-5, atol=1e-5)
    rows, row_gradients = x.reshape(6, 16), upstream.reshape(6, 8)
    expected_matrix = round_trip(rows, value, (0,)).T @ round_trip(row_gradients, gradient, (0,))
    np.testing.assert_allclose(matrix_gradient, expected_matrix, rtol=1e-5, atol=1e-5)


def test_experts_are_quantized_apart() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 2, 3, 16)).astype(np.float32)
    matrices = rng.normal(size=(4, 16, 8)).astype(np.float32)

    def total(product: Callable[[jax.Array, jax.Array], jax.Array], x: np.ndarray, matrix: np.ndarray) -> jax.Array:
        return jnp.square(product(x, matrix)).sum()

    def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
        return quantized_product(x, matrix, "int8")

    gradients = jax.grad(lambda x, matrix: total(product, x, matrix), argnums=(0, 1))(x, matrices)
    for expert in range(4):
        alone = jax.grad(lambda x, matrix: total(product, x, matrix), argnums=(0, 1))(x[expert], matrices[expert])
        for gradient, expected in zip(gradients, alone, strict=True):
            np.testing.assert_allclose(gradient[expert], expected, rtol=1e-6, atol=1e-6)


def products(text: str) -> list[str]:
    """Return the type of the first operand of every matrix product of a StableHLO program."""
    return re.findall(r"stablehlo\.dot_general.*?: \(tensor<(?:\d+x)*(\w+)>", text)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_the_train_step_has_quantized_products_and_the_evaluation_has_none(remat: str) -> None:
    settings = ["model.embed=32", "model.heads=2", "model.mlp=48", "model.vocab=64", f"model.remat={remat}"]
    settings += ["train.seq_len=16", "train.batch_size=2", "train.steps=2", "optimizer.method=adamw"]
    settings += ["train.quantization=int8", "optimizer.warmup_steps=0", "model.compute=bfloat16"]
    config = configuration.load("quickstart", settings)
    mesh = meshes.make_mesh(config.mesh)
    steps = make_steps(config, model_spec(config.model), mesh)
    integers = ("tokens", "targets", "positions", "segment_ids")
    batch = {name: jax.ShapeDtypeStruct((2, 16), jnp.int32) for name in integers}
    batch["loss_weights"] = jax.ShapeDtypeStruct((2, 16), jnp.float32)
    trained = products(steps.train.lower(steps.state, batch).as_text())
    # Seven matrices of a layer (query, key, value, out, gate, up, down): forward, and two gradients each. The layers
    # are one scan. Recomputation of the products that are kept would add to them.
    assert trained.count("i8") == 7 * 3
    evaluate: Any = steps.evaluate
    evaluated = products(evaluate.lower((steps.state.params, steps.state.frozen), batch).as_text())
    assert evaluated
    assert "i8" not in evaluated
