"""Truncated back-propagation: rows that continue those of the batch before them, and their first states."""

from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array, PyTree

from t5x_lite import config as configuration
from t5x_lite.data.config import DataConfig
from t5x_lite.data.consecutive import ConsecutiveOrder, ConsecutiveRows
from t5x_lite.data.pipeline import ExampleBuilder, TrainingRows
from t5x_lite.data.row_plan import StreamWindows
from t5x_lite.errors import UserError
from t5x_lite.models.attention.kernels import planned_kernels
from t5x_lite.models.carry import empty_carry, final_states, set_initial_states
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mixers.mixer import SelfAttention
from t5x_lite.models.spec import model_spec
from t5x_lite.models.transformer import Decoder
from t5x_lite.objectives import Causal, Objective
from t5x_lite.objectives.prefix import Prefix
from t5x_lite.order_problems import order_problems
from t5x_lite.train.config import TrainConfig
from tests.data.in_memory_corpus import InMemoryCorpus
from tests.models.weights import random_model
from tests.objectives.vocabulary import context

DOCUMENTS = (5, 40, 17, 3, 30, 21)
LANES = 3
SEQ_LEN = 4


def consecutive_rows(*, separate_documents: bool = True) -> ConsecutiveRows:
    data = DataConfig(order="consecutive", separate_documents=separate_documents)
    windows = StreamWindows(InMemoryCorpus(*DOCUMENTS), SEQ_LEN + 1, SEQ_LEN)
    order = ConsecutiveOrder(windows.rows, LANES)
    rows = TrainingRows([windows], order, [ExampleBuilder(data, Causal(), context(SEQ_LEN, size=200))], 0)
    return ConsecutiveRows(rows, windows, order)


def test_each_row_of_a_batch_continues_that_of_the_batch_before_and_no_window_comes_twice_in_an_epoch() -> None:
    """The token at position p of the stream is p + 1."""
    rows = consecutive_rows()
    windows = rows.windows.rows
    steps = windows // LANES
    for epoch in range(2):
        first_tokens: Counter[int] = Counter()
        for lane in range(LANES):
            examples = [rows[(epoch * steps + step) * LANES + lane] for step in range(steps)]
            first_tokens.update(int(example["tokens"][0]) for example in examples)
            for before, after in pairwise(examples):
                assert after["tokens"][0] == before["targets"][-1] == before["tokens"][-1] + 1
        assert len(first_tokens) == steps * LANES


@pytest.mark.parametrize("separate_documents", [True, False])
def test_a_row_continues_unless_its_lane_or_a_document_begins_there(separate_documents: bool) -> None:
    rows = consecutive_rows(separate_documents=separate_documents)
    starts = set(np.cumsum((0, *DOCUMENTS)) + 1) if separate_documents else set()
    steps = rows.windows.rows // LANES
    results = set()
    for g in range(2 * steps * LANES):
        is_first = (g // LANES) % steps == 0
        first_token = int(rows[g]["tokens"][0])
        expected = not is_first and first_token not in starts
        assert int(rows[g]["continues"]) == expected
        results.add(expected)
    assert results == {True, False}


def test_a_text_with_fewer_windows_than_rows_of_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"only 2 windows of train\.seq_len; give more text or a smaller batch"):
        ConsecutiveOrder(2, 3)


def train(**settings: float) -> TrainConfig:
    return TrainConfig.model_validate({"steps": 10, "seq_len": SEQ_LEN, "batch_size": 4, **settings})


def test_the_first_states_are_those_of_the_layers_before_the_pattern_and_of_its_repeats() -> None:
    """Three layers are one before the pattern and two repeats of it; attention among them has no state to carry."""
    layers = {"layers": 3, "first": [{"mixer": "gru"}], "pattern": [{"mixer": "lstm"}]}
    sizes = {"embed": 16, "heads": 2, "vocab": 11, "positions": "none"}
    carry = empty_carry(ModelConfig.model_validate({**sizes, **layers}), 5)
    repeats = {number: {array.shape[:2] for array in states.values()} for number, states in carry.items()}
    assert repeats == {"0": {(1, 5)}, "1": {(2, 5)}}
    mixed = ModelConfig.model_validate({**sizes, **layers, "pattern": [{}]})
    problems = order_problems(mixed, DataConfig(order="consecutive"), Causal(), train(), 1)
    assert any("a layer of the model is attention" in problem for problem in problems)


