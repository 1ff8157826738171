"""Objectives on records: their examples by hand, their losses and predictions by their definitions in NumPy."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.data import tokenizer as tokenizers
from t5x_lite.data.config import TokenizerFile
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.losses import Losses
from t5x_lite.models.outputs import TaskOutput
from t5x_lite.objectives.choice import Choice
from t5x_lite.objectives.classify import Classify, Regress
from t5x_lite.objectives.extract import Extract
from t5x_lite.objectives.objective import ExampleContext, Features
from t5x_lite.objectives.reward import Reward
from t5x_lite.objectives.similarity import Similarity
from t5x_lite.objectives.supervised import Coder, Record, Supervised, framed
from t5x_lite.objectives.tag import Tag
from t5x_lite.objectives.text_to_text import TextToText
from tests.objectives.vocabulary import task

EOS, CLS, SEP = 1, 3, 4


def placed(text: str) -> tuple[np.ndarray, np.ndarray]:
    """A word is a token; w17 has the id 17."""
    found = list(re.finditer(r"w(\d+)", text))
    places = [word.span() for word in found]
    return np.array([int(word[1]) for word in found], np.int32), np.array(places, np.int32).reshape(-1, 2)


CODER = Coder(lambda text: placed(text)[0], placed, lambda ids: " ".join(f"w{i}" for i in ids))


def words(*ids: int) -> str:
    return " ".join(f"w{i}" for i in ids)


def array(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


def made(objective: Supervised, record: Record, of: ExampleContext) -> Features:
    found = objective.examples(record, CODER, of)
    assert len(found) == 1
    return found[0]


def test_an_encoders_pair_has_berts_frame_and_types_and_a_decoders_an_end_after_each_text() -> None:
    """Devlin et al. 2019, Figure 2; Radford et al. 2018, §3.3: a delimiter between the texts, an end after them."""
    soft = replace(task(11, "encoder"), placeholders=2)
    row = framed([array(10, 11), array(20)], soft)
    assert row["tokens"].tolist() == [-1, -2, CLS, 10, 11, SEP, 20, SEP, 0, 0, 0]
    assert row["token_types"].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    assert row["segment_ids"].tolist() == [1] * 8 + [0] * 3
    assert row["positions"].tolist()[:8] == list(range(8))
    assert framed([array(10, 11)], task(5, "encoder"))["tokens"].tolist() == [CLS, 10, 11, SEP, 0]
    row = framed([array(10, 11), array(20)], replace(task(9), placeholders=1))
    assert row["tokens"].tolist() == [-1, 10, 11, EOS, 20, EOS, 0, 0, 0]
    assert "token_types" not in row


def test_long_pairs_lose_their_last_tokens_the_longer_text_first() -> None:
    """One token after the other off the longer, as in BERT's own truncation of pairs."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes, of = rng.integers(0, 20, 2).tolist(), task(int(rng.integers(5, 20)), "encoder")
        left = list(sizes)
        while sum(left) > of.seq_len - 3:
            left[int(np.argmax(left))] -= 1
        tokens = framed([np.arange(n, dtype=np.int32) + 10 + 50 * k for k, n in enumerate(sizes)], of)["tokens"]
        kept = [tokens[(tokens >= 10 + 50 * k) & (tokens < 60 + 50 * k)].tolist() for k in range(2)]
        assert kept == [[*range(10, 10 + left[0])], [*range(60, 60 + left[1])]]


def test_a_row_without_room_for_text_is_refused() -> None:
    of = task(24, "encoder")
    for objective in (Classify(labels=("a", "b")), Tag(labels=("O", "B")), Reward()):
        objective.check_context(of)
        with pytest.raises(UserError, match="leaves no room beside 20 soft tokens"):
            objective.check_context(replace(of, placeholders=20))
    Extract(question_len=20).check_context(of)
    with pytest.raises(UserError, match="no room for a context beside question_len 21"):
        Extract(question_len=21).check_context(of)
    TextToText(target_len=64).check_context(replace(of, family="encoder_decoder"))
    TextToText(target_len=4).check_context(replace(of, family="decoder", placeholders=19))
    with pytest.raises(UserError, match="beside target_len 4 and 20 soft tokens"):
        TextToText(target_len=4).check_context(replace(of, family="decoder", placeholders=20))


