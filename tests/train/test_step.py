"""The train step: what must hold whatever the model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.config import RunConfig
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.transformer import init_params, model_spec
from t5x_lite.objectives import Causal
from t5x_lite.objectives.objective import ExampleLengths
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.train.metrics import flops_per_row
from t5x_lite.train.setup import Steps, make_steps
from t5x_lite.train.state import TrainState
from tests.objectives.vocabulary import row, task


def steps(**train: object) -> Steps:
    config = RunConfig.model_validate(
        {
            "model": {"layers": 2, "embed": 32, "heads": 2, "vocab": 40},
            "optimizer": {"learning_rate": 0.01, "schedule": "constant", "weight_decay": 0.0},
            "train": {"steps": 200, "batch_size": 8, "seq_len": 12} | train,
        }
    )
    return make_steps(config, model_spec(config.model), make_mesh(config.mesh))


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    segments = np.repeat([1, 2, 0], [6, 5, 2]).astype(np.int32)
    tokens = rng.integers(1, 40, (8, 13), dtype=np.int32)
    tokens[:, 0], tokens[:, 6] = np.arange(1, 9), np.arange(11, 19)  # documents begin apart, so they can be told apart
    rows = [Causal().example(row(text, segments.tolist()), task(12), rng) for text in tokens]
    return {name: np.stack([one[name] for one in rows]) for name in rows[0]}


def test_one_batch_is_learnt_by_heart() -> None:
    made = steps()
    state, metrics = made.fresh(), {}
    for _ in range(150):
        state, metrics = made.train(state, batch())
    assert float(metrics["loss"]) < 0.01


def test_four_microbatches_equal_one_batch() -> None:
    whole, parts = steps(), steps(microbatches=4)
    (one, first), (four, second) = (made.train(made.fresh(), batch()) for made in (whole, parts))
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-6)
    np.testing.assert_allclose(first["grad_norm"], second["grad_norm"], rtol=1e-5)
    # Adam's first update is the sign of the gradient, so that rounding of a gradient near zero can turn it.
    moments = [jax.tree.leaves(state.opt_state[1].mu) for state in (one, four)]
    for a, b in zip(*moments, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8)


def test_the_loss_is_a_mean_over_target_tokens_of_the_whole_batch() -> None:
    made, data = steps(microbatches=4), batch()
    data["loss_weights"][:6] = 0
    _, metrics = made.train(made.fresh(), data)
    config = RunConfig.model_validate(
        {
            "model": {"layers": 2, "embed": 32, "heads": 2, "vocab": 40},
            "train": {"steps": 1, "batch_size": 8, "seq_len": 12},
        }
    )
    plan = model_spec(config.model)
    model = plan.model(init_params(config.model, jax.random.key(0)))
    hidden = model(data["tokens"], positions=data["positions"], segment_ids=data["segment_ids"])
    scores = np.asarray(jax.nn.log_softmax(model.logits(hidden)), np.float64)
    chosen = np.take_along_axis(scores, data["targets"][..., None], -1)[..., 0]
    assert float(metrics["loss"]) == pytest.approx(-chosen[data["loss_weights"] > 0].mean(), rel=1e-5)


def test_an_update_that_is_not_finite_is_skipped_and_counted() -> None:
    made = steps()
    state = made.fresh()
    spoiled = dict(batch(), loss_weights=np.full((8, 12), np.inf, np.float32))
    before = jax.tree.map(np.asarray, state.params)
    state, metrics = made.train(state, spoiled)
    state, metrics = made.train(state, spoiled)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"]), int(state.step)) == (2, 2, 2)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state.params))
    state, metrics = made.train(state, batch())
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (2, 0)


def test_compute_in_bfloat16_keeps_float32_parameters() -> None:
    config = RunConfig.model_validate(
        {
            "model": {"layers": 2, "embed": 32, "heads": 2, "vocab": 40, "compute": "bfloat16"},
            "train": {"steps": 10, "batch_size": 8, "seq_len": 12},
        }
    )
    made = make_steps(config, model_spec(config.model), make_mesh(config.mesh))
    state, metrics = made.train(made.fresh(), batch())
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert float(metrics["loss"]) == pytest.approx(np.log(40), rel=0.02)


def test_seeds_decide_the_weights() -> None:
    same, other = steps(seed=3).fresh(), steps(seed=4).fresh()
    again = steps(seed=3).fresh()
    first = partial(jax.tree.leaves)

    def table(state: TrainState) -> np.ndarray:
        return np.asarray(first(state.params)[0])

    np.testing.assert_array_equal(table(same), table(again))
    assert np.abs(table(same) - table(other)).max() > 1e-3


def test_flops_of_gpt2_by_hand() -> None:
    """PaLM, appendix B: 6N and 12·L·H·Q·T a token, attention counted half because it is causal."""
    config = ModelConfig.model_validate({"layers": 12, "embed": 768, "heads": 12, "vocab": 50257})
    weights = 12 * 12 * 768**2 + 50257 * 768
    found = flops_per_row(config, model_spec(config), ExampleLengths(1024, 1024))
    assert found == 1024 * (6 * weights + 6 * 12 * 12 * 64 * 1024)


def test_flops_of_t5_by_hand() -> None:
    """Encoder weights see the inputs, decoder weights the targets; cross-attention's keys and values the inputs."""
    config = ModelConfig.model_validate(
        {
            "family": "encoder_decoder",
            "layers": 2,
            "embed": 8,
            "heads": 2,
            "mlp": 16,
            "vocab": 32,
            "positions": "relative",
        }
    )
    attention, mlp, inputs, targets = 4 * 8 * 8, 2 * 8 * 16, 20, 6
    passes = inputs * 2 * (attention + mlp) + targets * 2 * (attention + mlp) + 2 * 2 * 64 * (inputs + targets)
    pairs = 2 * (inputs**2 + targets**2 / 2 + inputs * targets)
    found = flops_per_row(config, model_spec(config), ExampleLengths(inputs, targets, targets))
    assert found == 6 * passes + 6 * 32 * 8 * targets + 12 * 8 * pairs


def test_flops_of_shared_layers_count_every_pass() -> None:
    settings = {"layers": 3, "embed": 8, "heads": 2, "vocab": 32}
    shared, plain = (ModelConfig.model_validate(settings | {"shared_layers": s}) for s in (True, False))
    assert model_spec(shared).parameters < model_spec(plain).parameters
    flops = [flops_per_row(config, model_spec(config), ExampleLengths(16, 16)) for config in (shared, plain)]
    assert flops[0] == flops[1]