def small_decoder(*mixers: str | dict, positions: str | dict = "none") -> ModelConfig:
    sizes = {"embed": 16, "heads": 2, "vocab": 11, "positions": positions}
    return ModelConfig.model_validate({**sizes, "layers": 2, "pattern": [{"mixer": mixer} for mixer in mixers]})


class Windows:
    """A small decoder with random weights, which reads windows with a carried state."""

    def __init__(self, *mixers: str | dict, positions: str | dict = "none") -> None:
        self.config = small_decoder(*mixers, positions=positions)
        self.spec = model_spec(self.config)
        _, params = nnx.split(random_model(self.config))
        self.params = nnx.to_pure_dict(params)

    def read(self, tokens: Array, segments: Array, carry: PyTree, continues: Array) -> tuple[Array, PyTree]:
        return self._read(self.params, tokens, segments, carry, continues)

    def read_alone(self, tokens: Array, segments: Array) -> Array:
        states, _ = self._read(self.params, tokens, segments, None, np.zeros(len(tokens)))
        return states

    @partial(jax.jit, static_argnums=0)
    def _read(
        self, params: PyTree, tokens: Array, segments: Array, carry: PyTree, continues: Array
    ) -> tuple[Array, PyTree]:
        module = self.spec.model(params)
        assert isinstance(module, Decoder)
        if carry is None:
            return module(tokens, segment_ids=segments), None
        set_initial_states(module, carry, continues, segments)
        return module(tokens, segment_ids=segments), final_states(module)

    def loss_of_second(self, params: PyTree, first: Array, second: Array) -> Array:
        """Return a sum over the states of the second of two windows."""
        ones = jnp.ones(first.shape, jnp.int32)
        _, carry = self._read(params, first, ones, empty_carry(self.config, len(first)), jnp.zeros(len(first)))
        states, _ = self._read(params, second, ones, carry, jnp.ones(len(first)))
        return (states[:, 0] * jnp.arange(states.shape[-1])).sum()


MEMORY = {"attention": {"memory": 7}}
"""A memory that is one token longer than a window of the tests."""


@pytest.mark.parametrize(
    ("mixers", "positions"),
    [
        (("lstm",), "none"),
        (("lstm", MEMORY), "transformer_xl"),
        pytest.param(("lstm", "rg_lru"), "none", marks=pytest.mark.slow),
        pytest.param(("gru", {"mamba2": {"head_dim": 8, "state": 4, "chunk": 4}}), "none", marks=pytest.mark.slow),
        pytest.param(("rnn",), "none", marks=pytest.mark.slow),
        pytest.param((MEMORY,), "rotary", marks=pytest.mark.slow),
        pytest.param((MEMORY,), {"relative": {"buckets": 8, "distance": 10}}, marks=pytest.mark.slow),
        pytest.param((MEMORY,), "alibi", marks=pytest.mark.slow),
        pytest.param(({"gated_deltanet": {"key_dim": 4, "chunk": 4}},), "none", marks=pytest.mark.slow),
    ],
)
def test_two_windows_with_a_carried_state_are_one_row(mixers: tuple[str | dict, ...], positions: str | dict) -> None:
    """A document goes on over the border of the windows in the first row, one begins there in the second.

    Causal states do not depend on later tokens, so that attention with all of them in its memory is that of one row.
    """
    model = Windows(*mixers, positions=positions)
    tokens = np.random.default_rng(0).integers(0, 11, (2, 12))
    segments = np.array([[1] * 4 + [2] * 8, [1] * 6 + [2] * 3 + [3] * 3])
    whole = model.read_alone(tokens, segments)
    later_segments = segments[:, 6:] - segments[:, 6:7] + 1  # rows number their documents from 1
    first, carry = model.read(tokens[:, :6], segments[:, :6], empty_carry(model.config, 2), np.array([0, 0]))
    second, _ = model.read(tokens[:, 6:], later_segments, carry, np.array([1, 0]))
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=1e-5)
    alone = model.read_alone(tokens[:, 6:], later_segments)
    assert np.abs(np.asarray(alone[0] - whole[0, 6:])).max() > 1e-2
    np.testing.assert_allclose(alone[1], whole[1, 6:], atol=1e-5)


