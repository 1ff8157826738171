"""Mixture-of-Experts against loops over tokens and experts, written from the papers."""

import math
import re
from collections.abc import Iterator
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import print_saved_residuals
from jax.experimental.pallas.ops.tpu.megablox import ops
from jaxtyping import Bool, Float, Int, PyTree

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.activity import RouterActivity, RouterLoss, router_loss
from t5x_lite.models.experts.layer import MixtureOfExperts
from t5x_lite.models.experts.routers import DeepSeek, GShard, Switch, TopK
from t5x_lite.models.experts.sorted_dispatch import GROUPED_PRODUCTS
from t5x_lite.models.remat import rematerialised
from t5x_lite.models.spec import ModelSpec, init_params, model_spec

Settings: TypeAlias = dict[str, object]

EXPERTS = 4
EMBED = 8
ROWS = 3
LENGTH = 10
IS_TOKEN = np.arange(LENGTH) < np.array([[LENGTH], [7], [3]])
"""The positions of each row that are not padding."""
LAYER_SIZES = {"layers": 2, "embed": EMBED, "heads": 2, "vocab": 8, "mlp": 12}
ROUTERS: dict[str, Settings] = {"switch": {}, "gshard": {}, "top_k": {"k": 2}, "deepseek": {"k": 2}}
CHOICES = {"switch": 1, "gshard": 2, "top_k": 2, "deepseek": 2}
"""Experts of a token, by router."""


def create_layer(moe: Settings, **model: object) -> MixtureOfExperts:
    settings = {**LAYER_SIZES, **model, "feedforward": {"moe": {"experts": EXPERTS, **moe}}}
    config = ModelConfig.model_validate(settings)
    return MixtureOfExperts(config, config.mixtures[0], rngs=nnx.Rngs(params=0))


def random_layer(moe: Settings) -> MixtureOfExperts:
    """Return a layer whose weights and biases are all random."""
    layer = create_layer(moe)
    rng = np.random.default_rng(0)
    for weight in jax.tree.leaves(nnx.state(layer), is_leaf=lambda leaf: isinstance(leaf, nnx.Param)):
        weight.set_value(jnp.asarray(rng.normal(size=weight.shape), jnp.float32) * 0.5)
    nnx.update(layer, nnx.state(layer))
    return layer


def random_states(shift: float = 0.0) -> Float[jax.Array, "b l d"]:
    """Return the inputs of a layer. With a shift, most tokens are routed to the same experts."""
    states = np.random.default_rng(1).normal(size=(ROWS, LENGTH, EMBED)) + shift
    return jnp.asarray(states, jnp.float32)


def apply_expert(layer: MixtureOfExperts, x: Float[np.ndarray, "d"], expert: int) -> Float[np.ndarray, "d"]:
    up = layer.experts.up
    down = layer.experts.down
    inner = x @ np.asarray(up.weight[...])[expert] + np.asarray(up.bias[...])[expert]
    inner = np.asarray(jax.nn.gelu(jnp.asarray(inner), approximate=True))
    return inner @ np.asarray(down.weight[...])[expert] + np.asarray(down.bias[...])[expert]


def router_weight(layer: MixtureOfExperts) -> Float[np.ndarray, "d e"]:
    return np.asarray(layer.router.weight[...])


def softmax(logits: Float[np.ndarray, "e"]) -> Float[np.ndarray, "e"]:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def softmax_rows(logits: Float[np.ndarray, "l e"]) -> Float[np.ndarray, "l e"]:
    return np.array([softmax(row) for row in logits])


