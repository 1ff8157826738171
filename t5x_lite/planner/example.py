"""Examples of a run's objectives without text or tokenizer, for shapes and costs."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.objectives.dummy_example import SENTINELS, dummy_context, dummy_example
from t5x_lite.objectives.features import CONTINUES
from t5x_lite.objectives.mixed_rows import common_shapes, largest_lengths, pad_to_shapes
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths
from t5x_lite.objectives.supervised import Supervised


def example_context(model: ModelConfig, length: int, sentinels: int = SENTINELS) -> ExampleContext:
    """Return the context of examples of `length` tokens, with a vocabulary that has every special token.

    Raises:
        UserError: `model.vocab` is not given.
    """
    if model.vocab is None:
        raise UserError("plan needs `model.vocab`: the size of a tokenizer that is not trained yet is not known")
    return dummy_context(model.vocab, length, model.family, sentinels)


def with_vocab_of_tokenizer(config: RunConfig) -> RunConfig:
    """Return the config with the vocabulary of the tokenizer's settings, if it has none of its own and they say it."""
    vocab = config.model.vocab or getattr(config.tokenizer, "vocab", None)
    return config.replace_model(vocab=vocab)


def example_lengths(config: RunConfig) -> ExampleLengths:
    """Return the numbers of tokens that the model processes in one example."""
    return largest_lengths(config.row_objectives, example_context(config.model, config.train.seq_len))


def example_features(config: RunConfig) -> Mapping[str, Shaped[np.ndarray, "..."]]:
    """Return the features of one example of the config's objectives; only shapes and dtypes are meaningful.

    Raises:
        UserError: no example can be made for a row of this length, as in training, or without the records of a task.
    """
    for objective in config.row_objectives:
        if isinstance(objective, Supervised):
            raise UserError(f"plan: the shapes of objective {objective.name} depend on records; add --no-compile")
    sentinels = max(getattr(config.tokenizer, "extra_ids", 0), SENTINELS)
    context = example_context(config.model, config.train.seq_len, sentinels)
    examples = [dummy_example(objective, context) for objective in config.row_objectives]
    example = pad_to_shapes(examples[0], common_shapes(examples))
    if config.data.order == "consecutive":
        example = {**example, CONTINUES: np.array(1, np.int32)}
    return example
