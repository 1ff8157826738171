"""Objectives on records: their examples by hand, their losses and predictions by their definitions in NumPy."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.data import tokenizer_files
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.tokenizer_config import TokenizerFile
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.head_config import HeadConfig
from t5x_lite.models.layers import Linear
from t5x_lite.models.losses import LossSettings
from t5x_lite.models.outputs import TaskOutput
from t5x_lite.objectives.choice import Choice
from t5x_lite.objectives.classify import Classify, Regress
from t5x_lite.objectives.extract import Extract
from t5x_lite.objectives.objective import ExampleContext, Features
from t5x_lite.objectives.reward import Reward
from t5x_lite.objectives.similarity import Similarity
from t5x_lite.objectives.special_tokens import build_text_features
from t5x_lite.objectives.supervised import Record, Supervised, TaskTokenizer
from t5x_lite.objectives.tag import Tag
from t5x_lite.objectives.text_to_text import TextToText
from tests.objectives.vocabulary import context

EOS = 1
CLS = 3
SEP = 4


def encode_with_offsets(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Each word is a token; w17 has the id 17."""
    matches = list(re.finditer(r"w(\d+)", text))
    token_ids = [int(match[1]) for match in matches]
    offsets = [match.span() for match in matches]
    return np.array(token_ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2)


TOKENIZER = TaskTokenizer(
    lambda text: encode_with_offsets(text)[0], encode_with_offsets, lambda ids: " ".join(f"w{i}" for i in ids)
)


def words(*ids: int) -> str:
    return " ".join(f"w{i}" for i in ids)


