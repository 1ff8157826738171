"""The analytic FLOPs against every matrix product of the traced step, forward and backward."""

import math
from typing import Any

import jax
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from t5x_lite.config import RunConfig
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.objectives import Choice, Classify, Reward, Similarity
from t5x_lite.objectives.supervised import Supervised
from t5x_lite.planner.example import example_context, example_features
from t5x_lite.run_loss import loss_function
from t5x_lite.train.flops import flops_per_example

ROWS = 2
SIZES = {"layers": 2, "embed": 64, "heads": 4, "vocab": 256}
EXPERTS = {"moe": {"experts": 4, "router": {"top_k": {"k": 2}}, "dispatch": {"capacity": {"factor": 1.0}}}}

IN_STEPS = 10 / 16
"""Of a causal square of 256 in steps of 64 queries: one, two, three and four blocks of 16. A short one is whole."""


def products(jaxpr: Jaxpr) -> float:
    """FLOPs of all `dot_general`, those of a scan as often as it runs: nothing here is known of models."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inputs = equation.invars[0].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(inputs[axis] for axis in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if isinstance(inner, ClosedJaxpr | Jaxpr):
                    total += times * products(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)
    return total


@pytest.mark.parametrize(
    ("model", "objective", "square"),
    [
        ({}, "causal", IN_STEPS),
        ({"kv_heads": 2, "tied": False, "feedforward": "glu", "positions": "rotary"}, "causal", IN_STEPS),
        ({"family": "encoder", "output_transform": True}, "masked", 1.0),
        ({"family": "encoder_decoder", "decoder_layers": 4, "positions": "rotary"}, "span_corruption", 1.0),
        ({"pattern": [{"feedforward": "dense"}, {"feedforward": EXPERTS}]}, "causal", IN_STEPS),
        ({"pattern": [{"attention": {"local": {"window": 16}}}]}, "causal", None),
    ],
    ids=["dense", "gated-grouped", "encoder", "encoder-decoder", "experts", "band"],
)
def test_flops_are_those_of_the_program(model: dict[str, Any], objective: str, square: float | None) -> None:
    """Equal but for routers' and heads' crumbs; a band's program computes whole blocks, so more than is seen."""
    config = RunConfig.model_validate(
        {
            "model": {**SIZES, **model},
            "objective": objective,
            "train": {"steps": 1, "batch_size": ROWS, "seq_len": 256, "loss_chunks": 1},
        }
    )
    structure = model_spec(config.model)
    loss = loss_function(config, structure, 1, training=True)
    row = example_features(config)
    batch = {name: jax.ShapeDtypeStruct((ROWS, *value.shape), value.dtype) for name, value in row.items()}

    def step(params: Any, batch: Any) -> Any:
        return sum(term.total for term in loss(params, batch, jax.random.key(0)).values())

    counted = products(jax.make_jaxpr(jax.grad(step))(structure.shapes, batch).jaxpr)
    lengths = config.require_objective().lengths(example_context(config.model, config.train.seq_len))
    full = ROWS * flops_per_example(config.model, structure, lengths, causal_half=False)
    seen = ROWS * flops_per_example(config.model, structure, lengths)
    if square is None:
        assert seen < counted < 1.6 * seen
    else:
        # Between the half of a causal square, which `seen` counts, and all of it.
        assert counted == pytest.approx(seen + (2 * square - 1) * (full - seen), rel=0.01)


def test_an_example_of_several_texts_costs_each_of_them() -> None:
    """Four choices pass the encoder one by one, a pair twice; each has one score of the same head."""
    config = ModelConfig.model_validate({**SIZES, "family": "encoder", "head": {"outputs": 1}})
    structure = model_spec(config)
    task = example_context(config, 128)

    def flops(objective: Supervised) -> float:
        return flops_per_example(config, structure, objective.lengths(task))

    one = flops(Classify(labels=("no", "yes")))
    assert flops(Choice(count=4)) == 4 * one
    assert flops(Reward()) == flops(Similarity(by="cosine")) == 2 * one
