"""Each kind of component is extended by one new file and one entry in its registry.

A toy of each kind is a file outside the package. A new process adds it to the registry, before the config is imported,
and uses the command line. So no other file of the package can know the toy.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, lines

OBJECTIVE = '''
"""Skip-one language modelling: predict the token after the next."""

from typing import ClassVar

import numpy as np

from t5x_lite.objectives.features import positions_in
from t5x_lite.objectives.objective import Objective


class Toy(Objective):
    name: ClassVar[str] = "toy"
    families: ClassVar = ("decoder",)

    def row_length(self, context):
        return context.seq_len + 2

    def stride(self, context):
        return context.seq_len

    def example(self, row, context, rng):
        segments = row.segments[:-2]
        is_predicted = (segments == row.segments[2:]) & (segments > 0)
        return {
            "tokens": row.tokens[:-2],
            "targets": row.tokens[2:],
            "positions": positions_in(segments),
            "segment_ids": segments,
            "loss_weights": is_predicted.astype(np.float32),
        }

    def loss(self, model, batch, key, settings):
        from t5x_lite.models import losses

        states = model(batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"], key=key)
        weights = batch["loss_weights"]
        return {"loss": losses.token_cross_entropy(model.logits, states, batch["targets"], weights, settings)}
'''

ATTENTION_KIND = '''
"""Dilated attention: keys at even distances."""

from t5x_lite.models.attention.kinds.kind import AttentionKind
from t5x_lite.schema import Int, setting


class Toy(AttentionKind):
    step: Int = setting(2, "distance between two keys", unit="tokens", ge=1)

    def allowed(self, query, key):
        return (query - key) % self.step == 0
'''

MIXER = '''
"""The mean of the tokens so far, of a document."""

from t5x_lite.models.mixers.mixer import StateMixer
from t5x_lite.schema import setting


class Toy(StateMixer):
    scale: float = setting(1.0, "factor on the mean", gt=0)

    def init_parameters(self, model, rngs):
        from t5x_lite.models.layers import Linear

        return {"value": Linear(model, [("embed", model.embed)], [("mlp", model.embed)], rngs=rngs)}

    def empty_state(self, model, batch):
        import jax.numpy as jnp

        return {"sum": jnp.zeros((batch, model.embed)), "count": jnp.zeros((batch, 1))}

    def mix(self, parameters, x, continues, state, key):
        import jax.numpy as jnp

        from t5x_lite.models.mixers.linear_recurrence import linear_recurrence

        keep = continues[..., None].astype(jnp.float32)
        total = linear_recurrence(keep * jnp.ones(x.shape), parameters.value(x), state["sum"])
        count = linear_recurrence(keep, jnp.ones((*x.shape[:2], 1)), state["count"])
        return self.scale * total / count, {"sum": total[:, -1], "count": count[:, -1]}
'''

ROUTER = '''
"""The runner-up: each token is sent to the expert with the second highest logit."""

from t5x_lite.models.experts.router import Assignment, Router, highest


class Toy(Router):
    @property
    def choices(self):
        return 1

    def choose_experts(self, logits, bias, key):
        import jax
        import jax.numpy as jnp

        _, experts = highest(logits, 2)
        runner_up = experts[..., 1:]
        return Assignment(runner_up, jnp.ones(runner_up.shape, logits.dtype), jax.nn.softmax(logits, axis=-1))
'''

POSITIONS = '''
"""Parity: one trained vector for even positions, and one for odd ones."""

from t5x_lite.models.positions.encoding import PositionEncoding


class Toy(PositionEncoding):
    def init_parameters(self, model, rngs):
        from t5x_lite.models.layers import Embed

        return {"table": Embed(model, 2, model.embedding, axis="position", rngs=rngs)}

    def encode(self, parameters, x, positions):
        return x + parameters.table(positions % 2)
'''

ADAPTATION = '''
"""Norm tuning: the norms train, everything else is frozen."""

from t5x_lite.adapt.method import AdaptationMethod


class Toy(AdaptationMethod):
    def first_trained_repeat(self, name, model):
        return 0 if "norm" in name else None
'''

EVALUATOR = '''
"""The number of parameters, in thousands."""

from t5x_lite.evaluate.evaluators.evaluator import Evaluation, Evaluator
from t5x_lite.schema import setting


class Toy(Evaluator):
    unit: float = setting(1000.0, "parameters in one unit", gt=0)

    def run(self, model):
        import jax

        count = sum(array.size for array in jax.tree.leaves(model.params))
        return Evaluation({"eval/toy": count / self.unit})
'''

OPTIMIZER = '''
"""Sign descent with momentum."""

from t5x_lite.schema import setting
from t5x_lite.train.optimizers.method import OptimizerMethod


class Toy(OptimizerMethod):
    decay: float = setting(0.9, "decay of the momentum", ge=0, lt=1)

    def transformations(self, axes, weight_decay):
        import optax

        return [optax.trace(self.decay), optax.scale_by_sign(), weight_decay]
'''

SCHEDULE = '''
"""Half of the peak from the middle of the run on."""

from t5x_lite.schema import setting
from t5x_lite.train.schedules.schedule import Schedule


class Toy(Schedule):
    share: float = setting(0.5, "last rate as a share of the peak", gt=0, le=1)

    def factor(self, count, horizon):
        import jax.numpy as jnp

        return jnp.where(horizon.progress(count) < 0.5, 1.0, self.share)
'''


@dataclass(frozen=True)
class Extension:
    """A toy component.

    Attributes:
        source: the text of its file, which defines the class `Toy`.
        registry: the module and the name of its registry.
        overrides: the settings that select it.
        setting: one of its settings in `--help-config`, or the setting that lists it.
    """

    source: str
    registry: tuple[str, str]
    overrides: tuple[str, ...]
    setting: str


# The order of registration: what a model is made of first, because other packages read its config.
EXTENSIONS = {
    "attention kind": Extension(
        ATTENTION_KIND,
        ("t5x_lite.models.attention.kinds", "ATTENTION"),
        ("model.pattern=[{attention: dense},{attention: {toy: {step: 2}}}]",),
        "model.pattern.N.attention.toy.step",
    ),
    "sequence mixer": Extension(
        MIXER,
        ("t5x_lite.models.mixers", "MIXERS"),
        ("model.pattern=[{mixer: {toy: {scale: 2.0}}},{}]",),
        "model.pattern.N.mixer.toy.scale",
    ),
    "router": Extension(
        ROUTER,
        ("t5x_lite.models.experts.routers", "ROUTERS"),
        ("model.feedforward={moe: {experts: 2, router: toy}}",),
        "model.feedforward.moe.router.toy.balance",
    ),
    "position encoding": Extension(
        POSITIONS, ("t5x_lite.models.positions", "POSITIONS"), ("model.positions=toy",), "model.positions"
    ),
    "objective": Extension(OBJECTIVE, ("t5x_lite.objectives", "OBJECTIVES"), ("objective=toy",), "objective"),
    "adaptation method": Extension(
        ADAPTATION, ("t5x_lite.adapt", "ADAPTATIONS"), ("adapt={from: BASE, method: toy}",), "adapt.method"
    ),
    "evaluator": Extension(
        EVALUATOR,
        ("t5x_lite.evaluate.evaluators", "EVALUATORS"),
        ("eval.evaluators=[{toy: {unit: 10}}]",),
        "eval.evaluators.N.toy.unit",
    ),
    "optimizer": Extension(
        OPTIMIZER,
        ("t5x_lite.train.optimizers", "OPTIMIZERS"),
        ("optimizer.method.toy.decay=0.5",),
        "optimizer.method.toy.decay",
    ),
    "schedule": Extension(
        SCHEDULE,
        ("t5x_lite.train.schedules", "SCHEDULES"),
        ("optimizer.schedule.toy.share=0.25",),
        "optimizer.schedule.toy.share",
    ),
}

MAIN = """
import contextlib, io, json, pathlib, shutil, sys

