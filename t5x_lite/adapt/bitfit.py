"""BitFit: biases train, everything else is frozen (Ben Zaken et al. 2022, §3)."""

from t5x_lite.adapt.method import AdaptationMethod
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.normalization import LayerNorm


class BitFit(AdaptationMethod):
    """All biases train, those of the norms too."""

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for a model without biases."""
        if not _has_biases(model):
            raise ValueError(
                "adapt.method bitfit: this model has no biases: model.bias, those of its parts and of model.norm are "
                "false"
            )

    def first_trained_repeat(self, name: str, model: ModelConfig) -> int | None:
        """Train biases."""
        if name.endswith((".bias", ".hidden_bias")):
            return 0
        return None


def _has_biases(model: ModelConfig) -> bool:
    settings = (
        model.bias,
        model.query_key_value_bias,
        model.key_bias,
        model.feedforward_bias,
        model.output_bias and not {"tokens", "neighbours"}.isdisjoint(model.outputs),
        isinstance(model.norm, LayerNorm) and model.norm.bias,
    )
    # These have biases whatever the model's settings are.
    parts = (
        model.characters is not None,
        any(moe.router.has_logit_bias for moe in model.mixtures),
        any(mixer.has_bias for mixer in (*model.state_mixers, *model.decoder_model.state_mixers)),
    )
    return any((*settings, *parts))