def test_labels_are_names_or_numbers_and_others_are_refused() -> None:
    objective, of = Classify(labels=("no", "yes")), task(12, "encoder")
    for label in ("yes", 1, "1"):
        row = made(objective, {"text": words(10, 11), "second": words(12), "label": label}, of)
        assert row["tokens"].tolist()[:7] == [CLS, 10, 11, SEP, 12, SEP, 0]
        assert (row["targets"], row["loss_weights"]) == (1, 1)
    for label in ("maybe", 2, -1, 0.5):
        with pytest.raises(ValueError, match="is not one of no, yes, nor a number below 2"):
            objective.examples({"text": words(10), "label": label}, CODER, of)
    row = made(Regress(), {"text": words(10), "label": "3.8"}, of)
    assert row["targets"] == np.float32(3.8)
    assert [Regress().to_text({"label": x}) for x in (3.25, 4.96, 0.0)] == ["3.2", "5.0", "0.0"]
    assert [objective.from_text(text, {}) for text in (" yes", "no", "perhaps")] == [1, 0, -1]


SENTENCE = {
    "words": ["U.N.", "official", "Ekeus", "heads", "for", "Baghdad", "."],
    "tags": ["I-ORG", "O", "I-PER", "O", "O", "I-LOC", "O"],
}
"""CoNLL-2003's own example (Tjong Kim Sang & De Meulder 2003, Figure 1)."""
TAGS = ("O", "I-ORG", "I-PER", "I-LOC")


def coder_of(path: Path) -> tuple[Coder, Any]:
    own = tokenizers.from_file(TokenizerFile(path=str(path)))
    return Coder(own.encode, own.encode_placed, own.decode), own


def test_a_words_first_wordpiece_has_its_tag(real_data: Path) -> None:
    coder, own = coder_of(real_data / "tokenizers/bert_base_uncased_vocab.txt")
    of = ExampleContext(16, own.vocabulary(), "encoder", placeholders=1)
    (row,) = Tag(labels=TAGS).examples(SENTENCE, coder, of)
    pieces = ["[CLS]", "u", ".", "n", ".", "official", "ek", "##eus", "heads", "for", "baghdad", ".", "[SEP]"]
    assert [own.piece(i) for i in row["tokens"][1:14]] == pieces
    assert row["words"].tolist() == [-1, -1, 0, -1, -1, -1, 1, 2, -1, 3, 4, 5, 6, -1, -1, -1]
    assert row["loss_weights"].tolist() == (row["words"] >= 0).tolist()
    assert row["targets"][row["words"] >= 0].tolist() == [1, 0, 2, 0, 0, 3, 0]
    (row,) = Tag(labels=TAGS).examples(SENTENCE, coder, replace(of, seq_len=9))  # "ek" is the last that fits
    assert row["words"].tolist() == [-1, -1, 0, -1, -1, -1, 1, 2, -1]
    scores = np.eye(4)[[0, 0, 1, 0, 0, 0, 0, 2, 0]]
    assert Tag(labels=TAGS).prediction(SENTENCE, [row], [{"scores": scores}]) == ["I-ORG", "O", "I-PER", *"OOOO"]
    with pytest.raises(ValueError, match="7 words but 6 tags"):
        Tag(labels=TAGS).examples({**SENTENCE, "tags": SENTENCE["tags"][1:]}, coder, of)


def test_a_words_first_sentencepiece_has_its_tag(real_data: Path) -> None:
    """Pieces: ▁the ▁c ity ▁ <unk> ri ch ▁is ▁old ▁ . : a space of its own is no part of the word after it."""
    coder, own = coder_of(real_data / "tokenizers/sentencepiece_test_1000.model")
    record = {"words": ["the", "city", "Zürich", "is", "old", "."], "tags": [0, 0, 3, 0, 0, 0]}
    (row,) = Tag(labels=TAGS).examples(record, coder, ExampleContext(14, own.vocabulary(), "decoder"))
    assert row["words"].tolist() == [0, 1, -1, -1, 2, -1, -1, 3, 4, -1, 5, -1, -1, -1]
    assert row["targets"].tolist() == [0, 0, 0, 0, 3, *[0] * 9]
    assert row["tokens"][11] == own.eos


QUESTION = words(*range(5, 15))
CONTEXT = words(*range(100, 120))


def record_of(answer: str, start: int | None = None) -> dict[str, Any]:
    return {
        "question": QUESTION,
        "context": CONTEXT,
        "answers": [answer] if answer else [],
        "starts": [CONTEXT.index(answer) if start is None else start] if answer else [],
    }


