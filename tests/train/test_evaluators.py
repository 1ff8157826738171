"""Evaluators of a run's config: they run during training, and give what `t5x-lite eval` gives afterwards."""

import json
import shutil
from html import escape
from pathlib import Path

import pytest

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluators import Perplexity
from t5x_lite.evaluate.evaluators.evaluator import EvaluatedRun
from t5x_lite.evaluate.evaluators.samples import Samples
from t5x_lite.evaluate.page.page import write_page
from t5x_lite.metrics_file import metric_records
from t5x_lite.models.config import ModelConfig
from t5x_lite.objectives import Causal
from tests.conftest import lines
from tests.train.whole_runs import train

TEXT = "the quick brown fox jumps over a lazy dog while seven wizards mix black opal quartz in vain.\n" * 3
EVERY_STEPS = 5
"""Neither a divisor of the steps of a run nor of eval.every_steps."""


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def perplexity_override(text_file: Path) -> str:
    """Return the override of a config that evaluates the perplexity of the text in windows of 8 tokens."""
    settings = {"text": str(text_file), "window": 8, "stride": 4, "every_steps": EVERY_STEPS}
    return f"eval.evaluators={json.dumps([{'perplexity': settings}])}"


@pytest.fixture(scope="module")
def evaluated_run(tiny_config: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a run of 12 steps with the evaluator, and checkpoints at its steps."""
    run_dir = tmp_path_factory.mktemp("evaluated") / "run"
    checkpoints = (f"checkpoint.every_steps={EVERY_STEPS}", "checkpoint.keep=9")
    assert train(tiny_config, run_dir, perplexity_override(text_file), *checkpoints) == 0
    return run_dir


def logged_scores(run_dir: Path, step: int) -> dict[str, float]:
    """Return the scores of the text that a run has logged at a step, without `eval/`."""
    record = lines(run_dir)[step - 1]
    assert record["step"] == step
    return {name.removeprefix("eval/"): value for name, value in record.items() if name.startswith("eval/text/")}


def test_an_evaluator_runs_at_its_own_steps_and_at_the_last_step(evaluated_run: Path) -> None:
    records = lines(evaluated_run)
    assert [record["step"] for record in records if "eval/text/perplexity" in record] == [5, 10, 12]
    assert [record["step"] for record in records if "eval/loss" in record] == [6, 12]
    names = Perplexity(text="x").metric_names(EvaluatedRun(ModelConfig(layers=1, embed=8, heads=1), Causal()))
    assert {name for name in records[-1] if name.startswith("eval/text/")} == set(names)


def test_scores_in_training_equal_those_of_the_saved_weights(evaluated_run: Path) -> None:
    for step in (5, 10, 12):
        metrics = t5x_lite.load(evaluated_run, step=step).evaluate()
        scores = logged_scores(evaluated_run, step)
        assert {"text/perplexity", "text/bits_per_byte", "text/tokens"} <= scores.keys()
        for name, value in scores.items():
            assert metrics[name] == pytest.approx(value, rel=1e-6), (step, name)
    assert logged_scores(evaluated_run, 5) != logged_scores(evaluated_run, 12)


def test_scores_in_training_equal_those_of_the_eval_command(
    evaluated_run: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {f"eval/{name}": value for name, value in logged_scores(evaluated_run, 12).items()}
    # The evaluators of the run, and then the same evaluation by arguments.
    for arguments in ([], [f"text={text_file}", "window=8", "stride=4"]):
        capsys.readouterr()
        assert main(["eval", str(evaluated_run), "--json", *arguments]) == 0
        metrics = json.loads(capsys.readouterr().out)
        assert metrics["step"] == 12
        for name, value in scores.items():
            assert metrics[name] == pytest.approx(value, rel=1e-6), (arguments, name)


def test_an_evaluator_does_not_change_the_training(evaluated_run: Path, tiny_run: Path) -> None:
    losses = [record["loss"] for record in lines(evaluated_run)]
    assert losses == [record["loss"] for record in lines(tiny_run)]


def test_evaluators_survive_the_dump_of_a_config_and_its_reload(
    evaluated_run: Path, tiny_config: Path, text_file: Path
) -> None:
    expected = (Perplexity(text=str(text_file), window=8, stride=4, every_steps=EVERY_STEPS),)
    config = configuration.load(tiny_config, [perplexity_override(text_file)])
    assert config.eval.evaluators == expected
    assert configuration.load(evaluated_run / "config.yaml").eval.evaluators == expected
    assert t5x_lite.load(evaluated_run).config.eval.evaluators == expected


def test_samples_are_saved_by_step_and_shown_in_the_report(tiny_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(tiny_run, run_dir)
    model = t5x_lite.load(run_dir)
    evaluation = Samples(prompts=("the quick",), tokens=4, temperature=0.0).run(model)
    (sample,) = metric_records(run_dir / "eval/12/samples.jsonl")
    assert sample == {"prompt": "the quick", "text": model.generate(["the quick"], tokens=4, temperature=0.0)[0]}
    assert evaluation.metrics == {}
    assert evaluation.summary.startswith("sample 'the quick")
    page = write_page([run_dir], tmp_path / "page.html").read_text()
    assert f"<td>12</td><td>the quick</td><td>{escape(sample['text'])}</td>" in page


def load_error(config: Path, *overrides: str) -> str:
    """Return the error of a config, which is one line."""
    with pytest.raises(UserError) as error:
        configuration.load(config, list(overrides))
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_stride_that_is_longer_than_its_window_is_refused(tiny_config: Path) -> None:
    evaluator = "eval.evaluators=[{perplexity: {text: book.txt, window: 8, stride: 9}}]"
    assert "perplexity: stride 9 is larger than the window, 8" in load_error(tiny_config, evaluator)


def test_an_unknown_evaluator_is_refused_when_the_config_is_loaded(tiny_config: Path) -> None:
    message = load_error(tiny_config, "eval.evaluators=[{perplexty: {text: book.txt}}]")
    assert "eval.evaluators.0" in message
    assert "expected one of validation, tasks, perplexity, few_shot, blimp" in message
    assert message.endswith("did you mean perplexity?")


@pytest.mark.parametrize(
    ("evaluator", "outputs", "message"),
    [
        (
            "{perplexity: {text: book.txt}}",
            "tokens",
            "eval.evaluators: perplexity of a text is for decoders; this model is of family encoder",
        ),
        (
            "{few_shot: {tasks: [lambada]}}",
            "sentence",
            "eval.evaluators: few-shot tasks need a model that predicts tokens; this model's outputs are ['sentence']",
        ),
    ],
    ids=["perplexity", "few_shot"],
)
def test_an_evaluator_that_does_not_suit_the_family_is_refused_when_the_config_is_loaded(
    tiny_config: Path, evaluator: str, outputs: str, message: str
) -> None:
    encoder = ("model.family=encoder", "model.output_transform=true", f"model.outputs=[{outputs}]", "objective=null")
    assert message in load_error(tiny_config, *encoder, f"eval.evaluators=[{evaluator}]")


def test_a_missing_text_file_is_refused_before_the_run_directory_exists(
    tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    override = perplexity_override(tmp_path / "missing.txt")
    assert train(tiny_config, tmp_path / "run", override) == 2
    messages = [line for line in capfd.readouterr().err.splitlines() if line.startswith("t5x-lite: ")]
    assert len(messages) == 1
    assert "missing.txt" in messages[0]
    assert not (tmp_path / "run").exists()


def test_help_config_lists_the_settings_of_every_evaluator(
    tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tiny_config), "--help-config"]) == 0
    keys = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line}
    explained = {key.removeprefix("eval.evaluators.N.") for key in keys if key.startswith("eval.evaluators.N.")}
    assert {"perplexity.text", "perplexity.window", "perplexity.stride", "perplexity.every_steps"} <= explained
    assert {"validation.every_steps", "tasks.names", "few_shot.tasks"} <= explained
    assert RunConfig.model_fields.keys() <= {key.partition(".")[0] for key in keys}
