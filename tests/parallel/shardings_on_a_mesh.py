"""Check shardings of weights and of a train state on a mesh of 8 simulated devices; print `equal` at the end.

Run by test_mesh.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

import sys

import jax
from jax.sharding import PartitionSpec as P

from t5x_lite.models.layers import WeightAxes
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import local_rows, make_mesh, sharding_of, state_shardings
from t5x_lite.train.config import OptimizerConfig
from t5x_lite.train.optimization import make_optimizer, scale_learning_rates
from t5x_lite.train.state import TrainState
from t5x_lite.trees import flatten_names

MATRIX = WeightAxes(("embed", "mlp"), 1)
BIAS = WeightAxes(("mlp",))


def check_weights() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "expert": 1, "context": 1, "pipeline": 1}
    table = WeightAxes(("vocab", "embed"))
    cases = [
        (MATRIX, (8, 16), P(("fsdp",), ("tensor",))),
        (MATRIX, (3, 8, 16), P(None, ("fsdp",), ("tensor",))),
        (MATRIX, (7, 16), P(None, ("tensor",))),
        (table, (10, 8), P(("tensor",), ("fsdp",))),
        (WeightAxes(("embed",), 0), (8,), P(("fsdp",))),
    ]
    for axes, shape, expected in cases:
        spec = sharding_of(mesh, axes, shape).spec
        assert tuple(spec) == tuple(expected), (axes, shape, spec)
    assert local_rows(mesh, 8).tolist() == list(range(8))


def check_state(method: str, expected: dict[str, P]) -> None:
    """Compare the sharding of every array of the optimizer state that is not replicated."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    axes = {"layer": {"weight": MATRIX, "bias": BIAS}, "base": MATRIX}
    trained_axes = {"layer": axes["layer"]}
    optimizer = make_optimizer(OptimizerConfig.model_validate({"method": method}), 10, trained_axes)
    optimizer = scale_learning_rates(optimizer, 10, lambda progress, params: jax.tree.map(lambda _: progress, params))

    def create_state() -> TrainState:
        zeros = jax.numpy.zeros
        count = zeros((), int)
        params = {"layer": {"weight": zeros((3, 128, 256)), "bias": zeros((3, 256))}}
        return TrainState(count, params, optimizer.init(params), count, count, {"base": zeros((2, 128, 256))})

    state = jax.eval_shape(create_state)
    shardings = state_shardings(mesh, axes, state, optimizer.init)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    specs = {name: tuple(sharding.spec) for name, sharding in flatten_names(shardings).items()}
    sharded = {name: spec for name, spec in specs.items() if any(spec)}
    params = {
        "params.layer.weight": P(None, ("fsdp",), ("tensor",)),
        "params.layer.bias": P(None, ("tensor",)),
        "frozen.base": P(None, ("fsdp",), ("tensor",)),
    }
    assert sharded == {name: tuple(spec) for name, spec in (params | expected).items()}, (method, sharded)


def main() -> None:
    check_weights()
    weight = P(None, ("fsdp",), ("tensor",))
    bias = P(None, ("tensor",))
    moments = {
        "opt_state.1.1.mu.layer.weight": weight,
        "opt_state.1.1.mu.layer.bias": bias,
        "opt_state.1.1.nu.layer.weight": weight,
        "opt_state.1.1.nu.layer.bias": bias,
    }
    check_state("adamw", moments)
    check_state("lamb", moments)
    # The moments of a matrix are factored: one has its rows, and one its columns. Those of a bias are not.
    check_state(
        "adafactor",
        {
            "opt_state.1.1.layer.bias.v": bias,
            "opt_state.1.1.layer.weight.v_row": P(None, ("fsdp",)),
            "opt_state.1.1.layer.weight.v_col": P(None, ("tensor",)),
        },
    )
    # Muon keeps a momentum of matrices, and Adam both moments of everything else.
    masked = "opt_state.1.1.inner_states"
    check_state(
        "muon",
        {
            f"{masked}.True.inner_state.0.mu.layer.weight": weight,
            f"{masked}.False.inner_state.mu.layer.bias": bias,
            f"{masked}.False.inner_state.nu.layer.bias": bias,
        },
    )


if __name__ == "__main__":
    main()
    sys.stdout.write("equal\n")
