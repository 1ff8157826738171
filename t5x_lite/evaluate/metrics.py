"""Metrics of tasks: functions from predictions and references, in the same order, to named scores.

Scores are fractions from 0 to 1 (correlations from -1 to 1), except sacrebleu's BLEU, which is quoted in percent.
"""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import zip_longest
from types import ModuleType
from typing import Literal, TypeAlias, TypedDict

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.evaluate.calibration import calibration_error

Scores: TypeAlias = dict[str, float]
Metric: TypeAlias = Callable[..., Scores]
"""A function of predictions and references, two sequences of equal length; their types depend on the metric."""


class JudgedAnswer(TypedDict):
    """A reference of MultiRC: one answer to a question, and whether it is right."""

    question: str
    label: int


def check_metric(metric: str, task: str) -> None:
    """Refuse a metric that cannot be computed, before any work is done for it.

    Raises:
        UserError: no such metric, or the library that computes it is not installed.
    """
    names = METRICS.keys() | MARGIN_METRICS.keys()
    if metric not in names:
        raise UserError(f"task {task}: no metric {metric!r}; there are {', '.join(sorted(names))}")
    for library, metrics in LIBRARIES.items():
        if metric in metrics:
            _import_library(library)


def score_names(metric: str) -> tuple[str, ...]:
    """Return the names of the scores of a metric."""
    return SEVERAL_SCORES.get(metric, (metric,))


