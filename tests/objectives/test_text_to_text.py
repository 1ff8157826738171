"""Prefix language modelling, UL2 and supervised pairs against examples by hand."""

from dataclasses import replace

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.objectives.prefix import Prefix
from t5x_lite.objectives.text_to_text import TextToText
from t5x_lite.objectives.ul2 import PUBLISHED, UL2
from tests.objectives.test_supervised import TOKENIZER, words
from tests.objectives.vocabulary import BOS, context, context_with_bos, row

EOS = 1


def test_a_prefix_is_cut_uniformly_and_the_rest_predicted() -> None:
    cuts = []
    for seed in range(4000):
        features = Prefix().example(row(np.arange(10, 19)), context(8), np.random.default_rng(seed))
        assert features["tokens"].tolist() == [*range(10, 18)]
        assert features["targets"].tolist() == [*range(11, 19)]
        cut = int(features["prefix"].sum())
        assert features["loss_weights"].tolist() == [0] * (cut - 1) + [1] * (9 - cut)
        cuts.append(cut)
    counts = np.bincount(cuts, minlength=9)[1:]
    assert counts.sum() == 4000
    assert abs(counts - 500).max() < 5 * 500**0.5


def test_a_prefix_of_an_encoder_decoder_goes_to_the_encoder() -> None:
    features = Prefix().example(row(np.arange(10, 18)), context(8, "encoder_decoder"), np.random.default_rng(1))
    inputs = features["tokens"][features["tokens"] > 0].tolist()
    targets = features["targets"][features["targets"] > 0].tolist()
    assert inputs + targets == [*range(10, 18)]
    assert features["decoder_tokens"].tolist()[: len(targets)] == [0, *targets[:-1]]


def test_two_pairs_share_a_row_and_long_ones_are_cut() -> None:
    packed = row([11, 12, 13, 21, EOS, 31, 41, 42, 43, 44, 45, EOS], [1] * 5 + [2] * 7, [0, 0, 0, 1, 1, 0, *[1] * 6])
    features = TextToText(target_len=9).example(packed, context(8, "encoder_decoder"), np.random.default_rng(0))
    assert features["tokens"].tolist() == [11, 12, 13, EOS, 31, EOS, 0, 0]
    assert features["segment_ids"].tolist() == [1, 1, 1, 1, 2, 2, 0, 0]
    assert features["targets"].tolist() == [21, EOS, 41, 42, 43, 44, 45, EOS, 0]
    assert features["decoder_segment_ids"].tolist() == [1, 1, 2, 2, 2, 2, 2, 2, 0]
    single = row([31, 41, 42, 43, 44, 45, 46, EOS], parts=[0, *[1] * 7])
    features = TextToText(target_len=6).example(single, context(8, "encoder_decoder"), np.random.default_rng(0))
    assert features["targets"].tolist() == [41, 42, 43, 44, 45, EOS]
    assert features["decoder_tokens"].tolist() == [0, 41, 42, 43, 44, 45]