def test_a_long_context_becomes_windows_and_the_answer_is_found_in_those_that_hold_it() -> None:
    """Room for 14 - 3 of the frame - 3 of the question = 8; every 5 tokens: 0-7, 5-12, 10-17, 15-19."""
    objective, of = Extract(window_stride=5, question_len=3), replace(task(15, "encoder"), placeholders=1)
    rows = objective.examples(record_of("w110 w111"), CODER, of)
    assert [row["tokens"].tolist() for row in rows] == [
        [-1, CLS, 5, 6, 7, SEP, *range(100 + first, 100 + stop), SEP, *[0] * (8 - stop + first)]
        for first, stop in ((0, 8), (5, 13), (10, 18), (15, 20))
    ]
    null = 1  # [CLS]
    assert [(int(row["start"]), int(row["end"])) for row in rows] == [(null, null), (11, 12), (6, 7), (null, null)]
    assert np.flatnonzero(rows[3]["allowed"]).tolist() == [null, *range(6, 11)]
    assert [CONTEXT[slice(*place)] for place in rows[3]["places"][6:11]] == [f"w{n}" for n in range(115, 120)]
    # Half a token is the token; an answer that is cut by a window's border is not in it.
    (a, b, c, d) = objective.examples(record_of("07 w10"), CODER, of)
    assert [(int(row["start"]), int(row["end"])) for row in (a, b, c, d)] == [(null, null), (8, 9), *[(null, null)] * 2]
    assert {float(row["loss_weights"]) for row in (*rows, a)} == {1.0}


def test_an_answer_that_is_not_in_its_context_is_evaluated_and_not_learnt() -> None:
    objective, of = Extract(question_len=3), task(40, "encoder")
    wrong = record_of("w110", start=3)
    assert [objective.learnable(record) for record in (record_of("w110"), record_of(""), wrong)] == [True, True, False]
    assert made(objective, wrong, of)["loss_weights"] == 0
    assert made(objective, record_of(""), of)["loss_weights"] == 1
    texts = Extract(unanswerable=True)
    assert texts.to_text(record_of("")) == "unanswerable"
    assert [texts.from_text(text, {}) for text in ("unanswerable", " w3 ")] == ["", "w3"]
    assert Extract().from_text("unanswerable", {}) == "unanswerable"


def test_choices_pairs_and_comparisons_are_rows_of_their_own() -> None:
    of = task(8, "encoder")
    record = {"text": [words(10), words(11)], "choices": [words(20), words(21, 22)], "label": "1"}
    row = made(Choice(count=2), record, of)
    assert row["tokens"].tolist() == [[CLS, 10, 11, SEP, 20, SEP, 0, 0], [CLS, 10, 11, SEP, 21, 22, SEP, 0]]
    assert row["token_types"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 0]]
    assert row["targets"] == 1
    for wrong in ({**record, "label": 2}, {**record, "choices": record["choices"] * 2}):
        with pytest.raises(ValueError, match="expected 2 choices"):
            Choice(count=2).examples(wrong, CODER, of)
    pair = {"text": words(10), "second": words(11, 12), "label": 4}
    row = made(Similarity(by="cosine"), pair, of)
    assert row["tokens"].tolist() == [[CLS, 10, SEP, *[0] * 5], [CLS, 11, 12, SEP, *[0] * 4]]
    assert row["token_types"].sum() == 0
    assert row["targets"] == np.float32(0.8)  # STS-B goes to 5
    with pytest.raises(ValueError, match="needs their `labels`"):
        Similarity()
    compared = {"text": words(10), "chosen": words(20, 21), "rejected": words(22)}
    row = made(Reward(), compared, replace(of, family="decoder"))
    assert row["tokens"].tolist() == [[10, EOS, 20, 21, EOS, 0, 0, 0], [10, EOS, 22, EOS, 0, 0, 0, 0]]
    del compared["text"]
    assert made(Reward(), compared, of)["tokens"].tolist() == [[CLS, 20, 21, SEP, *[0] * 4], [CLS, 22, SEP, *[0] * 5]]


