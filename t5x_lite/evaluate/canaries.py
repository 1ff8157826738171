"""Canaries: strings that are planted in a corpus, each a number of times, to measure what a model memorises.

The method is that of Carlini et al. 2019 (The Secret Sharer, §4); the repeats are those of Carlini et al. 2022, §3.

    python -m t5x_lite.evaluate.canaries held_out.txt planted --repeats 0 1 4 16 64 --strings 20 --words 120

writes `planted/strings.jsonl`, a line `{"text": …, "repeats": …}` for each string, which the evaluator `memorisation`
reads, and `planted/documents.jsonl`, each string as often as it is repeated, in a random order, which is added to
`data.files`. Strings with 0 repeats are not among the documents: the share of them that is extracted is what the model
would predict without having seen it.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from t5x_lite.data.files import BYTE_ORDER_MARK, READ_ERRORS, match_files, open_file, strip_compression
from t5x_lite.data.record_files import read_record_file
from t5x_lite.errors import UserError
from t5x_lite.files import write_file

STRINGS_FILE = "strings.jsonl"
DOCUMENTS_FILE = "documents.jsonl"


@dataclass(frozen=True)
class Canary:
    """A text, and how often it is in the corpus."""

    text: str
    repeats: int


def cut_canaries(text: str, repeats: Sequence[int], strings: int, words: int) -> list[Canary]:
    """Cut a text into strings that do not overlap, as many for each number of repeats.

    Raises:
        UserError: the text is too short.
    """
    tokens = text.split()
    needed = len(repeats) * strings * words
    if len(tokens) < needed:
        raise UserError(f"{len(repeats)} × {strings} strings of {words} words need {needed} words; found {len(tokens)}")
    canaries = []
    for number in range(len(repeats) * strings):
        string = " ".join(tokens[number * words : (number + 1) * words])
        canaries.append(Canary(string, repeats[number % len(repeats)]))
    return canaries


def write_canaries(canaries: Sequence[Canary], folder: Path, seed: int) -> None:
    """Write the strings, and the documents of a corpus that has them, in a random order.

    Raises:
        UserError: a file cannot be written.
    """
    lines = [json.dumps(asdict(canary), ensure_ascii=False) + "\n" for canary in canaries]
    documents = []
    for canary in canaries:
        documents += [json.dumps({"text": canary.text}, ensure_ascii=False) + "\n"] * canary.repeats
    order = np.random.default_rng(seed).permutation(len(documents))
    write_file(folder / STRINGS_FILE, "".join(lines))
    write_file(folder / DOCUMENTS_FILE, "".join(documents[number] for number in order.tolist()))


def read_canaries(path: str) -> list[Canary]:
    """Read canaries.

    Raises:
        UserError: the file cannot be read, or a line is no canary; names file and line.
    """
    canaries = []
    for location, record in read_record_file(path, ()):
        if not isinstance(record, Mapping):
            raise UserError(f"{location}: is not a JSON object with text and repeats")
        text = record.get("text")
        repeats = record.get("repeats")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{location}: a planted string needs a text")
        if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 0:
            raise UserError(f"{location}: repeats must be a whole number from 0, found {repeats!r}")
        canaries.append(Canary(text, repeats))
    if not canaries:
        raise UserError(f"{path}: has no planted strings")
    return canaries


def _text_of(location: str, record: object) -> str:
    if not isinstance(record, Mapping) or not isinstance(record.get("text"), str):
        raise UserError(f"{location}: has no text")
    return str(record["text"])


def _read_text(pattern: str) -> str:
    texts = []
    for path in match_files(pattern, "file"):
        try:
            if strip_compression(path).suffix == ".txt":
                with open_file(path) as file:
                    text = file.read().decode("utf-8", errors="replace")
                texts.append(text.removeprefix(BYTE_ORDER_MARK))
            else:
                texts += [_text_of(location, record) for location, record in read_record_file(path, ())]
        except READ_ERRORS as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
    return "\n".join(texts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Cut strings from a text that is not in the corpus, to plant them.")
    parser.add_argument("file", help="text, or JSONL with a document `text` per line")
    parser.add_argument("folder", type=Path, help=f"where {STRINGS_FILE} and {DOCUMENTS_FILE} are written")
    parser.add_argument("--repeats", type=int, nargs="+", default=[0, 1, 4, 16, 64], help="default: %(default)s")
    parser.add_argument("--strings", type=int, default=20, help="for each number of repeats (default %(default)s)")
    parser.add_argument("--words", type=int, default=120, help="of a string (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the documents (default %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if min(options.repeats) < 0 or min(options.strings, options.words) < 1:
            raise UserError("--repeats must not be negative, and --strings and --words must be at least 1")
        if options.seed < 0:
            raise UserError(f"--seed {options.seed}: must not be negative")
        planted = cut_canaries(_read_text(options.file), options.repeats, options.strings, options.words)
        write_canaries(planted, options.folder, options.seed)
    except UserError as error:
        print(f"canaries: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written: {options.folder / STRINGS_FILE}, {options.folder / DOCUMENTS_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
