"""`t5x-lite embed`: write the vectors of the texts of a file, or print the nearest neighbours of a word in them."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t5x_lite.errors import UserError
from t5x_lite.evaluate.embed import embed_file
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.options import DEFAULT_NEIGHBOURS
from t5x_lite.evaluate.text_file import read_texts
from t5x_lite.evaluate.word_neighbours import find_neighbours, print_neighbours


@dataclass(frozen=True)
class EmbeddingRequest:
    """The vectors to write, or the word whose neighbours are printed.

    Attributes:
        file: has a text on each line, or records.
        column: the column of the text in records; None is `text`.
        to: the file to write.
        pool, layer: see `embed`.
        word: the word whose neighbours are printed instead; None writes vectors.
        count: neighbours of each place of the word.
    """

    file: Path
    column: str | None
    to: Path
    pool: str | None
    layer: Sequence[int] | None
    word: str | None
    count: int


def parse_request(options: argparse.Namespace) -> EmbeddingRequest:
    """Return the request of a command line.

    Raises:
        UserError: options that do not go together.
    """
    if options.word is not None and (options.to or options.pool):
        raise UserError("embed: --to and --pool are for vectors, --word prints words")
    if options.word is None and options.k is not None:
        raise UserError("embed: -k is for --word")
    suffix = ".npz" if options.pool == "none" else ".npy"
    to = options.to or options.file.with_suffix(suffix)
    return EmbeddingRequest(
        options.file, options.text, to, options.pool, options.layer, options.word, options.k or DEFAULT_NEIGHBOURS
    )


def print_result(model: EvaluationModel, request: EmbeddingRequest) -> None:
    """Write the vectors and print their shape, or print the neighbours of the word."""
    if request.word is None:
        shape = embed_file(model, request.file, request.to, request.pool, request.layer, request.column)
        print(f"{request.to}: {' × '.join(map(str, shape))}")
        return
    texts = read_texts(request.file, request.column)
    print_neighbours(texts, find_neighbours(model, texts, request.word, request.count, request.layer))
