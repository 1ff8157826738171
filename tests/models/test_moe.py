"""Mixture-of-Experts against a loop over tokens and experts, written from the papers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.activity import router_loss
from t5x_lite.models.experts.layer import MixtureOfExperts
from t5x_lite.models.experts.routers import DeepSeek, GShard, Switch, TopK
from t5x_lite.models.spec import init_params, model_spec

EXPERTS, WIDTH, ROWS, LENGTH = 4, 8, 3, 10
REAL = np.arange(LENGTH) < np.array([LENGTH, 7, 3])[:, None]


def layer(expert: str = "mlp", bias: bool = True, **settings: Any) -> Any:
    sizes = {"layers": 2, "embed": WIDTH, "heads": 2, "vocab": 8, "mlp": 12, "bias": bias}
    feedforward = {"moe": {"experts": EXPERTS, "expert": expert, **settings}}
    config = ModelConfig.model_validate({**sizes, "feedforward": feedforward})
    made = MixtureOfExperts(config, config.mixtures[0], rngs=nnx.Rngs(params=0))
    rng = np.random.default_rng(0)
    for weight in jax.tree.leaves(nnx.state(made), is_leaf=lambda leaf: isinstance(leaf, nnx.Param)):
        weight.set_value(jnp.asarray(rng.normal(size=weight.shape), jnp.float32) * 0.5)
    nnx.update(made, nnx.state(made))
    return made


def inputs(skew: float = 0.0) -> jax.Array:
    """`skew` sends all tokens one way."""
    return jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, LENGTH, WIDTH)) + skew, jnp.float32)


def one_expert(made: Any, x: np.ndarray, e: int) -> np.ndarray:
    up, down = made.experts.up, made.experts.down
    inner = x @ np.asarray(up.weight[...])[e] + (0 if up.bias is None else np.asarray(up.bias[...])[e])
    inner = np.asarray(jax.nn.gelu(jnp.asarray(inner), approximate=True))
    return inner @ np.asarray(down.weight[...])[e] + (0 if down.bias is None else np.asarray(down.bias[...])[e])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def choices(router: str, logits: np.ndarray, bias: np.ndarray) -> list[tuple[int, float]]:
    """Experts of one token in order, and their weights, in evaluation."""
    p = softmax(logits)
    best = np.argsort(-p, kind="stable")
    match router:
        case "switch":
            return [(best[0], p[best[0]])]
        case "gshard":
            return [(e, p[e] / (p[best[0]] + p[best[1]])) for e in best[:2]]
        case "top_k":
            own = softmax(logits[best[:2]])
            return [(best[0], own[0]), (best[1], own[1])]
        case "deepseek":
            s = 1 / (1 + np.exp(-logits))
            best = np.argsort(-(s + bias), kind="stable")[:2]
            return [(e, s[e] / s[best].sum()) for e in best]
    raise AssertionError(router)


def by_hand(made: Any, x: np.ndarray, router: str, room: float) -> tuple[np.ndarray, int]:
    """Rows by themselves: all first choices in order, then all second ones, as long as there is room."""
    logits = x @ np.asarray(made.router.weight[...])
    bias = np.zeros(EXPERTS) if made.bias is None else np.asarray(made.bias[...])
    out, dropped = np.zeros_like(x), 0
    for b in range(ROWS):
        taken = [0] * EXPERTS
        for rank in range(1 if router == "switch" else 2):
            for t in range(LENGTH):
                if not REAL[b, t]:
                    continue
                e, weight = choices(router, logits[b, t], bias)[rank]
                taken[e] += 1
                if taken[e] <= room:
                    out[b, t] += weight * one_expert(made, x[b, t], e)
                else:
                    dropped += 1
    return out, dropped


ROUTERS: dict[str, Any] = {"switch": {}, "gshard": {}, "top_k": {"k": 2}, "deepseek": {"k": 2}}


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize(
    ("dispatch", "room", "skew"),
    [
        ({"capacity": {"factor": 4.0}}, math.inf, 0.0),
        ({"capacity": {"tokens": 2}}, 2, 0.0),
        ("dropless", math.inf, 0.0),
        ("dropless", math.inf, 3.0),
        ({"dropless": {"kernel": "ragged"}}, math.inf, 3.0),
    ],
    ids=["capacity", "two places", "dropless", "dropless, skewed", "ragged, skewed"],
)
def test_dispatch_equals_a_loop_over_tokens(router: str, dispatch: Any, room: float, skew: float) -> None:
    """Where room suffices and where not; even loads, and a skewed one that overflows the dropless buffers."""
    made, x = layer(router={router: ROUTERS[router]}, dispatch=dispatch), inputs(skew)
    found = jax.jit(lambda x: made_again(made)(x, jnp.asarray(REAL), None))(x)
    expected, dropped = by_hand(made, np.asarray(x), router, room)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    made(x, jnp.asarray(REAL), None)
    assert float(made.activity.get_value().dropped.sum()) == dropped
    if room == 2:
        assert dropped


def made_again(made: Any) -> Any:
    return nnx.merge(*nnx.split(made))


@pytest.mark.parametrize("expert", ["mlp", "glu"])
@pytest.mark.parametrize("dispatch", ["capacity", "dropless", "ragged"])
def test_gradients_equal_those_of_every_expert_on_every_token(expert: str, dispatch: Any) -> None:
    """Of weights, of the router and of the input; the skew makes dropless take its slow path."""
    settings = {"capacity": {"capacity": {"factor": 4.0}}, "ragged": {"dropless": {"kernel": "ragged"}}}
    made = layer(expert, router={"top_k": {"k": 2}}, dispatch=settings.get(dispatch, dispatch))
    x = inputs(2.0)
    graph, params = nnx.split(made)

    def sparse(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(nnx.merge(graph, params)(x, jnp.asarray(REAL), None) / 20))

    def naive(params: Any, x: jax.Array) -> jax.Array:
        module = nnx.merge(graph, params)
        assignment = module.moe.router.choose_experts(module.router(x), None, None)
        experts, weights = assignment.experts, assignment.weights
        every = module.experts(jnp.broadcast_to(x, (EXPERTS, *x.shape)), None)
        share = sum(weights[..., n, None] * (experts[..., n, None] == jnp.arange(EXPERTS)) for n in range(2))
        return jnp.sum(jnp.sin(jnp.einsum("ebld,ble->bld", every, share * REAL[..., None]) / 20))

    found, expected = (jax.jit(jax.grad(f, (0, 1)))(params, x) for f in (sparse, naive))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)


def test_an_expert_that_chooses_takes_the_tokens_it_likes_best() -> None:
    """Zhou et al. 2022, §3.2: k = n·c/e; a token's output is the sum over the experts that took it."""
    sizes = {"layers": 2, "embed": WIDTH, "heads": 2, "vocab": 8, "mlp": 12, "family": "encoder"}
    feedforward = {"moe": {"experts": EXPERTS, "router": {"expert_choice": {"average": 1.2}}}}
    config = ModelConfig.model_validate({**sizes, "feedforward": feedforward})
    made = MixtureOfExperts(config, config.mixtures[0], rngs=nnx.Rngs(params=0))
    x = np.asarray(inputs())
    found = made(jnp.asarray(x), jnp.asarray(REAL), None)
    room, expected = math.ceil(LENGTH * 1.2 / EXPERTS), np.zeros_like(x)
    for b in range(ROWS):
        p = np.array([softmax(row) for row in x[b] @ np.asarray(made.router.weight[...])])
        p[~REAL[b]] = -1
        for e in range(EXPERTS):
            for t in np.argsort(-p[:, e], kind="stable")[:room]:
                expected[b, t] += max(p[t, e], 0) * one_expert(made, x[b, t], e)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gshard_sends_to_its_second_expert_in_proportion() -> None:
    """Lepikhin et al. 2021, Algorithm 1: with probability 2·g2; in evaluation always."""
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.7, 0.1, 0.15, 0.05])), (1, 20000, 4))
    assignment = GShard().choose_experts(logits, None, jax.random.key(0))
    experts, weights = assignment.experts, assignment.weights
    second = 0.15 / 0.85
    np.testing.assert_allclose(weights[0, 0], [1 - second, second], rtol=1e-5)
    assert float((experts[..., 1] == 2).mean()) == pytest.approx(2 * second, abs=0.01)
    assert set(np.unique(experts[..., 1])) == {2, 4}
    assert int(GShard().choose_experts(logits, None, None).experts[0, 0, 1]) == 2


