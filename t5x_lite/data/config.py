"""Configs of text sources and of the rows cut from them. This module does not import JAX."""

import json
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, Strict

from t5x_lite.data.cleaning import CLEANING
from t5x_lite.data.cleaning.c4_spans import C4Spans
from t5x_lite.data.cleaning.deduplication import Deduplication
from t5x_lite.data.cleaning.text_filter import TextFilter
from t5x_lite.data.cleaning_problems import cleaning_problems
from t5x_lite.data.hub_datasets import SCHEME as HUB
from t5x_lite.errors import suggest
from t5x_lite.objectives import OBJECTIVES, Objective
from t5x_lite.schema import Config, Int, OneOf, Strings, setting

Format = Literal[
    "auto",
    "text",
    "jsonl",
    "parquet",
    "webdataset",
    "mds",
    "tfds",
    "parallel",
    "megatron",
    "nanogpt",
    "llmc",
    "levanter",
]
TOKEN_FORMATS = ("megatron", "nanogpt", "llmc", "levanter")
"""Formats of files that hold token ids and no text."""
STANDARD_LIBRARY = "python:standard_library"
"""Name in `data.files` for the source and documentation of the running Python: text that every machine has."""
Parts = Literal["none", "line", "punctuation", "fields", "turns"]
Packing = Literal["stream", "documents", "sentences", "none"]


class SourceConfig(Config):
    """A source of documents."""

    files: Strings = setting(
        (),
        "glob or list of globs, local, gs://BUCKET/… or s3://BUCKET/…; for `tfds` the builder's directory or "
        "`name/config:version`; hf://ORG/NAME@REVISION#CONFIG/SPLIT is a data set of the Hugging Face Hub; "
        f"`{STANDARD_LIBRARY}` is the source and the documentation of the running Python",
    )
    format: Format = setting(
        "auto",
        "format of the files; `auto` goes by the ending: .jsonl, .parquet, .tar (WebDataset), else text; each may also "
        "end in .gz or .zst; `mds` is MosaicML's folders of shards; `parallel` is one text file per field, with {} in "
        "its name for the field; lines n belong together; `megatron` (.bin with its .idx), `nanogpt`, `llmc` and "
        "`levanter` (folders) hold token ids",
    )
    field: Strings = setting(
        ("text",),
        "column of JSONL, Parquet, MDS or TFDS, or ending of a file in a tar file, that holds the text; several "
        "columns make `fields`",
    )
    document: Literal["file", "line", "paragraph"] = setting(
        "file", "what one document of a text file is: the file, a line or a paragraph"
    )
    split: str = setting("train", "split of TFDS, or of a data set of the Hub")
    cleaning: Annotated[tuple[Annotated[TextFilter | Deduplication | C4Spans, OneOf(CLEANING)], ...], Strict(False)] = (
        setting(
            (),
            "filters, then kinds of deduplication, such as [c4, gopher_quality, exact, minhash, c4_spans]; separate "
            "validation text is not cleaned",
        )
    )

    @property
    def has_splits(self) -> bool:
        """True for a TFDS builder and for data sets of the Hub."""
        return self.format == "tfds" or any(name.startswith(HUB) for name in self.files)


class MixedSource(SourceConfig):
    """One source of a mixture."""

    name: str = setting(..., "name in logs and metrics")
    weight: float | None = setting(
        None, "share of examples or tokens (`mixture_by`), relative to the other sources; null: by size", gt=0
    )
    objective: Annotated[Objective | None, OneOf(OBJECTIVES)] = setting(
        None, "what the rows of this source teach; null: `objective`, with which it must share features and loss"
    )
    parts: Parts | None = setting(None, "parts of a document of this source; null: `data.parts`")
    packing: Packing | None = setting(None, "contents of a row of this source; null: `data.packing`")
    end_of_document: bool | None = setting(
        None, "append EOS to every document of this source; null: `data.end_of_document`"
    )


class StageConfig(Config):
    """A stage of a run: the steps from its beginning to that of the next stage, or to the end."""

    name: str = setting(..., "name in messages and in the report", min_length=1)
    after_steps: Int | None = setting(None, "steps of the run before the stage; the first stage needs none", ge=0)
    after_share: float | None = setting(None, "the same as a share of train.steps", ge=0, lt=1)
    weights: dict[str, Annotated[float, Field(gt=0)]] | None = setting(
        None,
        "share of each source in the stage, relative to the others; a source that is not named gives nothing; null: "
        "the shares of the mixture",
        min_length=1,
    )
    seq_len: Int | None = setting(None, "length of a sequence; null: train.seq_len", unit="tokens", ge=1)
    batch_size: Int | None = setting(
        None,
        "sequences per update; null: as many as have the tokens of train.batch_size sequences of train.seq_len tokens",
        unit="sequences",
        ge=1,
    )