{registrations}
from t5x_lite.cli import main

def run(*arguments):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main([*arguments]) == 0
    return output.getvalue()

config, run_dir, *overrides = sys.argv[1:]
folder = pathlib.Path(run_dir)
train = ["train", config, "run_dir=" + run_dir, *overrides]
help_config = run(*train, "--help-config")
run(*train)
shutil.copy(folder / "metrics.jsonl", folder / "first_metrics.jsonl")
shutil.rmtree(folder / "checkpoints/2")
run(*train)
scores = json.loads(run("eval", run_dir, "--json"))
text = run("generate", run_dir, "--prompt", "the quick", "--tokens", "4", "--temperature", "0")
print(json.dumps({{"help_config": help_config, "scores": scores, "text": text}}))
"""
REGISTRATION = """
from {file} import Toy
from {module} import {registry}
{registry}["toy"] = Toy
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(EXTENSIONS.keys() - {"adaptation method"}))
def test_a_component_is_one_file_and_one_entry(kind: str, tiny_config: Path, tiny_run: Path, tmp_path: Path) -> None:
    check_extensions([EXTENSIONS[kind]], tiny_config, tiny_run, tmp_path)


@pytest.mark.slow
def test_an_adaptation_method_is_one_file_and_one_entry(tiny_config: Path, tiny_run: Path, tmp_path: Path) -> None:
    check_extensions([EXTENSIONS["adaptation method"]], tiny_config, tiny_run, tmp_path)