def seen_of(made: Any, x: Any) -> Any:
    made(x, jnp.asarray(REAL), None)
    return jax.tree.map(lambda leaf: leaf[None], made.activity.get_value())


def test_losses_are_the_published_formulas() -> None:
    """Fedus et al. 2022, equations 4-6, of each row; Mixtral's code, of the batch, f over both choices; Zoph et al.
    2022, equation 5; DeepSeek-V3, equations 17-20."""
    x = inputs()
    switch, top, deep = (layer(router={name: ROUTERS[name]}) for name in ("switch", "top_k", "deepseek"))

    def probabilities(made: Any, b: int) -> np.ndarray:
        return np.array([softmax(row) for row in np.asarray(x[b])[REAL[b]] @ np.asarray(made.router.weight[...])])

    rows = []
    for b in range(ROWS):
        p = probabilities(switch, b)
        f = np.bincount(p.argmax(1), minlength=EXPERTS) / len(p)
        rows.append(EXPERTS * (f * p.mean(0)).sum())
    seen = seen_of(switch, x)
    assert float(Switch().balance_loss(seen)) == pytest.approx(np.mean(rows), rel=1e-5)
    logits = [np.asarray(x[b])[REAL[b]] @ np.asarray(switch.router.weight[...]) for b in range(ROWS)]
    z = np.mean([np.log(np.exp(row).sum()) ** 2 for row in np.concatenate(logits)])
    assert float(seen.log_z.sum() / seen.tokens.sum()) == pytest.approx(z, rel=1e-5)

    p = np.concatenate([probabilities(top, b) for b in range(ROWS)])
    f = np.mean([np.bincount(np.argsort(-row)[:2], minlength=EXPERTS) for row in p], axis=0)
    assert float(TopK().balance_loss(seen_of(top, x))) == pytest.approx(EXPERTS * (f * p.mean(0)).sum(), rel=1e-5)

    rows = []
    for b in range(ROWS):
        s = 1 / (1 + np.exp(-np.asarray(x[b])[REAL[b]] @ np.asarray(deep.router.weight[...])))
        chosen = np.argsort(-(s + np.asarray(deep.bias[...])), axis=1)[:, :2]
        f = EXPERTS / 2 * np.mean([np.isin(np.arange(EXPERTS), row) for row in chosen], axis=0)
        rows.append((f * (s / s.sum(1, keepdims=True)).mean(0)).sum())
    assert float(DeepSeek(k=2).balance_loss(seen_of(deep, x))) == pytest.approx(np.mean(rows), rel=1e-5)