class DataConfig(SourceConfig):
    """Text, its token corpus, and the rows cut from the corpus."""

    mixture: Annotated[tuple[MixedSource, ...], Strict(False)] = setting((), "several sources instead of `files`")
    mixture_alpha: float = setting(
        1.0,
        "sources without a weight get the share n^alpha, where n counts their tokens (tasks: their examples): 1 is by "
        "size, 0 is equal, 1/T is T5's temperature T",
        ge=0,
        le=1,
        source="mT5, Xue et al. 2021, §3.1",
    )
    mixture_by: Literal["examples", "tokens"] = setting(
        "examples",
        "what the shares of a mixture are shares of: examples (rows), or the tokens in them; these differ where the "
        "rows of one source are less full than those of another",
    )
    schedule: Annotated[tuple[StageConfig, ...], Strict(False)] = setting(
        (),
        "stages of the run, each with shares of the sources and a length of the sequences of its own",
        source="Llama 3, Grattafiori et al. 2024, §3.4; OLMo 2, OLMo Team 2025, §4",
    )
    mixture_limit: Int | None = setting(
        None, "largest number of examples that a task counts as", ge=1, source="Raffel et al. 2020, §3.5.2: K"
    )
    columns: Strings = setting((), "for tasks: column names of TSV or CSV files without a header")
    validation_fraction: float = setting(
        0.01, "share of documents (or of each file's tail) held out for validation", ge=0, lt=1
    )
    validation_by: Literal["hash", "position"] = setting(
        "hash", "choose validation documents by a hash of their text, or take the tail of each file"
    )
    validation_files: Strings = setting((), "separate validation text in the same format; then nothing is held out")
    validation_split: str = setting("", "TFDS split for validation; then nothing is held out")
    end_of_document: bool = setting(True, "append the tokenizer's EOS to every document")
    parts: Parts = setting(
        "none",
        "parts of a document, for objectives on sentences, on pairs of texts and on conversations: its lines, its "
        "sentences (they end with . ! or ?), its fields (inputs and targets), or the turns of its `messages`",
    )
    chat_template: str = setting(
        "",
        "Jinja file that writes the messages of parts=turns as text, or the name of one in configs/chat; empty takes "
        "the tokenizer's chat template",
    )
    packing: Packing = setting(
        "stream",
        "contents of a row: a window of the token stream, whole documents, whole sentences, or (none) one document",
    )
    order: Literal["shuffled", "consecutive"] = setting(
        "shuffled",
        "order of the rows; consecutive: each row of a batch continues that of the batch before it, and recurrences "
        "carry their state on (truncated back-propagation)",
        source="Mikolov et al. 2010",
    )
    separate_documents: bool = setting(True, "documents of one row do not attend to each other (segment_ids)")
    cache_dir: str = setting(
        "cache", "folder of token corpora and trained tokenizers, shared by runs; local, gs:// or s3://", min_length=1
    )
    prepare_processes: Int = setting(0, "processes that tokenise; 0 uses every core", ge=0, le=1024)
    workers: Int = setting(0, "processes that build batches; 0 builds them in a thread of this process", ge=0, le=1024)
    prefetch: Int = setting(4, "batches built ahead", unit="batches", ge=1)

    def problems(self) -> Iterator[str]:
        if self.files and self.mixture:
            yield "give `files` or `mixture`, not both; files=[] takes back those of a base config"
        changed = [name for name in _changed_source_settings(self) if name != "files"]
        if self.mixture and changed:
            settings = ", ".join(changed)
            defaults = SourceConfig().model_dump(mode="json", include=set(changed))
            takes_back = ", ".join(f"{name}={json.dumps(value)}" for name, value in defaults.items())
            yield (
                f"with a mixture, {settings} must be set in each of its sources alone; {takes_back} takes back what a "
                "base config sets"
            )
        # Sources with the same settings have the same problem.
        source_problems: dict[str, None] = {}
        for source in self.sources:
            source_problems.update(dict.fromkeys(self.of_source(source)._parts_problems(source)))
        yield from source_problems
        parts = sorted({self.of_source(source).parts for source in self.sources})
        if self.chat_template and "turns" not in parts:
            yield f"chat_template is for parts=turns (conversations), found parts={' and '.join(parts)}"
        unweighted = [source.name for source in self.mixture if source.weight is None]
        if 0 < len(unweighted) < len(self.mixture):
            yield f"mixture: give every source a weight or none; {', '.join(unweighted)} has none"
        source_names = [source.name for source in self.mixture]
        if len(set(source_names)) < len(source_names):
            yield f"mixture names must differ, found {', '.join(source_names)}"
        for name in source_names:
            if "/" in name or name in {"", ".", ".."}:
                yield f"mixture name {name!r} is part of the name of a folder: choose one without a slash"
        yield from self._schedule_problems()

    def _parts_problems(self, source: SourceConfig) -> Iterator[str]:
        """Yield what does not fit together in the settings of a source and of its rows."""
        needs_fields = self.parts == "fields"
        if (len(source.field) > 1) != needs_fields:
            actual = f"parts={self.parts} and field {list(source.field)}"
            yield f"several fields need parts=fields, and parts=fields needs several fields; found {actual}"
        if self.packing == "sentences" and self.parts not in {"line", "punctuation"}:
            yield f"packing=sentences needs parts=line or parts=punctuation, found parts={self.parts}"
        if needs_fields and self.validation_by == "position":
            yield "validation_by=position would cut a document in two, but parts=fields needs whole documents"
        if self.parts == "turns" and (self.end_of_document or self.validation_by == "position"):
            yield (
                "parts=turns needs end_of_document=false, because the chat template ends a conversation, and "
                "validation_by=hash"
            )
        if source.format in TOKEN_FORMATS and (self.parts != "none" or self.validation_by == "position"):
            yield f"files of tokens (format {', '.join(TOKEN_FORMATS)}) need parts=none and validation_by=hash"
        if not source.has_splits and source.split != SourceConfig().split:
            yield f"split={source.split} is for TFDS and data sets of the Hub; name the files of the split in files"
        if not source.has_splits and self.validation_split:
            yield (
                f"validation_split={self.validation_split} is for TFDS and data sets of the Hub; name validation_files"
            )
        yield from cleaning_problems(source)
        if source.cleaning and source.format in TOKEN_FORMATS:
            yield f"cleaning needs text, but format={source.format} holds tokens; clean the text before it is tokenised"
        if source.cleaning and self.parts == "turns":
            yield "cleaning is for documents of one text, but parts=turns reads conversations; leave one out"

    def _schedule_problems(self) -> Iterator[str]:
        stage_names = [stage.name for stage in self.schedule]
        if len(set(stage_names)) < len(stage_names):
            yield f"schedule names must differ, found {', '.join(stage_names)}"
        source_names = [source.name for source in self.sources]
        for number, stage in enumerate(self.schedule):
            begins = [key for key in ("after_steps", "after_share") if getattr(stage, key) is not None]
            if not number and (stage.after_steps or stage.after_share):
                yield f"schedule stage {stage.name} is the first, which begins with the run; remove its {begins[0]}"
            if number and len(begins) != 1:
                yield f"schedule stage {stage.name} needs one of after_steps and after_share, found {len(begins)}"
            unknown = sorted(set(stage.weights or {}) - set(source_names))
            if unknown:
                hint = suggest(unknown[0], source_names) or f"; the sources are {', '.join(source_names)}"
                yield f"schedule stage {stage.name}: weights of {unknown[0]}, which is no source of the mixture{hint}"

    @property
    def holds_out_text(self) -> bool:
        """True if the settings provide for a validation split, which may still be empty."""
        return self.validation_fraction > 0 or bool(self.validation_files or self.validation_split)

    @property
    def holds_tokens(self) -> bool:
        """True if a source is files of token ids, which only the tokenizer that made them can read."""
        return any(source.format in TOKEN_FORMATS for source in self.sources)

    @property
    def sources(self) -> tuple[MixedSource, ...]:
        """The mixture. A single source is a mixture of one, named `text`."""
        if self.mixture:
            return self.mixture
        settings = {name: getattr(self, name) for name in SourceConfig.model_fields}
        return (MixedSource(name="text", **settings),)

    def of_source(self, source: MixedSource) -> "DataConfig":
        """Return the settings by which the text of a source is tokenised and becomes rows."""
        settings = {name: getattr(source, name) for name in ("parts", "packing", "end_of_document")}
        return self.model_copy(update={name: value for name, value in settings.items() if value is not None})

    def objectives(self, objective: Objective) -> tuple[Objective, ...]:
        """Return the distinct objectives of the sources, in their order.

        Args:
            objective: that of sources without one of their own.
        """
        return tuple(dict.fromkeys(source.objective or objective for source in self.sources))


def _changed_source_settings(source: SourceConfig) -> list[str]:
    default = SourceConfig()
    return [name for name in SourceConfig.model_fields if getattr(source, name) != getattr(default, name)]
