"""Examples of an objective without text or tokenizer, for shapes and costs."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Shaped

from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.objectives.features import CONTINUES
from t5x_lite.objectives.objective import ExampleContext, TokenRow, Vocabulary

LARGEST_VOCAB = 2**16
"""Tokens of the largest vocabulary of an example. The shapes of the features do not depend on it."""
SENTINELS = 100
"""Sentinels of T5's vocabularies (Raffel et al. 2020, §3.1.4)."""
SPECIAL_TOKENS = ("[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "[R]", "[S]", "[X]", "<unk>", "<pad>")


def example_context(model: ModelConfig, length: int, sentinels: int = SENTINELS) -> ExampleContext:
    """Return the context of examples of `length` tokens, with a vocabulary that has every special token.

    Raises:
        UserError: `model.vocab` is not given.
    """
    size = model.vocab
    if size is None:
        raise UserError("plan needs `model.vocab`: the size of a tokenizer that is not trained yet is not known")
    size = min(size, LARGEST_VOCAB)
    first_sentinel = size - 1
    before_last_sentinel = max(size - 1 - sentinels, size // 2)
    vocabulary = Vocabulary(
        size=size,
        eos=1,
        named={name: token_id for token_id, name in enumerate(SPECIAL_TOKENS)},
        sentinels=tuple(range(first_sentinel, before_last_sentinel, -1)),
        special=np.arange(size) < len(SPECIAL_TOKENS),
        begins_word=np.ones(size, bool),
        frequency=np.full(size, 1 / size),
    )
    return ExampleContext(length, vocabulary, model.family)


def example_features(config: RunConfig) -> Mapping[str, Shaped[np.ndarray, "..."]]:
    """Return the features of one example of the config's objective; only shapes and dtypes are meaningful.

    Raises:
        UserError: no example can be made for a row of this length, as in training.
    """
    objective = config.require_objective()
    sentinels = max(getattr(config.tokenizer, "extra_ids", 0), SENTINELS)
    context = example_context(config.model, config.train.seq_len, sentinels)
    objective.check_context(context)
    length = objective.row_length(context)
    ones = np.ones(length, np.int32)
    sentence_numbers = (np.arange(length) >= length // 2).astype(np.int32)
    row = TokenRow(ones * 20, ones, sentence_numbers)
    example = objective.example(replace(row, second_sentence=row), context, np.random.default_rng(0))
    if config.data.order == "consecutive":
        example = {**example, CONTINUES: np.array(1, np.int32)}
    return example