def records(objective: Supervised) -> list[Record]:
    """Two, of any objective."""
    texts = [{"text": words(10, 11, 12), "second": words(13)}, {"text": words(14), "second": words(15, 16)}]
    if isinstance(objective, Choice):
        return [{"text": t["text"], "choices": [t["second"], words(30 + n)], "label": n} for n, t in enumerate(texts)]
    if isinstance(objective, Reward):
        return [{"chosen": t["text"], "rejected": t["second"]} for t in texts]
    if isinstance(objective, Extract):
        contexts = [words(*range(20, 26)), words(*range(30, 34))]
        return [{"question": words(9), "context": c, "answers": [c[4:7]], "starts": [4]} for c in contexts]
    if isinstance(objective, Tag):
        return [{"words": ["w10", "w11"], "tags": [2, 0]}, {"words": ["w12", "w13", "w14"], "tags": [1, 1, 0]}]
    return [{**text, "label": label} for text, label in zip(texts, (2, 1), strict=True)]


def softmax_loss(scores: np.ndarray, targets: Sequence[int]) -> float:
    scores = scores - scores.max(-1, keepdims=True)
    return -float(sum(np.log(np.exp(row[t]) / np.exp(row).sum()) for row, t in zip(scores, targets, strict=True)))


THREE = ("a", "b", "c")


class Model:
    """States that depend on all that a model is told of a token, and the real head over them."""

    def __init__(self, config: ModelConfig, rng: np.random.Generator) -> None:
        self.tables = [rng.normal(size=(40, config.embed)).astype(np.float32) for _ in range(3)]
        assert config.head is not None
        self.head = TaskOutput(config, config.head, rngs=nnx.Rngs(0))
        for layer in (self.head.pooler, self.head.scores):
            if layer is not None and layer.bias is not None:
                layer.weight[...] = rng.normal(size=layer.weight.shape).astype(np.float32)
                layer.bias[...] = rng.normal(size=layer.bias.shape).astype(np.float32)

    def __call__(self, tokens: Any, *, positions: Any, segment_ids: Any, token_types: Any, key: Any = None) -> Any:
        told = (tokens, positions + 5 * segment_ids, token_types)
        return sum(jnp.asarray(table)[x] for table, x in zip(self.tables, told, strict=True))


def through(x: np.ndarray, layer: Any) -> np.ndarray:
    return x @ np.asarray(layer.weight[...]) + np.asarray(layer.bias[...])


@pytest.mark.parametrize(
    "objective",
    [
        Classify(labels=THREE),
        Classify(labels=THREE, pool="max", transform=True),
        Regress(pool="mean"),
        Choice(count=2),
        Similarity(labels=THREE),
        Similarity(by="cosine", pool="first"),
        Reward(pool="last"),
        Tag(labels=THREE),
        Extract(question_len=2),
    ],
    ids=lambda o: f"{o.name} {getattr(o, 'pool', '')} {getattr(o, 'by', '')}".strip(),
)
def test_losses_and_scores_are_their_definitions(objective: Supervised) -> None:
    rng = np.random.default_rng(1)
    config = ModelConfig(layers=1, embed=8, heads=2, vocab=40, family="encoder")
    model = Model(config.model_copy(update={"head": objective.head(config)}), rng)
    rows = [made(objective, record, task(12, "encoder", size=40)) for record in records(objective)]
    batch: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    names = ("tokens", "positions", "segment_ids", "token_types")
    flat = {name: batch[name].reshape(-1, 12) for name in names}
    states = np.asarray(model(**flat))
    lengths = flat["segment_ids"].sum(1)
    own = [row[:n] for row, n in zip(states, lengths, strict=True)]
    pool = {"first": lambda x: x[0], "last": lambda x: x[-1], "mean": lambda x: x.mean(0), "max": lambda x: x.max(0)}
    kind = model.head.pool
    vectors = states if kind == "none" else np.stack([pool[kind](x) for x in own])
    if model.head.pooler is not None:
        vectors = np.tanh(through(vectors, model.head.pooler))
    if isinstance(objective, Similarity):
        u, v = vectors[::2], vectors[1::2]
        if objective.by == "cosine":
            cosines = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
            expected, weight = float(((cosines - np.array([2, 1]) / 5) ** 2).sum()), 2
        else:
            vectors = np.concatenate([u, v, abs(u - v)], axis=1)
    if model.head.scores is not None:
        scores = through(vectors, model.head.scores).astype(np.float64)
    match objective:
        case Classify():
            expected, weight = softmax_loss(scores, [2, 1]), 2
        case Similarity(by="classes"):
            expected, weight = softmax_loss(scores, [2, 1]), 2
        case Regress():
            expected, weight = float(((scores[:, 0] - [2, 1]) ** 2).sum()), 2
        case Choice():
            expected, weight = softmax_loss(scores.reshape(2, 2), [0, 1]), 2
        case Reward():
            apart = scores[::2, 0] - scores[1::2, 0]
            expected, weight = float(-np.log(1 / (1 + np.exp(-apart))).sum()), 2
        case Tag():
            expected = softmax_loss(np.concatenate([scores[0, 1:3], scores[1, 1:4]]), [2, 0, 1, 1, 0])
            weight = 5
        case Extract():  # [CLS] w9 [SEP] context: characters 4 to 7 are its second token; candidates: it, and [CLS]
            sides = [[scores[n][[0, *range(3, 3 + size)]][:, side] for side in (0, 1)] for n, size in ((0, 6), (1, 4))]
            expected = sum(softmax_loss(one[None], [2]) / 2 for pair in sides for one in pair)
            weight = 2
    found = objective.loss(model, jax.tree.map(jnp.asarray, batch), None, Losses(vocab=40))["loss"]
    assert float(found.total) == pytest.approx(expected, rel=2e-5)
    assert float(found.weight) == weight
    empty = jax.tree.map(np.zeros_like, batch)  # what fills the last batch of an evaluation
    assert float(objective.loss(model, empty, None, Losses(vocab=40))["loss"].total) == 0


