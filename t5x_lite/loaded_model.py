"""The interface of a model that is loaded: its weights, its tokenizer, and how much it reads at one time."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

# Its `isinstance` looks for attributes without evaluating properties, as that of `typing` does from Python 3.12 on.
from typing_extensions import Protocol, runtime_checkable

from t5x_lite.config import RunConfig
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.models.spec import ModelSpec
from t5x_lite.objectives.objective import ExampleContext
from t5x_lite.parallel.batched_function import Features


@runtime_checkable
class LoadedModel(Protocol):
    """A model with its weights, tokenizer and config; `t5x_lite.api.Model` is one."""

    config: RunConfig
    mesh: Mesh
    step: int

    @property
    def params(self) -> PyTree[Array]:
        """The weights, a nested dict of arrays."""

    @property
    def spec(self) -> ModelSpec:
        """The model without its weights."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""

    @property
    def example_context(self) -> ExampleContext:
        """The settings that an example of the run depends on, the tokenizer's vocabulary among them."""

    @property
    def window(self) -> int:
        """Tokens that the model reads at one time."""

    @property
    def eval_batch_size(self) -> int:
        """Rows of a batch in evaluation."""

    def apply_to_rows(
        self, function: Callable[..., PyTree[Array]], rows: Sequence[Features], verb: str, *settings: Hashable
    ) -> list[PyTree[np.ndarray]]:
        """Return the result of `function(spec, *settings, params, batch)` for each row; see `BatchedFunction`.

        The model keeps what is compiled for a function and its settings, also when its weights change.
        """
