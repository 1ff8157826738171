"""The interface of a loaded model that is evaluated: by perplexity, few-shot tasks and embeddings."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int
from typing_extensions import Protocol, runtime_checkable

from t5x_lite.data.training_data import TrainingData
from t5x_lite.decode.generation_model import GenerationModel
from t5x_lite.evaluate.likelihood import TargetScorer
from t5x_lite.models.loss_terms import Batch, LossTerms
from t5x_lite.run_dir import Run

if TYPE_CHECKING:
    from t5x_lite.evaluate.tasks import TaskEvaluation
    from t5x_lite.run_rewards import RewardSource


@runtime_checkable
class EvaluationModel(GenerationModel, Protocol):
    """A loaded model with its run, data and scores; `t5x_lite.api.Model` is one."""

    run: Run

    @property
    def data(self) -> TrainingData:
        """The data of the run."""

    @property
    def task_evaluation(self) -> "TaskEvaluation":
        """Evaluates the tasks of the run."""

    @property
    def rewards(self) -> "RewardSource":
        """Rewards answers, as in the training of a run whose objective samples them."""

    def loss_terms(self, batch: Batch) -> LossTerms:
        """Return the terms of the loss of a batch, as in evaluation."""

    @property
    def likelihood(self) -> TargetScorer:
        """Scores targets given inputs."""

    @property
    def bos_ids(self) -> Int[np.ndarray, "_"]:
        """Ids before every text of a decoder."""

    @property
    def prefix_token_id(self) -> int:
        """The token that a text is predicted from where nothing precedes it."""

    @property
    def empty_context(self) -> Int[np.ndarray, "_"]:
        """Ids that a text is scored after where nothing precedes it."""

    @property
    def soft_prompt_ids(self) -> Int[np.ndarray, "_"]:
        """Ids of a learnt soft prompt, before every text."""

    @property
    def eos(self) -> int:
        """The end-of-document token."""

    def encode_text(self, text: str) -> Int[np.ndarray, "_"]:
        """Return the ids of a text as the model reads it."""

    def resolve_window(self, requested: int | None = None) -> int:
        """Return the tokens to read at one time: `requested`, or else `window`."""
