"""Sequence mixers against PyTorch's recurrent networks and the modules of Hugging Face Transformers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Float

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

from transformers.cache_utils import DynamicCache  # noqa: E402
from transformers.models.mamba2 import modeling_mamba2  # noqa: E402
from transformers.models.qwen3_next import modeling_qwen3_next  # noqa: E402
from transformers.models.recurrent_gemma import modeling_recurrent_gemma  # noqa: E402

from t5x_lite.models.config import ModelConfig  # noqa: E402
from t5x_lite.models.mixers.module import MixerModule, StateSlice, empty_state  # noqa: E402

BATCH = 2
LENGTH = 9


def build(mixer: dict[str, Any], **settings: Any) -> MixerModule:
    """Return a mixer of an encoder, or of a decoder where it reads left to right alone."""
    family = "encoder" if "'bidirectional': True" in str(mixer) else "decoder"
    sizes = {"layers": 1, "embed": 12, "heads": 2, "vocab": 3, "family": family}
    config = ModelConfig.model_validate({**sizes, "pattern": [{"mixer": mixer}], **settings})
    return MixerModule(config, config.pattern[0].mixer, rngs=nnx.Rngs(0))


def tensor(module: Any, name: str) -> Float[np.ndarray, "..."]:
    return module.get_parameter(name).detach().numpy()


def compare(ours: MixerModule, x: Float[np.ndarray, "b l d"], theirs: Any, weights: dict[str, tuple[Any, Any]]) -> None:
    """Compare outputs, and the gradients of a weighted sum of them for the input and for some weights.

    Args:
        ours: our mixer.
        x: its input.
        theirs: a function from the input, a tensor, to their output.
        weights: by the dotted name of our weight, their tensor, and a function from it to our shape.
    """
    torch_x = torch.tensor(x, requires_grad=True)
    expected = theirs(torch_x)
    factors = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    (expected * torch.tensor(factors)).sum().backward()
    graph, state = nnx.split(ours)
    segment_ids = jnp.ones(x.shape[:2], jnp.int32)

    def loss(state: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, _ = nnx.merge(graph, state)(x, segment_ids)
        return (y * factors).sum(), y

    (weight_gradients, x_gradient), y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(state, jnp.asarray(x))
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(x_gradient, torch_x.grad.numpy(), atol=1e-4)
    gradients = nnx.to_pure_dict(weight_gradients)
    for name, (parameter, to_ours) in weights.items():
        gradient = gradients
        for part in name.split("."):
            gradient = gradient[part]
        np.testing.assert_allclose(gradient, to_ours(parameter.grad.numpy()), atol=2e-4, err_msg=name)


RECURRENT = {
    "lstm": (torch.nn.LSTM, "lstm", {}, 4),
    "lstm, projections": (torch.nn.LSTM, "lstm", {"projection": 5}, 4),
    "gru": (torch.nn.GRU, "gru", {}, 3),
    "rnn": (torch.nn.RNN, "rnn", {}, 1),
}


@pytest.mark.parametrize(
    ("name", "bidirectional"),
    [
        ("lstm", True),
        ("lstm, projections", False),
        ("gru", False),
        ("rnn", False),
        pytest.param("lstm", False, marks=pytest.mark.slow),
        pytest.param("lstm, projections", True, marks=pytest.mark.slow),
        pytest.param("gru", True, marks=pytest.mark.slow),
        pytest.param("rnn", True, marks=pytest.mark.slow),
    ],
)
def test_recurrent_layers_equal_pytorchs(name: str, bidirectional: bool) -> None:
    """Two layers, forward and gradients. PyTorch has two biases where we have one, whose gradients are equal."""
    cells = 8
    reference, kind, settings, gates = RECURRENT[name]
    torch.manual_seed(0)
    projection = settings.get("projection")
    options = {} if projection is None else {"proj_size": projection}
    theirs = reference(12, cells, num_layers=2, batch_first=True, bidirectional=bidirectional, **options)
    ours = build({kind: {**settings, "hidden": [cells, cells], "bidirectional": bidirectional, "out": True}})

    def to_ours(matrix: np.ndarray) -> np.ndarray:
        return np.moveaxis(matrix.reshape(gates, cells, -1), 2, 0)

    def bias_to_ours(bias: np.ndarray) -> np.ndarray:
        return bias.reshape(gates, cells)

    weights = {}
    for number in range(2):
        for direction, suffix in (("forward", ""), ("backward", "_reverse"))[: 1 + bidirectional]:
            layer = getattr(ours, f"{direction}_{number}")
            place = f"l{number}{suffix}"
            layer.input.weight[...] = to_ours(tensor(theirs, f"weight_ih_{place}"))
            layer.hidden[...] = to_ours(tensor(theirs, f"weight_hh_{place}"))
            bias = bias_to_ours(tensor(theirs, f"bias_ih_{place}"))
            hidden_bias = bias_to_ours(tensor(theirs, f"bias_hh_{place}"))
            ours_name = f"{direction}_{number}"
            if kind == "gru":
                layer.hidden_bias[...] = hidden_bias
                weights[f"{ours_name}.hidden_bias"] = (getattr(theirs, f"bias_hh_{place}"), bias_to_ours)
            else:
                bias = bias + hidden_bias
            layer.input.bias[...] = bias
            weights[f"{ours_name}.input.weight"] = (getattr(theirs, f"weight_ih_{place}"), to_ours)
            weights[f"{ours_name}.input.bias"] = (getattr(theirs, f"bias_ih_{place}"), bias_to_ours)
            weights[f"{ours_name}.hidden"] = (getattr(theirs, f"weight_hh_{place}"), to_ours)
            if projection is not None:
                layer.projection.weight[...] = tensor(theirs, f"weight_hr_{place}").T
                weights[f"{ours_name}.projection.weight"] = (getattr(theirs, f"weight_hr_{place}"), np.transpose)
    linear = torch.nn.Linear((projection or cells) * (1 + bidirectional), 12)
    ours.linear.weight[...] = tensor(linear, "weight").T
    ours.linear.bias[...] = tensor(linear, "bias")
    x = np.random.default_rng(0).normal(size=(BATCH, LENGTH, 12)).astype(np.float32)
    compare(ours, x, lambda x: linear(theirs(x)[0]), weights)


def test_the_recurrent_block_of_griffin_equals_transformers() -> None:
    config = transformers.RecurrentGemmaConfig(hidden_size=12, lru_width=16, num_attention_heads=2, vocab_size=3)
    torch.manual_seed(0)
    theirs = modeling_recurrent_gemma.RecurrentGemmaRecurrentBlock(config, 0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    ours = build({"rg_lru": {"width": 16}})

    def by_block(array: np.ndarray) -> np.ndarray:
        return array.reshape(2, 8)

    def filters(array: np.ndarray) -> np.ndarray:
        return array[:, 0].T.reshape(4, 2, 8)

    def columns(array: np.ndarray) -> np.ndarray:
        return array.T.reshape(12, 2, 8)

    def rows(array: np.ndarray) -> np.ndarray:
        return array.T.reshape(2, 8, 12)

    names = {
        "branch.weight": ("linear_y.weight", columns),
        "branch.bias": ("linear_y.bias", by_block),
        "input.weight": ("linear_x.weight", columns),
        "input.bias": ("linear_x.bias", by_block),
        "convolution.weight": ("conv_1d.weight", filters),
        "convolution.bias": ("conv_1d.bias", by_block),
        "input_gate.weight": ("rg_lru.input_gate_weight", np.asarray),
        "input_gate.bias": ("rg_lru.input_gate_bias", np.asarray),
        "decay_gate.weight": ("rg_lru.recurrent_gate_weight", np.asarray),
        "decay_gate.bias": ("rg_lru.recurrent_gate_bias", np.asarray),
        "decay": ("rg_lru.recurrent_param", by_block),
        "out.weight": ("linear_out.weight", rows),
        "out.bias": ("linear_out.bias", np.asarray),
    }
    assert {theirs_name for theirs_name, _ in names.values()} == {name for name, _ in theirs.named_parameters()}
    weights = load(ours, theirs, names)
    x = np.random.default_rng(0).normal(size=(BATCH, LENGTH, 12)).astype(np.float32)
    positions = torch.arange(LENGTH)[None].repeat(BATCH, 1)
    compare(ours, x, lambda x: theirs(x, positions, None, False)[0], weights)


def load(ours: MixerModule, theirs: Any, names: dict[str, tuple[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """Copy their weights into our mixer, and return the pairs to compare gradients of."""
    weights = {}
    for name, (theirs_name, to_ours) in names.items():
        module = ours
        *path, leaf = name.split(".")
        for part in path:
            module = getattr(module, part)
        getattr(module, leaf)[...] = jnp.asarray(to_ours(tensor(theirs, theirs_name)))
        weights[name] = (theirs.get_parameter(theirs_name), to_ours)
    return weights


@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_mamba2_equals_transformers(groups: int) -> None:
    """Chunks of four tokens, of which the last is not full."""
    heads, head_dim, states = 6, 4, 3
    config = transformers.Mamba2Config(
        hidden_size=12, num_heads=heads, head_dim=head_dim, state_size=states, n_groups=groups, expand=2, chunk_size=4
    )
    torch.manual_seed(0)
    theirs = modeling_mamba2.Mamba2Mixer(config, 0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    mixer = {"mamba2": {"head_dim": head_dim, "state": states, "groups": groups, "chunk": 4}}
    ours = build(mixer, bias=False)
    inner = heads * head_dim
    channels = (heads, head_dim)
    group_states = (groups, states)
    parts = {
        "gate": (slice(0, inner), channels),
        "value": (slice(inner, 2 * inner), channels),
        "key": (slice(2 * inner, 2 * inner + groups * states), group_states),
        "query": (slice(2 * inner + groups * states, 2 * inner + 2 * groups * states), group_states),
        "step": (slice(2 * inner + 2 * groups * states, None), (heads,)),
    }
    names: dict[str, tuple[str, Any]] = {
        "step_bias": ("dt_bias", np.asarray),
        "log_rate": ("A_log", np.asarray),
        "skip": ("D", np.asarray),
        "scale": ("norm.weight", lambda array: array.reshape(channels)),
        "out.weight": ("out_proj.weight", lambda array: array.T.reshape(*channels, 12)),
    }
    for name, (rows, shape) in parts.items():
        names[f"{name}.weight"] = ("in_proj.weight", columns_of(rows, shape))
        if name in {"value", "key", "query"}:
            filtered = slice(rows.start - inner, rows.stop - inner)
            names[f"{name}_convolution.weight"] = ("conv1d.weight", filters_of(filtered, shape))
            names[f"{name}_convolution.bias"] = ("conv1d.bias", part_of(filtered, shape))
    weights = load(ours, theirs, names)
    x = np.random.default_rng(0).normal(size=(BATCH, LENGTH, 12)).astype(np.float32)
    compare(ours, x, theirs, weights)


def build_gated_deltanet() -> tuple[MixerModule, Any, dict[str, tuple[Any, Any]]]:
    """Return our mixer with the weights of Transformers' module, that module, and the pairs of weights.

    Its matrix of queries, keys, values and gates has the rows of each key head together.
    """
    key_heads, heads, key_dim, value_dim = 2, 4, 6, 5
    config = transformers.Qwen3NextConfig(
        hidden_size=12,
        linear_num_key_heads=key_heads,
        linear_num_value_heads=heads,
        linear_key_head_dim=key_dim,
        linear_value_head_dim=value_dim,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    torch.manual_seed(0)
    theirs = modeling_qwen3_next.Qwen3NextGatedDeltaNet(config, 0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    sizes = {"heads": heads, "key_heads": key_heads, "key_dim": key_dim, "value_dim": value_dim, "chunk": 4}
    ours = build({"gated_deltanet": sizes})
    keys = (key_heads, key_dim)
    values = (heads, value_dim)
    widths = {"query": keys, "key": keys, "value": values, "gate": values}
    names: dict[str, tuple[str, Any]] = {
        "step_bias": ("dt_bias", np.asarray),
        "log_rate": ("A_log", np.asarray),
        "norm.scale": ("norm.weight", np.asarray),
        "out.weight": ("out_proj.weight", lambda array: array.T.reshape(*values, 12)),
    }
    first = 0
    first_filter = 0
    for name, shape in widths.items():
        width = shape[0] * shape[1] // key_heads
        names[f"{name}.weight"] = (
            "in_proj_qkvz.weight",
            rows_by_key_head(key_heads, slice(first, first + width), shape),
        )
        first += width
        if name != "gate":
            filtered = slice(first_filter, first_filter + shape[0] * shape[1])
            names[f"{name}_convolution.weight"] = ("conv1d.weight", filters_of(filtered, shape))
            first_filter = filtered.stop
    for number, name in enumerate(("strength", "step")):
        rows = slice(2 * number, 2 * number + 2)
        names[f"{name}.weight"] = ("in_proj_ba.weight", rows_by_key_head(key_heads, rows, (heads,)))
    return ours, theirs, load(ours, theirs, names)


def test_gated_deltanet_equals_transformers() -> None:
    """Chunks of four tokens, of which the last is not full; theirs has 64."""
    ours, theirs, weights = build_gated_deltanet()
    x = np.random.default_rng(0).normal(size=(BATCH, LENGTH, 12)).astype(np.float32)
    compare(ours, x, theirs, weights)


@pytest.mark.slow
def test_steps_of_gated_deltanet_equal_transformers() -> None:
    """Five tokens together, then one after the other, with the state in the cache."""
    ours, theirs, _ = build_gated_deltanet()
    x = np.random.default_rng(0).normal(size=(BATCH, LENGTH, 12)).astype(np.float32)
    cache = DynamicCache(config=transformers.Qwen3NextConfig(num_hidden_layers=1, layer_types=["linear_attention"]))
    state = jax.tree.map(lambda array: array[None], empty_state(ours.config, ours.mixer, BATCH))
    graph, ours_weights = nnx.split(ours)

    @jax.jit
    def decode(x: jax.Array, state: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        segment_ids = jnp.ones(x.shape[:2], jnp.int32)
        y, updated = nnx.merge(graph, ours_weights)(x, segment_ids, StateSlice(state, jnp.int32(0)))
        return y, updated.layers

    for part in (x[:, :5], *np.split(x[:, 5:], 4, axis=1)):
        with torch.no_grad():
            expected = theirs(torch.tensor(part), cache_params=cache)
        y, state = decode(jnp.asarray(part), state)
        np.testing.assert_allclose(y, expected.numpy(), atol=2e-5)


def rows_by_key_head(key_heads: int, rows: slice, shape: tuple[int, ...]) -> Any:
    return lambda array: array.reshape(key_heads, -1, 12)[:, rows].reshape(-1, 12).T.reshape(12, *shape)


def columns_of(rows: slice, shape: tuple[int, ...]) -> Any:
    return lambda array: array[rows].T.reshape(12, *shape)


def filters_of(rows: slice, shape: tuple[int, ...]) -> Any:
    return lambda array: array[rows, 0].T.reshape(4, *shape)


def part_of(rows: slice, shape: tuple[int, ...]) -> Any:
    return lambda array: array[rows].reshape(shape)