@pytest.mark.slow
def test_new_components_of_all_other_kinds_train_together(tiny_config: Path, tiny_run: Path, tmp_path: Path) -> None:
    # A mixer and an attention kind are both settings of the pattern, which one override gives.
    kinds = EXTENSIONS.keys() - {"adaptation method", "sequence mixer"}
    others = [extension for kind, extension in EXTENSIONS.items() if kind in kinds]
    check_extensions(others, tiny_config, tiny_run, tmp_path)


def check_extensions(extensions: list[Extension], config: Path, base: Path, folder: Path) -> None:
    """Train a run with toys for two steps, resume it after the first, evaluate it and generate."""
    registrations = []
    overrides = ["train.steps=2", "checkpoint.every_steps=1", "eval.every_steps=1"]
    for number, extension in enumerate(extensions):
        (folder / f"toy_{number}.py").write_text(extension.source)
        module, registry = extension.registry
        registrations.append(REGISTRATION.format(file=f"toy_{number}", module=module, registry=registry))
        overrides += [override.replace("BASE", str(base)) for override in extension.overrides]
    (folder / "main.py").write_text(MAIN.format(registrations="".join(registrations)))
    run = folder / "run"
    done = subprocess.run(
        [sys.executable, str(folder / "main.py"), str(config), str(run), *overrides],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "resumed from step 1" in done.stderr
    result = json.loads(done.stdout)
    for extension in extensions:
        assert f"\n{extension.setting} " in result["help_config"]
    assert (run / "config.yaml").read_text().count("toy") == len(extensions)
    first = [json.loads(line) for line in (run / "first_metrics.jsonl").read_text().splitlines()]
    assert values_by_step(first, "loss") == values_by_step(lines(run), "loss")
    assert result["scores"]["step"] == 2
    for name in result["scores"].keys() & {"eval/loss", "eval/toy"}:
        assert result["scores"][name] == pytest.approx(values_by_step(lines(run), name)[2])
    assert ("eval/toy" in result["scores"]) == (EXTENSIONS["evaluator"] in extensions)
    assert result["text"].startswith("the quick")


def values_by_step(records: list[dict[str, float]], name: str) -> dict[float, float]:
    return {record["step"]: record[name] for record in records if name in record}
