"""The interface of a loaded model that generates text or fills masks."""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from typing_extensions import Protocol, runtime_checkable

from t5x_lite.decode.generate import Generator
from t5x_lite.loaded_model import LoadedModel


@runtime_checkable
class GenerationModel(LoadedModel, Protocol):
    """A loaded model with its generator; `t5x_lite.api.Model` is one."""

    @property
    def generator(self) -> Generator:
        """The model's generator, if it is a decoder or an encoder_decoder."""

    def logits(self, tokens: ArrayLike, decoder_tokens: ArrayLike | None = None) -> Float[np.ndarray, "b l ..."]:
        """Return the scores of every token of the vocabulary for int tokens `[batch, length]`."""