def sigmoid(logits: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return 1 / (1 + np.exp(-logits))


def choose_experts(
    router: str, logits: Float[np.ndarray, "e"], bias: Float[np.ndarray, "e"]
) -> list[tuple[int, float]]:
    """Return the experts of one token in evaluation, the first choice first, with their weights."""
    probabilities = softmax(logits)
    best = np.argsort(-probabilities, kind="stable")
    match router:
        case "switch":
            return [(best[0], probabilities[best[0]])]
        case "gshard":
            both = probabilities[best[:2]].sum()
            return [(expert, probabilities[expert] / both) for expert in best[:2]]
        case "top_k":
            weights = softmax(logits[best[:2]])
            return [(best[0], weights[0]), (best[1], weights[1])]
        case "deepseek":
            scores = sigmoid(logits)
            best = np.argsort(-(scores + bias), kind="stable")[:2]
            return [(expert, scores[expert] / scores[best].sum()) for expert in best]
    raise AssertionError(router)


def dispatch_by_loop(
    layer: MixtureOfExperts, x: Float[np.ndarray, "b l d"], router: str, capacity: float
) -> tuple[Float[np.ndarray, "b l d"], int]:
    """Return the outputs and the number of dropped choices.

    Each row has its own capacity. All first choices of a row come before all second ones, each in the order of the
    tokens.
    """
    logits = x @ router_weight(layer)
    bias = np.zeros(EXPERTS)
    if layer.bias is not None:
        bias = np.asarray(layer.bias[...])
    output = np.zeros_like(x)
    dropped = 0
    for row in range(ROWS):
        load = [0] * EXPERTS
        for rank in range(CHOICES[router]):
            for position in np.flatnonzero(IS_TOKEN[row]):
                expert, weight = choose_experts(router, logits[row, position], bias)[rank]
                load[expert] += 1
                if load[expert] <= capacity:
                    output[row, position] += weight * apply_expert(layer, x[row, position], expert)
                else:
                    dropped += 1
    return output, dropped


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize(
    ("dispatch", "capacity", "shift"),
    [
        ({"capacity": {"factor": 4.0}}, math.inf, 0.0),
        ({"capacity": {"tokens": 2}}, 2, 0.0),
        ("dropless", math.inf, 0.0),
        ("dropless", math.inf, 3.0),
        ({"dropless": {"kernel": "ragged"}}, math.inf, 3.0),
    ],
    ids=["enough capacity", "capacity of two tokens", "dropless", "dropless, uneven", "ragged, uneven"],
)
def test_dispatch_equals_a_loop_over_tokens(
    router: str, dispatch: str | Settings, capacity: float, shift: float
) -> None:
    """With and without enough capacity; with even loads, and uneven ones that overflow the dropless buffers."""
    layer = random_layer({"router": {router: ROUTERS[router]}, "dispatch": dispatch})
    x = random_states(shift)
    graph, weights = nnx.split(layer)

    @jax.jit
    def apply_layer(x: Float[jax.Array, "b l d"]) -> Float[jax.Array, "b l d"]:
        return nnx.merge(graph, weights)(x, jnp.asarray(IS_TOKEN), None)

    expected, expected_dropped = dispatch_by_loop(layer, np.asarray(x), router, capacity)
    np.testing.assert_allclose(apply_layer(x), expected, atol=1e-5, rtol=1e-5)
    assert float(record_activity(layer, x).dropped.sum()) == expected_dropped
    if capacity == 2:
        assert expected_dropped


def interpreted_megablox(
    x: Float[jax.Array, "n d"], matrices: Float[jax.Array, "e d f"], sizes: Int[jax.Array, "e"]
) -> Float[jax.Array, "n f"]:
    return ops.gmm(x, matrices, sizes, x.dtype, interpret=True)


DISPATCHES: dict[str, str | Settings] = {
    "capacity": {"capacity": {"factor": 4.0}},
    "dropless": "dropless",
    "ragged": {"dropless": {"kernel": "ragged"}},
    "megablox": {"dropless": {"kernel": "ragged"}},
}


@pytest.mark.parametrize("expert", ["mlp", "glu"])
@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_gradients_equal_those_of_computing_every_expert_on_every_token(
    expert: str, dispatch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients of weights, router and inputs. The uneven loads make dropless dispatch take its slow path.

    The interpreter of the TPU's kernel leaves rows without an expert undefined (nan), as the kernel does.
    """
    if dispatch == "megablox":
        monkeypatch.setitem(GROUPED_PRODUCTS, "ragged", interpreted_megablox)
    moe = {"router": {"top_k": {"k": 2}}, "dispatch": DISPATCHES[dispatch], "expert": expert}
    x = random_states(shift=2.0)
    graph, params = nnx.split(random_layer(moe))

    def loss_of(output: Float[jax.Array, "b l d"]) -> Float[jax.Array, ""]:
        return jnp.sum(jnp.sin(output / 20))

    def sparse_loss(params: PyTree, x: Float[jax.Array, "b l d"]) -> Float[jax.Array, ""]:
        return loss_of(nnx.merge(graph, params)(x, jnp.asarray(IS_TOKEN), None))

    def dense_loss(params: PyTree, x: Float[jax.Array, "b l d"]) -> Float[jax.Array, ""]:
        layer = nnx.merge(graph, params)
        assignment = layer.moe.router.choose_experts(layer.router(x), None, None)
        outputs = layer.experts(jnp.broadcast_to(x, (EXPERTS, *x.shape)), None)
        weights = jnp.zeros((ROWS, LENGTH, EXPERTS))
        for rank in range(2):
            is_chosen = assignment.experts[..., rank, None] == jnp.arange(EXPERTS)
            weights += assignment.weights[..., rank, None] * is_chosen
        return loss_of(jnp.einsum("ebld,ble->bld", outputs, weights * IS_TOKEN[..., None]))

    gradients = jax.jit(jax.grad(sparse_loss, (0, 1)))(params, x)
    expected_gradients = jax.jit(jax.grad(dense_loss, (0, 1)))(params, x)
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True)
    for gradient, expected_gradient in pairs:
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5, rtol=1e-5)


def test_of_the_rounds_of_dropless_dispatch_only_the_products_of_the_first_are_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With `remat: dots`: in buffers of 1.25 · 30 · 2 / 4, rounded up to 19 places, for each of four experts."""
    layer = random_layer({"router": {"top_k": {"k": 2}}, "dispatch": "dropless"})
    graph, weights = nnx.split(layer)

    def apply_layer(x: Float[jax.Array, "b l d"], weights: PyTree) -> tuple[Float[jax.Array, "b l d"], None]:
        return nnx.merge(graph, weights)(x, jnp.asarray(IS_TOKEN), None), None

    print_saved_residuals(rematerialised(apply_layer, "dots"), random_states(), weights)
    kept = re.findall(r"^f32\[([\d,]+)\] (?:output of|named)", capsys.readouterr().out, re.MULTILINE)
    logits = f"{ROWS},{LENGTH},{EXPERTS}"
    assert sorted(kept) == sorted([logits, f"{EXPERTS},1,19,12", f"{EXPERTS},1,19,{EMBED}"])


def test_with_expert_choice_each_expert_takes_its_most_probable_tokens() -> None:
    """Zhou et al. 2022, §3.2: k = n·c/e; a token's output is the sum over the experts that took it."""
    layer = create_layer({"router": {"expert_choice": {"average": 1.2}}}, family="encoder")
    x = np.asarray(random_states())
    output = layer(jnp.asarray(x), jnp.asarray(IS_TOKEN), None)
    capacity = math.ceil(LENGTH * 1.2 / EXPERTS)
    expected = np.zeros_like(x)
    for row in range(ROWS):
        probabilities = softmax_rows(x[row] @ router_weight(layer))
        probabilities[~IS_TOKEN[row]] = -1
        for expert in range(EXPERTS):
            for position in np.argsort(-probabilities[:, expert], kind="stable")[:capacity]:
                weight = max(probabilities[position, expert], 0)
                expected[row, position] += weight * apply_expert(layer, x[row, position], expert)
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_gshard_uses_the_second_expert_with_twice_its_weight_as_probability() -> None:
    """Lepikhin et al. 2021, Algorithm 1: with probability 2·g2 in training, and always in evaluation."""
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.7, 0.1, 0.15, 0.05])), (1, 20000, 4))
    training = GShard().choose_experts(logits, None, jax.random.key(0))
    second_weight = 0.15 / 0.85
    np.testing.assert_allclose(training.weights[0, 0], [1 - second_weight, second_weight], rtol=1e-5)
    second_experts = np.asarray(training.experts[..., 1])
    assert float((second_experts == 2).mean()) == pytest.approx(2 * second_weight, abs=0.01)
    unused = EXPERTS
    assert set(np.unique(second_experts)) == {2, unused}
    evaluation = GShard().choose_experts(logits, None, None)
    assert int(evaluation.experts[0, 0, 1]) == 2


