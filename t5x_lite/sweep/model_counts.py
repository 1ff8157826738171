"""Parameters and training FLOPs of a model, as a sweep counts them."""

import math
from dataclasses import dataclass
from functools import cache

from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.objectives import Objective
from t5x_lite.objectives.mixed_rows import largest_lengths
from t5x_lite.planner.example import example_context
from t5x_lite.sweep.config import SweepConfig
from t5x_lite.train.flops import flops_per_example
from t5x_lite.trees import flatten_names


@dataclass(frozen=True)
class ModelCounts:
    """Counts of one model.

    Attributes:
        parameters: N, as `SweepConfig.parameters` says.
        non_embedding: active parameters without embedding tables and output matrix.
        model_flops: FLOPs of the model for one token of training.
        flops: FLOPs for one token as `SweepConfig.flops` says.
    """

    parameters: int
    non_embedding: int
    model_flops: float
    flops: float


def count_model(config: RunConfig, sweep: SweepConfig) -> ModelCounts:
    """Count a run's model.

    Raises:
        UserError: the size of its vocabulary is not known.
    """
    model = with_known_vocab(config).model
    parameters = _count_parameters(model)
    model_flops = _flops_per_token(model, config.row_objectives, config.train.seq_len)
    counted = parameters[sweep.parameters]
    flops = model_flops
    if sweep.flops == "6nd":
        flops = 6.0 * counted
    return ModelCounts(counted, parameters["non_embedding"], model_flops, flops)


def with_known_vocab(config: RunConfig) -> RunConfig:
    """Return the config with the vocabulary size that its tokenizer will be trained to.

    Raises:
        UserError: the size is not known until the tokenizer is loaded.
    """
    vocab = config.model.vocab or getattr(config.tokenizer, "vocab", None)
    if vocab is None:
        raise UserError("a sweep counts parameters before it loads a tokenizer: give model.vocab under `set`")
    return config.replace_model(vocab=vocab)


@cache
def _count_parameters(model: ModelConfig) -> dict[str, int]:
    """Return N by each value of `SweepConfig.parameters`."""
    spec = model_spec(model)
    shapes = flatten_names(spec.shapes)
    vocab_parameters = 0.0
    for name, axes in flatten_names(spec.axes).items():
        is_output = "vocab" in axes.names and axes.inputs
        if axes.is_table or is_output:
            vocab_parameters += axes.active_share * math.prod(shapes[name].shape)
    active = spec.active_parameters
    return {"all": spec.parameters, "active": active, "non_embedding": active - round(vocab_parameters)}


@cache
def _flops_per_token(model: ModelConfig, objectives: tuple[Objective, ...], length: int) -> float:
    lengths = largest_lengths(objectives, example_context(model, length))
    return flops_per_example(model, model_spec(model), lengths) / length
