"""Open the data of a run: the token corpora of its text, or the records of its tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from t5x_lite.data.corpus import Corpus
from t5x_lite.data.mixture import source_shares
from t5x_lite.data.pipeline import TrainingRows, ValidationSet
from t5x_lite.data.prepare import prepare_corpus
from t5x_lite.data.records import open_task_data
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.training_data import PipelineSettings, TrainingData
from t5x_lite.errors import UserError
from t5x_lite.objectives.objective import ExampleContext

FREQUENCY_TOKENS = 10_000_000
"""Tokens from the beginning of each source over which the frequency of tokens is counted."""


@dataclass(frozen=True)
class TextData:
    """The data of a run that learns from running text.

    Attributes:
        settings: settings of the run.
        training: the training text of each source.
        held_out: the validation text of each source.
    """

    settings: PipelineSettings
    training: list[Corpus]
    held_out: list[Corpus]

    @property
    def context(self) -> ExampleContext:
        """The context of the objective's examples."""
        return self.settings.context

    @property
    def tokens_per_byte(self) -> float | None:
        """Tokens per UTF-8 byte of the validation text; None if the loss is not that of every token of the text."""
        if not self.settings.objective.every_token:
            return None
        tokens = sum(corpus.tokens for corpus in self.held_out)
        text_bytes = sum(corpus.text_bytes for corpus in self.held_out)
        return tokens / max(text_bytes, 1)

    def rows(self) -> TrainingRows:
        """Return the endless order of training examples.

        Raises:
            UserError: too little text for one row.
        """
        settings = self.settings
        sizes = [corpus.tokens for corpus in self.training]
        shares = source_shares(settings.data.sources, sizes, settings.data.mixture_alpha)
        return TrainingRows(self.training, shares, settings.data, settings.objective, settings.context, settings.seed)

    def validation(self) -> ValidationSet:
        """Return the validation split.

        Raises:
            UserError: there is no validation text.
        """
        if not any(corpus.tokens for corpus in self.held_out):
            raise UserError(
                "no document fell into the validation split; raise data.validation_fraction, name "
                "data.validation_files, or split by data.validation_by=position"
            )
        settings = self.settings
        return ValidationSet(
            self.held_out,
            settings.data,
            settings.objective,
            settings.context,
            settings.validation_batch_size,
            settings.max_validation_batches,
        )


def open_data(settings: PipelineSettings, tokenizer: Tokenizer, task_names: Sequence[str] = ()) -> TrainingData:
    """Open the records of tasks; without tasks, open the token corpus of every source, and prepare it if needed.

    Raises:
        UserError: no text or no records, or a tokenizer that the objective cannot use.
    """
    settings.objective.check_context(settings.context)
    if task_names:
        return open_task_data(settings, tokenizer, task_names)
    training: list[Corpus] = []
    held_out: list[Corpus] = []
    for source in settings.data.sources:
        folder = prepare_corpus(source, settings.data, tokenizer)
        training.append(Corpus(folder, "train"))
        held_out.append(Corpus(folder, "validation"))
    if settings.objective.needs_frequency:
        vocabulary = settings.context.vocabulary
        frequency = count_token_frequency(training, vocabulary.size)
        context = replace(settings.context, vocabulary=replace(vocabulary, frequency=frequency))
        settings = replace(settings, context=context)
    return TextData(settings, training, held_out)


def count_token_frequency(
    corpora: Sequence[Corpus], vocab: int, max_tokens: int = FREQUENCY_TOKENS
) -> Float64[np.ndarray, "vocab"]:
    """Return each token's share of the training text.

    Args:
        corpora: the training text of each source.
        vocab: size of the vocabulary.
        max_tokens: tokens that are read from the beginning of each source.
    """
    counts = np.zeros(vocab)
    for corpus in corpora:
        if corpus.tokens:
            tokens, _ = corpus.read(0, min(corpus.tokens, max_tokens))
            counts += np.bincount(tokens, minlength=vocab)
    return counts / max(counts.sum(), 1.0)