def test_soft_tokens_and_padding_are_not_pooled() -> None:
    config = ModelConfig(layers=1, embed=1, heads=1, vocab=4, family="encoder")
    tokens, segments = np.array([[-1, -2, 3, 4, 5, 0]]), np.array([[1, 1, 1, 1, 1, 0]])
    states = jnp.asarray([[[9.0], [8.0], [1.0], [4.0], [-2.0], [7.0]]])
    for pool, value in (("first", 1), ("last", -2), ("mean", 1), ("max", 4)):
        head = Classify(labels=THREE, pool=pool).head(config)  # type: ignore[arg-type]
        assert TaskOutput(config, head, rngs=nnx.Rngs(0)).pooled(states, tokens, segments).tolist() == [[value]]


@pytest.mark.parametrize("unanswerable", [False, True])
def test_the_answer_is_the_best_span_of_all_windows(unanswerable: bool) -> None:
    """Every pair of places of every window, one after the other (Devlin et al. 2019, §4.2-4.3)."""
    objective = Extract(window_stride=5, question_len=3, answer_len=4, unanswerable=unanswerable, null_threshold=0.5)
    rows = objective.examples(record_of("w110"), CODER, task(14, "encoder"))
    kinds = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scores = [{"start": rng.normal(size=14), "end": rng.normal(size=14)} for _ in rows]
        spans, nulls = [], []
        for row, own in zip(rows, scores, strict=True):
            nulls.append(own["start"][0] + own["end"][0])
            size = int(row["segment_ids"].sum()) - 6
            for i in range(5, 5 + size):
                for j in range(i, min(i + 4, 5 + size)):
                    text = words(*row["tokens"][i : j + 1].tolist())
                    spans.append((own["start"][i] + own["end"][j], text))
        best, text = max(spans)
        expected = "" if unanswerable and min(nulls) - best > 0.5 else text
        nothing = [{side: np.where(np.arange(14) == 0, 5.0, x) for side, x in own.items()} for own in scores]
        assert objective.prediction(record_of("w110"), rows, scores) == expected
        kinds.add(objective.prediction(record_of("w110"), rows, nothing) == "")
    assert kinds == {unanswerable}


def test_predictions_are_the_best_of_the_scores() -> None:
    def of(objective: Supervised, **scores: list[float]) -> Any:
        return objective.prediction({}, [{}], [{name: np.array(x, np.float32) for name, x in scores.items()}])

    assert of(Classify(labels=THREE), scores=[0.1, -3, 0.2]) == 2
    assert of(Regress(), scores=[2.5]) == 2.5
    assert of(Choice(count=3), scores=[1, 3, 2]) == 1
    assert [of(Reward(), scores=pair) for pair in ([2.0, 1.0], [1.0, 2.0])] == [1, 0]
    assert of(Similarity(by="cosine"), first=[3, 4], second=[4, 3]) == pytest.approx(24 / 25)
    assert of(Similarity(labels=THREE), first=[0, 0], second=[4, 3]) == 0
