"""Settings of evaluation. Nothing here imports JAX."""

from typing import Annotated

from pydantic import Strict

from t5x_lite.evaluate.evaluators import EVALUATORS, Evaluator
from t5x_lite.schema import Config, Int, OneOf, setting


class EvalConfig(Config):
    """Evaluation during and after training."""

    every_steps: Int = setting(1000, "steps between evaluations; the last step is always evaluated", unit="steps", ge=1)
    batches: Int = setting(0, "most validation batches to evaluate; 0 evaluates the whole split", unit="batches", ge=0)
    batch_size: Int | None = setting(None, "sequences per batch; null takes train.batch_size", ge=1)
    evaluators: Annotated[tuple[Annotated[Evaluator, OneOf(EVALUATORS)], ...], Strict(False)] = setting(
        (), "evaluators beside the validation loss and the run's own tasks, such as [{few_shot: {tasks: [lambada]}}]"
    )


EVAL_ARGUMENTS = {
    "tasks": "names or YAML files of lm-evaluation-harness, or tasks that the run was trained on; separated by commas",
    "num_fewshot": "examples in the prompts of tasks",
    "text": "file to compute the perplexity of",
    "window": "tokens that the model reads at once",
    "stride": "tokens of the text scored by each window after the first (default: half the window)",
}
"""Arguments `name=value` of `t5x-lite eval` that are not overrides of the config, with their descriptions."""
