"""Matrix products of a traced program."""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, Float, PyTree

from t5x_lite.config import RunConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.planner.example import example_features
from t5x_lite.run_loss import loss_function


def trace_gradient(config: RunConfig, rows: int) -> Jaxpr:
    """Return the program of the loss of a run on so many examples, and of its gradients."""
    spec = model_spec(config.model)
    compute_terms = loss_function(config, spec, 1, training=True)
    batch = {}
    for name, feature in example_features(config).items():
        batch[name] = jax.ShapeDtypeStruct((rows, *feature.shape), feature.dtype)

    def loss_fn(params: PyTree, batch: dict[str, Array]) -> Float[Array, ""]:
        terms = compute_terms(params, batch, jax.random.key(0))
        return sum(term.total for term in terms.values())

    return jax.make_jaxpr(jax.grad(loss_fn))(spec.shapes, batch).jaxpr


def inner_jaxprs(value: object) -> Iterator[Jaxpr]:
    """Yield the programs in a parameter of an equation, such as the body of a scan."""
    values = value if isinstance(value, tuple | list) else [value]
    for item in values:
        if isinstance(item, ClosedJaxpr):
            yield item.jaxpr
        elif isinstance(item, Jaxpr):
            yield item


def count_product_flops(jaxpr: Jaxpr) -> float:
    """Return the FLOPs of all matrix products; those of a scan count as often as it runs.

    This knows nothing of models.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted_axes, _), _ = equation.params["dimension_numbers"]
            operand: Any = equation.invars[0].aval
            product: Any = equation.outvars[0].aval
            total += 2.0 * math.prod(product.shape) * math.prod(operand.shape[axis] for axis in contracted_axes)
        repeats = 1
        if equation.primitive.name == "scan":
            repeats = equation.params["length"]
        for value in equation.params.values():
            for inner_jaxpr in inner_jaxprs(value):
                total += repeats * count_product_flops(inner_jaxpr)
    return total
