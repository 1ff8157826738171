"""Scores of a model on the tasks that it has learnt: by its head, or by what it writes."""

import json
from collections.abc import Iterator
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from t5x_lite.data.records import TaskData, TaskRecords
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.decode.generate import Generator
from t5x_lite.decode.sampling import Sampling
from t5x_lite.evaluate.metrics import METRICS, check_metric
from t5x_lite.files import write_file
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.transformer import ModelSpec
from t5x_lite.objectives.objective import Features
from t5x_lite.objectives.supervised import Record, Supervised
from t5x_lite.parallel import mesh as meshes
from t5x_lite.tasks import TaskSpec

Answer = tuple[int, Any, Any]
"""A record's number, the model's prediction and the reference."""


class TaskEvaluation:
    """Compiled once, for the tasks of a run: a head's scores, or greedy answers of a model that writes them.

    Raises:
        UserError: a metric that does not exist, or whose library is not installed.
    """

    def __init__(
        self,
        data: TaskData,
        model: ModelConfig,
        blueprint: ModelSpec,
        params: Any,
        tokenizer: Tokenizer,
        mesh: Mesh,
    ) -> None:
        self.data, self.objective = data, data.objective
        self.validation, self.mesh = data.validation(), mesh
        for own in data.held_out:
            for metric in own.task.metrics:
                check_metric(metric, own.name)
        scored = isinstance(self.objective, Supervised)
        self.generator = None if scored else Generator(model, blueprint, params, tokenizer)
        self._score = jax.jit(
            lambda params, batch: self.objective.scores(blueprint.model(params), batch),  # type: ignore[attr-defined]
            out_shardings=meshes.replicated(mesh),
        )

    def scores(self, params: Any, folder: Path | None = None) -> dict[str, float]:
        """`<task>/<metric>` of every task on its validation records; predictions go to `folder` as JSONL, if given."""
        found: dict[str, float] = {}
        for own in self.data.held_out:
            answers = list(self._scored(own, params) if self.generator is None else self._written(own, params))
            _, predictions, references = zip(*answers, strict=True)
            for metric in own.task.metrics:
                found |= {f"{own.name}/{key}": value for key, value in METRICS[metric](predictions, references).items()}
            if folder is not None and jax.process_index() == 0:
                rows = ({"record": n, "prediction": p, "reference": r} for n, p, r in answers)
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                write_file(folder / f"{own.name}.jsonl", lines)
        return found

    def _scored(self, own: TaskRecords, params: Any) -> Iterator[Answer]:
        """From the scores of each record's examples."""
        size, objective = self.validation.batch_size, self.objective
        assert isinstance(objective, Supervised)
        local = meshes.local_rows(self.mesh, size)
        made = (meshes.to_global(self.mesh, batch, size) for batch in self.validation.batches_of(own, local))
        scores = (jax.device_get(self._score(params, batch)) for batch in made)
        rows = ({name: value[row] for name, value in batch.items()} for batch in scores for row in range(size))
        examples = ((number, features, next(rows)) for number, features in self.validation.examples(own))
        for number, group in groupby(examples, key=itemgetter(0)):
            record, (_, features, scored) = own[number], zip(*group, strict=True)
            yield number, objective.prediction(record, features, scored), _reference(own.task, record)

    def _written(self, own: TaskRecords, params: Any) -> Iterator[Answer]:
        """From what the model writes after each record's inputs."""
        assert self.generator is not None
        self.generator.params = params
        task, size = own.task, self.validation.batch_size
        greedy, objective = Sampling(task.target_len, temperature=0), task.objective
        examples = self.validation.examples(own)
        while group := list(islice(examples, size)):
            texts = self.generator.generate([_prompt(features) for _, features in group], greedy)
            for (number, _), text in zip(group, texts, strict=True):
                record = own[number]
                answer = objective.from_text(text, record) if isinstance(objective, Supervised) else text.strip()
                yield number, answer, _reference(task, record)


def _prompt(features: Features) -> np.ndarray:
    """The inputs of a record as the model saw them in training."""
    inputs = (features["segment_ids"] > 0) & (features.get("prefix", 1) > 0)
    return features["tokens"][inputs]


def _reference(task: TaskSpec, record: Record) -> Any:
    """The right answer, with its question where answers are judged together (MultiRC)."""
    own = task.reference(record)
    return {"question": record["question"], "label": own} if "question" in record and "answer" in record else own
