"""Permutation language modelling against the formulas of XLNet's code (data_utils.py: _local_perm, _sample_mask)."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from t5x_lite.models.config import ModelConfig
from t5x_lite.objectives import ExampleContext, TokenRow
from t5x_lite.objectives.permutation import Permutation
from tests.objectives.vocabulary import context, row

LENGTH = 96


def xlnet_context(seq_len: int = LENGTH) -> ExampleContext:
    """A context whose tokenizer has XLNet's special tokens, 3 <cls> and 4 <sep>; every third token begins a word."""
    plain = context(seq_len, "encoder")
    named = {"<pad>": 0, "<eod>": 1, "<unk>": 2, "<cls>": 3, "<sep>": 4}
    return replace(plain, vocabulary=replace(plain.vocabulary, named=named))


def text(length: int, documents: int = 1) -> TokenRow:
    tokens = np.random.default_rng(5).integers(10, 200, length)
    return row(tokens, segments=np.repeat(np.arange(documents) + 1, length // documents).tolist())


def examples(objective: Permutation, count: int, documents: int = 1) -> list[dict[str, np.ndarray]]:
    source = text(LENGTH - 2, documents)
    return [dict(objective.example(source, xlnet_context(), np.random.default_rng(seed))) for seed in range(count)]


def test_a_row_is_a_text_with_its_special_tokens_at_the_end_which_have_a_type_of_their_own() -> None:
    source = text(10)
    example = Permutation().example(source, xlnet_context(16), np.random.default_rng(0))
    assert example["tokens"].tolist() == [*source.tokens.tolist(), 4, 3, 0, 0, 0, 0]
    assert example["segment_ids"].tolist() == [1] * 12 + [0] * 4
    assert example["token_types"].tolist() == [0] * 11 + [2] + [0] * 4


def test_one_of_k_tokens_is_predicted_in_spans_of_words() -> None:
    """Of 96 tokens 16; no special ones, each once, with its own token as the target."""
    runs: Counter[int] = Counter()
    begins = 0
    for example in examples(Permutation(), 200):
        places = example["target_positions"]
        assert len(places) == LENGTH // 6
        assert example["loss_weights"].all()
        assert (np.diff(places) > 0).all()
        assert places.max() < LENGTH - 2
        np.testing.assert_array_equal(example["targets"], example["tokens"][places])
        spans = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        runs.update(len(span) for span in spans)
        begins += sum(int(example["tokens"][span[0]]) % 3 == 0 for span in spans if len(span) > 1)
    # Words have three tokens on average. Single tokens are what is left at the end of a row; some touch a span.
    in_spans = sum(size * count for size, count in runs.items() if size > 1)
    assert in_spans / sum(size * count for size, count in runs.items()) > 0.7
    assert begins / sum(count for size, count in runs.items() if size > 1) > 0.75


def test_spans_are_spread_over_the_row() -> None:
    """A span of n words is among 6n words: the last third of the rows has its share."""
    shares = [np.mean(example["target_positions"] > 2 * LENGTH / 3) for example in examples(Permutation(), 300)]
    assert np.mean(shares) == pytest.approx(1 / 3, abs=0.08)


@pytest.mark.parametrize("order", [None, 24])
def test_what_a_token_sees_is_what_the_authors_masks_say(order: int | None) -> None:
    """`perm_mask` of their code: i may not see j, from the places of special and predicted tokens in the order."""
    for example in examples(Permutation(order=order), 5):
        rank = example["rank"]
        special = np.isin(example["tokens"], [3, 4])
        is_target = np.zeros(LENGTH, bool)
        is_target[example["target_positions"]] = True
        is_hidden = special | is_target
        assert (rank[~is_hidden] == -1).all()
        places = rank[is_hidden]
        assert len(set(places.tolist())) == is_hidden.sum()
        assert places.min() >= 0
        if order is not None:
            np.testing.assert_array_equal(places // order, np.flatnonzero(is_hidden) // order)
        self_rank = np.where(is_target, rank, rank + 1)
        perm_mask = (self_rank[:, None] <= rank[None]) & is_hidden[None]
        content_mask = perm_mask & ~np.eye(LENGTH, dtype=bool)
        np.testing.assert_array_equal(rank[:, None] >= rank[None], ~content_mask)
        queries = example["target_positions"]
        np.testing.assert_array_equal(rank[queries][:, None] - 1 >= rank[None], ~perm_mask[queries])


def test_every_order_of_the_predicted_tokens_is_equally_likely() -> None:
    ranks = [example["rank"][example["target_positions"]] for example in examples(Permutation(), 300)]
    first = Counter(int(np.argmin(rank)) for rank in ranks)
    assert len(first) == LENGTH // 6
    assert max(first.values()) < 2.2 * 300 / (LENGTH // 6)


def test_an_example_depends_on_the_generator_alone() -> None:
    first, again = (examples(Permutation(), 3) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name])
    assert (first[0]["rank"] != first[1]["rank"]).any()


@pytest.mark.parametrize("length", [0, 1, 5])
def test_short_rows_keep_their_shapes(length: int) -> None:
    example = Permutation().example(text(length), xlnet_context(), np.random.default_rng(0))
    assert example["target_positions"].shape == example["loss_weights"].shape == (LENGTH // 6,)
    assert example["loss_weights"].sum() == min(length, 1)


def test_pairs_are_two_segments_of_which_the_second_may_be_of_another_document() -> None:
    first = row(np.arange(10, 40), parts=np.repeat(np.arange(3), 10).tolist())
    second = row(np.arange(100, 130), parts=np.repeat(np.arange(3), 10).tolist())
    objective = Permutation(pairs=True)
    assert objective.row_length(xlnet_context()) == LENGTH - 3
    follows = 0
    for seed in range(40):
        example = objective.example(
            replace(first, second_sentence=second), xlnet_context(), np.random.default_rng(seed)
        )
        types = example["token_types"]
        tokens = example["tokens"][types == 1]
        assert tokens[-1] == 4
        assert example["tokens"][types == 2].tolist() == [3]
        follows += bool(tokens[0] < 100)
    assert 8 < follows < 32


def test_a_model_without_a_query_stream_is_refused() -> None:
    sizes = {"family": "encoder", "layers": 1, "embed": 16, "heads": 2, "vocab": 11, "positions": "transformer_xl"}
    with pytest.raises(ValueError, match=r"objective permutation needs model\.query_stream=true"):
        Permutation().check(ModelConfig.model_validate(sizes))
    Permutation().check(ModelConfig.model_validate({**sizes, "query_stream": True}))
    with pytest.raises(ValueError, match="query_stream is for an encoder"):
        ModelConfig.model_validate({**sizes, "family": "decoder", "query_stream": True})


def test_global_tokens_which_hold_the_predicted_ones_are_refused() -> None:
    sizes = {"family": "encoder", "layers": 1, "embed": 16, "heads": 2, "vocab": 11, "positions": "relative"}
    with pytest.raises(ValueError, match="transient_global is not for query_stream"):
        ModelConfig.model_validate({**sizes, "query_stream": True, "pattern": [{"attention": "transient_global"}]})
