"""The interface of a loaded model that is evaluated: by perplexity, few-shot tasks and embeddings."""

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree
from typing_extensions import Protocol, runtime_checkable

from t5x_lite.decode.generation_model import GenerationModel
from t5x_lite.evaluate.likelihood import Likelihood
from t5x_lite.models.spec import ModelSpec


@runtime_checkable
class EvaluationModel(GenerationModel, Protocol):
    """A model with its weights, tokenizer and config; `t5x_lite.api.Model` is one."""

    params: PyTree[Array]
    mesh: Mesh

    @property
    def spec(self) -> ModelSpec:
        """The model without its weights."""

    @property
    def eval_batch_size(self) -> int:
        """Rows of a batch in evaluation."""

    @property
    def window(self) -> int:
        """Tokens that the model reads at one time."""

    @property
    def likelihood(self) -> Likelihood:
        """Scores targets given inputs."""

    @property
    def bos_ids(self) -> Int[np.ndarray, "_"]:
        """Ids before every text of a decoder."""

    @property
    def prefix_token_id(self) -> int:
        """The token that a text is predicted from where nothing precedes it."""

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
