"""Overrides that make the runs of the documentation tiny."""

from collections.abc import Callable
from pathlib import Path

STANDARD_LIBRARY = ("python:standard_library",)
TINY_RUN = [
    "train.steps=3",
    "train.batch_size=4",
    "train.seq_len=32",
    "train.sample_prompt=''",
    "train.peak_flops=1e9",
    "optimizer.warmup_steps=1",
    "checkpoint.every_steps=3",
    "eval.every_steps=3",
    "eval.batches=2",
]
TINY_MODEL = ["model.layers=2", "model.embed=32", "model.heads=2", "model.mlp=64", "tokenizer.unigram.vocab=320"]


def tiny_overrides(config_path: str, text: Path, load_config: Callable) -> list[str]:
    """Return the overrides of a run.

    Args:
        config_path: its config.
        text: folder of text files, which replace the standard library.
        load_config: `config.load` of the package that trains.
    """
    config = load_config(config_path)
    overrides = list(TINY_RUN)
    if config.adapt is None:
        overrides += TINY_MODEL
    if getattr(config.tokenizer, "extra_ids", 0):
        overrides.append("tokenizer.unigram.extra_ids=20")
    if config.data.mixture:
        sources = [f"{{name: {source.name}, files: '{text}/*.txt'}}" for source in config.data.mixture]
        overrides += [f"data.mixture=[{', '.join(sources)}]", "data.validation_fraction=0.2"]
    if config.data.files == STANDARD_LIBRARY:
        overrides += [f"data.files={text}/*.txt", "data.validation_fraction=0.2"]
    return overrides
