"""Optimizers and schedules against the published formulas, written out in NumPy."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Float

from t5x_lite.models.layers import WeightAxes
from t5x_lite.train.config import OptimizerConfig
from t5x_lite.train.optimization import make_optimizer, make_schedule, scale_learning_rates
from t5x_lite.train.optimizers import OPTIMIZERS
from t5x_lite.train.rounding import round_stochastically

Settings: TypeAlias = Mapping[str, object]
"""Keys of `OptimizerConfig`."""
Arrays: TypeAlias = Mapping[str, Float[np.ndarray, "..."]]

MATRIX = WeightAxes(("embed", "mlp"), 1)
AXES = {
    "stack": MATRIX,
    "heads": WeightAxes(("embed", "heads", "head_dim"), 1),
    "table": WeightAxes(("vocab", "embed"), is_table=True),
    "bias": WeightAxes(("mlp",)),
}
SHAPES = {"stack": (3, 4, 6), "heads": (4, 2, 3), "table": (7, 4), "bias": (3, 6)}
"""The stack and the bias have three layers; the others one."""
AXES_OF_TWO = {name: AXES[name] for name in ("stack", "bias")}
RUN_STEPS = 10


def optimizer_for(settings: Settings, axes: Mapping[str, WeightAxes]) -> optax.GradientTransformation:
    """Build an optimizer that by default neither clips nor has a schedule."""
    defaults = {"clip_norm": None, "schedule": "constant"}
    return make_optimizer(OptimizerConfig.model_validate({**defaults, **settings}), RUN_STEPS, axes)


def apply_updates(
    optimizer: optax.GradientTransformation, initial_params: Arrays, grads_of_steps: Sequence[Arrays]
) -> dict[str, np.ndarray]:
    """Return the parameters after one update for each set of gradients."""
    params = {name: jnp.asarray(value) for name, value in initial_params.items()}
    state = optimizer.init(params)
    for grads in grads_of_steps:
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, dict(grads)), state, params)
        params = optax.apply_updates(params, updates)
    return {name: np.asarray(value) for name, value in params.items()}


def train(
    settings: Settings, axes: Mapping[str, WeightAxes], initial_params: Arrays, steps: int = 3
) -> dict[str, np.ndarray]:
    """Return the parameters after some updates with the gradients of `gradient`."""
    grads_of_steps = []
    for step in range(steps):
        grads_of_steps.append({name: gradient(name, value.shape, step) for name, value in initial_params.items()})
    return apply_updates(optimizer_for(settings, axes), initial_params, grads_of_steps)


def gradient(name: str, shape: tuple[int, ...], step: int) -> Float[np.ndarray, "..."]:
    """Return the gradient of a parameter at a step: random, and the same in every call."""
    return np.random.default_rng([len(name), step]).normal(size=shape).astype(np.float32)


def initial_values() -> dict[str, np.ndarray]:
    """Return random parameters of `SHAPES`."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_lamb_is_optax_lamb_in_matrices_and_adamw_in_biases() -> None:
    """ALBERT's code leaves biases and norms out of the trust ratio."""
    params = {name: value for name, value in initial_values().items() if name in ("heads", "table", "bias")}
    axes = {name: AXES[name] for name in params}
    ours = train({"learning_rate": 0.1, "weight_decay": 0.0, "method": "lamb"}, axes, params)
    grads_of_steps = [{name: gradient(name, value.shape, step) for name, value in params.items()} for step in range(3)]
    lamb = apply_updates(optax.lamb(0.1, eps=1e-6), params, grads_of_steps)
    adam = apply_updates(optax.adam(0.1, eps=1e-6), params, grads_of_steps)
    for name, expected in (("heads", lamb), ("table", lamb), ("bias", adam)):
        np.testing.assert_allclose(ours[name], expected[name], rtol=2e-5, atol=1e-6)


def test_adamw_follows_loshchilov_and_hutter() -> None:
    settings = {"learning_rate": 0.1, "weight_decay": 0.5, "method": {"adamw": {"b1": 0.8, "b2": 0.9}}}
    params = train(settings, AXES, initial_values())
    for name, initial_value in initial_values().items():
        weight_decay = 0.0 if name == "bias" else 0.5
        x = initial_value.copy()
        m = np.zeros_like(x)
        v = np.zeros_like(x)
        for step in range(3):
            g = gradient(name, x.shape, step)
            m = 0.8 * m + 0.2 * g
            v = 0.9 * v + 0.1 * g**2
            corrected_m = m / (1 - 0.8 ** (step + 1))
            corrected_v = v / (1 - 0.9 ** (step + 1))
            adam = corrected_m / (np.sqrt(corrected_v) + 1e-8)
            x -= 0.1 * (adam + weight_decay * x)
        np.testing.assert_allclose(params[name], x, rtol=1e-5, atol=1e-6)


