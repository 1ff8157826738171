"""The names of metrics that a config tells are those that evaluations report."""

import json
from pathlib import Path

import jax
import pytest

from t5x_lite import config as configuration
from t5x_lite.best_metric import metric_names
from t5x_lite.errors import UserError
from t5x_lite.models.loss_terms import loss_metrics
from t5x_lite.models.spec import model_spec
from t5x_lite.planner.example import example_features
from t5x_lite.run_loss import loss_function
from tests.conftest import lines, write_task

BESIDE_TERMS = {"eval/tokens", "eval/perplexity", "eval/bits_per_byte"}
"""What `loss_scores` adds to the terms of the loss."""


@pytest.mark.parametrize(
    "name", ["quickstart", "quickstart_bert", "quickstart_moe", "electra/small", "xlm/mlm_tlm_xnli15_1024"]
)
def test_the_terms_of_a_loss_have_their_names(name: str) -> None:
    config = configuration.load(name, ["model.vocab=4096"])
    spec = model_spec(config.model)
    batch = {}
    for feature, value in example_features(config).items():
        batch[feature] = jax.ShapeDtypeStruct((2, *value.shape), value.dtype)
    loss = loss_function(config, spec, 1, training=False)
    metrics = jax.eval_shape(lambda params, batch: loss_metrics(loss(params, batch, None)), spec.shapes, batch)
    reported = {f"eval/{metric}" for metric, mean in metrics.items() if not mean.shape and metric != "z_loss"}
    names = set(metric_names(config))
    assert reported <= names
    if len(config.row_objectives) > 1:
        assert "eval/en-fr/loss" in names
    else:
        assert names - reported <= BESIDE_TERMS


def test_a_run_reports_what_its_config_tells(tiny_config: Path, tiny_run: Path) -> None:
    reported = {name for name in lines(tiny_run)[-1] if name.startswith("eval/")}
    assert reported == set(metric_names(configuration.load(tiny_config)))


def test_a_best_metric_that_no_evaluator_reports_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    def message(*overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            configuration.load(tiny_config, overrides)
        return str(caught.value)

    start = "command line: `checkpoint.best_metric`: no evaluator of the run reports"
    of_loss = "eval/loss, eval/accuracy, eval/tokens, eval/perplexity, eval/bits_per_byte"
    assert message("checkpoint.best_metric=eval/acuracy") == (
        f"{start} eval/acuracy; did you mean eval/accuracy?; they report {of_loss}"
    )
    assert message("checkpoint.best_metric=loss").startswith(f"{start} loss")
    write_task(tmp_path / "foxes.yaml")
    task = f"tasks={tmp_path}/foxes.yaml"
    misspelt = message("checkpoint.best_metric=eval/fox/accuracy", task)
    assert misspelt.startswith(f"{start} eval/fox/accuracy; did you mean eval/foxes/accuracy?; they report eval/loss")
    configuration.load(tiny_config, [task, "checkpoint.best_metric=eval/foxes/accuracy"])
    # A best checkpoint that is not kept needs no metric.
    configuration.load(tiny_config, ["checkpoint.best_metric=eval/acuracy", "checkpoint.keep_best=0"])


def test_names_that_only_an_evaluation_tells_are_accepted(tiny_config: Path) -> None:
    evaluators = [{"blimp": {"files": "x"}}, {"few_shot": {"tasks": ["blimp"]}}, {"perplexity": {"text": "x"}}]
    settings = [f"eval.evaluators={json.dumps(evaluators[:1])}"]
    configuration.load(tiny_config, [*settings, "checkpoint.best_metric=eval/blimp/island_effects"])
    with pytest.raises(UserError, match=r"no evaluator of the run reports eval/blip/accuracy"):
        configuration.load(tiny_config, [*settings, "checkpoint.best_metric=eval/blip/accuracy"])
    settings = [f"eval.evaluators={json.dumps(evaluators)}"]
    configuration.load(tiny_config, [*settings, "checkpoint.best_metric=eval/blimp_island_effects/acc"])
    configuration.load(tiny_config, [*settings, "checkpoint.best_metric=eval/text/word_perplexity"])
    with pytest.raises(UserError, match=r"no evaluator of the run reports eval/los; did you mean eval/loss\?"):
        configuration.load(tiny_config, [*settings, "checkpoint.best_metric=eval/los"])