def array(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


def single_example(objective: Supervised, record: Record, run: ExampleContext) -> Features:
    examples = objective.examples(record, TOKENIZER, run)
    assert len(examples) == 1
    return examples[0]


def test_an_encoders_pair_has_berts_special_tokens_and_types_and_a_decoders_an_end_after_each_text() -> None:
    """Devlin et al. 2019, Figure 2; Radford et al. 2018, §3.3: a delimiter between the texts, an end after them."""
    encoder = replace(context(11, "encoder"), num_virtual_tokens=2)
    features = build_text_features([array(10, 11), array(20)], encoder)
    assert features["tokens"].tolist() == [-1, -2, CLS, 10, 11, SEP, 20, SEP, 0, 0, 0]
    assert features["token_types"].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    assert features["segment_ids"].tolist() == [1] * 8 + [0] * 3
    assert features["positions"].tolist()[:8] == list(range(8))
    assert build_text_features([array(10, 11)], context(5, "encoder"))["tokens"].tolist() == [CLS, 10, 11, SEP, 0]
    decoder = replace(context(9), num_virtual_tokens=1)
    features = build_text_features([array(10, 11), array(20)], decoder)
    assert features["tokens"].tolist() == [-1, 10, 11, EOS, 20, EOS, 0, 0, 0]
    assert "token_types" not in features


def test_long_pairs_lose_their_last_tokens_the_longer_text_first() -> None:
    """One token after the other off the longer, as in BERT's own truncation of pairs."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = rng.integers(0, 20, 2).tolist()
        run = context(int(rng.integers(5, 20)), "encoder")
        expected = list(sizes)
        while sum(expected) > run.seq_len - 3:
            expected[int(np.argmax(expected))] -= 1
        texts = [np.arange(size, dtype=np.int32) + 10 + 50 * side for side, size in enumerate(sizes)]
        tokens = build_text_features(texts, run)["tokens"]
        first = tokens[(tokens >= 10) & (tokens < 60)].tolist()
        second = tokens[(tokens >= 60) & (tokens < 110)].tolist()
        assert [first, second] == [[*range(10, 10 + expected[0])], [*range(60, 60 + expected[1])]]


def test_a_row_without_room_for_text_is_refused() -> None:
    run = context(24, "encoder")
    for objective in (Classify(labels=("a", "b")), Tag(labels=("O", "B")), Reward()):
        objective.check_context(run)
        with pytest.raises(UserError, match="leaves no room beside 20 virtual tokens"):
            objective.check_context(replace(run, num_virtual_tokens=20))
    Extract(question_len=20).check_context(run)
    with pytest.raises(UserError, match="no room for a context beside question_len 21"):
        Extract(question_len=21).check_context(run)
    TextToText(target_len=64).check_context(replace(run, family="encoder_decoder"))
    TextToText(target_len=4).check_context(replace(run, family="decoder", num_virtual_tokens=19))
    with pytest.raises(UserError, match="beside target_len 4 and 20 virtual tokens"):
        TextToText(target_len=4).check_context(replace(run, family="decoder", num_virtual_tokens=20))


def test_labels_are_names_or_numbers_and_others_are_refused() -> None:
    objective = Classify(labels=("no", "yes"))
    run = context(12, "encoder")
    for label in ("yes", 1, "1"):
        features = single_example(objective, {"text": words(10, 11), "second": words(12), "label": label}, run)
        assert features["tokens"].tolist()[:7] == [CLS, 10, 11, SEP, 12, SEP, 0]
        assert (features["targets"], features["loss_weights"]) == (1, 1)
    for label in ("maybe", 2, -1, 0.5):
        with pytest.raises(ValueError, match="is not one of no, yes, nor a number below 2"):
            objective.examples({"text": words(10), "label": label}, TOKENIZER, run)
    features = single_example(Regress(), {"text": words(10), "label": "3.8"}, run)
    assert features["targets"] == np.float32(3.8)
    assert [Regress().to_text({"label": x}) for x in (3.25, 4.96, 0.0)] == ["3.2", "5.0", "0.0"]
    assert [objective.from_text(text, {}) for text in (" yes", "no", "perhaps")] == [1, 0, -1]


SENTENCE = {
    "words": ["U.N.", "official", "Ekeus", "heads", "for", "Baghdad", "."],
    "tags": ["I-ORG", "O", "I-PER", "O", "O", "I-LOC", "O"],
}
"""CoNLL-2003's own example (Tjong Kim Sang & De Meulder 2003, Figure 1)."""
TAGS = ("O", "I-ORG", "I-PER", "I-LOC")


@pytest.mark.parametrize(
    ("objective", "record", "message"),
    [
        (Choice(count=2), {"text": "a", "choices": ["x", "y", "z"], "label": 1}, "3 choices, label 1; expected 2"),
        (Choice(count=2), {"text": "a", "choices": ["x", "y"], "label": 2}, "label 2 is none of the 2 choices"),
        (Tag(labels=("O", "B")), {"words": ["a", "b"], "tags": ["O"]}, "2 words but 1 tags"),
        (Regress(), {"text": "a", "label": "nan"}, "label 'nan' is not a finite number"),
        (Similarity(by="cosine"), {"text": "a", "second": "b", "label": float("inf")}, "label inf is not a finite"),
        (Extract(), {"question": "q", "context": "abc", "answers": ["b"], "starts": []}, "1 answers but 0 starts"),
    ],
)
def test_records_that_have_no_example_are_refused_before_a_run(
    objective: Supervised, record: Record, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        objective.check_record(record)


def load_tokenizers(path: Path) -> tuple[TaskTokenizer, Tokenizer]:
    tokenizer = tokenizer_files.from_file(TokenizerFile(path=str(path)))
    return TaskTokenizer(tokenizer.encode, tokenizer.encode_placed, tokenizer.decode), tokenizer


def test_a_words_first_wordpiece_has_its_tag(real_data: Path) -> None:
    task_tokenizer, tokenizer = load_tokenizers(real_data / "tokenizers/bert_base_uncased_vocab.txt")
    run = ExampleContext(16, tokenizer.vocabulary(), "encoder", num_virtual_tokens=1)
    (features,) = Tag(labels=TAGS).examples(SENTENCE, task_tokenizer, run)
    pieces = ["[CLS]", "u", ".", "n", ".", "official", "ek", "##eus", "heads", "for", "baghdad", ".", "[SEP]"]
    assert [tokenizer.piece(i) for i in features["tokens"][1:14]] == pieces
    assert features["words"].tolist() == [-1, -1, 0, -1, -1, -1, 1, 2, -1, 3, 4, 5, 6, -1, -1, -1]
    assert features["loss_weights"].tolist() == (features["words"] >= 0).tolist()
    assert features["targets"][features["words"] >= 0].tolist() == [1, 0, 2, 0, 0, 3, 0]
    # "ek" is the last token that fits.
    (features,) = Tag(labels=TAGS).examples(SENTENCE, task_tokenizer, replace(run, seq_len=9))
    assert features["words"].tolist() == [-1, -1, 0, -1, -1, -1, 1, 2, -1]
    scores = np.eye(4)[[0, 0, 1, 0, 0, 0, 0, 2, 0]]
    prediction = Tag(labels=TAGS).prediction(SENTENCE, [features], [{"scores": scores}])
    assert prediction == ["I-ORG", "O", "I-PER", *"OOOO"]
    with pytest.raises(ValueError, match="7 words but 6 tags"):
        Tag(labels=TAGS).examples({**SENTENCE, "tags": SENTENCE["tags"][1:]}, task_tokenizer, run)


def test_a_words_first_sentencepiece_has_its_tag(real_data: Path) -> None:
    """Pieces: ▁the ▁c ity ▁ <unk> ri ch ▁is ▁old ▁ . : a piece that is only a space is no part of the next word."""
    task_tokenizer, tokenizer = load_tokenizers(real_data / "tokenizers/sentencepiece_test_1000.model")
    record = {"words": ["the", "city", "Zürich", "is", "old", "."], "tags": [0, 0, 3, 0, 0, 0]}
    (features,) = Tag(labels=TAGS).examples(
        record, task_tokenizer, ExampleContext(14, tokenizer.vocabulary(), "decoder")
    )
    assert features["words"].tolist() == [0, 1, -1, -1, 2, -1, -1, 3, 4, -1, 5, -1, -1, -1]
    assert features["targets"].tolist() == [0, 0, 0, 0, 3, *[0] * 9]
    assert features["tokens"][11] == tokenizer.eos


def xlnet_context(seq_len: int) -> ExampleContext:
    """A context whose tokenizer has XLNet's special tokens: 3 <cls>, after the texts, and 4 <sep>."""
    plain = context(seq_len, "encoder")
    vocabulary = replace(plain.vocabulary, named={"<pad>": 0, "<cls>": CLS, "<sep>": SEP})
    return replace(plain, vocabulary=vocabulary)


def test_tags_leave_room_for_what_comes_after_the_text_in_xlnet() -> None:
    """Yang et al. 2019: A <sep> <cls>. Of four words in a row of 5 three are read."""
    record = {"words": ["w10", "w11", "w12", "w13"], "tags": [2, 0, 1, 1]}
    features = single_example(Tag(labels=("O", "B", "I")), record, xlnet_context(5))
    assert features["tokens"].tolist() == [10, 11, 12, SEP, CLS]
    assert features["words"].tolist() == [0, 1, 2, -1, -1]
    assert features["targets"].tolist() == [2, 0, 1, 0, 0]
    assert features["loss_weights"].tolist() == [1, 1, 1, 0, 0]


def test_no_answer_is_at_the_cls_of_xlnet_which_comes_last() -> None:
    """question <sep> context <sep> <cls>: the second window has 5 of 9 tokens of the context."""
    objective = Extract(window_stride=4, question_len=2, unanswerable=True)
    record = {"question": words(5, 6), "context": words(*range(10, 19)), "answers": [words(17)], "starts": [28]}
    first, second = objective.examples(record, TOKENIZER, xlnet_context(10))
    assert first["tokens"].tolist() == [5, 6, SEP, 10, 11, 12, 13, 14, SEP, CLS]
    assert second["tokens"].tolist() == [5, 6, SEP, 14, 15, 16, 17, 18, SEP, CLS]
    assert answer_positions([first, second]) == [(9, 9), (6, 6)]
    assert np.flatnonzero(second["allowed"]).tolist() == [3, 4, 5, 6, 7, 9]
    scores = np.zeros(10)
    scores[5] = 1.0  # w16
    assert objective.prediction(record, [second], [{"start": scores, "end": scores}]) == "w16"
    scores[9] = 2.0
    assert objective.prediction(record, [second], [{"start": scores, "end": scores}]) == ""


QUESTION = words(*range(5, 15))
CONTEXT = words(*range(100, 120))


def question_record(answer: str, start: int | None = None) -> dict[str, Any]:
    answers = []
    starts = []
    if answer:
        answers.append(answer)
        starts.append(CONTEXT.index(answer) if start is None else start)
    return {"question": QUESTION, "context": CONTEXT, "answers": answers, "starts": starts}


def answer_positions(windows: Sequence[Features]) -> list[tuple[int, int]]:
    return [(int(window["start"]), int(window["end"])) for window in windows]


def test_a_long_context_becomes_windows_and_the_answer_is_marked_in_those_that_hold_it() -> None:
    """Room for 14 - 3 special tokens - 3 of the question = 8; every 5 tokens: 0-7, 5-12, 10-17, 15-19."""
    objective = Extract(window_stride=5, question_len=3)
    run = replace(context(15, "encoder"), num_virtual_tokens=1)
    windows = objective.examples(question_record("w110 w111"), TOKENIZER, run)
    assert [window["tokens"].tolist() for window in windows] == [
        [-1, CLS, 5, 6, 7, SEP, *range(100 + first, 100 + stop), SEP, *[0] * (8 - stop + first)]
        for first, stop in ((0, 8), (5, 13), (10, 18), (15, 20))
    ]
    cls = 1
    assert answer_positions(windows) == [(cls, cls), (11, 12), (6, 7), (cls, cls)]
    assert np.flatnonzero(windows[3]["allowed"]).tolist() == [cls, *range(6, 11)]
    assert [CONTEXT[slice(*place)] for place in windows[3]["places"][6:11]] == [f"w{n}" for n in range(115, 120)]
    # A token that is partly in the answer belongs to it; a window that cuts the answer does not hold it.
    partial_windows = objective.examples(question_record("07 w10"), TOKENIZER, run)
    assert answer_positions(partial_windows) == [(cls, cls), (8, 9), (cls, cls), (cls, cls)]
    assert {float(window["loss_weights"]) for window in (*windows, partial_windows[0])} == {1.0}


def test_an_answer_that_is_not_in_its_context_is_evaluated_and_not_learnt() -> None:
    objective = Extract(question_len=3)
    run = context(40, "encoder")
    wrong = question_record("w110", start=3)
    right = question_record("w110")
    unanswerable = question_record("")
    assert [objective.learnable(record) for record in (right, unanswerable, wrong)] == [True, True, False]
    assert single_example(objective, wrong, run)["loss_weights"] == 0
    assert single_example(objective, unanswerable, run)["loss_weights"] == 1
    with_null = Extract(unanswerable=True)
    assert with_null.to_text(unanswerable) == "unanswerable"
    assert [with_null.from_text(text, {}) for text in ("unanswerable", " w3 ")] == ["", "w3"]
    assert Extract().from_text("unanswerable", {}) == "unanswerable"


def test_choices_pairs_and_comparisons_are_rows_of_their_own() -> None:
    run = context(8, "encoder")
    record = {"text": [words(10), words(11)], "choices": [words(20), words(21, 22)], "label": "1"}
    features = single_example(Choice(count=2), record, run)
    assert features["tokens"].tolist() == [[CLS, 10, 11, SEP, 20, SEP, 0, 0], [CLS, 10, 11, SEP, 21, 22, SEP, 0]]
    assert features["token_types"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 0]]
    assert features["targets"] == 1
    for wrong in ({**record, "label": 2}, {**record, "choices": record["choices"] * 2}):
        with pytest.raises(ValueError, match=r"expected 2 choices|none of the 2 choices"):
            Choice(count=2).examples(wrong, TOKENIZER, run)
    pair = {"text": words(10), "second": words(11, 12), "label": 4}
    features = single_example(Similarity(by="cosine"), pair, run)
    assert features["tokens"].tolist() == [[CLS, 10, SEP, *[0] * 5], [CLS, 11, 12, SEP, *[0] * 4]]
    assert features["token_types"].sum() == 0
    assert features["targets"] == np.float32(0.8)  # STS-B goes to 5
    with pytest.raises(ValueError, match="needs their `labels`"):
        Similarity()
    comparison = {"text": words(10), "chosen": words(20, 21), "rejected": words(22)}
    features = single_example(Reward(), comparison, replace(run, family="decoder"))
    assert features["tokens"].tolist() == [[10, EOS, 20, 21, EOS, 0, 0, 0], [10, EOS, 22, EOS, 0, 0, 0, 0]]
    del comparison["text"]
    features = single_example(Reward(), comparison, run)
    assert features["tokens"].tolist() == [[CLS, 20, 21, SEP, *[0] * 4], [CLS, 22, SEP, *[0] * 5]]


def two_records(objective: Supervised) -> list[Record]:
    """Two records for any objective."""
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


def cross_entropy(scores: np.ndarray, targets: Sequence[int]) -> float:
    scores = scores - scores.max(-1, keepdims=True)
    return -float(sum(np.log(np.exp(row[t]) / np.exp(row).sum()) for row, t in zip(scores, targets, strict=True)))


LABELS = ("a", "b", "c")


class TableModel:
    """A model whose states are sums of rows of random tables, with the real head over them.

    The states depend on every feature of a token that a model reads.
    """

    def __init__(self, config: ModelConfig, rng: np.random.Generator) -> None:
        self.tables = [rng.normal(size=(40, config.embed)).astype(np.float32) for _ in range(3)]
        assert config.head is not None
        self.head = TaskOutput(config, config.head, rngs=nnx.Rngs(0))
        for layer in (self.head.pooler, self.head.scores):
            if layer is not None and layer.bias is not None:
                layer.weight[...] = rng.normal(size=layer.weight.shape).astype(np.float32)
                layer.bias[...] = rng.normal(size=layer.bias.shape).astype(np.float32)

        if self.head.transitions is not None:
            self.head.transitions[...] = rng.normal(size=self.head.transitions.shape).astype(np.float32)

    def __call__(self, tokens: Any, *, positions: Any, segment_ids: Any, token_types: Any, key: Any = None) -> Any:
        features = (tokens, positions + 5 * segment_ids, token_types)
        return sum(jnp.asarray(table)[ids] for table, ids in zip(self.tables, features, strict=True))


def apply_linear(x: np.ndarray, layer: Linear) -> np.ndarray:
    return x @ np.asarray(layer.weight[...]) + np.asarray(layer.bias[...])


POOLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.max(0),
    "concat": lambda x: np.concatenate([x[-1], x.max(0), x.mean(0)]),
}


