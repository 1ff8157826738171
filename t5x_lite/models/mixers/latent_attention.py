"""Multi-head latent attention (DeepSeek-V2: Liu et al. 2024, §2.1). `models/attention/latent.py` computes it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from t5x_lite.models.mixers.mixer import CacheSizes, SelfAttention
from t5x_lite.models.positions import Rotary
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig


class LatentAttention(SelfAttention):
    """Attention whose keys and values are computed from one narrow vector a token, the latent.

    Positions rotate channels of their own: `rotary` channels of each query, and of one key for all heads. The other
    `head_dim` channels carry no position. A cache holds the latent and the rotated key alone.
    """

    rank: Int = setting(512, "width of the latent of keys and values", ge=1, source="§3.1.2: d_c")
    query_rank: Int | None = setting(
        1536, "width of the latent of queries; null: queries have none", ge=1, source="§3.1.2: d'_c"
    )
    rotary: Int = setting(64, "channels of a query, and of the shared key, that are rotated", ge=2, source="§3.1.2")
    value: Int = setting(128, "width of a head's values", ge=1, source="§3.1.2: d_h")

    def key_dim(self, model: "ModelConfig") -> int:
        """Return the width of a head's queries and keys: channels without and with positions."""
        return model.head_dim + self.rotary

    def value_dim(self, model: "ModelConfig") -> int:
        """Return the width of a head's values."""
        return self.value

    def cache_sizes(self, model: "ModelConfig") -> CacheSizes:
        """Return the widths of the shared rotated key and of the latent."""
        return CacheSizes(1, self.rotary, self.rank)

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield settings of plain attention that it does not have."""
        if not isinstance(model.positions, Rotary):
            yield "latent_attention needs rotary positions"
        elif model.positions.rotated_channels(self.rotary) % 2:
            yield f"latent_attention rotates pairs of channels, found rotary {self.rotary}"
        if model.kv_heads != model.heads:
            yield f"latent_attention has keys for every head: kv_heads is {model.kv_heads}, heads {model.heads}"
        biases = (model.query_key_value_bias, model.key_bias)
        if model.query_key_norm != "none" or any(bias is not None for bias in biases):
            yield "query_key_norm and biases of queries or keys are not for latent_attention, whose latents have norms"
        if self.memory:
            yield "memory is for mixer: attention, not for latent_attention"
        if model.mup is not None or model.attention_sinks or model.attention_output_gate:
            yield "mup, attention_sinks and attention_output_gate are not for latent_attention"
