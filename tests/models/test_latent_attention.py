"""Latent attention, layers before the pattern, and choices within groups of experts.

Numbers are compared with Transformers in `tests/reference`; here with the definitions and with hand counts.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pydantic import ValidationError

from t5x_lite.models.attention.context import AttentionContext, AttentionSettings, TokenPositions
from t5x_lite.models.attention.kernels import attend
from t5x_lite.models.attention.kinds import Dense
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.routers import DeepSeek, TopK
from t5x_lite.models.mesh_sizes import check_mesh_sizes
from t5x_lite.models.mixers.latent_attention import LatentAttention
from t5x_lite.models.spec import model_spec
from t5x_lite.trees import flatten_names, unflatten_names
from tests.models.decoding import decode_states, pad_left
from tests.models.weights import random_model

VOCAB = 50
LATENT = {"latent_attention": {"rank": 12, "query_rank": 10, "rotary": 4, "value": 6}}
EXPERTS = {"moe": {"experts": 4, "mlp": 8, "expert": "glu", "dispatch": "dropless", "router": {"top_k": {"k": 2}}}}
SIZES = {
    "layers": 5,
    "embed": 16,
    "heads": 4,
    "head_dim": 8,
    "mlp": 24,
    "vocab": VOCAB,
    "positions": {"rotary": {"interleaved": True}},
    "norm": "rmsnorm",
    "bias": False,
    "feedforward": EXPERTS,
}
FIRST = {
    **SIZES,
    "first": [{"mixer": LATENT, "feedforward": "dense"}],
    "pattern": [{"mixer": LATENT}, {"mixer": LATENT, "attention": {"local": {"window": 3}}}],
}
LISTED = {
    **SIZES,
    "pattern": [*FIRST["first"], *FIRST["pattern"], *FIRST["pattern"]],
}
"""The same five layers, none of which repeats."""


def build_config(settings: dict, **changes: object) -> ModelConfig:
    return ModelConfig.model_validate({**settings, **changes})


def test_decoding_from_the_compressed_cache_equals_one_pass() -> None:
    """Prompts of unequal length; one layer in two has a window, whose cache is a ring."""
    model = random_model(build_config(FIRST))
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, VOCAB, (1, length)).astype(np.int32) for length in (9, 4)]
    new_tokens = rng.integers(1, VOCAB, (2, 5)).astype(np.int32)
    states = decode_states(model, *pad_left(rows), new_tokens)
    for number, row in enumerate(rows):
        whole = np.concatenate([row, new_tokens[number : number + 1]], axis=1)
        expected = model(jnp.asarray(whole))[0, row.shape[1] - 1 :]
        np.testing.assert_allclose(states[number], expected, atol=2e-5)


def test_the_cache_holds_the_latent_and_one_rotated_key() -> None:
    """Liu et al. 2024, Table 1: (d_c + d_R) · layers numbers a token, 4.5 · 128 · 60 for DeepSeek-V2."""
    cache = jax.eval_shape(lambda: random_model(build_config(FIRST)).decoder.empty_cache(1, 7))
    numbers_of_dense_layers = sum(leaf.size for leaf in jax.tree.leaves(cache.layers) if leaf.shape[-2] == 7)
    assert numbers_of_dense_layers == 7 * (12 + 4) * 3
    mixer = (
        ModelConfig.model_validate(
            {"layers": 1, "embed": 8, "heads": 1, "positions": "rotary", "pattern": [{"mixer": "latent_attention"}]}
        )
        .pattern[0]
        .mixer
    )
    assert isinstance(mixer, LatentAttention)
    assert mixer.rank + mixer.rotary == 4.5 * 128


def test_first_layers_compute_what_a_pattern_of_all_layers_does() -> None:
    first = random_model(build_config(FIRST))
    spec = model_spec(build_config(LISTED))
    ours = flatten_names(nnx.to_pure_dict(nnx.state(first)))
    listed = {}
    for name in flatten_names(spec.shapes):
        start, is_in_stack, path = name.partition(".stack.layers.")
        if not is_in_stack:
            listed[name] = ours[name]
            continue
        place, _, parameter = path.partition(".")
        if place == "0":
            listed[name] = ours[f"{start}.stack.first.layers.0.{parameter}"]
        else:
            repeat, place_in_pattern = divmod(int(place) - 1, 2)
            array = ours[f"{start}.stack.layers.{place_in_pattern}.{parameter}"]
            listed[name] = array[repeat : repeat + 1]
    tokens = np.random.default_rng(0).integers(1, VOCAB, (2, 9))
    expected = spec.model(unflatten_names(listed))(jnp.asarray(tokens))
    np.testing.assert_allclose(first(jnp.asarray(tokens)), expected, atol=1e-6)


def test_a_fused_kernel_gets_values_as_wide_as_keys() -> None:
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(2, 128, 2, width)), jnp.bfloat16) for width in (24, 24, 16))
    positions = TokenPositions(np.arange(128), jnp.ones((2, 128), jnp.int32))
    context = AttentionContext(positions, positions, causal=True, self_attention=True)
    settings = AttentionSettings(kernel="flash", platform="gpu", interpret=True)
    out = attend(query, key, value, Dense(), context, settings)
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    expected = attend(query, key, value, Dense(), context, AttentionSettings())
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=3e-2)


@pytest.mark.parametrize(("router", "members"), [(TopK, 1), (DeepSeek, 2)])
def test_experts_are_chosen_from_the_groups_with_the_best_members(router: type, members: int) -> None:
    """Liu et al. 2024a, §2.2.2: by a group's best expert; 2024b, §2.1.2: by the sum of its best two."""
    scores = np.random.default_rng(0).random((3, 5, 12)).astype(np.float32)
    _, experts = router(k=3, groups=4, chosen_groups=2).choose(jnp.asarray(scores))
    for row, chosen in zip(scores.reshape(-1, 12), np.asarray(experts).reshape(-1, 3), strict=True):
        groups = [range(start, start + 3) for start in range(0, 12, 3)]
        ranked = sorted(groups, key=lambda group: -np.sort(row[list(group)])[-members:].sum())
        allowed = [*ranked[0], *ranked[1]]
        assert chosen.tolist() == sorted(allowed, key=lambda expert: -row[expert])[:3]


