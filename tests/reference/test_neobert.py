"""NeoBERT, which Transformers does not have, against its published definition written out in PyTorch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Float, Int

pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")

import torch
from torch.nn import functional

from t5x_lite import config as configuration
from t5x_lite.models.losses import LossSettings
from t5x_lite.objectives.masked import Masked
from t5x_lite.trees import flatten_names
from tests.models.weights import random_model

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "neobert" / "250m.yaml"
LAYERS = 3
EMBED = 24
HEADS = 2
MLP = 16
VOCAB = 40
SIZES = {"layers": LAYERS, "embed": EMBED, "heads": HEADS, "mlp": MLP, "vocab": VOCAB, "compute": "float32"}
REAL_TOKENS = (11, 6)
LENGTH = max(REAL_TOKENS)

Tensors = dict[str, "torch.Tensor"]


def rotate(x: "torch.Tensor") -> "torch.Tensor":
    """Multiply neighbouring channels, as complex numbers, by e^(i·position·10000^(-2j/channels))."""
    channels = x.shape[-1]
    rates = 10000.0 ** (-torch.arange(0, channels, 2) / channels)
    angles = torch.outer(torch.arange(x.shape[1]).float(), rates)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], channels // 2, 2))
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]
    return torch.view_as_real(turned).reshape(x.shape)


def norm(x: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
    return scale * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def neobert(weights: Tensors, tokens: "torch.Tensor", is_real: "torch.Tensor") -> "torch.Tensor":
    """The scores of every token: norms before attention and SwiGLU, no biases but that of the scores."""
    x = weights["tokens.weight"][tokens]
    for layer in range(LAYERS):

        def of_layer(name: str, number: int = layer) -> "torch.Tensor":
            return weights[f"encoder.stack.layers.0.{name}"][number]

        normed = norm(x, of_layer("attention_norm.scale"))
        query, key, value = (
            torch.einsum("bld,dhk->blhk", normed, of_layer(f"attention.{name}.weight"))
            for name in ("query", "key", "value")
        )
        attended = functional.scaled_dot_product_attention(
            rotate(query).transpose(1, 2),
            rotate(key).transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=is_real[:, None, None],
        )
        x = x + torch.einsum("bhlk,hkd->bld", attended, of_layer("attention.out.weight"))
        normed = norm(x, of_layer("feedforward_norm.scale"))
        gate = functional.silu(normed @ of_layer("feedforward.gate.weight"))
        x = x + (gate * (normed @ of_layer("feedforward.up.weight"))) @ of_layer("feedforward.down.weight")
    x = norm(x, weights["encoder.stack.final_norm.scale"])
    return x @ weights["output.matrix.weight"] + weights["output.bias"]


def features(tokens: Int[np.ndarray, "b l"], is_real: np.ndarray, is_masked: np.ndarray) -> dict[str, jax.Array]:
    places = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    arrays = {
        "tokens": tokens,
        "positions": places,
        "segment_ids": is_real.astype(np.int32),
        "token_types": np.zeros_like(tokens),
        "target_positions": places,
        "targets": tokens,
        "loss_weights": is_masked.astype(np.float32),
    }
    return {name: jnp.asarray(values) for name, values in arrays.items()}


def test_logits_loss_and_every_gradient_equal_the_published_definition() -> None:
    config = configuration.load(CONFIG, [f"model.{name}={size}" for name, size in SIZES.items()])
    graph, state = nnx.split(random_model(config.model))
    rng = np.random.default_rng(1)
    is_real = np.arange(LENGTH) < np.array(REAL_TOKENS)[:, None]
    tokens = rng.integers(0, VOCAB, is_real.shape)
    is_masked = is_real & (rng.random(is_real.shape) < 0.5)
    batch = features(tokens, is_real, is_masked)

    def loss(state: nnx.State) -> tuple[jax.Array, Float[jax.Array, "b l v"]]:
        model = nnx.merge(graph, state)
        term = Masked().loss(model, batch, None, LossSettings(VOCAB))["loss"]
        states = model(batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"])
        return term.total / term.weight, model.logits(states)

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    arrays = flatten_names(nnx.to_pure_dict(state))
    weights = {name: torch.tensor(np.asarray(array), requires_grad=True) for name, array in arrays.items()}
    expected = neobert(weights, torch.tensor(tokens), torch.tensor(is_real))
    expected_loss = functional.cross_entropy(expected[torch.tensor(is_masked)], torch.tensor(tokens[is_masked]))
    expected_loss.backward()

    np.testing.assert_allclose(np.asarray(logits)[is_real], expected.detach().numpy()[is_real], atol=2e-5)
    assert float(value) == pytest.approx(expected_loss.item(), abs=1e-5)
    for name, gradient in flatten_names(nnx.to_pure_dict(gradients)).items():
        np.testing.assert_allclose(gradient, weights[name].grad.numpy(), atol=1e-5, err_msg=name)
