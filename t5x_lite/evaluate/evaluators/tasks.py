"""Scores on the tasks that a run was trained on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from t5x_lite.evaluate.evaluators.evaluator import EvaluatedRun, Evaluation, Evaluator
from t5x_lite.schema import Strings, setting
from t5x_lite.tasks import find_task, short_name

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


class Tasks(Evaluator):
    """Scores `<task>/<metric>` on the validation records of the run's own tasks. Predictions go to RUN/eval/STEP."""

    names: Strings = setting((), "the tasks to evaluate; empty evaluates all tasks of the run")

    def metric_names(self, run: EvaluatedRun) -> Sequence[str]:
        """Return the names that the metrics of the tasks' files have."""
        from t5x_lite.evaluate.metrics import score_names

        names = []
        for task in run.tasks:
            name = short_name(task)
            if not self.names or name in self.names:
                for metric in find_task(task).metrics:
                    names += [f"eval/{name}/{score}" for score in score_names(metric)]
        return names

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Evaluate the tasks."""
        from t5x_lite.evaluate.scores_file import save_scores

        folder = model.run.results_folder(model.step)
        scores = model.task_evaluation.scores(folder, self.names)
        metrics = {f"eval/{name}": score for name, score in scores.items()}
        save_scores(folder, metrics)
        return Evaluation(metrics, summary=", ".join(f"{name} {score:.4g}" for name, score in scores.items()))
