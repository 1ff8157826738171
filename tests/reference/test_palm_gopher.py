"""PaLM and Gopher, whose code and weights are not public, against their papers' definitions written out in PyTorch."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")

import torch
from torch.nn import functional

from t5x_lite import config as configuration
from t5x_lite.models.losses import LossSettings
from t5x_lite.objectives.causal import Causal
from t5x_lite.trees import flatten_names
from tests.conftest import REPOSITORY
from tests.models.weights import random_model

pytestmark = pytest.mark.slow

LAYERS = 2
EMBED = 16
HEADS = 2
WIDTH = 8
VOCAB = 40
LENGTH = 9
SIZES = {"layers": LAYERS, "embed": EMBED, "heads": HEADS, "head_dim": WIDTH, "mlp": 24, "vocab": VOCAB}
LAYER = "decoder.stack.layers.0."
FINAL_NORM = "decoder.stack.final_norm.scale"

Weights = Mapping[str, "torch.Tensor"]
IS_LATER = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)


def of_layer(weights: Weights, number: int) -> Weights:
    return {name.removeprefix(LAYER): weight[number] for name, weight in weights.items() if name.startswith(LAYER)}


def rotate(x: "torch.Tensor") -> "torch.Tensor":
    """Turn channels i and i + 4 by position · 10000^(-i/4) (Su et al. 2021, §3.2.2)."""
    half = WIDTH // 2
    angles = torch.outer(torch.arange(LENGTH).float(), 10000.0 ** (-torch.arange(half) / half))
    first, second = x[:, :half], x[:, half:]
    cosine, sine = torch.cos(angles), torch.sin(angles)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=1)


def palm(weights: Weights, tokens: "torch.Tensor") -> "torch.Tensor":
    """Return logits: x + MLP(LN(x)) + Attention(LN(x)), one key and value for all heads (Chowdhery et al. 2022, §2)."""

    def norm(x: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
        return functional.layer_norm(x, (EMBED,), scale, None, 1e-5)

    x = weights["tokens.weight"][tokens]
    for number in range(LAYERS):
        layer = of_layer(weights, number)
        normed = norm(x, layer["attention_norm.scale"])
        key = rotate(normed @ layer["attention.key.weight"][:, 0])
        value = normed @ layer["attention.value.weight"][:, 0]
        gate = normed @ layer["feedforward.gate.weight"]
        swish = gate * torch.sigmoid(gate)
        out = (swish * (normed @ layer["feedforward.up.weight"])) @ layer["feedforward.down.weight"]
        for head in range(HEADS):
            query = rotate(normed @ layer["attention.query.weight"][:, head])
            scores = (query @ key.T / WIDTH**0.5).masked_fill(IS_LATER, -torch.inf)
            out = out + torch.softmax(scores, 1) @ value @ layer["attention.out.weight"][head]
        x = x + out
    return norm(x, weights[FINAL_NORM]) @ weights["tokens.weight"].T / EMBED**0.5


def distance_vector(distance: int) -> "torch.Tensor":
    """Return sines, then cosines, of distance / 10000^(2i/d) (Vaswani et al. 2017, §3.5)."""
    angles = distance / 10000 ** (torch.arange(0, EMBED, 2) / EMBED)
    return torch.cat([torch.sin(angles), torch.cos(angles)])


def gopher(weights: Weights, tokens: "torch.Tensor") -> "torch.Tensor":
    """Return logits: GPT-2 with RMSNorm and the relative positions of Dai et al. 2019, §3.3 (Rae et al. 2021, §3.1)."""

    def norm(x: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
        return scale * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    offsets = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    distances = torch.stack([distance_vector(distance) for distance in range(LENGTH)])[offsets.clamp(min=0)]
    x = weights["tokens.weight"][tokens]
    for number in range(LAYERS):
        layer = of_layer(weights, number)
        normed = norm(x, layer["attention_norm.scale"])
        out = layer["attention.out.bias"]
        for head in range(HEADS):
            query, key, value = (
                normed @ layer[f"attention.{name}.weight"][:, head] + layer[f"attention.{name}.bias"][head]
                for name in ("query", "key", "value")
            )
            by_distance = distances @ layer["attention.positions.distance.weight"][:, head]
            scores = (query + layer["attention.positions.key_bias"][head]) @ key.T
            moved = query + layer["attention.positions.distance_bias"][head]
            scores = (scores + torch.einsum("lk,lmk->lm", moved, by_distance)) / WIDTH**0.5
            probabilities = torch.softmax(scores.masked_fill(IS_LATER, -torch.inf), 1)
            out = out + probabilities @ value @ layer["attention.out.weight"][head]
        x = x + out
        normed = norm(x, layer["feedforward_norm.scale"])
        up = normed @ layer["feedforward.up.weight"] + layer["feedforward.up.bias"]
        up = functional.gelu(up, approximate="tanh")
        x = x + up @ layer["feedforward.down.weight"] + layer["feedforward.down.bias"]
    return norm(x, weights[FINAL_NORM]) @ weights["tokens.weight"].T


@pytest.mark.parametrize(("name", "definition"), [("palm/8b", palm), ("gopher/44m", gopher)])
def test_logits_loss_and_every_gradient_equal_the_papers_definition(
    name: str, definition: Callable[[Weights, "torch.Tensor"], "torch.Tensor"]
) -> None:
    overrides = [f"model.{setting}={size}" for setting, size in SIZES.items()]
    config = configuration.load(REPOSITORY / f"configs/{name}.yaml", [*overrides, "model.compute=float32"])
    graph, state = nnx.split(random_model(config.model))
    tokens = np.random.default_rng(1).integers(0, VOCAB, LENGTH + 1)
    batch = {
        "tokens": jnp.asarray(tokens[None, :-1]),
        "positions": jnp.arange(LENGTH)[None],
        "segment_ids": jnp.ones((1, LENGTH), jnp.int32),
        "targets": jnp.asarray(tokens[None, 1:]),
        "loss_weights": jnp.ones((1, LENGTH)),
    }

    def loss(state: nnx.State) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, state)
        term = Causal().loss(model, batch, None, LossSettings(VOCAB))["loss"]
        states = model(batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"])
        return term.total / term.weight, model.logits(states)

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    arrays = flatten_names(nnx.to_pure_dict(state))
    weights = {name: torch.tensor(np.asarray(array), requires_grad=True) for name, array in arrays.items()}
    expected = definition(weights, torch.tensor(tokens[:-1]))
    expected_loss = functional.cross_entropy(expected, torch.tensor(tokens[1:]))
    expected_loss.backward()
    np.testing.assert_allclose(logits[0], expected.detach().numpy(), atol=2e-5)
    assert float(value) == pytest.approx(expected_loss.item(), abs=1e-5)
    assert np.ptp(expected.detach().numpy()) > 0.5  # logits that are all alike would prove little
    for parameter, gradient in flatten_names(nnx.to_pure_dict(gradients)).items():
        np.testing.assert_allclose(gradient, weights[parameter].grad.numpy(), atol=1e-5, err_msg=parameter)
