"""FLOPs of a train step: those of the model, and of the forward passes of its teacher and of its reference."""

from t5x_lite.config import RunConfig
from t5x_lite.models.spec import ModelSpec, model_spec
from t5x_lite.objectives.objective import ExampleLengths
from t5x_lite.run_teacher import open_teacher
from t5x_lite.train.flops import flops_per_example


def step_flops_per_example(
    config: RunConfig,
    spec: ModelSpec,
    lengths: ExampleLengths,
    *,
    causal_half: bool = True,
) -> float:
    """Return the FLOPs of a train step for one example; see `flops_per_example`.

    Frozen weights have no gradients. A reference adds its forward pass, a third of both passes. An objective that
    samples answers passes over them `epochs` times, after a forward pass for their first probabilities; the sampling is
    not counted.

    A teacher adds its forward pass too. With soft targets for all tokens, both models predict all.

    Args:
        config: the run.
        spec: its model.
        lengths: tokens of an example of its objective.
        causal_half: causal attention counts half.
    """
    split = config.trainable_split(spec.axes)
    teacher = open_teacher(config)
    if teacher is None:
        flops = flops_per_example(config.model, spec, lengths, causal_half=causal_half, split=split)
        return passes_per_step(config) * flops + _flops_before_updates(config, spec, lengths, causal_half=causal_half)
    assert config.distillation is not None
    lengths = config.distillation.example_lengths(lengths)
    student_flops = flops_per_example(config.model, spec, lengths, causal_half=causal_half, split=split)
    teacher_flops = flops_per_example(teacher.run.config.model, teacher.spec, lengths, causal_half=causal_half)
    return student_flops + teacher_flops / 3


def _flops_before_updates(config: RunConfig, spec: ModelSpec, lengths: ExampleLengths, *, causal_half: bool) -> float:
    """Return the FLOPs of forward passes of a reference, and of a policy over its answers, for one example."""
    flops = 0.0
    if config.objective is not None and config.objective.needs_reference:
        flops += flops_per_example(config.model, model_spec(config.model), lengths, causal_half=causal_half) / 3
    if config.policy_objective is not None:
        flops += flops_per_example(config.model, spec, lengths, causal_half=causal_half) / 3
    return flops


def passes_per_step(config: RunConfig) -> int:
    """Return how often a step passes over its examples, forward and backward."""
    objective = config.policy_objective
    return 1 if objective is None else objective.epochs
