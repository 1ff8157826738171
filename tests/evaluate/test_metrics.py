"""Each metric against published examples, cases of the official definitions, or values counted by hand."""

import math

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.evaluate import metrics
from t5x_lite.evaluate.metrics import MARGIN_METRICS, METRICS, score_names

for library in ("sklearn", "scipy", "sacrebleu", "rouge_score", "seqeval"):
    pytest.importorskip(library, reason="metrics need the extra eval: pip install -e '.[eval]'")


def test_accuracy_and_exact_match_are_fractions() -> None:
    assert METRICS["accuracy"]([1, 0, 2, 2], [1, 1, 2, 0]) == {"accuracy": 0.5}
    assert METRICS["exact_match"](["Paris ", "paris"], ["Paris", "Paris"]) == {"exact_match": 0.5}


def test_f1_of_the_positive_class_by_hand() -> None:
    """2 hits, 1 false alarm, 2 misses: 2·2 / (2·2 + 1 + 2)."""
    assert METRICS["f1"]([1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0])["f1"] == pytest.approx(4 / 7)
    # A prediction of neither class is a miss or a false alarm.
    assert METRICS["f1"]([1, -1, -1], [1, 1, 0])["f1"] == pytest.approx(2 / 4)


def test_macro_f1_by_hand() -> None:
    """The example of scikit-learn's documentation: F1 of the three classes 0.8, 0, 0."""
    scores = METRICS["f1_macro"]([0, 2, 1, 0, 0, 1], [0, 1, 2, 0, 1, 2])
    assert scores["f1_macro"] == pytest.approx((0.8 + 0 + 0) / 3)
    assert METRICS["f1_macro"]([0, 3], [0, 1])["f1_macro"] == pytest.approx(1 / 2)


def test_matthews_correlation_by_its_formula() -> None:
    """TP 6, TN 3, FP 1, FN 2: the worked example of the coefficient's encyclopedia article, 0.478."""
    references = [1] * 8 + [0] * 4
    predictions = [1] * 6 + [0] * 2 + [0] * 3 + [1]
    expected = (6 * 3 - 1 * 2) / math.sqrt((6 + 1) * (6 + 2) * (3 + 1) * (3 + 2))
    assert METRICS["matthews"](predictions, references)["matthews"] == pytest.approx(expected)
    assert expected == pytest.approx(0.478, abs=5e-4)
    assert METRICS["matthews"]([1, 1, 1], [1, 0, 1]) == {"matthews": 0.0}


def test_correlations_by_hand() -> None:
    """IQ and hours of television: the worked example of Spearman's article, -29/165."""
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert METRICS["spearman"](iq, hours)["spearman"] == pytest.approx(-29 / 165)
    assert METRICS["pearson"]([1, 2, 3], [1, 2, 4])["pearson"] == pytest.approx(3 / math.sqrt(2 * 14 / 3))
    assert METRICS["pearson"]([1, 1, 1], [1, 2, 4]) == {"pearson": 0.0}


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "overlap"),
    [
        ("The Broncos!", ["Denver Broncos", "broncos"], 1, 1),  # case, articles and punctuation do not count
        ("in Santa Clara, California", ["Santa Clara"], 0, 2 * 2 / (4 + 2)),
        ("gold gold", ["gold"], 0, 2 * 1 / (2 + 1)),
        ("silver", ["gold", "a golden anniversary"], 0, 0),
        ("", [], 1, 1),  # unanswerable, and predicted to be
        ("something", [], 0, 0),
        ("", ["gold"], 0, 0),
        ("the", ["gold", "a"], 0, 0),  # an answer of articles alone does not count, as in the official script
    ],
)
def test_squad_of_one_question(prediction: str, answers: list[str], exact: float, overlap: float) -> None:
    scores = METRICS["squad"]([prediction], [answers])
    assert scores == {"exact_match": exact, "f1": pytest.approx(overlap)}
    assert METRICS["record"]([prediction], [answers]) == scores


def test_multirc_by_hand() -> None:
    """Two questions; the answers of the first are all right. Positives: 2 hits, 1 false alarm, 0 misses."""
    references = [{"question": q, "label": label} for q, label in (("a", 1), ("a", 0), ("b", 1), ("b", 0), ("b", 0))]
    assert METRICS["multirc"]([1, 0, 1, 1, 0], references) == {"f1": pytest.approx(4 / 5), "exact_match": 0.5}


