"""Settings of the generator of ELECTRA (Clark et al. 2020)."""

from collections.abc import Iterator
from typing import Literal

from t5x_lite.schema import Config, Int, setting

EmbeddingSharing = Literal["shared", "separate", "gradient_disentangled"]


class GeneratorConfig(Config):
    """ELECTRA's small masked language model; what it leaves out is as in the discriminator (Clark et al. 2020)."""

    layers: Int = setting(..., "number of layers", ge=1)
    embed: Int = setting(..., "width of the residual stream", ge=1)
    heads: Int = setting(..., "number of query heads", ge=1)
    mlp: Int | None = setting(None, "width of the feed-forward; null takes 4·embed", ge=1)
    embedding_sharing: EmbeddingSharing = setting(
        "shared",
        "embeddings of both models: the same; each its own; or of the discriminator those of the generator's tokens, "
        "without their gradient, plus a difference that it trains",
        source="He et al. 2023, §3.2 to §3.4",
    )

    def problems(self) -> Iterator[str]:
        if self.embed % self.heads:
            yield f"embed {self.embed} is not a multiple of heads {self.heads}; change one of them"

    def encoder_settings(self) -> dict[str, object]:
        """Return the settings in which the generator, as an encoder, differs from the model that it belongs to."""
        return {
            "family": "encoder",
            "layers": self.layers,
            "decoder_layers": self.layers,
            "embed": self.embed,
            "heads": self.heads,
            "kv_heads": self.heads,
            "head_dim": self.embed // self.heads,
            "mlp": self.mlp or 4 * self.embed,
            "generator": None,
            "detection_context": False,
            "outputs": ("tokens",),
            "output_transform": True,
            "output_bias": True,
        }