def model(router: str, **more: Any) -> tuple[ModelConfig, Any, Any]:
    feedforward = {"moe": {"experts": EXPERTS, "router": {router: ROUTERS[router]}, **more}}
    config = ModelConfig.model_validate(
        {"layers": 4, "embed": 16, "heads": 2, "vocab": 11, "pattern": [{}, {"feedforward": feedforward}]}
    )
    return config, model_spec(config), init_params(config, jax.random.key(0))


@pytest.mark.parametrize("router", ROUTERS)
def test_a_model_says_what_its_routers_did(router: str) -> None:
    config, plan, params = model(router)

    def run(params: Any) -> Any:
        module = plan.model(params)
        module(jnp.arange(20).reshape(2, 10) % 11, key=jax.random.key(0))
        return router_loss(module, config)

    found = jax.jit(run)(params)
    said = {name: np.asarray(value) for name, value in found.means("router").items()}
    loads = found.loads["decoder.stack.layers.1.feedforward"]
    assert loads.shape == (2, EXPERTS)
    shares = np.asarray(loads / loads.sum(1, keepdims=True))
    entropy = [-sum(p * math.log(p) for p in row if p) / math.log(EXPERTS) for row in shares]
    assert said["expert_load_entropy"] == pytest.approx(np.mean(entropy), rel=1e-5)
    assert said["expert_load_max"] == pytest.approx(EXPERTS * shares.max(1).mean(), rel=1e-5)
    np.testing.assert_allclose(said["expert_load"], shares.mean(0), rtol=1e-5)
    rate = config.mixtures[0].router.balance
    assert float(found.total) == pytest.approx(rate * said["router_balance_loss"], rel=1e-5)


def test_biases_move_against_the_load_and_have_no_gradient() -> None:
    """DeepSeek-V3, §2.1.2: an expert above the mean load is lowered by the update speed, one below is raised."""
    config, plan, params = model("deepseek")
    tokens = jnp.arange(20).reshape(2, 10) % 11

    def loss(params: Any) -> tuple[jax.Array, Any]:
        module = plan.model(params)
        total = jnp.sum(module(tokens))
        return total, router_loss(module, config)

    grads, found = jax.jit(jax.grad(loss, has_aux=True))(params)
    place = lambda tree: tree["decoder"]["stack"]["layers"]["1"]["feedforward"]["bias"]  # noqa: E731
    assert float(jnp.abs(place(grads)).max()) == 0
    loads = np.asarray(found.loads["decoder.stack.layers.1.feedforward"])
    expected = 0.001 * np.sign(loads.mean(1, keepdims=True) - loads)
    np.testing.assert_allclose(place(found.update_biases(params)) - place(params), expected, atol=1e-9)


def test_memory_of_dispatch_is_linear_in_tokens() -> None:
    """By XLA's account: a one-hot of [tokens, experts, places] would grow with the square."""
    made = layer(router="switch", dispatch={"capacity": {"group": "batch"}})
    graph, params = nnx.split(made)

    def bytes_of(length: int) -> int:
        x = jax.ShapeDtypeStruct((1, length, WIDTH), jnp.float32)
        real = jnp.ones((1, length), bool)
        run = jax.jit(jax.grad(lambda p, x: nnx.merge(graph, p)(x, real, None).sum(), (0, 1)))
        return run.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(8192) < 2.2 * bytes_of(4096)
