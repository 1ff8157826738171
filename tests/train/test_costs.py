"""FLOPs and bytes of compiled train steps, as the compiler counts them, against those of a file: no time is measured.

A change that raises one by 5 % fails here, and one that lowers the FLOPs by as much: a part of the step may be lost. If
it is meant, say why and write the file again:
`python -m tests.train.test_costs > tests/train/step_costs.json`.
"""

import json
import sys
from pathlib import Path

import jax
import pytest

from t5x_lite import config as configuration
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.planner.example import example_features
from t5x_lite.train.steps import make_steps
from tests.conftest import REPOSITORY

EXPECTED_COSTS = Path(__file__).with_name("step_costs.json")
LARGEST_RATIO = 1.05
SMALLEST_FLOPS_RATIO = 0.95
"""A compiler that optimizes more accesses fewer bytes, so that these have no lower bound."""
SMALL = ["model.embed=64", "model.heads=4", "train.batch_size=8", "train.seq_len=64", "model.compute=float32"]
STEPS = {
    "gpt": ("gpt2/117m.yaml", ["model.layers=4", "model.vocab=512"]),
    "gpt, every layer by itself": ("gpt2/117m.yaml", ["model.layers=4", "model.vocab=512", "model.unroll=0"]),
    "gpt, sparse": ("gpt3/125m.yaml", ["model.layers=4", "model.vocab=512", "train.seq_len=512"]),
    "llama": ("llama2/7b.yaml", ["model.layers=4", "model.vocab=512", "model.mlp=128"]),
    "t5": ("t5/small.yaml", ["model.layers=2", "model.head_dim=16", "model.vocab=512", "model.mlp=256"]),
    "bert": ("bert/base.yaml", ["model.layers=4", "model.vocab=512"]),
    "switch": ("switch/base_128.yaml", ["model.layers=2", "model.head_dim=16", "model.vocab=512", "model.mlp=128"]),
}
"""By name: a config, and the overrides that make its model small."""
FAST_STEPS = ("gpt", "t5", "bert")


def count_costs(name: str) -> dict[str, float]:
    """Return FLOPs and bytes accessed. The body of a scan is counted once."""
    path, overrides = STEPS[name]
    config = configuration.load(REPOSITORY / "configs" / path, [*SMALL, *overrides])
    mesh = meshes.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        steps = make_steps(config, model_spec(config.model), mesh)
        shapes = meshes.batch_shapes(mesh, example_features(config), config.train.batch_size)
        analysis = steps.train.lower(steps.state, shapes).compile().cost_analysis()
    return {"flops": analysis["flops"], "bytes": analysis["bytes accessed"]}


@pytest.mark.parametrize(
    "name", [name if name in FAST_STEPS else pytest.param(name, marks=pytest.mark.slow) for name in STEPS]
)
def test_every_step_costs_what_the_file_says(name: str) -> None:
    expected_costs = json.loads(EXPECTED_COSTS.read_text())[name]
    costs = count_costs(name)
    for kind, expected in expected_costs.items():
        ratio = costs[kind] / expected
        assert ratio <= LARGEST_RATIO, f"{name}: {ratio:.3f} times the {kind} of {EXPECTED_COSTS.name}"
    assert costs["flops"] >= SMALLEST_FLOPS_RATIO * expected_costs["flops"], name


if __name__ == "__main__":
    json.dump({name: count_costs(name) for name in STEPS}, sys.stdout, indent=2)
    sys.stdout.write("\n")
