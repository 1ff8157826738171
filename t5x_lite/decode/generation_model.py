"""The interface of a loaded model that generates text or fills masks."""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

# Its `isinstance` looks for attributes without evaluating properties, as that of `typing` does from Python 3.12 on.
from typing_extensions import Protocol, runtime_checkable

from t5x_lite.config import RunConfig
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.decode.generate import Generator


@runtime_checkable
class GenerationModel(Protocol):
    """A model with its tokenizer and config; `t5x_lite.api.Model` is one."""

    config: RunConfig

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""

    @property
    def generator(self) -> Generator:
        """The model's generator, if it is a decoder or an encoder_decoder."""

    @property
    def eval_batch_size(self) -> int:
        """Rows of a batch in evaluation."""

    def logits(self, tokens: ArrayLike, decoder_tokens: ArrayLike | None = None) -> Float[np.ndarray, "b l ..."]:
        """Return the scores of every token of the vocabulary for int tokens `[batch, length]`."""