def pool_texts(head: TaskOutput, states: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The vectors that the head scores, of every text or of every token."""
    vectors = states
    if head.pool != "none":
        pool = POOLS[head.pool]
        vectors = np.stack([pool(x[:length]) for x, length in zip(states, lengths, strict=True)])
    if head.pooler is not None:
        vectors = np.tanh(apply_linear(vectors, head.pooler))
    return vectors


def expected_similarity_loss(objective: Similarity, head: TaskOutput, vectors: np.ndarray) -> float:
    """Reimers & Gurevych 2019, §3."""
    u = vectors[::2]
    v = vectors[1::2]
    if objective.by == "cosine":
        cosines = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
        return float(((cosines - np.array([2, 1]) / 5) ** 2).sum())
    assert head.scores is not None
    scores = apply_linear(np.concatenate([u, v, abs(u - v)], axis=1), head.scores).astype(np.float64)
    return cross_entropy(scores, [2, 1])


def expected_loss(objective: Supervised, head: TaskOutput, vectors: np.ndarray) -> float:
    """The loss of `two_records`."""
    if isinstance(objective, Similarity):
        return expected_similarity_loss(objective, head, vectors)
    assert head.scores is not None
    scores = apply_linear(vectors, head.scores).astype(np.float64)
    match objective:
        case Tag(crf=True):
            # The first tag of a text has no transition; all sequences of tags are enumerated.
            assert head.transitions is not None
            moves = np.asarray(head.transitions[...], np.float64)
            loss = 0.0
            for words, tags in ((scores[0, 1:3], (2, 0)), (scores[1, 1:4], (1, 1, 0))):
                sequences = list(product(range(len(LABELS)), repeat=len(tags)))
                totals = [
                    sum(words[range(len(tags)), list(path)]) + moves[path[:-1], path[1:]].sum() for path in sequences
                ]
                loss += cross_entropy(np.array([totals]), [sequences.index(tags)])
        case Classify():
            loss = cross_entropy(scores, [2, 1])
        case Regress():
            loss = float(((scores[:, 0] - [2, 1]) ** 2).sum())
        case Choice():
            loss = cross_entropy(scores.reshape(2, 2), [0, 1])
        case Reward():
            margin = scores[::2, 0] - scores[1::2, 0]
            loss = float(-np.log(1 / (1 + np.exp(-margin))).sum())
        case Tag():
            loss = cross_entropy(np.concatenate([scores[0, 1:3], scores[1, 1:4]]), [2, 0, 1, 1, 0])
        case Extract():
            # The row is [CLS] w9 [SEP] context. Candidates are [CLS] and the context, of 6 and of 4 tokens; characters
            # 4 to 7 are the context's second token.
            first = scores[0][[0, *range(3, 9)]]
            second = scores[1][[0, *range(3, 7)]]
            sides = [candidates[None, :, side] for candidates in (first, second) for side in (0, 1)]
            loss = sum(cross_entropy(side, [2]) / 2 for side in sides)
    return loss


@pytest.mark.parametrize(
    ("objective", "weight"),
    [
        (Classify(labels=LABELS), 2),
        (Classify(labels=LABELS, pool="max", transform=True), 2),
        (Classify(labels=LABELS, pool="concat"), 2),
        (Classify(labels=LABELS, pool="concat", transform=True), 2),
        (Regress(pool="mean"), 2),
        (Choice(count=2), 2),
        (Similarity(labels=LABELS), 2),
        (Similarity(by="cosine", pool="first"), 2),
        (Reward(pool="last"), 2),
        (Tag(labels=LABELS), 5),
        (Tag(labels=LABELS, crf=True), 5),
        (Extract(question_len=2), 2),
    ],
    ids=lambda o: f"{getattr(o, 'name', '')} {getattr(o, 'pool', '')} {getattr(o, 'by', '')}".strip(),
)
def test_losses_equal_their_definitions(objective: Supervised, weight: int) -> None:
    rng = np.random.default_rng(1)
    config = ModelConfig(layers=1, embed=8, heads=2, vocab=40, family="encoder")
    model = TableModel(config.model_copy(update={"head": objective.head(config)}), rng)
    run = context(12, "encoder", size=40)
    examples = [single_example(objective, record, run) for record in two_records(objective)]
    batch: dict[str, Any] = {name: np.stack([example[name] for example in examples]) for name in examples[0]}

    names = ("tokens", "positions", "segment_ids", "token_types")
    texts = {name: batch[name].reshape(-1, 12) for name in names}
    states = np.asarray(model(**texts))
    vectors = pool_texts(model.head, states, texts["segment_ids"].sum(1))
    expected = expected_loss(objective, model.head, vectors)
    # What belongs to losses over a vocabulary changes none of these.
    settings = LossSettings(vocab=40, z_loss=0.1, label_smoothing=0.2)
    loss = objective.loss(model, jax.tree.map(jnp.asarray, batch), None, settings)["loss"]
    assert float(loss.total) == pytest.approx(expected, rel=2e-5)
    assert float(loss.weight) == weight
    # The last batch of an evaluation is filled up with empty examples.
    empty = jax.tree.map(jnp.zeros_like, batch)
    assert float(objective.loss(model, empty, None, settings)["loss"].total) == 0


def test_soft_tokens_and_padding_are_not_pooled() -> None:
    config = ModelConfig(layers=1, embed=1, heads=1, vocab=4, family="encoder")
    tokens = jnp.array([[-1, -2, 3, 4, 5, 0]])
    segments = jnp.array([[1, 1, 1, 1, 1, 0]])
    states = jnp.asarray([[[9.0], [8.0], [1.0], [4.0], [-2.0], [7.0]]])
    for pool, value in (("first", 1), ("last", -2), ("mean", 1), ("max", 4)):
        head = Classify(labels=LABELS, pool=pool).head(config)  # type: ignore[arg-type]
        assert TaskOutput(config, head, rngs=nnx.Rngs(0)).pooled(states, tokens, segments).tolist() == [[value]]


@pytest.mark.parametrize("unanswerable", [False, True])
def test_the_answer_is_the_best_span_of_all_windows(unanswerable: bool) -> None:
    """Every pair of positions of every window, one after the other (Devlin et al. 2019, §4.2-4.3)."""
    objective = Extract(window_stride=5, question_len=3, answer_len=4, unanswerable=unanswerable, null_threshold=0.5)
    record = question_record("w110")
    windows = objective.examples(record, TOKENIZER, context(14, "encoder"))
    null_predictions = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scores = [{"start": rng.normal(size=14), "end": rng.normal(size=14)} for _ in windows]
        spans = []
        null_scores = []
        for window, window_scores in zip(windows, scores, strict=True):
            start = window_scores["start"]
            end = window_scores["end"]
            null_scores.append(start[0] + end[0])
            size = int(window["segment_ids"].sum()) - 6
            for i in range(5, 5 + size):
                for j in range(i, min(i + 4, 5 + size)):
                    text = words(*window["tokens"][i : j + 1].tolist())
                    spans.append((start[i] + end[j], text))
        best, text = max(spans)
        expected = text
        if unanswerable and min(null_scores) - best > 0.5:
            expected = ""
        assert objective.prediction(record, windows, scores) == expected
        high_null = []
        for window_scores in scores:
            high_null.append({side: np.where(np.arange(14) == 0, 5.0, x) for side, x in window_scores.items()})
        null_predictions.add(objective.prediction(record, windows, high_null) == "")
    assert null_predictions == {unanswerable}


def predict(objective: Supervised, **scores: list[float]) -> Any:
    return objective.prediction({}, [{}], [{name: np.array(x, np.float32) for name, x in scores.items()}])


def test_predictions_are_the_best_of_the_scores() -> None:
    assert predict(Classify(labels=LABELS), scores=[0.1, -3, 0.2]) == 2
    assert predict(Regress(), scores=[2.5]) == 2.5
    assert predict(Choice(count=3), scores=[1, 3, 2]) == 1
    assert [predict(Reward(), scores=pair) for pair in ([2.0, 1.0], [1.0, 2.0])] == [1, 0]
    assert predict(Similarity(by="cosine"), first=[3, 4], second=[4, 3]) == pytest.approx(24 / 25)
    assert predict(Similarity(labels=LABELS), first=[0, 0], second=[4, 3]) == 0


def test_a_recurrence_of_a_head_drops_in_training_alone() -> None:
    config = ModelConfig(family="encoder", layers=1, embed=8, heads=2, vocab=9)
    head = HeadConfig(outputs=2, pool="none", mixer={"lstm": {"hidden": [4, 4], "layer_dropout": 0.5, "out": True}})
    output = TaskOutput(config, head, rngs=nnx.Rngs(0))
    tokens = jnp.ones((2, 5), int)
    states = jax.random.normal(jax.random.key(0), (2, 5, 8))
    keys: list[jax.Array | None] = [None, None, jax.random.key(1), jax.random.key(2)]
    evaluated, again, first, second = (output.pooled(states, tokens, tokens, key) for key in keys)
    np.testing.assert_array_equal(evaluated, again)
    assert not np.allclose(first, evaluated)
    assert not np.allclose(first, second)
