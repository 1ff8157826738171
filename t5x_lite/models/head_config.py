"""Settings of the output of a task's model."""

from collections.abc import Iterator
from typing import Annotated, Literal

from t5x_lite.models.mixers import MIXERS, Mixer, StateMixer
from t5x_lite.schema import Config, Int, OneOf, setting

HeadActivation = Literal["tanh", "gelu"]


class HeadConfig(Config):
    """The output of a task's model, computed from the states; the objective of a task sets it."""

    outputs: Int = setting(..., "scores of each text, or of each token; 0: the pooled states are the output", ge=0)
    pool: Literal["first", "last", "mean", "max", "concat", "none"] = setting(
        "first",
        "how the states of a text become one vector; concat: last, max and mean side by side (ULMFiT, §3.3); none: "
        "each token has its own scores",
    )
    transform: bool = setting(False, "a dense layer before the scores (BERT's pooler)")
    activation: HeadActivation = setting("tanh", "activation of that layer; DeBERTa's is gelu")
    mixer: Annotated[Mixer | None, OneOf(MIXERS)] = setting(
        None, "a recurrence over the states, before they are pooled", source="TagLM, Peters et al. 2017"
    )
    crf: bool = setting(False, "scores of neighbouring tags, learnt and added to those of the tokens")
    parts: Int = setting(1, "pooled states that are scored side by side", ge=1)
    normalize: bool = setting(False, "divide pooled states that are the output by their length")
    length: Int | None = setting(None, "longest text that is pooled; null: as the positions allow", unit="tokens", ge=1)

    def problems(self) -> Iterator[str]:
        """Yield settings of vectors for a head that scores."""
        if self.outputs and (self.normalize or self.length is not None):
            yield "head: normalize and length are for pooled states that are the output (outputs: 0)"
        if self.crf and (self.pool != "none" or not self.outputs):
            yield "head: crf is for scores of each token (pool: none)"
        if self.mixer is not None and not isinstance(self.mixer, StateMixer):
            yield "head.mixer is a recurrence, not attention"
