"""Open the data of a run: the token corpora of its text, or the records of its tasks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from t5x_lite.data.consecutive import ConsecutiveOrder, ConsecutiveRows
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.corpus_files import Split
from t5x_lite.data.mixture import MixtureOrder, shares_of_rows, source_shares
from t5x_lite.data.mixture_file import write_mixture
from t5x_lite.data.pipeline import (
    ExampleBuilder,
    RowOrder,
    TrainingRows,
    ValidationSet,
    check_rows,
    example_builders,
)
from t5x_lite.data.prepare import prepare_corpus
from t5x_lite.data.records import open_task_data
from t5x_lite.data.row_plan import RowPlan, StreamWindows
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_statistics import RowStatistics
from t5x_lite.data.row_store import open_rows, prepare_rows
from t5x_lite.data.single_sentences import warn_of_single_sentences
from t5x_lite.data.stage_orders import StageRows, stage_orders
from t5x_lite.data.stages import Stage
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.training_data import ExampleSequence, PipelineSettings, TrainingData, ValidationBatches
from t5x_lite.errors import UserError
from t5x_lite.objectives.objective import ExampleContext
from t5x_lite.objectives.special_tokens import text_start

FREQUENCY_TOKENS = 10_000_000
"""Tokens from the beginning of each source over which the frequency of tokens is counted."""


@dataclass(frozen=True)
class _ValidationRows:
    """The rows of a source's validation text.

    Attributes:
        source: name of the source.
        row_plan: its rows.
        builder: makes their examples.
        identity: what the examples depend on; equal for sources with the same text, rows and objective.
    """

    source: str
    row_plan: RowPlan
    builder: ExampleBuilder
    identity: tuple[str, str, str]


@dataclass(frozen=True)
class TextData:
    """The data of a run that learns from running text.

    Attributes:
        settings: settings of the run.
        training: the training text of each source.
        held_out: the validation text of each source.
        tokens_per_row: mean number of tokens in a training row of each source, in each stage; None if the mixture is
            by examples.
    """

    settings: PipelineSettings
    training: list[Corpus]
    held_out: list[Corpus]
    tokens_per_row: list[list[float]] | None = None

    @property
    def context(self) -> ExampleContext:
        """The context of the objective's examples."""
        return self.settings.context

    @property
    def tokens_per_byte(self) -> float | None:
        """Tokens per UTF-8 byte of the validation text; None if the loss is not that of every token of the text."""
        if not all(objective.every_token for objective in self.settings.objectives):
            return None
        tokens = sum(corpus.tokens for corpus in self.held_out)
        text_bytes = sum(corpus.text_bytes for corpus in self.held_out)
        return tokens / max(text_bytes, 1)

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of the tokens of each source, by its name and split."""
        hashes = {}
        for corpora in (self.training, self.held_out):
            for source, corpus in zip(self.settings.data.sources, corpora, strict=True):
                hashes[f"{source.name}.{corpus.split}"] = corpus.hash
        return hashes

    def rows(self, stage: int = 0) -> ExampleSequence:
        """Return the order of training examples: example step · batch size + row, for the steps of a stage.

        Raises:
            UserError: too little text for one row, or for the rows of a batch in consecutive order.
        """
        rows = self.stage_rows[stage]
        if self.settings.data.order == "shuffled":
            return self._training_rows(rows, self._orders[stage])
        (windows,) = rows.row_plans
        assert isinstance(windows, StreamWindows)
        order = ConsecutiveOrder(windows.rows, rows.stage.batch_size)
        return ConsecutiveRows(self._training_rows(rows, order), windows, order)

    def _training_rows(self, rows: StageRows, order: RowOrder) -> TrainingRows:
        phases = []
        for source in self.settings.of_sources():
            strides = [source.objective.stride(source.of_stage(other.stage).context) for other in self.stage_rows]
            # An epoch that several stages share is shifted alike in all of them, or they would read the same tokens.
            phases.append(min(strides))
        builders = example_builders(self.settings.of_stage(rows.stage))
        return TrainingRows(rows.row_plans, order, builders, self.settings.seed, phases)

    @cached_property
    def stage_rows(self) -> list[StageRows]:
        """The rows of each stage, and the shares of the sources in them.

        Raises:
            UserError: some sources have a weight and others have none; too little text for one row.
        """
        stages = []
        for number, stage in enumerate(self.settings.all_stages()):
            settings = self.settings.of_stage(stage)
            row_plans: list[RowPlan | None] = []
            for source, corpus in zip(settings.data.sources, self.training, strict=True):
                row_plan = None
                if stage.draws(source.name):
                    source_settings = settings.of_source(source)
                    row_plan = open_rows(corpus, row_rule(source_settings))
                    check_rows(row_plan, source_settings.objective, settings.context)
                row_plans.append(row_plan)
            stages.append(StageRows(stage, self._shares(number, stage), row_plans))
        return stages

    @cached_property
    def _orders(self) -> list[MixtureOrder]:
        return stage_orders(self.stage_rows, self.settings.seed)

    def _shares(self, number: int, stage: Stage) -> Float64[np.ndarray, "sources"]:
        """Return the share of each source in the rows of a stage."""
        data = self.settings.data
        if stage.weights is None:
            shares = source_shares(data.sources, [corpus.tokens for corpus in self.training], data.mixture_alpha)
        else:
            weights = np.array([stage.weights.get(source.name, 0.0) for source in data.sources])
            shares = weights / weights.sum()
        if self.tokens_per_row is None:
            return shares
        return shares_of_rows(shares, self.tokens_per_row[number])

    def describe(self, run_dir: Path) -> list[str]:
        """Write the shares of the sources to a run directory, unless the run has one source and no schedule."""
        sources = [source.name for source in self.settings.data.sources]
        if len(sources) > 1 or self.settings.data.schedule:
            write_mixture(run_dir, self.stage_rows, sources)
        return []

    def validation(self) -> ValidationSet:
        """Return the validation split.

        Raises:
            UserError: there is no validation text.
        """
        # All sources have the text of `data.validation_files`, which is evaluated once.
        sources = {rows.identity: rows for rows in self._validation_rows()}
        validation_files = self.settings.data.validation_files
        if not sources and validation_files:
            raise UserError(f"data.validation_files: {', '.join(validation_files)} hold no document")
        if not sources:
            raise UserError(
                "no document fell into the validation split; raise data.validation_fraction, name "
                "data.validation_files, split by data.validation_by=position, or, if a file holds many documents, cut "
                "it by data.document=line or paragraph"
            )
        row_plans = [rows.row_plan for rows in sources.values()]
        builders = [rows.builder for rows in sources.values()]
        return self._validation_set(row_plans, builders)

    def validation_of_sources(self) -> dict[str, ValidationBatches]:
        """Return the validation split of each source, by its name, if their objectives differ; else nothing.

        Its batches are those of a run with this source and its objective alone, padded to the shapes of the mixture.
        """
        if len(self.settings.objectives) == 1:
            return {}
        sources = self._validation_rows()
        return {rows.source: self._validation_set([rows.row_plan], [rows.builder]) for rows in sources}

    def _validation_rows(self) -> Iterator[_ValidationRows]:
        builders = example_builders(self.settings)
        for source, corpus, builder in zip(self.settings.data.sources, self.held_out, builders, strict=True):
            if corpus.tokens:
                rule = row_rule(self.settings.of_source(source))
                identity = (corpus.hash or source.name, rule.fingerprint, repr(builder.objective))
                yield _ValidationRows(source.name, open_rows(corpus, rule), builder, identity)

    def _validation_set(self, row_plans: Sequence[RowPlan], builders: Sequence[ExampleBuilder]) -> ValidationSet:
        settings = self.settings
        return ValidationSet(row_plans, builders, settings.validation_batch_size, settings.max_validation_batches)


def open_data(settings: PipelineSettings, tokenizer: Tokenizer, task_names: Sequence[str] = ()) -> TrainingData:
    """Open the records of tasks; without tasks, open the token corpus of every source, and prepare it if needed.

    Raises:
        UserError: no text or no records, or a tokenizer that the objective cannot use.
    """
    _check_contexts(settings)
    if task_names:
        return open_task_data(settings, tokenizer, task_names)
    sources = settings.data.sources
    prefix_tokens = _document_start(settings.context)
    folders = []
    for source in sources:
        folders.append(prepare_corpus(source, settings.data.of_source(source), tokenizer, prefix_tokens=prefix_tokens))
    training = [Corpus(folder, "train") for folder in folders]
    held_out = [Corpus(folder, "validation") for folder in folders]
    mixes_tokens = settings.data.mixture_by == "tokens" and len(folders) > 1
    tokens_per_row: list[list[float]] | None = None
    rules = [row_rule(source) for source in settings.of_sources()]
    if mixes_tokens or any(rule.is_packed for rule in rules):
        statistics = [_prepare_stage(settings, stage, folders) for stage in settings.all_stages()]
        if mixes_tokens:
            tokens_per_row = statistics
    for folder, rule in zip(folders, rules, strict=True):
        if rule.is_packed:
            prepare_rows(folder, rule)  # of the validation split
    if any(objective.needs_frequency for objective in settings.objectives):
        vocabulary = settings.context.vocabulary
        frequency = count_token_frequency(training, vocabulary.size)
        context = replace(settings.context, vocabulary=replace(vocabulary, frequency=frequency))
        settings = replace(settings, context=context)
    return TextData(settings, training, held_out, tokens_per_row)


def _check_contexts(settings: PipelineSettings) -> None:
    """Check that each objective can make examples of rows of the run's length, and of those of its stages."""
    contexts = [settings.context, *(settings.of_stage(stage).context for stage in settings.all_stages())]
    for context in {context.seq_len: context for context in contexts}.values():
        for objective in settings.objectives:
            objective.check_context(context)


