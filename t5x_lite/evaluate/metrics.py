"""Metrics of tasks: from predictions and references, in the same order, to named values.

All are fractions from 0 to 1 (correlations from -1), but sacrebleu's BLEU, which is in percent as everybody quotes it.
"""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from t5x_lite.errors import UserError

Scores = dict[str, float]
Metric = Callable[[Sequence[Any], Sequence[Any]], Scores]


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"{name.partition('.')[0]} is not installed; run: pip install 't5x_lite[eval]'") from None


def check_metric(metric: str, task: str) -> None:
    """Refuse what could not be computed, before any work is done for it.

    Raises:
        UserError: no such metric, or the library that computes it is not installed.
    """
    if metric not in METRICS:
        raise UserError(f"task {task}: no metric {metric!r}; there are {', '.join(sorted(METRICS))}")
    library = next((own for own, names in LIBRARIES.items() if metric in names), None)
    if library:
        _library(library)


def _mean(values: Sequence[Any]) -> float:
    return sum(map(float, values)) / max(len(values), 1)


def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    """Share of predictions that equal their reference."""
    return {"accuracy": _mean([p == r for p, r in zip(predictions, references, strict=True)])}


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """Share of texts that equal their reference but for spaces around them."""
    return {"exact_match": _mean([p.strip() == r.strip() for p, r in zip(predictions, references, strict=True)])}


def f1(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    """F1 of the class 1 against 0 (GLUE's MRPC and QQP); a prediction that is neither counts as wrong."""
    chosen = [p if p in (0, 1) else 1 - r for p, r in zip(predictions, references, strict=True)]
    return {"f1": float(_library("sklearn.metrics").f1_score(list(references), chosen, zero_division=0))}


def f1_macro(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    """Mean of the F1 of each class that the references have (SuperGLUE's CB)."""
    score, own = _library("sklearn.metrics").f1_score, sorted(set(references))
    return {"f1_macro": float(score(references, predictions, labels=own, average="macro", zero_division=0))}


def matthews(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    """Matthews' correlation coefficient (GLUE's CoLA); 0 where it is not defined."""
    return {"matthews": float(_library("sklearn.metrics").matthews_corrcoef(references, predictions))}


def pearson(predictions: Sequence[float], references: Sequence[float]) -> Scores:
    """Pearson's correlation (GLUE's STS-B); 0 where it is not defined."""
    return {"pearson": _correlation("pearsonr", predictions, references)}


def spearman(predictions: Sequence[float], references: Sequence[float]) -> Scores:
    """Spearman's rank correlation (GLUE's STS-B); 0 where it is not defined."""
    return {"spearman": _correlation("spearmanr", predictions, references)}


def _correlation(name: str, predictions: Sequence[float], references: Sequence[float]) -> float:
    if len(set(predictions)) < 2 or len(set(references)) < 2:
        return 0.0
    return float(getattr(_library("scipy.stats"), name)(predictions, references).statistic)


def squad(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Exact match and F1 of words, the best over a question's answers; none are the answer "" (SQuAD 1.1 and 2.0).

    As the official script of 2.0 has it (Rajpurkar et al. 2016, §6.1; 2018, §5).
    """
    exact, overlap = [], []
    for prediction, answers in zip(predictions, references, strict=True):
        found = _words(prediction)
        golds = [gold for gold in map(_words, answers) if gold] or [[]]
        exact.append(found in golds)
        overlap.append(max(_overlap(found, gold) for gold in golds))
    return {"exact_match": _mean(exact), "f1": _mean(overlap)}


def _words(answer: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    plain = answer.lower().translate({ord(sign): None for sign in string.punctuation})
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _overlap(found: Sequence[str], gold: Sequence[str]) -> float:
    if not found or not gold:
        return float(found == gold)
    return 2 * (Counter(found) & Counter(gold)).total() / (len(found) + len(gold))


def multirc(predictions: Sequence[int], references: Sequence[Mapping[str, Any]]) -> Scores:
    """F1 over all answers, and the share of questions whose answers are all judged right (Khashabi et al. 2018, §5.1).

    A reference is `{"question": id, "label": 0 or 1}` of one answer.
    """
    labels = [reference["label"] for reference in references]
    questions = defaultdict(list)
    for prediction, reference in zip(predictions, references, strict=True):
        questions[reference["question"]].append(prediction == reference["label"])
    return f1(predictions, labels) | {"exact_match": _mean([all(answers) for answers in questions.values()])}


def span_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Scores:
    """Precision, recall and F1 of whole spans, from the BIO tags of each sentence (CoNLL-2003, Tjong Kim Sang 2003)."""
    tags = [list(map(list, side)) for side in (references, predictions)]
    library, kinds = _library("seqeval.metrics"), ("precision", "recall", "f1")
    return {f"span_{kind}": float(getattr(library, f"{kind}_score")(*tags, zero_division=0)) for kind in kinds}


def bleu(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> Scores:
    """BLEU of the corpus in percent, with sacrebleu's defaults (Post 2018); a reference may be several."""
    several = [[r] if isinstance(r, str) else list(r) for r in references]
    streams = [[own[n] if n < len(own) else None for own in several] for n in range(max(map(len, several), default=0))]
    return {"bleu": _library("sacrebleu").corpus_bleu(list(predictions), streams).score}


def rouge(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L of summaries (Lin 2004), without stemming.

    The last goes by sentences: a line is one, and a full stop between spaces ends one, as in T5's evaluation.
    """
    kinds = ["rouge1", "rouge2", "rougeLsum"]
    scorer = _library("rouge_score.rouge_scorer").RougeScorer(kinds)
    texts = ([text.replace(" . ", " .\n") for text in side] for side in (references, predictions))
    found = [scorer.score(*pair) for pair in zip(*texts, strict=True)]
    return {kind: _mean([one[kind].fmeasure for one in found]) for kind in kinds}


METRICS: dict[str, Metric] = {
    own.__name__: own
    for own in (accuracy, bleu, exact_match, f1, f1_macro, matthews, multirc, pearson, rouge, span_f1, spearman, squad)
}
METRICS["record"] = squad  # the official script of ReCoRD has SQuAD's metrics (Zhang et al. 2018, §5)

LIBRARIES = {
    "sacrebleu": {"bleu"},
    "sklearn.metrics": {"f1", "f1_macro", "matthews", "multirc"},
    "scipy.stats": {"pearson", "spearman"},
    "rouge_score.rouge_scorer": {"rouge"},
    "seqeval.metrics": {"span_f1"},
}
"""What computes the metrics that are not computed here."""
