"""What the likelihood of targets reads of inputs that are too long."""

import jax
import numpy as np
import pytest

from t5x_lite.adapt import Prompt
from t5x_lite.errors import UserError
from t5x_lite.evaluate.likelihood import Likelihood
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import init_params, model_spec
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import make_mesh

WINDOW = 8


@pytest.fixture(scope="module")
def likelihood() -> Likelihood:
    """The likelihood of a decoder with two soft tokens."""
    sizes = {"layers": 1, "embed": 16, "heads": 2, "vocab": 30, "positions": "rotary"}
    config = ModelConfig.model_validate(sizes)
    surgery = Prompt(length=2).surgery
    params = init_params(config, jax.random.key(0), surgery)
    return Likelihood(config, model_spec(config, surgery), params, make_mesh(MeshConfig()), batch_size=1)


def test_long_inputs_keep_their_soft_tokens(likelihood: Likelihood) -> None:
    """A window of 8 has room for two soft tokens, four others and two of three targets: the last is not read."""
    targets = np.array([3, 4, 5])
    others = np.arange(10, 20)
    long = np.concatenate([[-1, -2], others])
    cut = np.concatenate([[-1, -2], others[-4:]])
    without_soft_tokens = others[-6:]
    scores = likelihood([(long, targets), (cut, targets), (without_soft_tokens, targets)], WINDOW)
    assert scores[0] == scores[1]
    assert scores[0].log_likelihood != pytest.approx(scores[2].log_likelihood, rel=1e-4)
    assert likelihood.truncated_inputs == 1


def test_soft_tokens_that_fill_the_window_are_refused(likelihood: Likelihood) -> None:
    with pytest.raises(UserError, match=r"the 2 ids before every prompt .* leave it no room in 2 tokens"):
        likelihood([(np.array([-1, -2, 7]), np.arange(7))], WINDOW)
