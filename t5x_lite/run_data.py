"""The data of a run, opened by its config."""

from t5x_lite.config import RunConfig
from t5x_lite.data.open_data import open_data
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.training_data import PipelineSettings, TrainingData
from t5x_lite.objectives.objective import ExampleContext


def open_run_data(config: RunConfig, tokenizer: Tokenizer) -> TrainingData:
    """Open the data that a run's config names.

    Raises:
        UserError: no text or no records, or a tokenizer that the objective cannot use.
    """
    context = ExampleContext(
        seq_len=config.train.seq_len,
        vocabulary=tokenizer.vocabulary(),
        family=config.model.family,
        placeholders=config.method.placeholders,
    )
    settings = PipelineSettings(
        data=config.data,
        objective=config.require_objective(),
        context=context,
        seed=config.train.seed,
        validation_batch_size=config.eval.batch_size or config.train.batch_size,
        max_validation_batches=config.eval.batches,
    )
    return open_data(settings, tokenizer, config.tasks)
