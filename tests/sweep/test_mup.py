"""Maximal-update parametrisation: table 8 of Yang et al. 2022 entry by entry, and the coordinate check of its §D.1."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_lite.config import RunConfig
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import init_params, model_spec
from t5x_lite.train import optimizer as optimizers
from t5x_lite.train.config import AdamW, Constant, OptimizerConfig
from t5x_lite.trees import flatten_names

BASE, HEAD = 32, 8
TOKENS = np.random.default_rng(0).integers(0, 64, (4, 16))


def model(width: int, **more: Any) -> ModelConfig:
    settings = {"layers": 2, "embed": width, "heads": width // HEAD, "vocab": 64, "positions": "rotary", **more}
    return ModelConfig.model_validate(settings)


def mup(width: int, **more: Any) -> ModelConfig:
    return model(width, mup={"embed": BASE}, **more)


@pytest.mark.parametrize("init", ["normal", "fan_in"])
@pytest.mark.parametrize("tied", [True, False])
def test_deviations_and_rates_are_those_of_table_8(init: str, tied: bool) -> None:
    """Against the base: hidden variance 1/m, rate 1/m; tables, output, biases and norms as they were."""
    times = 8
    small, wide = (init_params(mup(w, init=init, tied=tied), jax.random.key(0)) for w in (BASE, times * BASE))
    axes = flatten_names(model_spec(mup(times * BASE, init=init, tied=tied)).axes)
    before, after = flatten_names(small), flatten_names(wide)
    for name, a in axes.items():
        hidden = a.inputs > 0 and "vocab" not in a.names
        assert a.rate == (1 / times if hidden else 1)
        if np.asarray(before[name]).std() > 0 and a.inputs + a.table:
            ratio = float(np.asarray(after[name]).std() / np.asarray(before[name]).std())
            assert ratio == pytest.approx(1 / math.sqrt(times) if hidden else 1, rel=0.1), name
    plain = flatten_names(model_spec(model(BASE, init=init, tied=tied)).axes)
    assert plain == flatten_names(model_spec(mup(BASE, init=init, tied=tied)).axes)


def test_scores_are_divided_by_the_width_of_a_head_and_logits_by_the_width() -> None:
    wide = ModelConfig.model_validate(
        {"layers": 1, "embed": 128, "heads": 2, "vocab": 64, "mup": {"embed": BASE, "head_dim": 16}}
    )
    assert wide.score_scale == pytest.approx(math.sqrt(16) / 64)
    assert model(64).score_scale is None
    own, plain = (model_spec(c) for c in (wide, wide.model_copy(update={"mup": None})))
    params = init_params(wide, jax.random.key(1))
    states = jnp.ones((1, 1, 128))
    np.testing.assert_allclose(own.model(params).logits(states) * 4, plain.model(params).logits(states), rtol=1e-5)


def moved(config: ModelConfig, steps: int = 5) -> dict[str, float]:
    """Mean size of what `steps` updates of Adam change in states and logits."""
    structure = model_spec(config)
    optimizer = optimizers.make(
        OptimizerConfig(method=AdamW(), schedule=Constant(), learning_rate=0.01, weight_decay=0.0, clip_norm=None),
        steps,
        structure.axes,
    )

    def forward(params: Any) -> tuple[jax.Array, jax.Array]:
        own = structure.model(params)
        states = own(jnp.asarray(TOKENS))
        return states, own.logits(states)

    def loss(params: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(forward(params)[1][:, :-1], TOKENS[:, 1:]).mean()

    @jax.jit
    def train(params: Any) -> Any:
        def update(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            changes, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, changes), state), None

        (after, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), None, length=steps)
        return [jnp.abs(a - b).mean() for a, b in zip(forward(after), forward(params), strict=True)]

    return dict(zip(("states", "logits"), map(float, train(init_params(config, jax.random.key(0)))), strict=True))


@pytest.mark.slow
def test_coordinates_move_alike_at_every_width_under_mup_and_not_without() -> None:
    widths = (32, 256)
    with_, without = ([moved(make(width)) for width in widths] for make in (mup, model))
    for name in ("states", "logits"):
        sizes = [one[name] for one in with_]
        assert max(sizes) / min(sizes) < 1.6, (name, sizes)
    assert without[-1]["logits"] / without[0]["logits"] > 3, without


def test_mup_is_refused_where_table_8_says_nothing() -> None:
    train = {"steps": 2, "batch_size": 1, "seq_len": 8}
    sizes = {"layers": 1, "embed": 64, "heads": 2, "vocab": 64, "mup": {"embed": 32}}
    with pytest.raises(ValueError, match="needs optimizer"):
        RunConfig.model_validate({"model": sizes, "train": train, "optimizer": {"method": "muon"}})
    with pytest.raises(ValueError, match="without experts"):
        ModelConfig.model_validate({**sizes, "feedforward": "moe"})