def accuracy(predictions: Sequence[object], references: Sequence[object]) -> Scores:
    """Return the fraction of predictions that equal their reference."""
    hits = [prediction == reference for prediction, reference in zip(predictions, references, strict=True)]
    return {"accuracy": _mean(hits)}


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """Return the fraction of texts that equal their reference, apart from spaces around them."""
    hits = [
        prediction.strip() == reference.strip() for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {"exact_match": _mean(hits)}


def f1(predictions: Sequence[object], references: Sequence[int]) -> Scores:
    """Return the F1 of class 1 against class 0 (GLUE's MRPC and QQP). A prediction of neither class is wrong."""
    chosen = []
    for prediction, reference in zip(predictions, references, strict=True):
        wrong_class = 1 - reference
        chosen.append(prediction if prediction in (0, 1) else wrong_class)
    metrics = _import_library("sklearn.metrics")
    return {"f1": float(metrics.f1_score(list(references), chosen, zero_division=0))}


def f1_macro(predictions: Sequence[int], references: Sequence[int]) -> Scores:
    """Return the mean of the F1 of each class among the references (SuperGLUE's CB)."""
    metrics = _import_library("sklearn.metrics")
    classes = sorted(set(references))
    score = metrics.f1_score(references, predictions, labels=classes, average="macro", zero_division=0)
    return {"f1_macro": float(score)}


def matthews(predictions: Sequence[int], references: Sequence[int]) -> Scores:
    """Return Matthews' correlation coefficient (GLUE's CoLA); 0 where it is not defined."""
    metrics = _import_library("sklearn.metrics")
    return {"matthews": float(metrics.matthews_corrcoef(references, predictions))}


def pearson(predictions: Sequence[float], references: Sequence[float]) -> Scores:
    """Return Pearson's correlation (GLUE's STS-B); 0 where it is not defined."""
    return {"pearson": _correlation("pearsonr", predictions, references)}


def spearman(predictions: Sequence[float], references: Sequence[float]) -> Scores:
    """Return Spearman's rank correlation (GLUE's STS-B); 0 where it is not defined."""
    return {"spearman": _correlation("spearmanr", predictions, references)}


def squad(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Return exact match and F1 of words, each the best over the answers of a question (SQuAD 1.1 and 2.0).

    A question without answers has the answer "". The definition is that of the official script of 2.0 (Rajpurkar et al.
    2016, §6.1; 2018, §5).
    """
    exact = []
    word_f1 = []
    for prediction, answers in zip(predictions, references, strict=True):
        words = _normalised_words(prediction)
        golds = _normalised_answers(answers)
        exact.append(words in golds)
        word_f1.append(max(_word_f1(words, gold) for gold in golds))
    return {"exact_match": _mean(exact), "f1": _mean(word_f1)}


def multirc(predictions: Sequence[int], references: Sequence[JudgedAnswer]) -> Scores:
    """Return the F1 over all answers, and the fraction of questions with all answers judged right.

    Khashabi et al. 2018, §5.1.
    """
    labels = []
    is_right: dict[str, list[bool]] = defaultdict(list)
    for prediction, reference in zip(predictions, references, strict=True):
        labels.append(reference["label"])
        is_right[reference["question"]].append(prediction == reference["label"])
    all_right = [all(answers) for answers in is_right.values()]
    return {**f1(predictions, labels), "exact_match": _mean(all_right)}


def span_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Scores:
    """Return precision, recall and F1 of whole spans, from the BIO tags of each sentence.

    CoNLL-2003 (Tjong Kim Sang and De Meulder 2003).
    """
    metrics = _import_library("seqeval.metrics")
    reference_tags = list(map(list, references))
    predicted_tags = list(map(list, predictions))
    return {
        "span_precision": float(metrics.precision_score(reference_tags, predicted_tags, zero_division=0)),
        "span_recall": float(metrics.recall_score(reference_tags, predicted_tags, zero_division=0)),
        "span_f1": float(metrics.f1_score(reference_tags, predicted_tags, zero_division=0)),
    }


def bleu(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> Scores:
    """Return the BLEU of the corpus in percent, with sacrebleu's defaults (Post 2018).

    A reference is a text, or several of which any is right.
    """
    alternatives: list[list[str]] = []
    for reference in references:
        alternatives.append([reference] if isinstance(reference, str) else list(reference))
    # sacrebleu takes the first reference of every prediction, then the second of every one (or None), and so on.
    streams = list(map(list, zip_longest(*alternatives)))
    return {"bleu": _import_library("sacrebleu").corpus_bleu(list(predictions), streams).score}


def rouge(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """Return the mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L of summaries (Lin 2004), without stemming.

    ROUGE-L is computed by sentences. A line is a sentence, and a full stop between spaces ends one, as in T5's
    evaluation.
    """
    scorer = _import_library("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeLsum"])
    values: dict[str, list[float]] = {"rouge1": [], "rouge2": [], "rougeLsum": []}
    for prediction, reference in zip(predictions, references, strict=True):
        scores = scorer.score(_one_sentence_a_line(reference), _one_sentence_a_line(prediction))
        for kind, score in scores.items():
            values[kind].append(score.fmeasure)
    return {kind: _mean(fmeasures) for kind, fmeasures in values.items()}


def ece(margins: Sequence[float]) -> Scores:
    """Return the expected calibration error of comparisons (Guo et al. 2017, eq. 3), with 15 bins of equal width.

    The better of two answers has the probability sigmoid(margin) (Bradley & Terry 1952). The confidence is that of the
    answer that scores higher.
    """
    probability = 0.5 * (1 + np.tanh(0.5 * np.array(margins, np.float64)))  # sigmoid without overflow
    confidence = np.maximum(probability, 1 - probability)
    is_correct = probability > 0.5
    return {"ece": float(calibration_error(confidence, is_correct))}


def reward(rewards: Sequence[float]) -> Scores:
    """Return the mean reward of answers."""
    return {"reward": _mean(rewards)}


def reward_margin(margins: Sequence[float]) -> Scores:
    """Return the mean difference of the scores of the better and the worse answer."""
    return {"reward_margin": _mean(margins)}


def _import_library(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"{name.partition('.')[0]} is not installed; run: pip install 't5x_lite[eval]'") from None


def _mean(values: Sequence[float]) -> float:
    return sum(map(float, values)) / max(len(values), 1)


def _correlation(
    function: Literal["pearsonr", "spearmanr"], predictions: Sequence[float], references: Sequence[float]
) -> float:
    if len(set(predictions)) < 2 or len(set(references)) < 2:
        return 0.0
    stats = _import_library("scipy.stats")
    return float(getattr(stats, function)(predictions, references).statistic)


def _normalised_words(answer: str) -> list[str]:
    """Return the words in lower case, without punctuation and articles."""
    without_punctuation = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", without_punctuation).split()


def _normalised_answers(answers: Sequence[str]) -> list[list[str]]:
    """Return the words of each answer that has any; an empty answer if there is none."""
    golds = [_normalised_words(answer) for answer in answers]
    return list(filter(None, golds)) or [[]]


def _word_f1(words: Sequence[str], gold: Sequence[str]) -> float:
    if not words or not gold:
        return float(words == gold)
    common = Counter(words) & Counter(gold)
    return 2 * common.total() / (len(words) + len(gold))


def _one_sentence_a_line(text: str) -> str:
    return text.replace(" . ", " .\n")


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "bleu": bleu,
    "exact_match": exact_match,
    "f1": f1,
    "f1_macro": f1_macro,
    "matthews": matthews,
    "multirc": multirc,
    "pearson": pearson,
    "rouge": rouge,
    "span_f1": span_f1,
    "spearman": spearman,
    "squad": squad,
    "record": squad,  # the official script of ReCoRD has SQuAD's metrics (Zhang et al. 2018, §5)
}

MARGIN_METRICS: dict[str, Callable[[Sequence[float]], Scores]] = {
    "ece": ece,
    "reward_margin": reward_margin,
    "reward": reward,
}
"""Metrics of the margins between two answers (`Supervised.margin`), or of the rewards of sampled ones, by name."""

SEVERAL_SCORES: dict[str, tuple[str, ...]] = {
    "multirc": ("f1", "exact_match"),
    "record": ("exact_match", "f1"),
    "rouge": ("rouge1", "rouge2", "rougeLsum"),
    "span_f1": ("span_precision", "span_recall", "span_f1"),
    "squad": ("exact_match", "f1"),
}
"""The names of the scores of metrics that have others than their own."""

LIBRARIES = {
    "sacrebleu": {"bleu"},
    "sklearn.metrics": {"f1", "f1_macro", "matthews", "multirc"},
    "scipy.stats": {"pearson", "spearman"},
    "rouge_score.rouge_scorer": {"rouge"},
    "seqeval.metrics": {"span_f1"},
}
"""The metrics that each optional library computes."""
