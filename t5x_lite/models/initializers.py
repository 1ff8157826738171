"""Initialisation of weights. One class a scheme; no JAX."""

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from t5x_lite.schema import Config, Int, setting

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig


class Initializer(Config):
    """Standard deviations of initial weights, which are normally distributed.

    Under µP (`model.mup`) that of a matrix inside the model shrinks with the width.
    """

    scales_queries: ClassVar[bool] = False
    """Initial queries of a model with an `attention_scale` are so small that scores begin as under 1/sqrt(head_dim)."""

    @abstractmethod
    def embedding_std(self) -> float:
        """Return the standard deviation of embedding tables."""

    @abstractmethod
    def matrix_std(self, model: "ModelConfig", fan_in: int, *, residual: bool = False, output: bool = False) -> float:
        """Return the standard deviation of a matrix.

        Args:
            model: the model that the matrix is part of.
            fan_in: size of its input.
            residual: it writes to the residual stream.
            output: it makes the logits.
        """


class NormalInit(Initializer):
    """One standard deviation for every matrix; those that write to the residual stream by 1/sqrt(2·layers) of it.

    GPT-2's scheme (Radford et al. 2019, §2.3; the figure 0.02 is GPT's, Radford et al. 2018, §4.1).
    """

    deviation: float = setting(0.02, "standard deviation of embeddings and matrices", gt=0)
    embedding_deviation: float | None = setting(None, "standard deviation of embeddings; null takes `deviation`")
    scale_residual: bool = setting(True, "divide residual projections' deviation by sqrt(2·layers)")

    def embedding_std(self) -> float:
        if self.embedding_deviation is None:
            return self.deviation
        return self.embedding_deviation

    def matrix_std(self, model: "ModelConfig", fan_in: int, *, residual: bool = False, output: bool = False) -> float:
        """Return `deviation`, scaled for residual projections."""
        std = self.deviation
        if not output:
            std = std / math.sqrt(model.width_multiplier)
        if residual and self.scale_residual:
            std = std / math.sqrt(2 * model.layers)
        return std


class FanInInit(Initializer):
    """Matrices by 1/sqrt(fan in), embeddings by `embedding_deviation`; residual projections scaled or zero.

    Where `attention_scale` is given, queries start so small that scores begin as under 1/sqrt(head_dim) (T5's code).
    """

    scales_queries: ClassVar[bool] = True

    embedding_deviation: float = setting(0.02, "standard deviation of embeddings", gt=0)
    residual_scale: float = setting(1.0, "factor on the deviation of projections into the residual stream", ge=0)
    scale: float = setting(1.0, "factor on the variance of matrices", gt=0, source="Fedus et al. 2022, §2.4: s")

    def embedding_std(self) -> float:
        return self.embedding_deviation

    def matrix_std(self, model: "ModelConfig", fan_in: int, *, residual: bool = False, output: bool = False) -> float:
        """Return sqrt(scale / fan_in), scaled for residual projections."""
        effective_fan_in: float = fan_in
        if output:
            effective_fan_in = fan_in / model.width_multiplier
        factor = 1.0
        if residual:
            factor = self.residual_scale
        return factor * math.sqrt(self.scale / effective_fan_in)


class MaximalUpdate(Config):
    """Rates and deviations tuned at one width serve wider models (µP for Adam: Yang et al. 2022, table 8).

    With m = embed / base: matrices inside are drawn with 1/sqrt(m) of the deviation and learn at 1/m of the rate,
    logits are divided by m, scores by head_dim instead of its root. All widths must grow together.
    """

    embed: Int = setting(..., "width of the base model, whose learning rates are used", ge=1)
    head_dim: Int | None = setting(None, "width of a head of the base model; null: that of this model", ge=1)


INITIALIZERS: dict[str, type[Initializer]] = {"normal": NormalInit, "fan_in": FanInInit}
