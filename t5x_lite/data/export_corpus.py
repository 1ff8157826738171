"""Write a token corpus for another program."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from t5x_lite.data.corpus import Corpus
from t5x_lite.data.corpus_files import SPLITS, CorpusFiles
from t5x_lite.data.token_files.megatron import write_megatron
from t5x_lite.errors import UserError
from t5x_lite.files import disk_error
from t5x_lite.storage import file_exists

CHUNK = 2**20
"""Tokens that are read at a time."""


def export_megatron(folder: str, prefix: Path) -> str:
    """Write each split of a token corpus as `PREFIX_SPLIT.bin` and `PREFIX_SPLIT.idx`, and return what was written.

    Documents keep the EOS that they have in the corpus.

    Args:
        folder: the folder of the corpus, which `t5x-lite prepare` prints.
        prefix: the beginning of the names of the files.

    Raises:
        UserError: the folder is not a corpus, it is damaged, or a file cannot be written.
    """
    if not file_exists(CorpusFiles(folder).summary):
        raise UserError(f"{folder}: is not a token corpus (no corpus.json); t5x-lite prepare prints its folder")
    written = []
    for split in SPLITS:
        corpus = Corpus(folder, split)
        if not corpus.tokens:
            continue
        path = prefix.with_name(f"{prefix.name}_{split}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            count = write_megatron(path, _documents(corpus), _largest_id(corpus))
        except OSError as error:
            raise disk_error(path.parent, error, "write it again when there is room") from error
        written.append(f"{path}.bin and .idx: {count:,} documents, {corpus.tokens:,} tokens")
    return "\n".join(written)


def _documents(corpus: Corpus) -> Iterator[Int32[np.ndarray, "_"]]:
    for number in range(corpus.documents):
        yield corpus.document(number)


def _largest_id(corpus: Corpus) -> int:
    largest = 0
    for start in range(0, corpus.tokens, CHUNK):
        tokens = corpus.read_spans([(start, min(start + CHUNK, corpus.tokens))])
        largest = max(largest, int(tokens.max()))
    return largest
