"""Matrix products of a traced program."""

import math
from collections.abc import Iterator

from jax.extend.core import ClosedJaxpr, Jaxpr


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
            input_shape = equation.invars[0].aval.shape
            output_size = math.prod(equation.outvars[0].aval.shape)
            total += 2.0 * output_size * math.prod(input_shape[axis] for axis in contracted_axes)
        repeats = 1
        if equation.primitive.name == "scan":
            repeats = equation.params["length"]
        for value in equation.params.values():
            for inner_jaxpr in inner_jaxprs(value):
                total += repeats * count_product_flops(inner_jaxpr)
    return total
