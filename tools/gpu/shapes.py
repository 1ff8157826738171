"""The configs that the programs of this folder measure."""

from collections.abc import Sequence

from benchmarks import mfu
from benchmarks.step import CONFIGS

from t5x_lite import config as configuration
from t5x_lite.config import RunConfig

TINY = (
    "model.layers=2",
    "model.embed=32",
    "model.heads=2",
    "model.head_dim=16",
    "model.mlp=64",
    "train.seq_len=64",
    "model.vocab=512",
    "train.batch_size=2",
)
"""A model that a CPU trains in seconds."""


def load_config(name: str, overrides: Sequence[str], is_tiny: bool) -> RunConfig:
    """Load the config of a shape, or a tiny model of its kind."""
    shape = mfu.SHAPES[name]
    settings = [*mfu.PLAIN, *shape.overrides, f"train.batch_size={shape.batch_size}"]
    if is_tiny:
        settings += TINY
    return configuration.load(CONFIGS / shape.config, [*settings, *overrides])