@pytest.mark.parametrize(
    ("mixer", "positions"), [("lstm", "none"), pytest.param(MEMORY, "transformer_xl", marks=pytest.mark.slow)]
)
def test_the_gradient_ends_at_the_border_of_the_windows(mixer: str | dict, positions: str) -> None:
    """Token 9 is in the first window alone: it changes the loss of the second, which has no gradient for it."""
    model = Windows(mixer, positions=positions)
    windows = jnp.array([[1, 2, 3, 9]]), jnp.array([[4, 5, 6, 7]])
    loss, gradients = jax.value_and_grad(model.loss_of_second)(model.params, *windows)
    gradient = np.asarray(gradients["tokens"]["weight"])
    assert not gradient[9].any()
    assert gradient[4].any()
    changed = {**model.params, "tokens": {"weight": model.params["tokens"]["weight"].at[9].multiply(-1.0)}}
    assert abs(float(model.loss_of_second(changed, *windows) - loss)) > 1e-3


@pytest.mark.parametrize(
    ("mixers", "data", "objective", "limits", "message"),
    [
        (("lstm", "attention"), {}, Causal(), ({}, 1), "a layer of the model is attention, which has none"),
        (("lstm",), {}, Prefix(), ({}, 1), "is for objective causal, not prefix"),
        (("lstm",), {"packing": "documents"}, Causal(), ({}, 1), "it needs data.packing=stream, one source"),
        (
            ("lstm",),
            {},
            Causal(),
            ({"microbatches": 2}, 1),
            "it needs train.microbatches=1, train.data_reduction=mi",
        ),
        (
            ("lstm",),
            {},
            Causal(),
            ({"data_reduction": "step"}, 1),
            "it needs train.microbatches=1, train.data_reduction=mi",
        ),
        (("lstm",), {}, Causal(), ({"spike_factor": 2.0}, 1), "train.spike_factor skips batches: set it to null"),
        (("lstm",), {}, Causal(), ({}, 2), "it needs train.microbatches=1, train.data_reduction=mi"),
    ],
)
def test_what_cannot_carry_states_is_refused(
    mixers: tuple[str, ...],
    data: dict[str, str],
    objective: Objective,
    limits: tuple[dict[str, float], int],
    message: str,
) -> None:
    settings = DataConfig.model_validate({"order": "consecutive", **data})
    problems = "; ".join(order_problems(small_decoder(*mixers), settings, objective, train(**limits[0]), limits[1]))
    assert message in problems
    assert not list(order_problems(small_decoder("lstm"), DataConfig(order="consecutive"), Causal(), train(), 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": "learned"}, "memory needs positions that depend on the distance, such as transformer_xl"),
        ({"positions": "rotary", "family": "encoder"}, "memory is for a decoder without prefix_lm"),
        ({"positions": "rotary", "prefix_lm": True}, "memory is for a decoder without prefix_lm"),
        (
            {"positions": "rotary", "pattern": [{"mixer": MEMORY, "attention": {"strided": {"stride": 4}}}]},
            "memory is for dense and local attention",
        ),
        (
            {"positions": "rotary", "pattern": [{"mixer": {"latent_attention": {"memory": 4}}}]},
            "memory is for mixer: attention, not for latent_attention",
        ),
    ],
)
def test_a_model_that_cannot_have_a_memory_is_refused(settings: dict[str, object], message: str) -> None:
    sizes = {"embed": 16, "heads": 2, "vocab": 11, "layers": 2}
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({**sizes, "pattern": [{"mixer": MEMORY}], **settings})


def test_a_memory_that_would_stay_empty_is_refused(tiny_config: Path) -> None:
    overrides = ["model.pattern=[{mixer: {attention: {memory: 4}}}]", "model.positions=transformer_xl"]
    with pytest.raises(UserError, match=r"mixer\.attention\.memory needs data\.order=consecutive, or it stays empty"):
        configuration.load(tiny_config, overrides)
    config = configuration.load(tiny_config, [*overrides, "data.order=consecutive"])
    mixer = config.model.period[0].mixer
    assert isinstance(mixer, SelfAttention)
    assert mixer.memory == 4


def test_fused_kernels_refuse_a_memory() -> None:
    model = small_decoder(MEMORY, positions="rotary").model_copy(update={"compute": "bfloat16"})
    reason = "it does not support a memory of the batch before"
    assert planned_kernels(model, 2048, "tpu") == {"dense": f"xla (not splash or flash: {reason})"}
