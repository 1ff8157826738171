"""The embeddings of ELECTRA's pair: which are shared, and which loss trains them (He et al. 2023, §3.2 to §3.4)."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Float

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.electra import discriminator_weights
from t5x_lite.models.losses import LossSettings
from t5x_lite.models.spec import create_model, model_spec
from t5x_lite.objectives.replaced_token import ReplacedToken
from t5x_lite.trees import flatten_names
from tests.models.weights import random_model

VOCAB = 50
SIZES = {"layers": 1, "embed": 16, "heads": 2, "vocab": VOCAB, "family": "electra", "outputs": ["detection"]}
SHARED_TABLE = "discriminator.tokens.other.weight"
DIFFERENCE = "discriminator.tokens.weight"
Weights = Mapping[str, Float[jax.Array, "..."]]


def electra(sharing: str) -> ModelConfig:
    generator = {"layers": 1, "embed": 16, "heads": 2, "embedding_sharing": sharing}
    return ModelConfig.model_validate({**SIZES, "generator": generator})


def make_batch() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, VOCAB, (2, 8)).astype(np.int32)
    masked = tokens.copy()
    positions = np.array([[1, 4, 6], [0, 2, 5]])
    masked[np.arange(2)[:, None], positions] = 4
    batch = {
        "tokens": masked,
        "unmasked": tokens,
        "positions": np.broadcast_to(np.arange(8), (2, 8)),
        "segment_ids": np.ones((2, 8), np.int32),
        "token_types": np.zeros((2, 8), np.int32),
        "target_positions": positions,
        "targets": np.take_along_axis(tokens, positions, axis=1),
        "loss_weights": np.ones((2, 3), np.float32),
        "detection_weights": np.ones((2, 8), np.float32),
    }
    return {name: jnp.asarray(values) for name, values in batch.items()}


def gradients_by_term(sharing: str) -> dict[str, Weights]:
    """Return the gradients of each term of the loss, by name."""
    config = electra(sharing)
    spec = model_spec(config)

    @jax.jit
    @jax.jacrev
    def compute_gradients(params: dict) -> dict[str, jax.Array]:
        terms = ReplacedToken().loss(spec.model(params), make_batch(), None, LossSettings(VOCAB))
        return {name: term.total for name, term in terms.items()}

    gradients = compute_gradients(nnx.to_pure_dict(nnx.state(random_model(config))))
    return {term: flatten_names(gradients[term]) for term in ("loss", "detection")}


@pytest.mark.parametrize(
    ("sharing", "trained_by"),
    [
        ("gradient_disentangled", {SHARED_TABLE: {"loss"}, DIFFERENCE: {"detection"}}),
        pytest.param("shared", {DIFFERENCE: {"loss", "detection"}}, marks=pytest.mark.slow),
        pytest.param(
            "separate", {"generator.tokens.weight": {"loss"}, DIFFERENCE: {"detection"}}, marks=pytest.mark.slow
        ),
    ],
)
def test_the_loss_that_trains_a_token_table(sharing: str, trained_by: dict[str, set[str]]) -> None:
    gradients = gradients_by_term(sharing)
    for table, terms in trained_by.items():
        assert {term for term, gradient in gradients.items() if np.asarray(gradient[table]).any()} == terms


def test_generator_draw_and_discriminator_have_random_keys_of_their_own() -> None:
    keys: list[jax.Array] = []

    class Side:
        def __call__(self, tokens: jax.Array, *, key: jax.Array, **features: jax.Array) -> jax.Array:
            keys.append(key)
            return jnp.zeros((*tokens.shape, 16))

        def logits(self, states: jax.Array) -> jax.Array:
            return jnp.zeros((*states.shape[:-1], VOCAB))

        def detection(self, states: jax.Array, segment_ids: jax.Array) -> jax.Array:
            return jnp.zeros(states.shape[:-1])

    def replace_tokens(tokens: jax.Array, *others: jax.Array) -> jax.Array:
        keys.append(others[-1])
        return tokens

    model: Any = SimpleNamespace(generator=Side(), discriminator=Side(), replace_tokens=replace_tokens)
    ReplacedToken().loss(model, make_batch(), jax.random.key(0), LossSettings(VOCAB))
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys) == 3


def test_the_difference_begins_with_zero_and_is_part_of_the_discriminator_alone() -> None:
    config = electra("gradient_disentangled")
    weights = flatten_names(nnx.to_pure_dict(nnx.state(create_model(config, 0))))
    assert not np.asarray(weights[DIFFERENCE]).any()
    assert "generator.tokens.weight" not in weights  # it is the shared table
    changed = {**weights, DIFFERENCE: jnp.ones((VOCAB, 16))}
    exported = discriminator_weights(changed)
    np.testing.assert_array_equal(exported["tokens.weight"], np.asarray(weights[SHARED_TABLE]) + 1)
    assert exported.keys() == flatten_names(model_spec(config.discriminator_model).shapes).keys()
