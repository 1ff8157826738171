"""Settings of token vectors that are computed from the characters of the tokens."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Strict

from t5x_lite.models.feedforward.config import Activation
from t5x_lite.schema import Config, Int, setting

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig


class CharacterCNN(Config):
    """Filters over the characters of a token, the maximum of each over the token, highway layers, and a projection.

    Kim et al. 2016, §2; Józefowicz et al. 2016, §3.2; as in ELMo.
    """

    filters: Annotated[tuple[Int, ...], Strict(False)] = setting(
        (32, 32, 64, 128, 256, 512, 1024), "number of filters over one character, over two, and so on", min_length=1
    )
    width: Int = setting(16, "width of a character's vector", ge=1)
    highways: Int = setting(2, "highway layers after the filters", ge=0, source="Srivastava et al. 2015")
    activation: Activation = setting("relu", "elementwise function of filters and highway layers")
    length: Int = setting(50, "characters of a token that are read, with the marks of its begin and end", ge=3)

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield what a model has that needs a table of token vectors, and filters that do not fit."""
        if model.tied:
            yield "characters: token vectors without a table need tied: false"
        if model.family == "electra" or model.decoder_embedding == "separate":
            yield "characters: electra and decoder_embedding: separate have two tables of token vectors"
        if model.embedding_dropout:
            yield "characters: embedding_dropout is for a table of token vectors"
        if min(self.filters) < 1 or len(self.filters) > self.length:
            yield "characters.filters: each number is at least 1, and no filter is wider than characters.length"
