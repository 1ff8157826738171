"""Settings of the generator of ELECTRA (Clark et al. 2020)."""

from t5x_lite.schema import Config, Int, setting


class GeneratorConfig(Config):
    """ELECTRA's small masked language model; what it leaves out is as in the discriminator (Clark et al. 2020)."""

    layers: Int = setting(..., "number of layers", ge=1)
    embed: Int = setting(..., "width of the residual stream", ge=1)
    heads: Int = setting(..., "number of query heads", ge=1)
    mlp: Int | None = setting(None, "width of the feed-forward; null takes 4·embed", ge=1)