def _prepare_stage(settings: PipelineSettings, stage: Stage, folders: Sequence[str]) -> list[float]:
    """Plan the rows of a stage; return the mean number of tokens in a row of each source, 0 if it is not drawn."""
    stage_settings = settings.of_stage(stage)
    tokens_per_row = []
    for source, folder in zip(settings.data.sources, folders, strict=True):
        tokens = 0.0
        if stage.draws(source.name):
            statistics = prepare_rows(folder, row_rule(stage_settings.of_source(source)))["train"]
            warn_of_single_sentences(source.name, statistics)
            tokens = statistics.tokens_per_row
        tokens_per_row.append(tokens)
    return tokens_per_row


def _document_start(context: ExampleContext) -> tuple[int, ...]:
    """Return the ids before each document in a decoder; for other models objectives add the special tokens."""
    return text_start(context) if context.family == "decoder" else ()


def row_rule(settings: PipelineSettings) -> RowRule:
    """Return the rule by which the text of a source becomes rows."""
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
    folder: str
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
    _check_contexts(settings)
    prepared: list[PreparedSource] = []
    for source in settings.data.sources:
        source_settings = settings.of_source(source)
        prefix_tokens = _document_start(settings.context)
        folder = prepare_corpus(source, source_settings.data, tokenizer, runner, prefix_tokens=prefix_tokens)
        prepared.append(PreparedSource(source.name, folder, prepare_rows(folder, row_rule(source_settings))))
    for stage in settings.all_stages():
        _prepare_stage(settings, stage, [source.folder for source in prepared])
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
            tokens = corpus.read_spans([(0, min(corpus.tokens, max_tokens))])
            counts += np.bincount(tokens, minlength=vocab)
    return counts / max(counts.sum(), 1.0)
