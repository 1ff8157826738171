"""What the likelihood of targets reads of inputs that are too long."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from t5x_lite.adapt import Prompt
from t5x_lite.errors import UserError
from t5x_lite.evaluate.likelihood import Likelihood
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import init_params, model_spec
from t5x_lite.parallel.batched_function import BatchedFunction, Features
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import make_mesh

WINDOW = 8


CONFIG = ModelConfig.model_validate({"layers": 1, "embed": 16, "heads": 2, "vocab": 30, "positions": "rotary"})
SURGERY = Prompt(length=2).surgery
SPEC = model_spec(CONFIG, SURGERY)
PARAMS = init_params(CONFIG, jax.random.key(0), SURGERY)


@pytest.fixture(scope="module")
def likelihood() -> Likelihood:
    """The likelihood of a decoder with two virtual tokens."""
    mesh = make_mesh(MeshConfig())

    def apply_to_rows(function: Callable[..., Any], rows: list[Features], verb: str, *settings: object) -> list[Any]:
        return BatchedFunction(partial(function, SPEC, *settings), mesh, batch_size=1)(PARAMS, rows, verb)

    return Likelihood(CONFIG, apply_to_rows, soft_prompt=np.array([-1, -2]))


def test_long_inputs_keep_their_soft_tokens(likelihood: Likelihood) -> None:
    """A window of 8 has room for two virtual tokens, four others and two of three targets: the last is not read."""
    targets = np.array([3, 4, 5])
    others = np.arange(10, 20)
    long, cut = likelihood([(others, targets), (others[-4:], targets)], WINDOW)
    assert long == cut
    assert likelihood.truncated_inputs == 1


def test_soft_tokens_come_before_the_inputs_of_a_decoder(likelihood: Likelihood) -> None:
    """By the logits of the model on the row of virtual tokens, inputs and targets."""
    inputs, targets = np.array([7, 8]), np.array([3, 4, 5])
    (score,) = likelihood([(inputs, targets)], WINDOW)
    assert likelihood.tokens_read((inputs, targets)) == 6
    row = np.concatenate([[-1, -2], inputs, targets])
    module = SPEC.model(PARAMS)
    log_probabilities = jax.nn.log_softmax(module.logits(module(row[None])))[0]
    expected = sum(float(log_probabilities[place - 1, row[place]]) for place in (4, 5, 6))
    assert score.log_likelihood == pytest.approx(expected, rel=1e-5)


def test_soft_tokens_that_fill_the_window_are_refused(likelihood: Likelihood) -> None:
    with pytest.raises(UserError, match=r"the 2 ids before every prompt .* leave it no room in 2 tokens"):
        likelihood([(np.array([7]), np.arange(7))], WINDOW)
