"""Preference optimisation: losses and gradients against the papers' formulas in NumPy, and the reference model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from t5x_lite.adapt.adapters import Houlsby, Pfeiffer
from t5x_lite.adapt.ia3 import IA3
from t5x_lite.adapt.lora import LoRA
from t5x_lite.adapt.method import ModelPair
from t5x_lite.adapt.reference import Reference
from t5x_lite.models import preference_losses
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.losses import LossSettings
from t5x_lite.models.spec import init_params, model_spec
from t5x_lite.objectives.preference import Preference
from t5x_lite.objectives.supervised import TaskTokenizer
from t5x_lite.trees import flatten_names, unflatten_names
from tests.objectives.vocabulary import BOS, context, context_with_bos

BETA = 0.3
VOCAB = 200


def encode(text: str) -> np.ndarray:
    return np.array([20 + ord(letter) - ord("a") for letter in text], np.int32)


def no_offsets(text: str) -> tuple[np.ndarray, np.ndarray]:
    raise AssertionError("preferences need no places of tokens in the text")


TOKENIZER = TaskTokenizer(encode, no_offsets, str)
RECORDS = [
    {"prompt": "abc", "chosen": "de", "rejected": "xyzw"},
    {"prompt": "b", "chosen": "ddd", "rejected": "d"},
]


def numpy_loss(method: str, policy: np.ndarray, reference: np.ndarray, sizes: np.ndarray) -> float:
    """The mean loss, as the papers write it."""
    losses = []
    for (chosen, rejected), (ref_chosen, ref_rejected), (m_chosen, m_rejected) in zip(
        policy, reference, sizes, strict=True
    ):
        ratio = (chosen - ref_chosen) - (rejected - ref_rejected)
        if method == "dpo":
            losses.append(-np.log(expit(BETA * ratio)))
        elif method == "ipo":
            losses.append((ratio - 1 / (2 * BETA)) ** 2)
        else:
            p_chosen = np.exp(chosen / m_chosen)
            p_rejected = np.exp(rejected / m_rejected)
            odds_ratio = (p_chosen / (1 - p_chosen)) / (p_rejected / (1 - p_rejected))
            losses.append(-np.log(p_chosen) - BETA * np.log(expit(np.log(odds_ratio))))
    return float(np.mean(losses))


@pytest.mark.parametrize("method", ["dpo", "ipo", "orpo"])
def test_losses_and_gradients_equal_the_papers_formulas(method: preference_losses.PreferenceMethod) -> None:
    rng = np.random.default_rng(0)
    policy = -rng.uniform(0.5, 9, (5, 2))
    reference = -rng.uniform(0.5, 9, (5, 2))
    sizes = rng.integers(1, 7, (5, 2)).astype(np.float64)

    def mean_loss(policy: jax.Array) -> jax.Array:
        return preference_losses.preference_losses(method, BETA, policy, reference, sizes).mean()

    with jax.enable_x64(True):
        loss, gradient = jax.value_and_grad(mean_loss)(jnp.asarray(policy))
    assert float(loss) == pytest.approx(numpy_loss(method, policy, reference, sizes), rel=1e-9)
    differences = np.zeros_like(policy)
    for place in np.ndindex(policy.shape):
        step = np.zeros_like(policy)
        step[place] = 1e-6
        above = numpy_loss(method, policy + step, reference, sizes)
        below = numpy_loss(method, policy - step, reference, sizes)
        differences[place] = (above - below) / 2e-6
    np.testing.assert_allclose(gradient, differences, rtol=1e-5, atol=1e-9)


def test_rows_hold_the_prompt_and_one_answer_each_and_weigh_the_answer() -> None:
    (features,) = Preference().examples(RECORDS[0], TOKENIZER, context(8))
    assert features["tokens"].tolist() == [[20, 21, 22, 23, 24, 0, 0, 0], [20, 21, 22, 43, 44, 45, 42, 0]]
    assert features["targets"].tolist() == [[21, 22, 23, 24, 1, 0, 0, 0], [21, 22, 43, 44, 45, 42, 1, 0]]
    assert features["answer_weights"].tolist() == [[0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 0]]


def test_a_long_prompt_loses_its_first_tokens_and_a_long_answer_its_last() -> None:
    record = {"prompt": "abcdef", "chosen": "xy", "rejected": "lmnopqrstuv"}
    (features,) = Preference().examples(record, TOKENIZER, context(5))
    assert features["tokens"].tolist() == [[25, 43, 44, 0, 0], [25, 31, 32, 33, 34]]
    assert features["targets"].tolist() == [[43, 44, 1, 0, 0], [31, 32, 33, 34, 35]]
    assert features["answer_weights"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_both_answers_follow_one_prompt_that_keeps_its_beginning() -> None:
    """Rafailov et al. 2023, equation 7: both are given the same x, cut for the longer of them."""
    record = {"prompt": "abcdef", "chosen": "xyz", "rejected": "l"}
    (features,) = Preference().examples(record, TOKENIZER, context_with_bos(7, "decoder"))
    assert features["tokens"].tolist() == [[BOS, 23, 24, 25, 43, 44, 45], [BOS, 23, 24, 25, 31, 0, 0]]
    assert features["answer_weights"].tolist() == [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "equal"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "`rejected` is empty.*no winner"),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "`chosen` is empty.*no winner"),
        ({"prompt": "a", "chosen": "b", "rejected": [{}]}, "are str, str, list"),
        ({"prompt": [{}], "chosen": [{}], "rejected": [{"a": 1}]}, "messages need a tokenizer with a chat template"),
    ],
)
def test_comparisons_that_teach_nothing_are_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preference().examples(record, TOKENIZER, context(8))


MODEL = ModelConfig(layers=2, embed=16, heads=2, vocab=VOCAB)


def batch() -> dict[str, np.ndarray]:
    examples = [Preference().examples(record, TOKENIZER, context(8))[0] for record in RECORDS]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def brute_force_log_probabilities(spec: Any, params: Any) -> np.ndarray:
    """The log-probabilities of the answers, each text by itself, without padding."""
    model = spec.model(params)
    sums = []
    for record in RECORDS:
        for role in ("chosen", "rejected"):
            prompt = encode(str(record["prompt"]))
            text = np.concatenate([prompt, encode(str(record[role])), [1]])
            logits = model.logits(model(jnp.asarray(text[None, :-1]), key=None))[0]
            logs = jax.nn.log_softmax(logits)[np.arange(len(text) - 1), text[1:]]
            sums.append(float(logs[len(prompt) - 1 :].sum()))
    return np.array(sums).reshape(-1, 2)


@pytest.fixture(scope="module")
def base() -> tuple[Any, dict[str, jax.Array]]:
    return model_spec(MODEL), flatten_names(init_params(MODEL, jax.random.key(0)))


def changed(weights: dict[str, jax.Array], is_changed: Callable[[str], bool]) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(7), len(weights))
    result = {}
    for key, (name, value) in zip(keys, weights.items(), strict=True):
        result[name] = value + 0.3 * jax.random.normal(key, value.shape) if is_changed(name) else value
    return result


@pytest.mark.slow
@pytest.mark.parametrize("method", [LoRA(rank=2), Reference()], ids=["lora", "reference"])
@pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo"])
def test_the_reference_is_the_adapted_base(loss: Any, method: Any, base: tuple[Any, dict[str, jax.Array]]) -> None:
    base_spec, base_weights = base
    spec = model_spec(MODEL, method.surgery)
    fresh = flatten_names(init_params(MODEL, jax.random.key(1), method.surgery))
    weights = method.initial_weights(base_weights, fresh, ModelPair(MODEL, MODEL))
    assert weights.keys() == fresh.keys()
    assert method.keeps_base
    trained = changed(weights, lambda name: method.first_trained_repeat(name, MODEL) == 0)

    merged = method.merged_weights(trained)
    assert merged is not None
    assert merged.keys() == base_weights.keys()
    policy = brute_force_log_probabilities(base_spec, unflatten_names(merged))
    reference = brute_force_log_probabilities(base_spec, unflatten_names(base_weights))
    sizes = np.array([[3.0, 5.0], [4.0, 2.0]])
    objective = Preference(method=loss, beta=BETA)

    terms = objective.loss(spec.model(unflatten_names(trained)), batch(), None, LossSettings(VOCAB))
    assert float(terms["loss"].loss) / 2 == pytest.approx(numpy_loss(loss, policy, reference, sizes), rel=2e-4)
    chunked = objective.loss(spec.model(unflatten_names(trained)), batch(), None, LossSettings(VOCAB, chunks=4))
    assert float(chunked["loss"].loss) == pytest.approx(float(terms["loss"].loss), rel=1e-5)
    rewards = BETA * (policy / sizes if loss == "orpo" else policy - reference)
    scores = objective.scores(spec.model(unflatten_names(trained)), batch())["scores"]
    np.testing.assert_allclose(scores, rewards, rtol=1e-3, atol=1e-4)
    means = terms["loss"].means("loss")
    assert float(means["reward_margin"]) == pytest.approx(float((rewards[:, 0] - rewards[:, 1]).mean()), abs=1e-4)
    assert float(means["accuracy"]) == (rewards[:, 0] > rewards[:, 1]).mean()


@pytest.mark.parametrize(
    "method",
    [LoRA(), LoRA(trainable="tokens"), IA3(), Pfeiffer(), Houlsby()],
    ids=["lora", "lora with embeddings", "ia3", "pfeiffer", "houlsby"],
)
def test_a_method_keeps_the_reference_if_none_of_its_weights_train(method: Any, base: tuple[Any, Any]) -> None:
    """Houlsby's adapters train with all norms, LoRA's matrices with what `trainable` names: the base is then gone."""
    trained = [name for name in base[1] if method.first_trained_repeat(name, MODEL) is not None]
    assert method.keeps_base == (not trained)
    assert bool(trained) == (method == LoRA(trainable="tokens") or isinstance(method, Houlsby))


@pytest.mark.slow
def test_no_gradient_reaches_the_reference(base: tuple[Any, dict[str, jax.Array]]) -> None:
    method = Reference()
    spec = model_spec(MODEL, method.surgery)
    fresh = flatten_names(init_params(MODEL, jax.random.key(1), method.surgery))
    weights = changed(method.initial_weights(base[1], fresh, ModelPair(MODEL, MODEL)), lambda name: True)

    def loss(weights: dict[str, jax.Array]) -> jax.Array:
        model = spec.model(unflatten_names(weights))
        return Preference().loss(model, batch(), None, LossSettings(VOCAB))["loss"].total

    for name, gradient in jax.jit(jax.grad(loss))(weights).items():
        assert bool((gradient != 0).any()) != name.startswith("reference."), name


def test_the_first_dpo_loss_is_log_2(base: tuple[Any, dict[str, jax.Array]]) -> None:
    method = LoRA()
    spec = model_spec(MODEL, method.surgery)
    fresh = flatten_names(init_params(MODEL, jax.random.key(1), method.surgery))
    weights = method.initial_weights(base[1], fresh, ModelPair(MODEL, MODEL))
    terms = Preference().loss(spec.model(unflatten_names(weights)), batch(), None, LossSettings(VOCAB))
    assert float(terms["loss"].loss) / 2 == pytest.approx(np.log(2), abs=1e-5)


def test_a_prompt_begins_with_bos_unless_a_chat_template_writes_it() -> None:
    (features,) = Preference().examples(RECORDS[0], TOKENIZER, context_with_bos(8, "decoder"))
    assert features["tokens"][0].tolist() == [BOS, 20, 21, 22, 23, 24, 0, 0]
    assert features["targets"][0].tolist() == [20, 21, 22, 23, 24, 1, 0, 0]
