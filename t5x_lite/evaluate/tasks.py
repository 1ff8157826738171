"""Scores of a model on the tasks that it has learnt: from the outputs of its head, or from the text it generates."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree

from t5x_lite.data.records import TaskData, TaskValidation
from t5x_lite.data.task_records import TaskRecords
from t5x_lite.data.training_data import TrainingData
from t5x_lite.decode.sampling import Sampling
from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.metrics import MARGIN_METRICS, METRICS, check_metric
from t5x_lite.files import write_file
from t5x_lite.objectives.objective import Features
from t5x_lite.objectives.policy_optimization import PolicyOptimization
from t5x_lite.objectives.supervised import Answer as LabelAnswer
from t5x_lite.objectives.supervised import Record, Supervised, label_index
from t5x_lite.objectives.text_to_text import TextToText
from t5x_lite.parallel import mesh as meshes
from t5x_lite.run_rewards import decode_answer
from t5x_lite.tasks import TaskSpec


class Answer(NamedTuple):
    """The model's answer to one record. A line of the file of predictions has these keys; no margin is left out."""

    record: int
    prediction: object
    reference: object
    margin: float | None = None

    def to_json(self) -> str:
        """Return the line of the file."""
        values = self._asdict()
        if self.margin is None:
            del values["margin"]
        return json.dumps(values, ensure_ascii=False) + "\n"


class TaskEvaluation:
    """Evaluates the tasks of a run; what it compiles is used again at every step of the run.

    An objective on records scores them, by a head of the model or by the probabilities of tokens. Any other model
    generates its answers greedily.

    Args:
        model: a model whose data are tasks.

    Raises:
        UserError: the run has no tasks; a metric that does not exist, or whose library is not installed.
    """

    def __init__(self, model: EvaluationModel) -> None:
        data = model.data
        if not isinstance(data, TaskData):
            raise UserError("this run has not learnt any task; give the names of few-shot tasks")
        check_task_metrics(data)
        self.data = data
        self._answers: ScoredAnswers | GeneratedAnswers | RewardedAnswers
        policy = model.config.policy_objective
        if policy is not None:
            self._answers = RewardedAnswers(model, policy, data.validation())
        elif isinstance(data.objective, Supervised):
            self._answers = ScoredAnswers(model, data.objective, data.validation())
        else:
            self._answers = GeneratedAnswers(model, data)

    def scores(self, folder: Path, names: Collection[str] = ()) -> dict[str, float]:
        """Return `<task>/<metric>` on the validation records of each task.

        Args:
            folder: where the predictions of each task are written, as `<task>.jsonl`.
            names: the tasks to evaluate; empty evaluates all. A task without metrics is left out.
        """
        scores: dict[str, float] = {}
        for records in self.data.held_out:
            if (names and records.name not in names) or not records.task.metrics:
                continue
            answers = list(self._answers(records))
            for metric in records.task.metrics:
                for key, value in _compute_metric(metric, answers).items():
                    scores[f"{records.name}/{key}"] = value
            if jax.process_index() == 0:
                write_file(folder / f"{records.name}.jsonl", "".join(answer.to_json() for answer in answers))
        return scores


def check_task_metrics(data: TrainingData) -> None:
    """Check that the metrics of the tasks that are learnt can be computed.

    Raises:
        UserError: a metric that does not exist, or whose library is not installed.
    """
    if not isinstance(data, TaskData):
        return
    for records in data.held_out:
        for metric in records.task.metrics:
            check_metric(metric, records.name)


def _compute_metric(metric: str, answers: Sequence[Answer]) -> dict[str, float]:
    """Return the scores of a metric of predictions and references, or of margins."""
    if metric in MARGIN_METRICS:
        return MARGIN_METRICS[metric]([answer.margin for answer in answers if answer.margin is not None])
    _, predictions, references, _ = zip(*answers, strict=True)
    return METRICS[metric](predictions, references)


