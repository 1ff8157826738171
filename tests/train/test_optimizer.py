"""Optimizers and schedules against the published formulas, written out in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_lite.models.layers import WeightAxes
from t5x_lite.train.config import OptimizerConfig
from t5x_lite.train.optimization import make_optimizer, make_schedule

MATRIX = WeightAxes(("embed", "mlp"), 1)
AXES = {
    "stack": MATRIX,
    "heads": WeightAxes(("embed", "heads", "head_dim"), 1),
    "table": WeightAxes(("vocab", "embed"), is_table=True),
    "bias": WeightAxes(("mlp",)),
}
SHAPES = {"stack": (3, 4, 6), "heads": (4, 2, 3), "table": (7, 4), "bias": (3, 6)}


def updated_params(
    config: dict[str, Any], axes: dict[str, WeightAxes], params: dict[str, np.ndarray], count: int = 3
) -> dict:
    optimizer = make_optimizer(
        OptimizerConfig.model_validate({"clip_norm": None, "schedule": "constant"} | config), 10, axes
    )
    params = {name: jnp.asarray(value) for name, value in params.items()}
    state = optimizer.init(params)
    for step in range(count):
        grads = {name: jnp.asarray(gradient(name, value.shape, step)) for name, value in params.items()}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return {name: np.asarray(value) for name, value in params.items()}


def gradient(name: str, shape: tuple[int, ...], step: int) -> np.ndarray:
    return np.random.default_rng([len(name), step]).normal(size=shape).astype(np.float32)


def values(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_adamw_follows_loshchilov_and_hutter() -> None:
    params = updated_params(
        {"learning_rate": 0.1, "weight_decay": 0.5, "method": {"adamw": {"b1": 0.8, "b2": 0.9}}}, AXES, values()
    )
    for name, first in values().items():
        x = first.copy()
        m = v = np.zeros_like(x)
        for step in range(3):
            g = gradient(name, x.shape, step)
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
            adam = (m / (1 - 0.8 ** (step + 1))) / (np.sqrt(v / (1 - 0.9 ** (step + 1))) + 1e-8)
            x -= 0.1 * (adam + (0.0 if name == "bias" else 0.5) * x)
        np.testing.assert_allclose(params[name], x, rtol=1e-5, atol=1e-6)


def test_decay_of_embeddings_can_be_turned_off() -> None:
    settings = {"learning_rate": 0.1, "weight_decay": 0.5}
    with_decay, without = (updated_params(settings | {"decay_embeddings": d}, AXES, values(), 1) for d in (True, False))
    np.testing.assert_allclose(without["table"] - with_decay["table"], 0.05 * values()["table"], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(without["stack"], with_decay["stack"])


def test_lamb_trusts_each_layer_by_itself() -> None:
    x = values()["stack"] * np.array([1.0, 10.0, 0.0])[:, None, None].astype(np.float32)
    params = updated_params(
        {"learning_rate": 0.1, "weight_decay": 0.01, "method": "lamb"}, {"stack": MATRIX}, {"stack": x}, 1
    )
    g = gradient("stack", x.shape, 0)
    for layer in range(3):
        adam = g[layer] / (np.abs(g[layer]) + 1e-6) + 0.01 * x[layer]
        norm = np.linalg.norm(x[layer])
        ratio = norm / np.linalg.norm(adam) if norm else 1.0
        np.testing.assert_allclose(params["stack"][layer], x[layer] - 0.1 * ratio * adam, rtol=1e-4, atol=1e-6)


def test_adafactor_factors_each_layers_matrix_and_steps_relative_to_it() -> None:
    axes, shape = {"w": WeightAxes(("embed", "heads", "head_dim"), 1)}, (2, 128, 4, 64)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    params = updated_params({"learning_rate": 0.1, "weight_decay": 0.0, "method": "adafactor"}, axes, {"w": x}, 2)["w"]
    for layer in range(2):
        w, row, column = x[layer].reshape(128, 256), np.zeros(128), np.zeros(256)
        for step in range(2):
            g = gradient("w", shape, step)[layer].reshape(128, 256)
            decay = 1 - (step + 1.0) ** -0.8
            row = decay * row + (1 - decay) * (g**2 + 1e-30).mean(1)
            column = decay * column + (1 - decay) * (g**2 + 1e-30).mean(0)
            u = g / np.sqrt(np.outer(row, column) / row.mean())
            u = u / max(1.0, np.sqrt((u**2).mean()))
            w = w - 0.1 * max(1e-3, np.sqrt((w**2).mean())) * u
        np.testing.assert_allclose(params[layer].reshape(128, 256), w, rtol=1e-3, atol=1e-5)


def test_adafactor_keeps_factors_of_a_matrix_even_in_a_stack_deeper_than_the_matrix_is_wide() -> None:
    optimizer = make_optimizer(OptimizerConfig.model_validate({"method": "adafactor"}), 10, {"w": MATRIX})
    state = optimizer.init({"w": jnp.zeros((200, 128, 160))})
    sizes = {leaf.shape for leaf in jax.tree.leaves(state) if leaf.size > 200}
    assert sizes == {(200, 128), (200, 160)}  # Shazeer & Stern 2018, §3: one row and one column vector a matrix


def test_muon_makes_each_layers_update_orthogonal_with_adamws_size() -> None:
    params = updated_params({"learning_rate": 1.0, "weight_decay": 0.0, "method": "muon"}, AXES, values(), 1)
    for name, fan_in, fan_out in (("stack", 4, 6), ("heads", 4, 6)):
        update = (values()[name] - params[name]).reshape(-1, fan_in, fan_out)
        singular = np.linalg.svd(update, compute_uv=False) / (0.2 * np.sqrt(max(fan_in, fan_out)))
        # Jordan's five quintic steps aim at the band [0.7, 1.2], not at one.
        assert singular.min() > 0.6
        assert singular.max() < 1.3
    g = gradient("bias", (3, 6), 0)
    np.testing.assert_allclose(values()["bias"] - params["bias"], g / (np.abs(g) + 1e-8), rtol=1e-4)


@pytest.mark.parametrize("method", ["adamw", "lamb", "adafactor", "muon"])
def test_a_stack_of_layers_moves_as_its_layers_would_alone(method: str) -> None:
    config = {"learning_rate": 0.1, "weight_decay": 0.1, "method": method}
    x = values()["stack"]
    together = updated_params(config, {"stack": MATRIX}, {"stack": x})["stack"]
    optimizer = make_optimizer(
        OptimizerConfig.model_validate(config | {"clip_norm": None, "schedule": "constant"}), 10, {"w": MATRIX}
    )
    for layer in range(3):
        params = {"w": jnp.asarray(x[layer])}
        state = optimizer.init(params)
        for step in range(3):
            grads = {"w": jnp.asarray(gradient("stack", x.shape, step)[layer])}
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(together[layer], params["w"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["adafactor", "lamb", "muon"])
def test_experts_of_stacked_layers_move_as_each_would_alone(method: str) -> None:
    """Two layers of three experts: six matrices, one axis for layers and one that the weight names."""
    axes = WeightAxes(("experts", "embed", "mlp"), 1, stacked=1)
    rng = np.random.default_rng(3)
    first, grads = rng.normal(size=(2, 2, 3, 4, 6)).astype(np.float32)

    def update_once(axes: WeightAxes, param: np.ndarray, grad: np.ndarray) -> np.ndarray:
        settings = {"learning_rate": 0.1, "clip_norm": None, "schedule": "constant", "method": method}
        optimizer = make_optimizer(OptimizerConfig.model_validate(settings), 10, {"w": axes})
        params = {"w": jnp.asarray(param)}
        updates, _ = optimizer.update({"w": jnp.asarray(grad)}, optimizer.init(params), params)
        return np.asarray(optax.apply_updates(params, updates)["w"])

    together = update_once(axes, first, grads)
    for layer, expert in np.ndindex(2, 3):
        alone = update_once(MATRIX, first[layer, expert], grads[layer, expert])
        np.testing.assert_allclose(together[layer, expert], alone, rtol=1e-5, atol=1e-6)


def test_the_global_norm_is_clipped_before_anything_else() -> None:
    config = OptimizerConfig.model_validate(
        {"clip_norm": 1.0, "method": {"adamw": {"epsilon": 1e3}}, "weight_decay": 0.0}
    )
    optimizer = make_optimizer(config, 10, {"w": MATRIX})
    params = {"w": jnp.zeros((2, 2))}
    first, second = (
        optimizer.update({"w": scale * jnp.ones((2, 2))}, optimizer.init(params), params)[0]["w"]
        for scale in (5.0, 50.0)
    )
    np.testing.assert_allclose(first, second, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant", "warmup_steps": 4}, {0: 0.25, 1: 0.5, 3: 1.0, 9: 1.0}),
        ({"schedule": {"cosine": {"final": 0.1}}}, {0: 1.0, 10: 0.55, 20: 0.1}),
        ({"schedule": {"linear": {"final": 0.0}}, "warmup_steps": 10}, {0: 0.1, 10: 1.0, 15: 0.5, 20: 0.0}),
        ({"schedule": "rsqrt", "warmup_steps": 4}, {0: 0.25, 3: 1.0, 15: 0.5}),
        ({"schedule": {"wsd": {"decay": 0.5}}}, {0: 1.0, 9: 1.0, 15: 0.5, 20: 0.0}),
        ({"schedule": {"wsd": {"decay": 0.5}}, "warmup_steps": 5}, {4: 1.0, 10: 1.0, 15: 0.5, 20: 0.0}),
        ({"schedule": {"wsd": {"decay": 0.5, "shape": "sqrt"}}}, {10: 1.0, 15: 1 - 0.5**0.5, 20: 0.0}),
    ],
)
def test_schedules_by_hand(settings: dict[str, Any], expected: dict[int, float]) -> None:
    learning_rate = make_schedule(OptimizerConfig.model_validate(settings | {"learning_rate": 1.0}), 20)
    for count, value in expected.items():
        assert float(learning_rate(count)) == pytest.approx(value, abs=1e-6)