def test_only_whole_spans_count_as_in_seqevals_readme() -> None:
    """In its example one span of two has the right borders."""
    references = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predictions = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    expected = {"span_precision": 0.5, "span_recall": 0.5, "span_f1": 0.5}
    assert METRICS["span_f1"](predictions, references) == expected
    scores = METRICS["span_f1"]([["B-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "O"]])
    assert scores == {"span_precision": 0, "span_recall": 0, "span_f1": 0}


def test_bleu_as_in_sacrebleus_readme() -> None:
    """The example of three sentences with two references each scores 48.53."""
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    predictions = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    assert METRICS["bleu"](predictions, references)["bleu"] == pytest.approx(48.530827, abs=1e-5)
    assert METRICS["bleu"](["It was a good day ."], ["It was a good day ."])["bleu"] == pytest.approx(100)
    uneven = METRICS["bleu"](["a b c d e", "f g h i j"], [["x", "a b c d e"], "f g h i j"])
    assert uneven["bleu"] == pytest.approx(100)


def test_rouge_by_hand() -> None:
    """Lin 2004, §3.1: "police killed the gunman" against S2 and S3; ROUGE-L 3/4 and 2/4."""
    for candidate, longest, pairs in (("police kill the gunman", 3, 1), ("the gunman kill police", 2, 1)):
        scores = METRICS["rouge"]([candidate], ["police killed the gunman"])
        assert scores["rouge1"] == pytest.approx(3 / 4)
        assert scores["rouge2"] == pytest.approx(pairs / 3)
        assert scores["rougeLsum"] == pytest.approx(longest / 4)


def test_rouge_lsum_compares_sentence_by_sentence() -> None:
    """Lin 2004, §3.2: r = w1 w2 w3 w4 w5, c1 = w1 w2 w6 w7 w8, c2 = w1 w3 w8 w9 w5: the union holds 4 of 5 words."""
    score = METRICS["rouge"](["w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5"], ["w1 w2 w3 w4 w5"])["rougeLsum"]
    precision = 4 / 10
    recall = 4 / 5
    assert score == pytest.approx(2 * precision * recall / (precision + recall))
    # A full stop between spaces ends a sentence too: the order of sentences does not matter.
    reordered = METRICS["rouge"](["c d e . a b"], ["a b . c d e"])["rougeLsum"]
    assert reordered == pytest.approx(1)


def test_predictions_and_references_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        METRICS["accuracy"]([1, 2], [1])


def test_a_library_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"pip install 't5x_lite\[eval\]'"):
        metrics._import_library("no_such_library.metrics")


def test_calibration_error_equals_its_definition() -> None:
    """Guo et al. 2017, eq. 3, by loops over bins of (k/15, (k+1)/15]."""
    margins = np.random.default_rng(0).normal(0.5, 2, 400).tolist()
    error = 0.0
    for number in range(15):
        confidences = []
        hits = []
        for margin in margins:
            probability = 1 / (1 + math.exp(-margin))
            confidence = max(probability, 1 - probability)
            if number / 15 < confidence <= (number + 1) / 15:
                confidences.append(confidence)
                hits.append(float(margin > 0))
        if hits:
            error += len(hits) / len(margins) * abs(sum(hits) / len(hits) - sum(confidences) / len(confidences))
    assert metrics.ece(margins)["ece"] == pytest.approx(error)


def test_calibration_by_hand() -> None:
    # Always certain and always right; always certain and right every other time.
    assert metrics.ece([50.0, 60.0])["ece"] == pytest.approx(0)
    assert metrics.ece([50.0, -50.0])["ece"] == pytest.approx(0.5)
    # With probability 0.75, right three times of four.
    margin = math.log(3)
    assert metrics.ece([margin, margin, margin, -margin])["ece"] == pytest.approx(0)
    assert metrics.reward_margin([1.0, 2.0]) == {"reward_margin": 1.5}


@pytest.mark.parametrize(
    ("metric", "prediction", "reference"),
    [
        ("accuracy", 1, 1),
        ("exact_match", "a", "a"),
        ("f1", 1, 1),
        ("f1_macro", 1, 1),
        ("matthews", 1, 0),
        ("pearson", 1.0, 1.0),
        ("spearman", 1.0, 1.0),
        ("squad", "a", ["a"]),
        ("record", "a", ["a"]),
        ("multirc", 1, {"question": "q", "label": 1}),
        ("span_f1", ["O"], ["O"]),
        ("bleu", "a", "a"),
        ("rouge", "a", "a"),
    ],
)
def test_the_scores_of_a_metric_have_their_names(metric: str, prediction: object, reference: object) -> None:
    assert tuple(METRICS[metric]([prediction], [reference])) == score_names(metric)


@pytest.mark.parametrize("metric", MARGIN_METRICS)
def test_a_metric_of_margins_has_its_name(metric: str) -> None:
    assert tuple(MARGIN_METRICS[metric]([0.5, -0.5])) == score_names(metric)
