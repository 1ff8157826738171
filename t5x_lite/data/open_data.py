"""Open the data of a run: the token corpora of its text, or the records of its tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from t5x_lite.data.corpus import Corpus
from t5x_lite.data.mixture import shares_of_rows, source_shares
from t5x_lite.data.pipeline import TrainingRows, ValidationSet
from t5x_lite.data.prepare import prepare_corpus
from t5x_lite.data.records import open_task_data
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_statistics import RowStatistics
from t5x_lite.data.row_store import open_rows, prepare_rows
from t5x_lite.data.shards import Split
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
        tokens_per_row: mean number of tokens in a training row of each source; None if the mixture is by examples.
    """

    settings: PipelineSettings
    training: list[Corpus]
    held_out: list[Corpus]
    tokens_per_row: list[float] | None = None

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
        if self.tokens_per_row is not None:
            shares = shares_of_rows(shares, self.tokens_per_row)
        row_plans = [open_rows(corpus, row_rule(settings)) for corpus in self.training]
        return TrainingRows(row_plans, shares, settings.data, settings.objective, settings.context, settings.seed)

    def validation(self) -> ValidationSet:
        """Return the validation split.

        Raises:
            UserError: there is no validation text.
        """
        settings = self.settings
        row_plans = [open_rows(corpus, row_rule(settings)) for corpus in self.held_out if corpus.tokens]
        if not row_plans:
            raise UserError(
                "no document fell into the validation split; raise data.validation_fraction, name "
                "data.validation_files, or split by data.validation_by=position"
            )
        return ValidationSet(
            row_plans,
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
    folders = [prepare_corpus(source, settings.data, tokenizer) for source in settings.data.sources]
    training = [Corpus(folder, "train") for folder in folders]
    held_out = [Corpus(folder, "validation") for folder in folders]
    rule = row_rule(settings)
    mixes_tokens = settings.data.mixture_by == "tokens" and len(folders) > 1
    tokens_per_row: list[float] | None = None
    if rule.is_packed or mixes_tokens:
        statistics = [prepare_rows(folder, rule)["train"] for folder in folders]
        if mixes_tokens:
            tokens_per_row = [counts.tokens_per_row for counts in statistics]
    if settings.objective.needs_frequency:
        vocabulary = settings.context.vocabulary
        frequency = count_token_frequency(training, vocabulary.size)
        context = replace(settings.context, vocabulary=replace(vocabulary, frequency=frequency))
        settings = replace(settings, context=context)
    return TextData(settings, training, held_out, tokens_per_row)


def row_rule(settings: PipelineSettings) -> RowRule:
    """Return the rule by which the text of a run becomes rows."""
    return RowRule(settings.data, settings.objective, settings.context)


@dataclass(frozen=True)
class PreparedSource:
    """A source whose text is tokenised and whose rows are planned.

    Attributes:
        name: the source's name in the config.
        folder: of its token corpus.
        statistics: counts of the rows of each split.
    """

    name: str
    folder: Path
    statistics: Mapping[Split, RowStatistics]


def prepare_sources(
    settings: PipelineSettings, tokenizer: Tokenizer, runner: str | None = None
) -> list[PreparedSource]:
    """Tokenise the text of every source and plan its rows, as far as that has not been done.

    Args:
        settings: settings of the run.
        tokenizer: makes token ids.
        runner: a runner of Apache Beam that tokenises; None uses processes of this machine.

    Raises:
        UserError: no text, or a tokenizer that the objective cannot use.
    """
    settings.objective.check_context(settings.context)
    rule = row_rule(settings)
    prepared: list[PreparedSource] = []
    for source in settings.data.sources:
        folder = prepare_corpus(source, settings.data, tokenizer, runner)
        prepared.append(PreparedSource(source.name, folder, prepare_rows(folder, rule)))
    return prepared


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
