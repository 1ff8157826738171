"""Settings of normalisation layers; the layer is `layers.Norm`."""

from t5x_lite.schema import Config, setting


class LayerNorm(Config):
    """Centred and scaled to unit variance (Ba et al. 2016)."""

    epsilon: float = setting(1e-5, "added to the variance", gt=0)
    scale: bool = setting(True, "multiply by a learned scale")
    bias: bool = setting(True, "add a learned shift")


class RMSNorm(Config):
    """Scaled to unit root mean square, not centred (Zhang & Sennrich 2019)."""

    epsilon: float = setting(1e-6, "added to the mean square", gt=0)
    unit_offset: bool = setting(
        False, "the scale is 1 plus a weight that begins at 0, so that decay draws it to 1", source="Gemma's code"
    )


class NoNorm(Config):
    """No normalisation: the input as it is."""


NORMS: dict[str, type[Config]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm, "none": NoNorm}