class ScoredAnswers:
    """Answers from the objective's scores of each record's examples (windows of a long text)."""

    def __init__(self, model: EvaluationModel, objective: Supervised, validation: TaskValidation) -> None:
        self.model = model
        self.objective = objective
        self.validation = validation
        self._compiled_scores = jax.jit(self._compute_scores, out_shardings=meshes.replicated(model.mesh))

    def __call__(self, records: TaskRecords) -> Iterator[Answer]:
        """Yield the answer to each record."""
        rows = self._score_examples(records)
        for number, numbered_examples in groupby(self.validation.examples(records), key=itemgetter(0)):
            examples = [features for _, features in numbered_examples]
            scores = list(islice(rows, len(examples)))
            record = records[number]
            prediction = self.objective.prediction(record, examples, scores)
            reference = self.objective.reference(record)
            if records.label_names:
                prediction = self._label_of_task(prediction, records.label_names)
                reference = self._label_of_task(reference, records.label_names)
            judged = _with_question(reference, record, records.task)
            yield Answer(number, prediction, judged, self.objective.margin(scores))

    def _label_of_task(self, answer: LabelAnswer, label_names: Sequence[str]) -> LabelAnswer:
        """Return an answer in the labels of a task, which its metrics know, where the run's have another order."""
        if isinstance(answer, list):
            return [label_names[label_index(tag, label_names)] for tag in answer]
        if isinstance(answer, int):
            return label_index(self.objective.label_names[answer], label_names)
        return answer

    def _score_examples(self, records: TaskRecords) -> Iterator[dict[str, np.ndarray]]:
        """Yield the scores of each example in order, and then those of the padding of the last batch."""
        size = self.validation.batch_size
        mesh = self.model.mesh
        local_rows = meshes.local_rows(mesh, size)
        for local_batch in self.validation.batches_of(records, local_rows):
            batch = meshes.to_global(mesh, local_batch, size)
            scores = jax.device_get(self._compiled_scores(self.model.params, batch))
            for row in range(size):
                yield {name: values[row] for name, values in scores.items()}

    def _compute_scores(self, params: PyTree[Array], batch: Mapping[str, Array]) -> dict[str, Array]:
        return self.objective.scores(self.model.spec.model(params), batch)


class GeneratedAnswers:
    """Answers that a model generates greedily after the inputs of each record."""

    def __init__(self, model: EvaluationModel, data: TaskData) -> None:
        self.model = model
        self.validation = data.validation()
        self.learned_len = 0
        # A run may learn longer targets than the files of its tasks say.
        longest = max(records.task.target_len for records in data.held_out)
        if isinstance(data.objective, TextToText) and data.objective.target_len > longest:
            self.learned_len = data.objective.target_len

    def __call__(self, records: TaskRecords) -> Iterator[Answer]:
        """Yield the answer to each record."""
        task = records.task
        greedy = Sampling(max(task.target_len, self.learned_len), temperature=0)
        examples = self.validation.examples(records)
        while batch := list(islice(examples, self.validation.batch_size)):
            prompts = [_prompt(features) for _, features in batch]
            texts = self.model.generator.generate(prompts, greedy)
            for (number, _), text in zip(batch, texts, strict=True):
                record = records[number]
                prediction: object = text.strip()
                if isinstance(task.objective, Supervised):
                    prediction = task.objective.from_text(text, record)
                yield Answer(number, prediction, _with_question(task.reference(record), record, task))


class RewardedAnswers:
    """Answers to the prompts of each record, greedy or sampled from a fixed seed, with their rewards as margins."""

    def __init__(self, model: EvaluationModel, objective: PolicyOptimization, validation: TaskValidation) -> None:
        self.model = model
        self.objective = objective
        self.validation = validation

    def __call__(self, records: TaskRecords) -> Iterator[Answer]:
        """Yield the answer to each record."""
        sampling = Sampling(self.objective.answer_len, temperature=self.objective.eval_temperature)
        examples = self.validation.examples(records)
        while batch := list(islice(examples, self.validation.batch_size)):
            prompts = [features["prompt"][features["prompt_segments"] > 0] for _, features in batch]
            *_, tokens = self.model.generator.stream_tokens(prompts, sampling)
            references = [self.objective.reference(records[number]) for number, _ in batch]
            answers = []
            for prompt, row, reference in zip(prompts, tokens, references, strict=True):
                answers.append(decode_answer(self.model.tokenizer, prompt, row, str(reference)))
            rewards = self.model.rewards(answers).tolist()
            for (number, _), answer, reward in zip(batch, answers, rewards, strict=True):
                yield Answer(number, answer.answer.strip(), answer.reference.strip(), reward)


def _prompt(features: Features) -> Int[np.ndarray, "_"]:
    """Return the inputs of an example as the model reads them in training."""
    is_input = (features["segment_ids"] > 0) & (features.get("prefix", 1) > 0)
    return features["tokens"][is_input]


def _with_question(reference: object, record: Record, task: TaskSpec) -> object:
    """Return the right answer, with its question where the answers to a question are judged together (MultiRC)."""
    if "multirc" in task.metrics:
        return {"question": record["question"], "label": reference}
    return reference
