"""FLOPs and bytes of the compiled train step, as the compiler counts them, against a kept file: no clock is read.

A change that makes a step dearer by 5 % fails here; if it is wanted, say why and write the file anew:
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

KEPT = Path(__file__).with_name("step_costs.json")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MARGIN = 1.05
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


def costs(name: str) -> dict[str, float]:
    """FLOPs and bytes accessed; the body of a scan counts once."""
    path, overrides = STEPS[name]
    config = configuration.load(CONFIGS / path, [*SMALL, *overrides])
    mesh = meshes.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        steps = make_steps(config, model_spec(config.model), mesh)
        shapes = meshes.batch_shapes(mesh, example_features(config), config.train.batch_size)
        found = steps.train.lower(steps.state, shapes).compile().cost_analysis()  # type: ignore[attr-defined]
    return {"flops": found["flops"], "bytes": found["bytes accessed"]}


FAST = ("gpt", "t5", "bert")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in STEPS])
def test_no_step_costs_more_than_before(name: str) -> None:
    kept, found = json.loads(KEPT.read_text())[name], costs(name)
    dearer = {what: f"{found[what] / kept[what]:.3f} ×" for what in kept if found[what] > MARGIN * kept[what]}
    assert not dearer, f"the step of {name} costs more than {KEPT.name} says: {dearer}"


if __name__ == "__main__":
    json.dump({name: costs(name) for name in STEPS}, sys.stdout, indent=2)
    print()
