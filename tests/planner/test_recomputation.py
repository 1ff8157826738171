"""The FLOPs that a policy of rematerialisation repeats, against the products of the traced gradient."""

from typing import get_args

import jax
import pytest
from _pytest.mark import ParameterSet
from jax.extend.core import Jaxpr
from jax.interpreters import partial_eval

from t5x_lite.config import RunConfig
from t5x_lite.models.remat_policy import RematPolicy
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.planner.example import example_context
from t5x_lite.planner.recomputation import recomputed_flops_per_example
from t5x_lite.planner.workload import Workload
from tests.product_flops import count_product_flops, trace_gradient

ROWS = 2
SEQ_LEN = 64
SIZES = {"layers": 2, "embed": 64, "heads": 4, "vocab": 256}
EXPERTS = {"moe": {"experts": 4, "router": {"top_k": {"k": 2}}, "dispatch": {"capacity": {"factor": 1.0}}}}
POLICIES = sorted(set(get_args(RematPolicy)) - {"auto", "offload"})


def make_config(model: dict[str, object], objective: str, policy: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {**SIZES, **model, "remat": policy},
            "objective": objective,
            "train": {"steps": 1, "batch_size": ROWS, "seq_len": SEQ_LEN, "loss_chunks": 1},
        }
    )


def traced_gradient(config: RunConfig) -> Jaxpr:
    """Return the program of a gradient, without what no result needs."""
    jaxpr = trace_gradient(config, ROWS)
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return needed


def traced_flops(config: RunConfig) -> float:
    return count_product_flops(traced_gradient(config))


def slow(*values: object) -> ParameterSet:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ({}, "causal"),
        slow({"feedforward": "glu", "norm_place": "sandwich", "kv_heads": 2}, "causal"),
        slow({"norm_place": "post", "family": "encoder"}, "masked"),
        slow({"sublayers": "parallel"}, "causal"),
        slow({"pattern": [{}, {"attention": {"local": {"window": 64}}}]}, "causal"),
        slow({"family": "encoder_decoder", "positions": "rotary"}, "span_corruption"),
        slow({"feedforward": EXPERTS}, "causal"),
        slow({"first": [{"feedforward": "dense"}], "feedforward": EXPERTS, "layers": 3}, "causal"),
        slow({"feedforward": "none"}, "causal"),
    ],
    ids=["pre", "sandwich", "post", "parallel", "period", "encoder-decoder", "experts", "first", "attention-alone"],
)
def test_recomputed_flops_equal_those_of_the_trace(model: dict[str, object], objective: str) -> None:
    """Equal but for the scores, which attention by XLA computes again wherever a policy does not keep them."""
    base_flops = traced_flops(make_config(model, objective, "none"))
    for policy in POLICIES:
        config = make_config(model, objective, policy)
        spec = model_spec(config.model)
        lengths = config.require_objective().example_lengths(example_context(config.model, SEQ_LEN))
        workload = Workload(config, spec, lengths, make_mesh(config.mesh, jax.devices()[:1]))
        expected = (traced_flops(config) - base_flops) / ROWS
        if policy.startswith("save_"):
            expected -= score_flops(config, lengths.tokens, lengths.targets)
        recomputed = recomputed_flops_per_example(workload, causal_half=False)
        assert recomputed == pytest.approx(expected, rel=0.01), policy


def score_flops(config: RunConfig, tokens: int, targets: int) -> float:
    """Return 2 for each channel and pair of query and key, in every layer, cross-attention included."""
    pairs = tokens * tokens
    if config.model.family == "encoder_decoder":
        pairs += targets * targets + targets * tokens
    return 2.0 * config.model.layers * config.model.embed * pairs


def test_dots_keep_the_products_of_experts_whose_rows_are_sorted() -> None:
    """A gated expert has three products, each with two gradients; `full` repeats all, as gates need the last."""
    experts = {
        "moe": {
            "experts": 4,
            "expert": "glu",
            "router": {"top_k": {"k": 2}},
            "dispatch": {"dropless": {"kernel": "ragged"}},
        }
    }

    def grouped_products(policy: str) -> int:
        jaxpr = traced_gradient(make_config({"feedforward": experts, "layers": 1}, "causal", policy))
        return str(jaxpr).count("ragged_dot_general")

    assert {policy: grouped_products(policy) for policy in ("none", "dots", "full")} == {
        "none": 9,
        "dots": 9,
        "full": 12,
    }