def record_activity(layer: MixtureOfExperts, x: Float[jax.Array, "b l d"]) -> RouterActivity:
    """Return what a layer has recorded of its router, with the leading axis of a stack of one layer."""
    layer(x, jnp.asarray(IS_TOKEN), None)
    return jax.tree.map(lambda leaf: leaf[None], layer.activity.get_value())


def logits_of_rows(layer: MixtureOfExperts, x: Float[jax.Array, "b l d"]) -> Iterator[Float[np.ndarray, "t e"]]:
    """Yield the router's logits for the tokens of each row, without padding."""
    for row in range(ROWS):
        yield np.asarray(x[row])[IS_TOKEN[row]] @ router_weight(layer)


def test_the_balance_loss_and_z_loss_of_switch_are_those_of_the_paper() -> None:
    """Fedus et al. 2022, equations 4 to 6, for each row; Zoph et al. 2022, equation 5."""
    x = random_states()
    layer = random_layer({"router": "switch"})
    losses = []
    squared_log_z = []
    for logits in logits_of_rows(layer, x):
        probabilities = softmax_rows(logits)
        token_shares = np.bincount(probabilities.argmax(1), minlength=EXPERTS) / len(probabilities)
        losses.append(EXPERTS * (token_shares * probabilities.mean(0)).sum())
        squared_log_z.extend(np.log(np.exp(logits).sum(1)) ** 2)
    activity = record_activity(layer, x)
    assert float(Switch().balance_loss(activity)) == pytest.approx(np.mean(losses), rel=1e-5)
    z_loss = float(activity.squared_log_z.sum() / activity.tokens.sum())
    assert z_loss == pytest.approx(np.mean(squared_log_z), rel=1e-5)


