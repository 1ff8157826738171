"""Special tokens around texts, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.objectives.objective import ExampleContext, Vocabulary
from t5x_lite.objectives.passages import build_query_features, without_padding
from t5x_lite.objectives.special_tokens import (
    build_pair_features,
    build_row_features,
    build_text_features,
    encoder_template,
    input_start,
    num_encoder_special_tokens,
    task_template,
    text_end,
)
from tests.objectives.vocabulary import BOS, context, context_with_bos, row, vocabulary

EOS = 1
CLS = 3
SEP = 4
FIRST = np.array([10, 11], np.int32)
SECOND = np.array([20], np.int32)


def test_an_encoders_template_begins_with_cls_and_ends_each_text_with_sep() -> None:
    template = encoder_template(vocabulary(), "a test")
    assert template.tokens([FIRST]).tolist() == [CLS, 10, 11, SEP]
    assert template.tokens([FIRST, SECOND]).tolist() == [CLS, 10, 11, SEP, 20, SEP]
    assert template.token_types([FIRST, SECOND]).tolist() == [0, 0, 0, 0, 1, 1]
    for texts in ([FIRST], [FIRST, SECOND]):
        added = len(template.tokens(texts)) - sum(len(text) for text in texts)
        assert added == num_encoder_special_tokens(vocabulary(), len(texts))


def test_a_decoders_template_ends_each_text_with_eos() -> None:
    template = task_template(context(8, "decoder"))
    assert template.tokens([FIRST, SECOND]).tolist() == [10, 11, EOS, 20, EOS]


def test_a_text_begins_with_bos_where_the_tokenizer_of_a_decoder_or_an_encoder_decoder_puts_it() -> None:
    decoder = replace(context_with_bos(8, "decoder"), num_virtual_tokens=2)
    assert input_start(decoder).tolist() == [-1, -2, BOS]
    assert text_end(decoder) == ()
    assert build_text_features([FIRST], decoder)["tokens"].tolist() == [-1, -2, BOS, 10, 11, EOS, 0, 0]
    bart = context_with_bos(8, "encoder_decoder")
    assert input_start(bart).tolist() == [BOS]
    assert text_end(bart) == (EOS,)
    encoder = context_with_bos(8, "encoder")
    assert input_start(encoder).tolist() == []
    assert build_text_features([FIRST], encoder)["tokens"].tolist() == [CLS, 10, 11, SEP, 0, 0, 0, 0]


def test_robertas_names_of_the_tokens_are_known() -> None:
    plain = vocabulary()
    roberta = Vocabulary(200, 1, {"<s>": 7, "</s>": 8}, (), plain.special, plain.begins_word)
    assert encoder_template(roberta, "a test").tokens([FIRST]).tolist() == [7, 10, 11, 8]


def test_a_missing_token_is_named_with_its_user() -> None:
    plain = vocabulary()
    without_sep = Vocabulary(200, None, {"[CLS]": 3}, (), plain.special, plain.begins_word)
    with pytest.raises(UserError, match=r"a test: the tokenizer has no \[SEP\] or </s>"):
        encoder_template(without_sep, "a test")


def test_packed_documents_keep_their_segments_between_special_tokens() -> None:
    features = build_row_features(row([10, 11, 20, 0], [1, 1, 2, 0]), context(6, "encoder"))
    assert features["tokens"].tolist() == [CLS, 10, 11, 20, SEP, 0]
    assert features["segment_ids"].tolist() == [1, 1, 1, 2, 2, 0]
    assert features["positions"].tolist() == [0, 1, 2, 0, 1, 0]


def test_a_row_without_text_stays_empty() -> None:
    empty = np.zeros(0, np.int32)
    rows = (
        build_row_features(row([0, 0], [0, 0]), context(4, "encoder")),
        build_pair_features(empty, SECOND, context(4, "encoder")),
    )
    for features in rows:
        assert features["tokens"].tolist() == [0] * 4
        assert features["segment_ids"].tolist() == [0] * 4


def test_xlnets_text_keeps_the_type_of_its_last_token_without_the_padding() -> None:
    """XLNet's [CLS] is the last token and has the type 2."""
    plain = vocabulary()
    named = {"<sep>": SEP, "<cls>": CLS}
    xlnet = ExampleContext(6, Vocabulary(200, 1, named, (), plain.special, plain.begins_word), "encoder")
    features = without_padding(build_query_features("", lambda text: FIRST, xlnet))
    assert {name: values.tolist() for name, values in features.items()} == {
        "segment_ids": [1, 1, 1, 1],
        "token_types": [0, 0, 0, 2],
        "tokens": [10, 11, SEP, CLS],
    }
