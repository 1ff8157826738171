"""What text is, how rows are cut from it, and the tokenizers. No JAX here."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Strict

from t5x_lite.schema import Config, Int, Strings, setting

Format = Literal["auto", "text", "jsonl", "parquet", "tfds", "parallel"]
STANDARD_LIBRARY = "python:standard_library"
"""In `data.files`: the source and the documentation of the running Python, text that every machine has."""


class SourceConfig(Config):
    """Where documents come from."""

    files: Strings = setting(
        (),
        "glob or list of globs; for `tfds` the builder's directory or `name/config:version`; "
        f"`{STANDARD_LIBRARY}` is the source and the documentation of the running Python",
    )
    format: Format = setting(
        "auto",
        "kind of file; `auto` goes by the ending: .jsonl, .parquet, else text; each also with .gz or .zst; `parallel` "
        "is one text file a field, {} in its name for the field, line n of each belonging together",
    )
    field: Strings = setting(("text",), "column of JSONL, Parquet or TFDS that holds the text; several make `fields`")
    document: Literal["file", "line", "paragraph"] = setting("file", "what one document of a text file is")
    split: str = setting("train", "TFDS split")


class MixedSource(SourceConfig):
    """One source of a mixture."""

    name: str = setting(..., "name in logs and metrics")
    weight: float | None = setting(None, "share of examples, relative to the other sources; null goes by size", gt=0)


class DataConfig(SourceConfig):
    """Text, its token corpus and how rows are cut from it."""

    mixture: Annotated[tuple[MixedSource, ...], Strict(False)] = setting((), "several sources instead of `files`")
    mixture_alpha: float = setting(
        1.0,
        "sources without a weight get n^alpha, n their tokens (tasks: their examples): 1 by size, 0 equal; 1/T is T5's "
        "temperature T",
        ge=0,
        le=1,
        source="mT5, Xue et al. 2021, §3.1",
    )
    mixture_limit: Int | None = setting(
        None, "a task counts as this many examples at most", ge=1, source="Raffel et al. 2020, §3.5.2: K"
    )
    columns: Strings = setting((), "of tasks: names of the columns of TSV or CSV files that have no header")
    validation_fraction: float = setting(0.01, "share of documents (or of the tail) kept for validation", ge=0, lt=1)
    validation_by: Literal["hash", "position"] = setting(
        "hash", "validation documents by a hash of their text, or the tail of each file by position"
    )
    validation_files: Strings = setting((), "separate validation text, same format; then nothing is split off")
    validation_split: str = setting("", "TFDS split for validation; then nothing is split off")
    end_of_document: bool = setting(True, "append the tokenizer's EOS to every document")
    parts: Literal["none", "line", "punctuation", "fields"] = setting(
        "none",
        "what the parts of a document are, for objectives on sentences and on pairs: its lines, what ends with . ! or "
        "?, or its fields (inputs and targets)",
    )
    packing: Literal["stream", "documents", "sentences", "none"] = setting(
        "stream",
        "rows are windows of the token stream; whole documents, or whole sentences, side by side; or one document a "
        "row",
    )
    separate_documents: bool = setting(True, "documents of one row do not see each other (segment_ids)")
    cache_dir: str = setting("cache", "folder of token corpora and trained tokenizers, shared by runs")
    prepare_processes: Int = setting(0, "processes that tokenise; 0 takes every core", ge=0)
    workers: Int = setting(0, "processes that make batches; 0 makes them in a thread of this one", ge=0)
    prefetch: Int = setting(4, "batches made ahead", unit="batches", ge=1)

    def problems(self) -> Iterator[str]:
        """See `Config`."""
        if self.files and self.mixture:
            yield "give `files` or `mixture`, not both"
        plain = SourceConfig()
        stray = [name for name in SourceConfig.model_fields if getattr(self, name) != getattr(plain, name)]
        if self.mixture and stray:
            yield f"with a mixture, {', '.join(stray)} stand in each of its sources"
        for field in {source.field for source in self.sources if (len(source.field) > 1) != (self.parts == "fields")}:
            found = f"parts={self.parts} and field {list(field)}"
            yield f"several fields need parts=fields, and it needs several; found {found}"
        if self.packing == "sentences" and self.parts not in {"line", "punctuation"}:
            yield f"packing=sentences needs parts=line or parts=punctuation, found parts={self.parts}"
        if self.parts == "fields" and self.validation_by == "position":
            yield "validation_by=position would cut a document in two, which parts=fields cannot be"
        names = [source.name for source in self.mixture]
        if len(set(names)) < len(names):
            yield f"mixture names must differ, found {', '.join(names)}"

    @property
    def sources(self) -> tuple[MixedSource, ...]:
        """The mixture; a single source is a mixture of one, named `text`."""
        own = {name: getattr(self, name) for name in SourceConfig.model_fields}
        return self.mixture or (MixedSource(name="text", **own),)


Normalization = Literal["identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"]


class _Trained(Config):
    vocab: Int = setting(8192, "pieces, special ones and extra_ids included", unit="tokens", ge=8)
    normalization: Normalization = setting("identity", "SentencePiece normalisation rule; T5 used nmt_nfkc")
    byte_fallback: bool = setting(True, "characters outside the vocabulary become bytes, never <unk>")
    symbols: Strings = setting((), "user symbols: strings that are always one token")
    controls: Strings = setting((), "special tokens that text cannot spell, such as [CLS] [SEP] [MASK]")
    extra_ids: Int = setting(0, "T5's sentinels <extra_id_0> …, at the end of the vocabulary", ge=0)
    sample_megabytes: float = setting(32.0, "text that the vocabulary is trained on", unit="MB", gt=0)


class Unigram(_Trained):
    """SentencePiece unigram language model (Kudo 2018)."""


class BPE(_Trained):
    """SentencePiece byte-pair encoding (Sennrich et al. 2016)."""


class Character(Config):
    """Every character of the text is a token."""

    symbols: Strings = setting((), "user symbols: strings that are always one token")
    controls: Strings = setting((), "special tokens that text cannot spell, such as [CLS] [SEP] [MASK]")
    extra_ids: Int = setting(0, "T5's sentinels, at the end of the vocabulary", ge=0)


class Bytes(Config):
    """UTF-8 bytes after pad, EOS and unk; the last hundred byte ids are the sentinels too (ByT5: Xue et al. 2022)."""


class TokenizerFile(Config):
    """A tokenizer that exists: SentencePiece `.model`, Hugging Face `tokenizer.json`, `vocab.json`, `vocab.txt`."""

    path: str = setting(..., "the file; merges.txt is looked for beside vocab.json")
    merges: str = setting("", "merges of a byte-level BPE, when they are not beside it as merges.txt")
    lowercase: bool = setting(True, "for a WordPiece vocab.txt: lower-case and strip accents first, as BERT uncased")
    extra_ids: Int = setting(0, "T5's sentinels to append to a SentencePiece model", ge=0)


TOKENIZERS: dict[str, type[Config]] = {
    "unigram": Unigram,
    "bpe": BPE,
    "character": Character,
    "bytes": Bytes,
    "file": TokenizerFile,
}
