"""Settings of evaluation. Nothing here imports JAX."""

from t5x_lite.schema import Config, Int, setting


class EvalConfig(Config):
    """Evaluation during and after training."""

    every_steps: Int = setting(1000, "steps between evaluations; the last step is always evaluated", unit="steps", ge=1)
    batches: Int = setting(0, "most validation batches to evaluate; 0 evaluates the whole split", unit="batches", ge=0)
    batch_size: Int | None = setting(None, "sequences per batch; null takes train.batch_size", ge=1)