def test_a_decoder_learns_only_the_targets_of_a_pair() -> None:
    pair = row([11, 12, 13, 21, 22, EOS], parts=[0, 0, 0, 1, 1, 1])
    features = TextToText(target_len=4).example(pair, context(8), np.random.default_rng(0))
    assert features["tokens"].tolist() == [11, 12, 13, 21, 22, 0, 0, 0]
    assert features["targets"].tolist() == [12, 13, 21, 22, EOS, 0, 0, 0]
    assert features["loss_weights"].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
    assert features["prefix"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_the_inputs_of_a_pair_begin_with_bos_as_in_llama_and_in_bart() -> None:
    objective = TextToText(target_len=4)
    llama = context_with_bos(8, "decoder")
    features = objective.records_example(words(11, 12), words(21), TOKENIZER, llama)
    assert features["tokens"].tolist() == [BOS, 11, 12, 21, 0, 0, 0, 0]
    assert features["targets"].tolist() == [11, 12, 21, EOS, 0, 0, 0, 0]
    assert features["loss_weights"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    # The documents of a decoder begin with it already.
    document = row([BOS, 11, 12, 21, EOS], parts=[0, 0, 0, 1, 1])
    from_document = objective.example(document, llama, np.random.default_rng(0))
    assert from_document["tokens"].tolist() == features["tokens"].tolist()
    bart = context_with_bos(6, "encoder_decoder")
    features = objective.records_example(words(11, 12), words(21), TOKENIZER, bart)
    assert features["tokens"].tolist() == [BOS, 11, 12, EOS, 0, 0]
    assert features["targets"].tolist() == [BOS, 21, EOS, 0]
    assert features["decoder_tokens"].tolist() == [0, BOS, 21, 0]
    # In T5Gemma it is the token that the decoder begins with, and no target.
    features = objective.records_example(words(11), words(21), TOKENIZER, replace(bart, start_token=BOS))
    assert features["targets"].tolist() == [21, EOS, 0, 0]
    assert features["decoder_tokens"].tolist() == [BOS, 21, 0, 0]
    packed = row([11, 12, 13, 14, 15, 21, EOS], parts=[0] * 5 + [1, 1])
    features = objective.example(packed, bart, np.random.default_rng(0))
    assert features["tokens"].tolist() == [BOS, 11, 12, 13, 14, EOS]
    # Two documents with 2 and 5 inputs, and with 2 and 7 targets of which EOS is one.
    assert objective.packed_sizes(np.array([[2, 1], [5, 6]]), bart).tolist() == [[4, 3], [6, 4]]
    # Between BOS and EOS there is room for 4 inputs, and for 2 targets.
    assert objective.is_truncated(np.array([[4, 2], [5, 2], [4, 3]]), bart).tolist() == [False, True, True]
    TextToText(target_len=3).check_context(bart)
    with pytest.raises(UserError, match="no room for targets"):
        TextToText(target_len=2).check_context(bart)
    # BOS is one of a decoder's inputs, which have 8 - 4 places.
    assert objective.is_truncated(np.array([[4, 3], [5, 3], [4, 4]]), llama).tolist() == [False, True, True]


def test_ul2_mixes_its_denoisers_equally_under_their_modes() -> None:
    """Tay et al. 2023, Table 1: two R, one S, four X denoisers."""
    assert [denoiser.mode for denoiser in PUBLISHED] == ["[R]"] * 2 + ["[S]"] + ["[X]"] * 4
    wide = context(128, "encoder_decoder", size=400, sentinels=100)
    mode_names = {6: "[R]", 7: "[S]", 8: "[X]"}
    objective = UL2()
    length = objective.row_length(wide)
    text = row(np.arange(20, 20 + length) % 250 + 10)
    modes = []
    ends = []
    for seed in range(1500):
        features = objective.example(text, wide, np.random.default_rng(seed))
        mode = mode_names[int(features["tokens"][0])]
        modes.append(mode)
        if mode == "[S]":
            ends.append(features["loss_weights"].sum() - 1)
            assert not (features["targets"] >= 300).any()  # no sentinels
    for mode, share in (("[R]", 2 / 7), ("[S]", 1 / 7), ("[X]", 4 / 7)):
        assert modes.count(mode) / len(modes) == pytest.approx(share, abs=0.05)
    assert np.mean(ends) == pytest.approx(0.25 * length, rel=0.15)


def test_ul2_needs_its_modes_and_enough_sentinels() -> None:
    UL2().check_context(context(128, "encoder_decoder", size=400, sentinels=100))
    with pytest.raises(UserError, match="sentinels"):
        UL2().check_context(context(128, "encoder_decoder", sentinels=10))


def test_ul2_refuses_a_tokenizer_without_eos_under_its_own_name() -> None:
    run = context(128, "encoder_decoder", size=400, sentinels=100)
    without_eos = replace(run, vocabulary=replace(run.vocabulary, eos=None))
    with pytest.raises(UserError, match="objective ul2: the tokenizer has no end-of-text token"):
        UL2().check_context(without_eos)
