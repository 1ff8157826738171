"""Maximal-update parametrisation: table 8 of Yang et al. 2022 entry by entry, and the coordinate check of its §D.1."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import PyTree

from t5x_lite.config import RunConfig
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import init_params, model_spec
from t5x_lite.train.config import OptimizerConfig
from t5x_lite.train.optimization import make_optimizer
from t5x_lite.train.optimizers import AdamW
from t5x_lite.train.schedules import Constant
from t5x_lite.trees import flatten_names

BASE_WIDTH = 32
HEAD_DIM = 8
TOKENS = np.random.default_rng(0).integers(0, 64, (4, 16))


def standard_model(width: int, **settings: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "layers": 2,
            "embed": width,
            "heads": width // HEAD_DIM,
            "vocab": 64,
            "positions": "rotary",
            **settings,
        }
    )


def mup_model(width: int, **settings: object) -> ModelConfig:
    return standard_model(width, mup={"embed": BASE_WIDTH}, **settings)


def standard_deviation(weights: jax.Array) -> float:
    return float(np.asarray(weights).std())


@pytest.mark.parametrize("init", ["normal", "fan_in"])
@pytest.mark.parametrize("tied", [True, False])
def test_deviations_and_learning_rates_are_those_of_table_8(init: str, tied: bool) -> None:
    """Hidden weights have variance 1/m and rate 1/m; tables, output, biases and norms are as in the base model."""
    multiplier = 8
    base_config = mup_model(BASE_WIDTH, init=init, tied=tied)
    wide_config = mup_model(multiplier * BASE_WIDTH, init=init, tied=tied)
    base_params = flatten_names(init_params(base_config, jax.random.key(0)))
    wide_params = flatten_names(init_params(wide_config, jax.random.key(0)))
    for name, axes in flatten_names(model_spec(wide_config).axes).items():
        is_hidden = axes.inputs > 0 and "vocab" not in axes.names
        assert axes.learning_rate_scale == (1 / multiplier if is_hidden else 1)
        base_deviation = standard_deviation(base_params[name])
        if base_deviation > 0 and axes.inputs + axes.is_table:
            ratio = standard_deviation(wide_params[name]) / base_deviation
            expected_ratio = 1 / math.sqrt(multiplier) if is_hidden else 1
            assert ratio == pytest.approx(expected_ratio, rel=0.1), name
    standard_axes = flatten_names(model_spec(standard_model(BASE_WIDTH, init=init, tied=tied)).axes)
    assert standard_axes == flatten_names(model_spec(base_config).axes)


def test_scores_are_divided_by_the_width_of_a_head_and_logits_by_the_width() -> None:
    wide_config = ModelConfig.model_validate(
        {"layers": 1, "embed": 128, "heads": 2, "vocab": 64, "mup": {"embed": BASE_WIDTH, "head_dim": 16}}
    )
    assert wide_config.score_scale == pytest.approx(math.sqrt(16) / 64)
    assert standard_model(64).score_scale is None
    params = init_params(wide_config, jax.random.key(1))
    states = jnp.ones((1, 1, 128))
    mup_logits = model_spec(wide_config).model(params).logits(states)
    standard_config = wide_config.model_copy(update={"mup": None})
    standard_logits = model_spec(standard_config).model(params).logits(states)
    np.testing.assert_allclose(mup_logits * 4, standard_logits, rtol=1e-5)


def changes_after_updates(config: ModelConfig, steps: int = 5) -> dict[str, float]:
    """Mean absolute change of hidden states and logits after some updates of Adam."""
    spec = model_spec(config)
    optimizer = make_optimizer(
        OptimizerConfig(method=AdamW(), schedule=Constant(), learning_rate=0.01, weight_decay=0.0, clip_norm=None),
        steps,
        spec.axes,
    )

    def forward(params: PyTree) -> tuple[jax.Array, jax.Array]:
        model = spec.model(params)
        states = model(jnp.asarray(TOKENS))
        return states, model.logits(states)

    def loss_fn(params: PyTree) -> jax.Array:
        _, logits = forward(params)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], TOKENS[:, 1:]).mean()

    @jax.jit
    def train(params: PyTree) -> tuple[jax.Array, jax.Array]:
        def update(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
            params, opt_state = carry
            updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        (trained_params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), None, length=steps)
        states, logits = forward(params)
        trained_states, trained_logits = forward(trained_params)
        return jnp.abs(trained_states - states).mean(), jnp.abs(trained_logits - logits).mean()

    state_change, logit_change = train(init_params(config, jax.random.key(0)))
    return {"states": float(state_change), "logits": float(logit_change)}


@pytest.mark.slow
def test_activations_change_equally_at_every_width_with_mup_and_not_without() -> None:
    with_mup = [changes_after_updates(mup_model(width)) for width in (32, 256)]
    without_mup = [changes_after_updates(standard_model(width)) for width in (32, 256)]
    for name in ("states", "logits"):
        changes = [change[name] for change in with_mup]
        assert max(changes) / min(changes) < 1.6, (name, changes)
    assert without_mup[-1]["logits"] / without_mup[0]["logits"] > 3, without_mup


def test_mup_is_refused_for_settings_that_table_8_does_not_cover() -> None:
    train = {"steps": 2, "batch_size": 1, "seq_len": 8}
    model = {"layers": 1, "embed": 64, "heads": 2, "vocab": 64, "mup": {"embed": 32}}
    with pytest.raises(ValueError, match="needs optimizer"):
        RunConfig.model_validate({"model": model, "train": train, "optimizer": {"method": "muon"}})
    with pytest.raises(ValueError, match="without experts"):
        ModelConfig.model_validate({**model, "feedforward": "moe"})
