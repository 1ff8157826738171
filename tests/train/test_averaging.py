"""NT-ASGD against Algorithm 1 of Merity et al. 2018, written out in Python."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from t5x_lite.config import RunConfig
from t5x_lite.train.averaging import NonMonotonicAverage
from t5x_lite.train.config import OptimizerConfig
from t5x_lite.train.optimization import make_optimizer
from t5x_lite.train.optimizers import OPTIMIZERS
from t5x_lite.train.parameter_update import ParameterUpdate
from tests.train.test_optimization import MATRIX


def run_algorithm(losses: Sequence[float], weights: Sequence[float], interval: int, patience: int) -> list[float]:
    """Return the weights that Algorithm 1 returns after each step, with its list of all losses."""
    logs: list[float] = []
    trigger: int | None = None
    results = []
    for k, weight in enumerate(weights):
        if (k + 1) % interval == 0 and trigger is None:
            mean = float(np.mean(losses[k + 1 - interval : k + 1]))
            if len(logs) > patience and mean > min(logs[: len(logs) - patience]):
                trigger = k
            logs.append(mean)
        results.append(weight if trigger is None else float(np.mean(weights[trigger : k + 1])))
    return results


@pytest.mark.parametrize(("interval", "patience"), [(1, 1), (1, 5), (3, 2)])
def test_the_average_is_that_of_the_algorithm(interval: int, patience: int) -> None:
    """Losses fall, and rise again from the middle on."""
    rng = np.random.default_rng(0)
    steps = 60
    losses = np.abs(np.arange(steps) - 25) / 10 + 0.01 * rng.normal(size=steps)
    weights = rng.normal(size=steps)
    average = NonMonotonicAverage(interval, patience)
    update = jax.jit(average.update)
    value = jnp.zeros(())
    state = average.init()
    values = []
    for loss, weight in zip(losses.tolist(), weights.tolist(), strict=True):
        value, state = update(value, jnp.array(weight), state, jnp.array(loss))
        values.append(float(value))
    expected = run_algorithm(losses.tolist(), weights.tolist(), interval, patience)
    assert 20 < int(state.averaged) < 40
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_gradients_are_those_at_the_last_weights_and_the_parameters_are_the_average() -> None:
    """Descent on (w - 1)² / 2 from 0 at the rate 1.5: w is 1.5, 0.75, 1.125, …, and its loss falls."""
    config = OptimizerConfig.model_validate(
        {
            "method": {"nt_asgd": {"interval": 1, "patience": 1}},
            "learning_rate": 1.5,
            "schedule": "constant",
            "weight_decay": 0.0,
            "clip_norm": None,
        }
    )
    update = ParameterUpdate(make_optimizer(config, 10, {"w": MATRIX}), average=config.method.average())
    params = {"w": jnp.zeros((1, 1))}
    state = update.init(params)
    iterates = []
    # Losses by hand: the fourth is above the lowest of the first two.
    for step, loss in enumerate((3.0, 1.0, 2.0, 1.5, 1.0, 1.0)):
        grads = jax.tree.map(lambda w: w - 1, update.gradient_point(params, state))
        params, state = update.apply(grads, params, state, jax.random.key(0), lambda tree: tree, jnp.array(loss))
        iterates.append(1 - (-0.5) ** (step + 1))
        first = 3 if step >= 3 else step
        assert float(params["w"][0, 0]) == pytest.approx(np.mean(iterates[first:]))


def test_the_optimizers_with_an_average_say_so() -> None:
    for method in OPTIMIZERS.values():
        assert method.averages_weights == (method().average() is not None)


def test_an_average_of_weights_in_bfloat16_is_refused() -> None:
    settings = {
        "model": {"layers": 1, "embed": 8, "heads": 1},
        "optimizer": {"method": "nt_asgd"},
        "train": {"steps": 1, "batch_size": 1, "seq_len": 8, "param_dtype": "bfloat16"},
    }
    with pytest.raises(ValidationError, match=r"nt_asgd averages weights in float32"):
        RunConfig.model_validate(settings)
