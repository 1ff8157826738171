"""Few-shot tasks of EleutherAI's lm-evaluation-harness."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from t5x_lite.evaluate.evaluators.evaluator import Evaluation, Evaluator, token_problems
from t5x_lite.models.config import ModelConfig
from t5x_lite.retrieval.config import Passages
from t5x_lite.schema import Int, Strings, setting

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


class FewShot(Evaluator):
    """Tasks of lm-evaluation-harness; see `evaluate.harness.evaluate_tasks`. Samples go to RUN/eval/STEP."""

    tasks: Strings = setting(..., "names or YAML files of lm-evaluation-harness", min_length=1)
    num_fewshot: Int | None = setting(None, "examples in the prompts; null takes each task's number", ge=0)
    window: Int | None = setting(None, "tokens that the model reads at once; null takes all that it can", ge=1)
    include: str | None = setting(None, "folder with YAML files of further tasks")
    limit: Int | None = setting(None, "most documents per task; null takes all", ge=1)
    passages: Passages | None = setting(None, "passages that are retrieved for each document, before its context")

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield an error for a model that predicts no tokens."""
        yield from token_problems("few-shot tasks", model)

    def prepare(self, model: ModelConfig) -> None:
        """Load the tasks once, and refuse those that the model cannot do."""
        from t5x_lite.evaluate.harness import check_tasks, load_tasks

        check_tasks(load_tasks(self.tasks, self._include_dir), model)

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Evaluate the tasks."""
        from t5x_lite.evaluate.harness import evaluate_loaded, load_for_model
        from t5x_lite.evaluate.scores_file import save_samples, save_scores

        tasks = load_for_model(model, self.tasks, self.num_fewshot, self._include_dir)
        if self.passages is not None:
            from t5x_lite.retrieval.harness_tasks import put_passages
            from t5x_lite.retrieval.prompts import PassagePrompts

            put_passages(tasks["tasks"], PassagePrompts(self.passages), self.limit)
        scores, samples = evaluate_loaded(model, tasks, self.window, self.limit)
        metrics = {f"eval/{name}": score for name, score in scores.items()}
        folder = model.run.folder / "eval" / str(model.step)
        save_samples(folder, samples)
        save_scores(folder, metrics)
        accuracies = [f"{name} {score:.1%}" for name, score in scores.items() if name.endswith("/acc")]
        return Evaluation(metrics, summary=", ".join(accuracies))

    @property
    def _include_dir(self) -> Path | None:
        return None if self.include is None else Path(self.include)
