"""Transformer-XL against its definition written out in PyTorch (Dai et al. 2019, §3.2, §3.3 and appendix B)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array, PyTree

from t5x_lite.models.carry import empty_carry, final_states, set_initial_states
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.trees import flatten_names
from tests.models.weights import random_model

pytest.importorskip("torch")

import torch

LAYERS = 2
EMBED = 16
HEADS = 2
WIDTH = 8
LENGTH = 6
MEMORY = 4
"""Shorter than a window, so that the windows with a memory are no longer one row."""
LAYER = "decoder.stack.layers.0."


def config(*, shared_biases: bool) -> ModelConfig:
    """Return the authors' architecture: post-LN, ReLU, biases in the feed-forward alone."""
    return ModelConfig.model_validate(
        {
            "layers": LAYERS,
            "embed": EMBED,
            "heads": HEADS,
            "mlp": 24,
            "vocab": 11,
            "positions": {"transformer_xl": {"shared_biases": shared_biases}},
            "pattern": [{"mixer": {"attention": {"memory": MEMORY}}}],
            "feedforward": {"mlp": {"activation": "relu"}},
            "norm_place": "post",
            "bias": False,
            "feedforward_bias": True,
        }
    )


def distance_vector(distance: int) -> "torch.Tensor":
    """Return R of a distance: sines, then cosines, of distance / 10000^(2i/d) (Vaswani et al. 2017, §3.5)."""
    angles = distance / 10000 ** (torch.arange(0, EMBED, 2) / EMBED)
    return torch.cat([torch.sin(angles), torch.cos(angles)])


def scores_of_pairs(
    q: "torch.Tensor", k: "torch.Tensor", w: "torch.Tensor", u: "torch.Tensor", v: "torch.Tensor"
) -> "torch.Tensor":
    """Return the four terms of §3.3 for every visible pair of a query and a key; the queries are the last tokens."""
    queries, keys = len(q), len(k)
    rows = []
    for i in range(queries):
        scores = torch.full((keys,), -torch.inf)
        place = keys - queries + i
        for j in range(place + 1):
            distance = distance_vector(place - j) @ w
            scores[j] = q[i] @ k[j] + q[i] @ distance + u @ k[j] + v @ distance
        rows.append(scores)
    return torch.stack(rows)


def scores_by_shift(
    q: "torch.Tensor", k: "torch.Tensor", w: "torch.Tensor", u: "torch.Tensor", v: "torch.Tensor"
) -> "torch.Tensor":
    """Return the same with appendix B: products with the distances in falling order, shifted to the left by row."""
    queries, keys = len(q), len(k)
    distances = torch.stack([distance_vector(distance) for distance in range(keys - 1, -1, -1)]) @ w
    products = (q + v) @ distances.T
    padded = torch.cat([torch.zeros(queries, 1), products], dim=1)
    shifted = padded.reshape(keys + 1, queries)[1:].reshape(queries, keys)
    later = torch.arange(keys)[None] > torch.arange(queries)[:, None] + keys - queries
    return ((q + u) @ k.T + shifted).masked_fill(later, -torch.inf)


def layer_norm(x: "torch.Tensor", weights: dict[str, "torch.Tensor"], name: str) -> "torch.Tensor":
    return torch.nn.functional.layer_norm(x, (EMBED,), weights[f"{name}.scale"], weights[f"{name}.bias"], 1e-5)


def attention(
    h: "torch.Tensor", memory: "torch.Tensor", weights: dict[str, "torch.Tensor"], u: "torch.Tensor", v: "torch.Tensor"
) -> "torch.Tensor":
    """Return masked softmax over the memory and the segment, of one row, head by head."""
    extended = torch.cat([memory.detach(), h])
    out = torch.zeros_like(h)
    for head in range(HEADS):
        q = h @ weights["attention.query.weight"][:, head]
        k = extended @ weights["attention.key.weight"][:, head]
        values = extended @ weights["attention.value.weight"][:, head]
        w = weights["attention.positions.distance.weight"][:, head]
        scores = scores_of_pairs(q, k, w, u[head], v[head])
        torch.testing.assert_close(scores, scores_by_shift(q, k, w, u[head], v[head]), atol=1e-5, rtol=1e-5)
        out = out + torch.softmax(scores / WIDTH**0.5, dim=-1) @ values @ weights["attention.out.weight"][head]
    return out


def transformer_xl(
    weights: dict[str, "torch.Tensor"], tokens: np.ndarray, memories: list["torch.Tensor"]
) -> tuple["torch.Tensor", list["torch.Tensor"]]:
    """Return the states of one row after the last layer, and the memories for the next segment."""
    h = weights["tokens.weight"][torch.from_numpy(tokens)]
    updated = []
    for number in range(LAYERS):
        layer = {name.removeprefix(LAYER): weight[number] for name, weight in weights.items() if name.startswith(LAYER)}
        updated.append(torch.cat([memories[number], h])[-MEMORY:])
        biases = layer
        if "decoder.stack.positions.key_bias" in weights:
            biases = {f"attention.{name.removeprefix('decoder.stack.')}": weights[name] for name in weights}
        u = biases["attention.positions.key_bias"]
        v = biases["attention.positions.distance_bias"]
        h = layer_norm(h + attention(h, memories[number], layer, u, v), layer, "attention_norm")
        up = torch.relu(h @ layer["feedforward.up.weight"] + layer["feedforward.up.bias"])
        down = up @ layer["feedforward.down.weight"] + layer["feedforward.down.bias"]
        h = layer_norm(h + down, layer, "feedforward_norm")
    return h, updated


