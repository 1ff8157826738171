"""Few-shot tasks of EleutherAI's lm-evaluation-harness."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from t5x_lite.evaluate.demonstrations import DEMONSTRATIONS, Demonstrations
from t5x_lite.evaluate.evaluators.evaluator import (
    Argument,
    EvaluatedRun,
    Evaluation,
    Evaluator,
    token_problems,
    window_problems,
)
from t5x_lite.models.config import ModelConfig
from t5x_lite.retrieval.config import Passages
from t5x_lite.schema import Int, OneOf, Sources, Strings, setting

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


class FewShot(Evaluator):
    """Tasks of lm-evaluation-harness; see `evaluate.harness.evaluate_tasks`. Samples go to RUN/eval/STEP."""

    argument: ClassVar[Argument | None] = Argument(
        "tasks",
        "names or YAML files of lm-evaluation-harness, or tasks that the run was trained on; separated by commas",
        field="tasks",
    )

    tasks: Strings = setting(..., "names or YAML files of lm-evaluation-harness", min_length=1)
    num_fewshot: Int | None = setting(None, "examples in the prompts; null takes each task's number", ge=0)
    demonstrations: Annotated[Demonstrations | None, OneOf(DEMONSTRATIONS)] = setting(
        None, "how these examples are chosen; null takes each task's sampler, which is at random unless it says another"
    )
    seed: Int = setting(1234, "seed of the choice of examples, and of sampled answers", ge=0)
    window: Int | None = setting(None, "tokens that the model reads at once; null takes all that it can", ge=1)
    include: str | None = setting(None, "folder with YAML files of further tasks")
    limit: Int | None = setting(None, "most documents per task; null takes all", ge=1)
    passages: Passages | None = setting(None, "passages that are retrieved for each document, before its context")

    @classmethod
    def from_argument(cls, value: str) -> Iterator[Sources]:
        """Yield the settings of one evaluator per task, so that each has a cache of its own."""
        for name in value.split(","):
            yield Sources.of_command_line({"tasks": [name]})

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield an error for a model that predicts no tokens."""
        yield from token_problems("few-shot tasks", model)
        yield from window_problems("few-shot tasks", self.window, model)
        if self.demonstrations is not None:
            yield from self.demonstrations.model_problems(model)

    def prepare(self, model: ModelConfig) -> None:
        """Load the tasks once, and refuse those that the model cannot do or that have too few demonstrations."""
        from t5x_lite.evaluate.harness import FewShotPrompts, check_tasks, configure_tasks, load_tasks

        tasks = load_tasks(self.tasks, self._include_dir)
        check_tasks(tasks, model, self.window)
        configure_tasks(tasks, FewShotPrompts(self.num_fewshot, self.demonstrations, self.seed), self.limit)
        if self.passages is not None:
            from t5x_lite.retrieval.harness_tasks import check_questions
            from t5x_lite.retrieval.prompts import check_passages

            check_questions(tasks["tasks"])
            check_passages(self.passages)

    def fingerprint(self) -> str:
        """Return a hash of the tasks' configs and documents, and of the index of the passages."""
        from t5x_lite.data.files import hash_files
        from t5x_lite.evaluate.harness import hash_tasks

        index_hash = ""
        if self.passages is not None:
            index_hash = hash_files([f"{self.passages.index}/*"], "passages.index")
        return hash_tasks(self.tasks, self._include_dir, self.num_fewshot) + index_hash

    def metric_names(self, run: EvaluatedRun) -> Sequence[str]:
        """Return a pattern: a name may be that of a group or a file of tasks, and the harness names their metrics."""
        return ("eval/*/*",)

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Evaluate the tasks."""
        from t5x_lite.evaluate.example_scores import read_scores
        from t5x_lite.evaluate.harness import FewShotPrompts, evaluate_tasks
        from t5x_lite.evaluate.scores_file import save_samples, save_scores

        prompts = FewShotPrompts(self.num_fewshot, self.demonstrations, self.seed)
        scores, samples = evaluate_tasks(
            model,
            self.tasks,
            prompts=prompts,
            window=self.window,
            include=self._include_dir,
            limit=self.limit,
            passages=self.passages,
        )
        metrics = {f"eval/{name}": score for name, score in scores.items()}
        folder = model.run.results_folder(model.step)
        save_samples(folder, samples)
        save_scores(folder, metrics)
        accuracies = [f"{name} {score:.1%}" for name, score in scores.items() if name.endswith("/acc")]
        examples = {task: read_scores(records) for task, records in samples.items()}
        return Evaluation(metrics, ", ".join(accuracies), examples=examples)

    @property
    def _include_dir(self) -> Path | None:
        return None if self.include is None else Path(self.include)
