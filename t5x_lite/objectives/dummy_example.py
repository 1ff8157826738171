"""Examples of an objective without text or tokenizer. Their features have the shapes of those of a run."""

from dataclasses import replace

import numpy as np

from t5x_lite.models.config import Family
from t5x_lite.objectives.objective import ExampleContext, Features, Objective, TokenRow, Vocabulary

LARGEST_VOCAB = 2**16
"""Tokens of the largest vocabulary of an example. The shapes of the features do not depend on it."""
SENTINELS = 100
"""Sentinels of T5's vocabularies (Raffel et al. 2020, §3.1.4)."""
SPECIAL_TOKENS = ("[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "[R]", "[S]", "[X]", "<unk>", "<pad>")


def dummy_context(size: int, length: int, family: Family, sentinels: int = SENTINELS) -> ExampleContext:
    """Return the context of examples of `length` tokens, with a vocabulary that has every special token.

    Args:
        size: tokens of the vocabulary.
        length: tokens of an example.
        family: of the model.
        sentinels: sentinels of the vocabulary.
    """
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
        suffix_tokens=(1,),
    )
    return ExampleContext(length, vocabulary, family)


def dummy_example(objective: Objective, context: ExampleContext) -> Features:
    """Return the features of one example; only their names, shapes and types are meaningful.

    Raises:
        UserError: no example can be made for a row of this length, as in training.
    """
    objective.check_context(context)
    length = objective.row_length(context)
    ones = np.ones(length, np.int32)
    sentence_numbers = (np.arange(length) >= length // 2).astype(np.int32)
    row = TokenRow(ones * 20, ones, sentence_numbers)
    return objective.example(replace(row, second_sentence=row), context, np.random.default_rng(0))