@pytest.mark.parametrize("shared_biases", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_segments_with_a_memory_equal_the_paper(shared_biases: bool) -> None:
    """Three segments of two rows: states of each, and gradients of the last for all parameters but not through time."""
    model_config = config(shared_biases=shared_biases)
    spec = model_spec(model_config)
    params = nnx.to_pure_dict(nnx.split(random_model(model_config))[1])
    rng = np.random.default_rng(0)
    segments = rng.integers(0, 11, (3, 2, LENGTH))
    direction = rng.normal(size=(2, LENGTH, EMBED)).astype(np.float32)
    ones = jnp.ones((2, LENGTH), jnp.int32)

    @jax.jit
    def read(params: PyTree, tokens: Array, carry: PyTree, continues: Array) -> tuple[Array, PyTree]:
        module = spec.model(params)
        set_initial_states(module, carry, continues, ones)
        return module(tokens, segment_ids=ones), final_states(module)

    def loss(params: PyTree, tokens: Array, carry: PyTree) -> Array:
        return jnp.sum(read(params, tokens, carry, jnp.ones(2))[0] * direction)

    carry = empty_carry(model_config, 2)
    states = []
    for number, tokens in enumerate(segments):
        before = carry
        out, carry = read(params, tokens, before, jnp.full(2, number > 0))
        states.append(out)
    gradients = flatten_names(jax.jit(jax.grad(loss))(params, segments[-1], before))

    weights = {name: torch.from_numpy(np.array(array)) for name, array in flatten_names(params).items()}
    for weight in weights.values():
        weight.requires_grad_()
    total = torch.zeros(())
    for row in range(2):
        memories = [torch.zeros(0, EMBED)] * LAYERS
        for number, tokens in enumerate(segments[:, row]):
            expected, memories = transformer_xl(weights, tokens, memories)
            np.testing.assert_allclose(states[number][row], expected.detach(), atol=2e-5)
        total = total + (expected * torch.from_numpy(direction[row])).sum()
    total.backward()
    for name, weight in weights.items():
        np.testing.assert_allclose(gradients[name], weight.grad, atol=2e-4, err_msg=name)
        assert np.abs(gradients[name]).max() > 1e-3, name


def transformers_xlnet(params: PyTree) -> "torch.nn.Module":
    """Return XLNet of Transformers with causal attention and a memory, which is Transformer-XL, with our weights."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 11, "d_model": EMBED, "n_layer": LAYERS, "n_head": HEADS, "d_inner": 24}
    settings = {"ff_activation": "relu", "attn_type": "uni", "mem_len": MEMORY, "layer_norm_eps": 1e-5}
    model = transformers.XLNetModel(transformers.XLNetConfig(**sizes, **settings)).eval()
    ours = {name: torch.from_numpy(np.array(array)) for name, array in flatten_names(params).items()}
    state = model.state_dict()
    state["word_embedding.weight"] = ours["tokens.weight"]
    modules = {
        "rel_attn.q": "attention.query.weight",
        "rel_attn.k": "attention.key.weight",
        "rel_attn.v": "attention.value.weight",
        "rel_attn.o": "attention.out.weight",
        "rel_attn.r": "attention.positions.distance.weight",
        "rel_attn.r_w_bias": "attention.positions.key_bias",
        "rel_attn.r_r_bias": "attention.positions.distance_bias",
        "rel_attn.layer_norm.weight": "attention_norm.scale",
        "rel_attn.layer_norm.bias": "attention_norm.bias",
        "ff.layer_1.weight": "feedforward.up.weight",
        "ff.layer_1.bias": "feedforward.up.bias",
        "ff.layer_2.weight": "feedforward.down.weight",
        "ff.layer_2.bias": "feedforward.down.bias",
        "ff.layer_norm.weight": "feedforward_norm.scale",
        "ff.layer_norm.bias": "feedforward_norm.bias",
    }
    for number in range(LAYERS):
        for theirs, name in modules.items():
            weight = ours[f"{LAYER}{name}"][number]
            if theirs.startswith("ff.layer_") and theirs.endswith(("1.weight", "2.weight")):
                weight = weight.T
            elif theirs == "rel_attn.o":
                weight = weight.permute(2, 0, 1)
            state[f"layer.{number}.{theirs}"] = weight
    model.load_state_dict(state)
    return model


@pytest.mark.slow
def test_segments_with_a_memory_equal_transformers() -> None:
    model_config = config(shared_biases=False)
    spec = model_spec(model_config)
    params = nnx.to_pure_dict(nnx.split(random_model(model_config))[1])
    theirs = transformers_xlnet(params)
    ones = jnp.ones((2, LENGTH), jnp.int32)

    @jax.jit
    def read(tokens: Array, carry: PyTree, continues: Array) -> tuple[Array, PyTree]:
        module = spec.model(params)
        set_initial_states(module, carry, continues, ones)
        return module(tokens, segment_ids=ones), final_states(module)

    carry = empty_carry(model_config, 2)
    memories = None
    for number, tokens in enumerate(np.random.default_rng(0).integers(0, 11, (3, 2, LENGTH))):
        states, carry = read(tokens, carry, jnp.full(2, number > 0))
        with torch.no_grad():
            outputs = theirs(torch.tensor(tokens), mems=memories, use_mems=True)
        memories = outputs.mems
        np.testing.assert_allclose(states, outputs.last_hidden_state.numpy(), atol=2e-5)
        assert memories[0].shape[0] == MEMORY