def test_the_balance_loss_of_top_k_is_that_of_mixtrals_code() -> None:
    """Over the whole batch; the share of an expert counts first and second choices."""
    x = random_states()
    layer = random_layer({"router": {"top_k": {"k": 2}}})
    probabilities = softmax_rows(np.concatenate(list(logits_of_rows(layer, x))))
    choices = np.argsort(-probabilities, axis=1)[:, :2]
    choices_per_token = np.bincount(choices.ravel(), minlength=EXPERTS) / len(probabilities)
    loss = EXPERTS * (choices_per_token * probabilities.mean(0)).sum()
    assert float(TopK().balance_loss(record_activity(layer, x))) == pytest.approx(loss, rel=1e-5)


def test_the_balance_loss_of_deepseek_is_that_of_the_paper() -> None:
    """DeepSeek-V3, equations 17 to 20, for each row."""
    x = random_states()
    layer = random_layer({"router": {"deepseek": {"k": 2}}})
    losses = []
    for logits in logits_of_rows(layer, x):
        scores = sigmoid(logits)
        choices = np.argsort(-(scores + np.asarray(layer.bias[...])), axis=1)[:, :2]
        choices_per_token = np.bincount(choices.ravel(), minlength=EXPERTS) / len(scores)
        mean_scores = (scores / scores.sum(1, keepdims=True)).mean(0)
        losses.append((EXPERTS / 2 * choices_per_token * mean_scores).sum())
    balance_loss = float(DeepSeek(k=2).balance_loss(record_activity(layer, x)))
    assert balance_loss == pytest.approx(np.mean(losses), rel=1e-5)


TOKENS = jnp.arange(20).reshape(2, 10) % 11
MOE_LAYER = "decoder.stack.layers.1.feedforward"


def small_model(router: str) -> tuple[ModelConfig, ModelSpec, PyTree]:
    """Return a decoder of four layers with fresh weights; the second and the fourth layer have experts."""
    feedforward = {"moe": {"experts": EXPERTS, "router": {router: ROUTERS[router]}}}
    settings = {"layers": 4, "embed": 16, "heads": 2, "vocab": 11, "pattern": [{}, {"feedforward": feedforward}]}
    config = ModelConfig.model_validate(settings)
    return config, model_spec(config), init_params(config, jax.random.key(0))


