"""BLiMP: in each pair of sentences a model should find the grammatical one more probable (Warstadt et al. 2020)."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from t5x_lite.data.files import match_files
from t5x_lite.data.lines import located_lines
from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluation_model import EvaluationModel

PHENOMENA = {"s-selection": "argument_structure"}
"""Phenomena of the paper (Table 2) by the field `linguistics_term`, where they differ: twelve of thirteen terms."""


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences that differ in their grammaticality alone.

    Attributes:
        good: the grammatical sentence.
        bad: the other one.
        paradigm: name of the set, one of 67.
        phenomenon: one of the twelve that the sets belong to.
        location: the file and line that it comes from.
    """

    good: str
    bad: str
    paradigm: str
    phenomenon: str
    location: str


def read_pairs(files: Sequence[str], limit: int | None = None) -> list[MinimalPair]:
    """Read minimal pairs.

    Args:
        files: globs of JSONL files, perhaps compressed, with BLiMP's fields `sentence_good`, `sentence_bad`, `UID` and
            `linguistics_term`.
        limit: the most pairs of each set, the first ones; None reads all.

    Raises:
        UserError: no such file, a line that is not a pair, or no pair at all.
    """
    pairs = []
    counts: defaultdict[str, int] = defaultdict(int)
    for pattern in files:
        for path in match_files(pattern, "blimp.files"):
            for pair in _read_file(path):
                counts[pair.paradigm] += 1
                if limit is None or counts[pair.paradigm] <= limit:
                    pairs.append(pair)
    if not pairs:
        raise UserError(f"{', '.join(files)}: holds no minimal pairs")
    return pairs


def _read_file(path: str) -> Iterator[MinimalPair]:
    for location, line in located_lines(path):
        if line.strip():
            yield _parse_pair(line, location)


def _parse_pair(line: str, location: str) -> MinimalPair:
    try:
        record = json.loads(line)
        values = [record[name] for name in ("sentence_good", "sentence_bad", "UID", "linguistics_term")]
    except KeyError as error:
        raise UserError(f"{location}: is not a minimal pair of BLiMP: it has no {error}") from None
    except (TypeError, RecursionError, ValueError) as error:
        raise UserError(f"{location}: is not a minimal pair of BLiMP: {error}") from None
    if not all(isinstance(value, str) and value for value in values):
        raise UserError(f"{location}: a field of a minimal pair is not a text, or empty")
    good, bad, paradigm, term = values
    return MinimalPair(good, bad, paradigm, PHENOMENA.get(term, term), location)


def score_pairs(model: EvaluationModel, pairs: Sequence[MinimalPair]) -> list[tuple[float, float]]:
    """Return the log-likelihoods of the good and of the bad sentence of each pair, in nats (the full-sentence method).

    As in lm-evaluation-harness a space precedes each sentence, and `model.empty_context` the space.

    Raises:
        UserError: a sentence that is longer than the positions.
    """
    sentences = []
    for pair in pairs:
        sentences += [f" {pair.good}", f" {pair.bad}"]
    targets = model.tokenizer.encode_batch(sentences)
    rows = [(model.empty_context, token_ids) for token_ids in targets]
    scorer = model.likelihood
    lengths = [scorer.tokens_read(row) for row in rows]
    longest = int(np.argmax(lengths))
    try:
        window = model.resolve_window(lengths[longest])
    except UserError as error:
        # Each pair has two rows.
        raise UserError(f"{pairs[longest // 2].location}: {error}") from None
    scores = [score.log_likelihood for score in scorer(rows, window)]
    return list(zip(scores[::2], scores[1::2], strict=True))


def accuracies(pairs: Iterable[MinimalPair], scores: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Return the share of pairs of each set whose good sentence has the higher score."""
    outcomes: defaultdict[str, list[bool]] = defaultdict(list)
    for pair, (good, bad) in zip(pairs, scores, strict=True):
        outcomes[pair.paradigm].append(good > bad)
    return {paradigm: float(np.mean(correct)) for paradigm, correct in outcomes.items()}


def summarise(accuracy: Mapping[str, float], phenomena: Mapping[str, str]) -> dict[str, float]:
    """Return the means that the paper reports.

    Args:
        accuracy: of each set.
        phenomena: of each set.

    Returns:
        `accuracy`, the mean over all sets; `phenomenon/<name>`, the means over the sets of each phenomenon; and
        `set/<name>`, the accuracies themselves.
    """
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for paradigm, share in accuracy.items():
        groups[phenomena[paradigm]].append(share)
    summary = {"accuracy": float(np.mean(list(accuracy.values())))}
    for phenomenon, shares in sorted(groups.items()):
        summary[f"phenomenon/{phenomenon}"] = float(np.mean(shares))
    for paradigm, share in sorted(accuracy.items()):
        summary[f"set/{paradigm}"] = share
    return summary