def test_decay_embeddings_false_leaves_the_tables_without_decay() -> None:
    settings = {"learning_rate": 0.1, "weight_decay": 0.5}
    decayed = train({**settings, "decay_embeddings": True}, AXES, initial_values(), steps=1)
    not_decayed = train({**settings, "decay_embeddings": False}, AXES, initial_values(), steps=1)
    table_decay = 0.05 * initial_values()["table"]
    np.testing.assert_allclose(not_decayed["table"] - decayed["table"], table_decay, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(not_decayed["stack"], decayed["stack"])


def test_gradient_descent_follows_polyak() -> None:
    """With decay as a part of the gradient, which the momentum sums up."""
    settings = {"method": {"sgd": {"momentum": 0.5}}, "learning_rate": 0.1, "weight_decay": 0.01, "warmup_steps": 0}
    initial = {"stack": np.random.default_rng(0).normal(size=SHAPES["stack"])}
    param = initial["stack"]
    momentum = np.zeros_like(param)
    for step in range(3):
        momentum = 0.5 * momentum + gradient("stack", param.shape, step) + 0.01 * param
        param = param - 0.1 * momentum
    np.testing.assert_allclose(train(settings, {"stack": MATRIX}, initial)["stack"], param, rtol=1e-5)


def test_lamb_has_a_trust_ratio_for_each_layer() -> None:
    layer_scales = np.array([1.0, 10.0, 0.0], np.float32)
    x = initial_values()["stack"] * layer_scales[:, None, None]
    settings = {"learning_rate": 0.1, "weight_decay": 0.01, "method": "lamb"}
    params = train(settings, {"stack": MATRIX}, {"stack": x}, steps=1)
    g = gradient("stack", x.shape, 0)
    for layer in range(3):
        adam = g[layer] / (np.abs(g[layer]) + 1e-6) + 0.01 * x[layer]
        norm = np.linalg.norm(x[layer])
        ratio = norm / np.linalg.norm(adam) if norm else 1.0
        np.testing.assert_allclose(params["stack"][layer], x[layer] - 0.1 * ratio * adam, rtol=1e-4, atol=1e-6)


def test_adafactor_factors_the_matrix_of_each_layer_and_scales_its_update_by_the_matrix() -> None:
    axes = {"w": WeightAxes(("embed", "heads", "head_dim"), 1)}
    shape = (2, 128, 4, 64)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    params = train({"learning_rate": 0.1, "weight_decay": 0.0, "method": "adafactor"}, axes, {"w": x}, steps=2)
    for layer in range(2):
        w = x[layer].reshape(128, 256)
        row = np.zeros(128)
        column = np.zeros(256)
        for step in range(2):
            g = gradient("w", shape, step)[layer].reshape(128, 256)
            decay = 1 - (step + 1.0) ** -0.8
            row = decay * row + (1 - decay) * (g**2 + 1e-30).mean(1)
            column = decay * column + (1 - decay) * (g**2 + 1e-30).mean(0)
            u = g / np.sqrt(np.outer(row, column) / row.mean())
            u = u / max(1.0, np.sqrt((u**2).mean()))
            w = w - 0.1 * max(1e-3, np.sqrt((w**2).mean())) * u
        np.testing.assert_allclose(params["w"][layer].reshape(128, 256), w, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale_by_parameter", [True, False])
@pytest.mark.parametrize("clip_update", [0.25, 1.0])
def test_adafactor_clips_and_scales_an_update_as_set(scale_by_parameter: bool, clip_update: float) -> None:
    """Shazeer & Stern 2018, §6 and Algorithms 4 and 5: the first update of a small array is the sign of its gradient.

    Its root mean square is 1, and that of parameters of 10^-5 counts as 10^-3.
    """
    method = {"adafactor": {"scale_by_parameter": scale_by_parameter, "clip_update": clip_update}}
    params = {"stack": np.full((3, 4, 6), 2.0, np.float32), "bias": np.full((3, 6), 1e-5, np.float32)}
    updated = train({"learning_rate": 0.1, "weight_decay": 0.0, "method": method}, AXES_OF_TWO, params, steps=1)
    for name, scale in (("stack", 2.0), ("bias", 1e-3)):
        factor = clip_update * (scale if scale_by_parameter else 1.0)
        expected = -0.1 * factor * np.sign(gradient(name, params[name].shape, 0))
        np.testing.assert_allclose(updated[name] - params[name], expected, rtol=2e-3)


def test_adafactor_stores_vectors_per_matrix_even_in_a_stack_deeper_than_the_matrix_is_wide() -> None:
    optimizer = make_optimizer(OptimizerConfig.model_validate({"method": "adafactor"}), RUN_STEPS, {"w": MATRIX})
    state = optimizer.init({"w": jnp.zeros((200, 128, 160))})
    large_shapes = {leaf.shape for leaf in jax.tree.leaves(state) if leaf.size > 200}
    # Shazeer & Stern 2018, §3: one row and one column vector per matrix.
    assert large_shapes == {(200, 128), (200, 160)}


def test_muon_makes_the_update_of_each_layer_orthogonal_with_the_size_of_adamw() -> None:
    params = train({"learning_rate": 1.0, "weight_decay": 0.0, "method": "muon"}, AXES, initial_values(), steps=1)
    fan_in = 4
    fan_out = 6
    for name in ("stack", "heads"):
        update = (initial_values()[name] - params[name]).reshape(-1, fan_in, fan_out)
        singular_values = np.linalg.svd(update, compute_uv=False) / (0.2 * np.sqrt(max(fan_in, fan_out)))
        # Jordan's five quintic steps aim at the band [0.7, 1.2], not at one.
        assert singular_values.min() > 0.6
        assert singular_values.max() < 1.3
    g = gradient("bias", (3, 6), 0)
    bias_update = initial_values()["bias"] - params["bias"]
    np.testing.assert_allclose(bias_update, g / (np.abs(g) + 1e-8), rtol=1e-4)


@pytest.mark.parametrize("method", ["adamw", "lamb", "adafactor", "muon"])
def test_stacked_layers_are_updated_as_separate_layers_are(method: str) -> None:
    settings = {"learning_rate": 0.1, "weight_decay": 0.1, "method": method}
    x = initial_values()["stack"]
    stacked = train(settings, {"stack": MATRIX}, {"stack": x})["stack"]
    optimizer = optimizer_for(settings, {"w": MATRIX})
    for layer in range(3):
        grads_of_steps = [{"w": gradient("stack", x.shape, step)[layer]} for step in range(3)]
        separate = apply_updates(optimizer, {"w": x[layer]}, grads_of_steps)["w"]
        np.testing.assert_allclose(stacked[layer], separate, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["adafactor", "lamb", "muon"])
def test_experts_of_stacked_layers_are_updated_as_separate_matrices_are(method: str) -> None:
    """Two layers of three experts are six matrices, with a stacked axis of layers and a named axis of experts."""
    settings = {"learning_rate": 0.1, "method": method}
    expert_axes = WeightAxes(("experts", "embed", "mlp"), 1, stacked=1)
    params, grads = np.random.default_rng(3).normal(size=(2, 2, 3, 4, 6)).astype(np.float32)
    stacked = apply_updates(optimizer_for(settings, {"w": expert_axes}), {"w": params}, [{"w": grads}])["w"]
    optimizer = optimizer_for(settings, {"w": MATRIX})
    for layer, expert in np.ndindex(2, 3):
        separate = apply_updates(optimizer, {"w": params[layer, expert]}, [{"w": grads[layer, expert]}])["w"]
        np.testing.assert_allclose(stacked[layer, expert], separate, rtol=1e-5, atol=1e-6)


def test_the_global_norm_is_clipped_before_the_algorithm_sees_the_gradient() -> None:
    settings = {"clip_norm": 1.0, "method": {"adamw": {"epsilon": 1e3}}, "weight_decay": 0.0}
    optimizer = make_optimizer(OptimizerConfig.model_validate(settings), RUN_STEPS, {"w": MATRIX})
    params = {"w": jnp.zeros((2, 2))}
    updates_of_scales = []
    for scale in (5.0, 50.0):
        updates, _ = optimizer.update({"w": scale * jnp.ones((2, 2))}, optimizer.init(params), params)
        updates_of_scales.append(updates["w"])
    np.testing.assert_allclose(updates_of_scales[0], updates_of_scales[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant", "warmup_steps": 4}, {0: 0.25, 1: 0.5, 3: 1.0, 9: 1.0}),
        ({"schedule": {"cosine": {"final": 0.1}}}, {0: 1.0, 10: 0.55, 20: 0.1}),
        # The decay has 10 updates, from 5 to 15.
        (
            {"schedule": {"cosine": {"final": 0.1, "decay_end": 0.75}}, "warmup_steps": 5},
            {5: 1.0, 10: 0.55, 15: 0.1, 20: 0.1},
        ),
        ({"schedule": {"linear": {"final": 0.0}}, "warmup_steps": 10}, {0: 0.1, 10: 1.0, 15: 0.5, 20: 0.0}),
        ({"schedule": {"linear": {"final": 0.2}}, "warmup_steps": 10}, {10: 1.0, 15: 0.6, 20: 0.2}),
        ({"schedule": "rsqrt", "warmup_steps": 4}, {0: 0.25, 3: 1.0, 15: 0.5}),
        # T5: 1/sqrt(max(step, 10^4)) begins with a constant 0.01, here with 4 for 10^4.
        ({"schedule": {"rsqrt": {"hold_steps": 4}}, "warmup_steps": 0}, {0: 1.0, 3: 1.0, 15: 0.5}),
        ({"schedule": {"wsd": {"decay": 0.5}}}, {0: 1.0, 9: 1.0, 15: 0.5, 20: 0.0}),
        ({"schedule": {"wsd": {"decay": 0.5}}, "warmup_steps": 5}, {4: 1.0, 10: 1.0, 15: 0.5, 20: 0.0}),
        ({"schedule": {"wsd": {"decay": 0.8}}, "warmup_steps": 4}, {3: 1.0, 4: 1.0, 12: 0.5, 20: 0.0}),
        ({"schedule": {"wsd": {"decay": 0.5, "shape": "sqrt"}}}, {10: 1.0, 15: 1 - 0.5**0.5, 20: 0.0}),
        ({"schedule": {"wsd": {"decay": 0.5, "final": 0.2}}}, {10: 1.0, 15: 0.6, 20: 0.2}),
        ({"schedule": {"wsd": {"decay": 0.5, "shape": "sqrt", "final": 0.2}}}, {15: 1 - 0.8 * 0.5**0.5, 20: 0.2}),
        # Howard & Ruder 2018, eq. 3, by hand: cut = 20 · 0.25 = 5, and p = 2/5 at update 2.
        (
            {"schedule": {"slanted_triangular": {"rise": 0.25}}},
            {0: 1 / 32, 2: (1 + 31 * 2 / 5) / 32, 5: 1.0, 10: (1 + 31 * 2 / 3) / 32, 20: 1 / 32},
        ),
        # A warm-up that is longer than what is held ends at the peak.
        (
            {"schedule": {"rsqrt": {"hold_steps": 2}}, "warmup_steps": 8},
            {7: 1.0, 8: (8 / 9) ** 0.5, 17: (8 / 18) ** 0.5},
        ),
        # 16 updates after the warm-up: cut = 4, and p = 2/4 at update 4 + 2 and 1 - 6/12 at update 4 + 10.
        (
            {"schedule": {"slanted_triangular": {"rise": 0.25, "ratio": 8.0}}, "warmup_steps": 4},
            {0: 0.25, 3: 1.0, 4: 1 / 8, 6: 4.5 / 8, 8: 1.0, 14: 4.5 / 8, 20: 1 / 8},
        ),
    ],
)
def test_schedules_equal_values_computed_by_hand(settings: Settings, expected: dict[int, float]) -> None:
    config = OptimizerConfig.model_validate({**settings, "learning_rate": 1.0})
    learning_rate = make_schedule(config, 20)
    for count, value in expected.items():
        assert float(learning_rate(count)) == pytest.approx(value, abs=1e-6)


def test_the_updates_of_a_step_have_its_learning_rate() -> None:
    """Three updates in each of four steps, whose rates on a line from 1 to 0 are 1, 3/4, 2/4 and 1/4."""
    settings = {"learning_rate": 1.0, "schedule": "linear", "weight_decay": 0.0, "clip_norm": None}
    config = OptimizerConfig.model_validate({**settings, "method": {"sgd": {"momentum": 0.0}}})
    optimizer = make_optimizer(config, 4, {"w": MATRIX}, updates_per_step=3)
    params = {"w": jnp.zeros((2, 2))}
    state = optimizer.init(params)
    rates = []
    for _ in range(12):
        updates, state = optimizer.update({"w": jnp.ones((2, 2))}, state, params)
        rates.append(-float(updates["w"][0, 0]))
    assert rates == [1.0, 1.0, 1.0, 0.75, 0.75, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_a_parameter_that_joins_late_moves_by_its_learning_rate() -> None:
    """Adam moves by the rate while the gradient is constant (Kingma & Ba 2015, §2.1). Index 1 joins at the fifth."""
    settings = {"method": "adamw", "weight_decay": 0.0, "learning_rate": 0.1}
    inner = optimizer_for(settings, {"bias": AXES["bias"]})

    def factors(progress: Float[jax.Array, ""], params: Arrays) -> dict[str, jax.Array]:
        return {"bias": jnp.stack([jnp.ones(()), jnp.where(progress < 4 / RUN_STEPS, 0.0, 0.5)])}

    optimizer = scale_learning_rates(inner, RUN_STEPS, factors)
    params = {"bias": np.zeros((2, 3), np.float32)}
    grads = {"bias": np.full((2, 3), 2.0, np.float32)}
    for count, second in ((4, 0.0), (5, -0.05), (7, -0.15)):
        moved = apply_updates(optimizer, params, [grads] * count)["bias"]
        np.testing.assert_allclose(moved[0], -0.1 * count, rtol=1e-5)
        np.testing.assert_allclose(moved[1], second, rtol=1e-5)


def test_stochastic_rounding_gives_a_neighbour_and_the_right_mean() -> None:
    """1.001 lies between 1 and 1 + 2^-7, the neighbours in bfloat16, at a share of 0.128 of their distance."""
    values = jnp.full(200_000, 1.001, jnp.float32)
    rounded = np.asarray(round_stochastically(values, jax.random.key(0)).astype(jnp.float32))
    assert set(np.unique(rounded)) == {1.0, 1.0 + 2**-7}
    share = 0.001 * 2**7
    deviation = np.sqrt(share * (1 - share) / len(values))
    assert abs((rounded > 1).mean() - share) < 4 * deviation
    special = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 0.0, -0.0], jnp.float32)
    np.testing.assert_array_equal(round_stochastically(special, jax.random.key(1)).astype(jnp.float32), special)


def test_a_second_moment_in_bfloat16_reaches_its_mean() -> None:
    """Adam's second moment of gradients of 1 is 1 - b2^t; with b2 = 0.999, rounding to the nearest would stop it."""
    optimizer = optimizer_for({"method": {"adamw": {"b2": 0.999}}, "moment_dtype": "bfloat16"}, {"stack": MATRIX})
    params = {"stack": jnp.zeros((64, 64))}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(2000):
        _, state = update({"stack": jnp.ones((64, 64))}, state, params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 2]
    assert [moment.dtype for moment in moments] == [jnp.bfloat16, jnp.bfloat16]
    first, second = (float(moment.astype(jnp.float32).mean()) for moment in moments)
    assert first == pytest.approx(1.0, rel=2e-3)
    assert second == pytest.approx(1 - 0.999**2000, rel=2e-3)


@pytest.mark.parametrize("method", OPTIMIZERS)
def test_moments_in_bfloat16_change_the_updates_a_little(method: str) -> None:
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    expected = train({"method": method}, AXES, params)
    rounded = train({"method": method, "moment_dtype": "bfloat16"}, AXES, params)
    for name, value in expected.items():
        change = value - params[name]
        assert np.abs(rounded[name] - value).max() <= 0.05 * np.abs(change).max()


@pytest.mark.parametrize("method", OPTIMIZERS)
def test_the_first_update_is_the_same_with_moments_in_bfloat16(method: str) -> None:
    """Moments are rounded when they are stored, and the first update reads none; constants are not rounded."""
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
    updates = []
    for moment_dtype in ("float32", "bfloat16"):
        optimizer = optimizer_for({"method": method, "moment_dtype": moment_dtype}, AXES)
        first_update, _ = optimizer.update(params, optimizer.init(params), params)
        updates.append(first_update)
    for name, value in updates[0].items():
        np.testing.assert_allclose(updates[1][name], value, rtol=1e-5, atol=1e-8)