@pytest.mark.parametrize("router", ROUTERS)
def test_the_metrics_of_routers_follow_from_the_loads_of_the_experts(router: str) -> None:
    config, spec, params = small_model(router)

    @jax.jit
    def compute_router_loss(params: PyTree) -> RouterLoss | None:
        model = spec.model(params)
        model(TOKENS, key=jax.random.key(0))
        return router_loss(model, config)

    loss = compute_router_loss(params)
    metrics = {name: np.asarray(value) for name, value in loss.means("router").items()}
    loads = loss.loads[MOE_LAYER]
    assert loads.shape == (2, EXPERTS)
    shares = np.asarray(loads / loads.sum(1, keepdims=True))
    entropies = []
    for layer_shares in shares:
        used_shares = layer_shares[layer_shares > 0]
        entropies.append(-(used_shares * np.log(used_shares)).sum() / math.log(EXPERTS))
    assert metrics["expert_load_entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert metrics["expert_load_max"] == pytest.approx(EXPERTS * shares.max(1).mean(), rel=1e-5)
    np.testing.assert_allclose(metrics["expert_load"], shares.mean(0), rtol=1e-5)
    balance_weight = config.mixtures[0].router.balance
    assert float(loss.total) == pytest.approx(balance_weight * metrics["router_balance_loss"], rel=1e-5)


def random_activity(seed: int) -> RouterActivity:
    """Return the activity of two layers on three rows, the last of which is all padding."""
    rng = np.random.default_rng(seed)
    is_row = np.array([1.0, 1.0, 0.0])
    arrays = {name: rng.uniform(1, 9, (2, 3, 2)) * is_row[:, None] for name in ("counted", "probability", "sent")}
    arrays["dropped"] = np.zeros((2, 3))
    arrays["squared_log_z"] = rng.uniform(1, 9, (2, 3)) * is_row
    arrays["tokens"] = np.array([[10.0, 7.0, 0.0]] * 2)
    return RouterActivity(**{name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()})


@pytest.mark.parametrize("over", ["row", "batch", "model"])
def test_the_losses_of_routers_are_summed_over_layers(over: str) -> None:
    """Two experts: each balance loss is 2 · Σ f·p (Fedus et al. 2022, equation 4); the z-loss is a mean over tokens."""
    router = {"top_k": {"k": 1, "over": over, "balance": 0.5, "z_loss": 0.25}}
    pattern = [{"feedforward": {"moe": {"experts": 2, "router": router}}}] * 2
    config = ModelConfig.model_validate({**LAYER_SIZES, "layers": 4, "pattern": pattern})
    spec = model_spec(config)
    model = spec.model(spec.shapes)
    activities = [random_activity(seed) for seed in (0, 1)]
    model.decoder.stack.activity = nnx.Intermediate({str(n): activity for n, activity in enumerate(activities)})
    loss = router_loss(model, config)

    layers = [jax.tree.map(lambda array, r=r: np.asarray(array)[r], a) for a in activities for r in range(2)]
    z_loss = sum((layer.squared_log_z[0] + layer.squared_log_z[1]) / 17 for layer in layers)
    if over == "row":
        balance = 0.0
        for layer in layers:
            rows = [2 * (layer.counted[row] * layer.probability[row]).sum() / layer.tokens[row] ** 2 for row in (0, 1)]
            balance += np.mean(rows)
    elif over == "batch":
        balance = sum(2 * (layer.counted.sum(0) * layer.probability.sum(0)).sum() / 17**2 for layer in layers)
    else:
        counted = sum(layer.counted.sum(0) for layer in layers)
        probability = sum(layer.probability.sum(0) for layer in layers)
        balance = 2 * (counted * probability).sum() / (4 * 17) ** 2
    assert float(loss.balance) == pytest.approx(balance, rel=1e-5)
    assert float(loss.z_loss) == pytest.approx(z_loss, rel=1e-5)
    assert float(loss.total) == pytest.approx(0.5 * balance + 0.25 * z_loss, rel=1e-5)


@partial(jax.jit, static_argnums=0)
def apply_with_activity(
    graph: nnx.GraphDef, weights: PyTree, x: jax.Array, is_token: jax.Array, key: jax.Array | None
) -> tuple[jax.Array, RouterActivity]:
    """Return the outputs of a layer, and the activity of its router."""
    layer = nnx.merge(graph, weights)
    outputs = layer(x, is_token, key)
    return outputs, layer.activity.get_value()


def test_evaluation_has_a_capacity_of_its_own() -> None:
    """Of ten tokens and four experts: 0.4 · 10 / 4 is one token in training, and 0.8 · 10 / 4 two in evaluation."""
    capacity = {"capacity": {"factor": 0.4, "eval_factor": 0.8}}
    layer = random_layer({"router": {"switch": {"jitter": 0.0}}, "dispatch": capacity})
    x = random_states()
    for key, tokens in ((jax.random.key(0), 1), (None, 2)):
        expected, expected_dropped = dispatch_by_loop(layer, np.asarray(x), "switch", tokens)
        outputs, activity = apply_with_activity(*nnx.split(layer), x, jnp.asarray(IS_TOKEN), key)
        np.testing.assert_allclose(outputs, expected, atol=1e-5, rtol=1e-5)
        assert float(activity.dropped.sum()) == expected_dropped > 0


def test_jitter_changes_what_the_router_of_switch_sees_and_not_what_the_expert_sees() -> None:
    """Fedus et al. 2022, §2.4. The logits are u, 0, 0, 0 with u = x0 · noise = noise, and log Z is log(e^u + 3)."""
    layer = random_layer({"router": {"switch": {"jitter": 0.2}}})
    layer.router.weight[...] = jnp.zeros((EMBED, EXPERTS)).at[0, 0].set(1)
    x = jnp.ones((200, 1, EMBED))
    expert_output = apply_expert(layer, np.ones(EMBED, np.float32), 0)

    def noise_and_outputs(key: jax.Array | None) -> tuple[Float[np.ndarray, "b"], Float[np.ndarray, "b d"]]:
        outputs, activity = apply_with_activity(*nnx.split(layer), x, jnp.ones((200, 1), bool), key)
        log_z = np.sqrt(np.asarray(activity.squared_log_z, np.float64))
        return np.log(np.exp(log_z) - 3), np.asarray(outputs)[:, 0]

    noise, outputs = noise_and_outputs(jax.random.key(0))
    assert noise.min() > 0.8 - 1e-4
    assert noise.max() < 1.2 + 1e-4
    # The variance of a uniform number between 0.8 and 1.2 is 0.4² / 12.
    assert noise.std() == pytest.approx(0.4 / math.sqrt(12), rel=0.1)
    probability = np.exp(noise) / (np.exp(noise) + 3)
    np.testing.assert_allclose(outputs, probability[:, None] * expert_output, rtol=1e-3, atol=1e-5)
    noise, _ = noise_and_outputs(None)
    np.testing.assert_allclose(noise, 1, atol=1e-4)


def bias_of(params: PyTree) -> Float[jax.Array, "repeats e"]:
    return params["decoder"]["stack"]["layers"]["1"]["feedforward"]["bias"]


def test_biases_of_routers_move_against_the_load_and_have_no_gradient() -> None:
    """DeepSeek-V3, §2.1.2: an expert above the mean load is lowered by the update speed, one below is raised."""
    config, spec, params = small_model("deepseek")

    def loss_fn(params: PyTree) -> tuple[Float[jax.Array, ""], RouterLoss | None]:
        model = spec.model(params)
        total = jnp.sum(model(TOKENS))
        return total, router_loss(model, config)

    grads, loss = jax.jit(jax.grad(loss_fn, has_aux=True))(params)
    assert float(jnp.abs(bias_of(grads)).max()) == 0
    loads = np.asarray(loss.loads[MOE_LAYER])
    expected_change = 0.001 * np.sign(loads.mean(1, keepdims=True) - loads)
    change = bias_of(loss.update_biases(params)) - bias_of(params)
    np.testing.assert_allclose(change, expected_change, atol=1e-9)
    # Where the first layers are frozen, `params` has the biases of the last ones alone.
    trained = jax.tree.map(lambda array: array, params)
    trained["decoder"]["stack"]["layers"]["1"]["feedforward"]["bias"] = bias_of(params)[-1:]
    change = bias_of(loss.update_biases(trained)) - bias_of(trained)
    np.testing.assert_allclose(change, expected_change[-1:], atol=1e-9)


def test_the_memory_of_dispatch_grows_linearly_with_the_tokens() -> None:
    """As XLA counts it: a one-hot of [tokens, experts, capacity] would grow with the square."""
    layer = random_layer({"router": "switch", "dispatch": {"capacity": {"group": "batch"}}})
    graph, params = nnx.split(layer)

    def gradient_function(is_token: Bool[jax.Array, "1 l"]) -> jax.stages.Wrapped:
        def total(params: PyTree, x: Float[jax.Array, "1 l d"]) -> Float[jax.Array, ""]:
            return nnx.merge(graph, params)(x, is_token, None).sum()

        return jax.jit(jax.grad(total, (0, 1)))

    def temporary_bytes(length: int) -> int:
        x = jax.ShapeDtypeStruct((1, length, EMBED), jnp.float32)
        gradient = gradient_function(jnp.ones((1, length), bool))
        return gradient.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8192) < 2.2 * temporary_bytes(4096)