def test_weights_are_probabilities_times_a_factor_if_they_are_not_normalised() -> None:
    logits = jnp.log(jnp.asarray([[[0.1, 0.2, 0.3, 0.4]]]))
    assignment = TopK(k=2, normalize=False, scale=10.0).choose_experts(logits, None, None)
    np.testing.assert_allclose(assignment.weights, [[[4.0, 3.0]]], rtol=1e-5)
    assignment = TopK(k=2).choose_experts(logits, None, None)
    np.testing.assert_allclose(assignment.weights, [[[4 / 7, 3 / 7]]], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": {"learned": {"length": 32}}}, "latent_attention needs rotary positions"),
        ({"kv_heads": 2}, "latent_attention has keys for every head"),
        ({"query_key_norm": "head"}, "whose latents have norms"),
        ({"first": [{"mixer": LATENT}]}, "layers of first have no experts"),
        ({"first": FIRST["first"] * 5}, "first has 5 of 5 layers"),
        ({"family": "electra"}, "first is for a decoder or an encoder"),
        ({"feedforward": {"moe": {"experts": 4, "router": {"top_k": {"groups": 3}}}}}, "cannot be cut into 3 groups"),
        (
            {"feedforward": {"moe": {"experts": 4, "router": {"top_k": {"k": 2, "groups": 4}}}}},
            "1 of 4 groups have fewer than 2 of 4 experts",
        ),
        (
            {"feedforward": {"moe": {"experts": 4, "router": {"deepseek": {"k": 1, "groups": 4}}}}},
            "groups of 1 experts, of which the best 2 count",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build_config(FIRST, **changes)


def test_a_pipeline_has_no_place_for_first_layers() -> None:
    with pytest.raises(ValueError, match=r"the layers of model\.first are in no stage"):
        check_mesh_sizes(build_config(FIRST), expert=1, tensor=1, pipeline=2)
