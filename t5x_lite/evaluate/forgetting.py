"""Scores of adapted runs before and after: on the text of the run that they adapt, and on their tasks."""

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from t5x_lite.api import Model, load
from t5x_lite.errors import UserError
from t5x_lite.files import write_file
from t5x_lite.models.spec import model_spec
from t5x_lite.run_dir import Run, open_run
from t5x_lite.trees import flatten_names, unflatten_names

logger = logging.getLogger(__name__)

COMPARISON_FILE = "before_after.json"
"""Name of the file with the scores in a run directory."""
SOURCE = "adapted run"
"""The evaluations of the run that `adapt.from` names: what is forgotten shows in them."""
RUN = "run"
"""The evaluations of the run itself: what is learnt shows in them."""


@dataclass(frozen=True)
class ComparedScore:
    """A metric of a run, with its first weights and with its last ones.

    Attributes:
        run: name of the run.
        evaluation: `SOURCE` or `RUN`: whose data and evaluators.
        metric: its name in `metrics.jsonl`.
        before: at the first weights: those of the adapted run, and fresh ones for what is new; NaN if it had no value.
        after: at the weights of the newest checkpoint.
    """

    run: str
    evaluation: str
    metric: str
    before: float
    after: float


def compare_runs(folders: Sequence[Path]) -> list[ComparedScore]:
    """Evaluate adapted runs before and after, and write the scores of each to its run directory.

    Raises:
        UserError: a run that adapts no other; a checkpoint, or data of either run, is missing.
    """
    scores = []
    for folder in folders:
        run_scores = list(compare_run(folder))
        text = json.dumps([asdict(score) for score in run_scores], indent=2)
        write_file(folder / COMPARISON_FILE, text + "\n")
        scores.extend(run_scores)
    return scores


def compare_run(folder: Path) -> Iterable[ComparedScore]:
    """Yield the scores of an adapted run before and after, by all evaluators of the adapted run and of its own."""
    after = load(folder)
    if after.config.adapt is None:
        raise UserError(f"report --before {folder}: adapts no other run (its config has no `adapt`)")
    before = after.before_adaptation()
    source = open_run(after.config.adapt.source)
    missing = set(source.config.model.outputs) - set(after.config.model.outputs)
    if missing:
        logger.warning(
            "report --before %s: the evaluations of %s are left out: they need the outputs %s, which the adapted model "
            "does not have",
            folder,
            after.config.adapt.source,
            ", ".join(sorted(missing)),
        )
    elif source.config.objective is not None:
        yield from _compare(folder.name, SOURCE, _with_data_of(before, source), _with_data_of(after, source))
    yield from _compare(folder.name, RUN, before, after)


def _with_data_of(model: Model, run: Run) -> Model:
    """Return the same weights with the objective, the data and the evaluators of another run.

    Texts are read without a soft prompt, and so as by the model that it was learnt for. Results go to RUN/before_after.
    """
    config = run.config.model_copy(update={"model": model.config.model, "adapt": None})
    spec = model.spec
    params = model.params
    if model.config.method.num_virtual_tokens:
        spec = model_spec(model.config.model)
        learned = flatten_names(params)
        params = unflatten_names({name: learned[name] for name in flatten_names(spec.shapes)})
    run = replace(run, folder=model.run.folder / "before_after", config=config, spec=spec)
    return Model(run, model.step, params, model.mesh)


def _compare(run: str, evaluation: str, before: Model, after: Model) -> Iterable[ComparedScore]:
    scores_before = before.evaluate()
    scores_after = after.evaluate()
    for name, score in scores_after.items():
        yield ComparedScore(run, evaluation, f"eval/{name}", scores_before.get(name, math.nan), score)


def format_comparison(scores: Sequence[ComparedScore]) -> str:
    """Return a Markdown table."""
    lines = ["| run | evaluation of the | metric | before | after | change |", "|---|---|---|---|---|---|"]
    for score in scores:
        change = score.after - score.before
        numbers = f"{score.before:.4f} | {score.after:.4f} | {change:+.4f}"
        lines.append(f"| {score.run} | {score.evaluation} | `{score.metric}` | {numbers} |")
    return "\n".join(lines)
