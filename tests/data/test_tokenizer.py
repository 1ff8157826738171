"""Tokenizers: encoding and decoding, and the files of other libraries."""

import inspect
import json
import pickle
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers

from t5x_lite.data import tokenizer as our_tokenizers
from t5x_lite.data import tokenizer_files, vocabulary
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.tokenizer import SentencePiece
from t5x_lite.data.tokenizer_config import BPE, TokenizerFile, Unigram
from t5x_lite.errors import UserError

SOURCE = inspect.getsource(textwrap) + inspect.getsource(json.decoder)
AWKWARD_TEXTS = [
    "  two  spaces\tand\n\n\ttabs \r\n",
    "ünïcödé 漢字 \U0001f600",
    " leading",
    "trailing ",
    "",
    "</s><pad>",
    "a" * 300,
]


@pytest.fixture(scope="module")
def trained() -> dict[str, SentencePiece]:
    return {
        "unigram": vocabulary.train(Unigram(vocab=600, extra_ids=10), [SOURCE]),
        "bpe": vocabulary.train(BPE(vocab=600), [SOURCE]),
    }


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_with_identity_normalisation_every_text_is_decoded_exactly(
    trained: dict[str, SentencePiece], kind: str
) -> None:
    for text in [SOURCE, *AWKWARD_TEXTS]:
        assert trained[kind].decode(trained[kind].encode(text)) == text


def test_special_ids_and_size_are_t5s(trained: dict[str, SentencePiece]) -> None:
    model = trained["unigram"]
    assert (model.pad, model.eos, model.unk, model.vocab) == (0, 1, 2, 600)
    assert [model.id_of(f"<extra_id_{n}>") for n in (0, 1, 9)] == [599, 598, 590]
    assert trained["bpe"].vocab == 600


def test_ids_by_which_a_model_has_more_than_the_tokenizer_are_not_printed(trained: dict[str, SentencePiece]) -> None:
    """T5's models have 32,128 rows for 32,100 pieces, ByT5's 384 for 259 (Raffel et al. 2020; Xue et al. 2022)."""
    for model in (trained["unigram"], trained["bpe"], Bytes()):
        ids = model.encode("a text")
        assert model.decode([*ids, model.vocab, *ids, model.vocab + 27]) == model.decode([*ids, *ids])


def test_text_cannot_forge_a_sentinel_or_the_end(trained: dict[str, SentencePiece]) -> None:
    model = trained["unigram"]
    ids = model.encode("<extra_id_0> </s> <pad>")
    assert ids.max() < 590
    assert not {0, 1} & set(ids.tolist())


def test_text_is_encoded_in_blocks_to_the_ids_of_the_undivided_text(trained: dict[str, SentencePiece]) -> None:
    bpe = trained["bpe"]
    in_blocks = SentencePiece(bpe.file_bytes, block_characters=200)
    np.testing.assert_array_equal(in_blocks.encode(SOURCE), bpe.encode(SOURCE))

    # A text may have several divisions into unigrams of the same score, of which rounding chooses one.
    unigram = trained["unigram"]
    processor = sentencepiece.SentencePieceProcessor(model_proto=unigram.file_bytes)
    in_blocks = SentencePiece(unigram.file_bytes, block_characters=200)
    ids = in_blocks.encode(SOURCE)
    expected_ids = unigram.encode(SOURCE)
    assert len(ids) == len(expected_ids)
    assert in_blocks.decode(ids) == SOURCE
    score = sum(map(processor.get_score, ids.tolist()))
    assert score == pytest.approx(sum(map(processor.get_score, expected_ids.tolist())), rel=1e-6)


def test_blocks_of_a_tokenizer_that_adds_a_space_are_those_of_the_undivided_text() -> None:
    """nmt_nfkc puts a space before every text; a block inside a text must not get one."""
    text = " ".join(["Thequickbrownfoxjumpsoverthelazydog" * 20] * 3)
    model = vocabulary.train(Unigram(vocab=34, normalization="nmt_nfkc", byte_fallback=False), [text])
    in_blocks = SentencePiece(model.file_bytes, block_characters=100)
    assert in_blocks.decode(in_blocks.encode(text)) == text


def test_each_character_of_text_without_spaces_is_searched_once() -> None:
    searched_spans = []

    class NoBorder:
        def search(self, text: str, start: int = 0, stop: int | None = None) -> None:
            searched_spans.append((start, len(text) if stop is None else stop))

    text = "語" * 20_000
    blocks = list(our_tokenizers.cut_blocks(text, 100, NoBorder()))  # type: ignore[arg-type]
    assert "".join(blocks) == text
    assert len(blocks) == 200
    assert sum(stop - start for start, stop in searched_spans) <= len(text)


def test_white_space_of_every_kind_borders_words(trained: dict[str, SentencePiece]) -> None:
    text = "one\ntwo\tthree four\r\nfive"
    for model in [*trained.values(), Bytes()]:
        ids = model.encode(text)
        begins_word = model.begins_word()[ids]
        begins_word[1:] |= model.ends_word()[ids[:-1]]
        begins_word[0] = True
        words = [model.decode(word).strip() for word in np.split(ids, np.flatnonzero(begins_word)[1:])]
        assert [word for word in words if word] == ["one", "two", "three", "four", "five"]


def test_a_saved_tokenizer_is_loaded_as_it_was(trained: dict[str, SentencePiece], tmp_path: Path) -> None:
    original = trained["bpe"]
    path = original.save(tmp_path)
    assert path.name == "tokenizer.model"
    for copy in (tokenizer_files.load(path), tokenizer_files.load(tmp_path), pickle.loads(pickle.dumps(original))):
        assert copy.fingerprint == original.fingerprint
        np.testing.assert_array_equal(copy.encode("def f(x):"), original.encode("def f(x):"))


def test_sentencepiece_models_of_others(real_data: Path) -> None:
    folder = real_data / "tokenizers"
    path = folder / "sentencepiece_test_1000.model"
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    loaded = tokenizer_files.from_file(TokenizerFile(path=str(path)))
    assert loaded.encode("Hello world, a test.").tolist() == reference.encode("Hello world, a test.")
    file = str(folder / "seqio_test_26.model")
    with_sentinels = tokenizer_files.from_file(TokenizerFile(path=file, extra_ids=100))
    without_sentinels = tokenizer_files.from_file(TokenizerFile(path=file))
    assert with_sentinels.vocab == without_sentinels.vocab + 100
    assert with_sentinels.id_of("<extra_id_0>") == with_sentinels.vocab - 1


def test_gpt2_by_published_ids(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "tokenizers"
    config = TokenizerFile(path=str(folder / "gpt2_encoder.json"), merges=str(folder / "gpt2_vocab.bpe"))
    gpt2 = tokenizer_files.from_file(config)
    # "Hello world" is 15496 995 and <|endoftext|> 50256 in every GPT-2 release.
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert (gpt2.vocab, gpt2.eos) == (50257, 50256)
    assert gpt2.decode(gpt2.encode("tabs\tand ünï\n")) == "tabs\tand ünï\n"
    gpt2.save(tmp_path)
    assert tokenizer_files.load(tmp_path).encode("Hello world").tolist() == [15496, 995]


def test_bert_by_published_ids(real_data: Path) -> None:
    path = real_data / "tokenizers" / "bert_base_uncased_vocab.txt"
    bert = tokenizer_files.from_file(TokenizerFile(path=str(path)))
    # "hello world" is 7592 2088, [PAD] 0, [SEP] 102, [UNK] 100 in bert-base-uncased.
    assert bert.encode("Hello World").tolist() == [7592, 2088]
    assert (bert.vocab, bert.pad, bert.eos, bert.unk) == (30522, 0, 102, 100)


def test_files_that_are_no_tokenizer_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.model is not there"):
        tokenizer_files.from_file(TokenizerFile(path=str(tmp_path / "missing.model")))
    for name, content in {"a.model": b"junk", "a.json": b"{", "b.json": b'{"model": 3}'}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            tokenizer_files.from_file(TokenizerFile(path=str(tmp_path / name)))
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(UserError, match=r"merges\.txt"):
        tokenizer_files.from_file(TokenizerFile(path=str(tmp_path / "vocab.json")))


def test_a_tokenizer_json_is_read(tmp_path: Path) -> None:
    original = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "hello": 1, "</s>": 2}, unk_token="<unk>"))
    original.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    original.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizer_files.load(tmp_path)
    assert loaded.encode("hello there").tolist() == [1, 0]
    assert loaded.eos == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"vocab": {"a": 0, "b": 2**32 - 1}}}, "its largest token id is 4294967295"),
        ({"model": {"vocab": {"a": 0, "b": 10**9}}}, "its largest token id is 1000000000"),
        ({"model": {"vocab": [1]}}, "not a tokenizer that can be read"),
        (
            {"post_processor": {"special_tokens": {"</s>": {"id": "</s>", "ids": [77], "tokens": ["</s>"]}}}},
            r"puts \[77\]",
        ),
        ({"normalizer": 5}, "not a tokenizer that can be read"),
    ],
)
def test_a_tokenizer_json_of_another_shape_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    original = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "hello": 1, "</s>": 2}, unk_token="<unk>"))
    original.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    content = json.loads(original.to_str())
    for part, values in changes.items():
        content[part] = {**content[part], **values} if isinstance(values, dict) else values
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        tokenizer_files.load(tmp_path)
    for text in ("[]", "[" * 100_000, "1" * 10_000, ""):
        path.write_text(text)
        with pytest.raises(UserError, match=r"tokenizer\.json: "):
            tokenizer_files.load(tmp_path)


def test_text_that_a_damaged_tokenizer_cannot_encode_is_an_error(tmp_path: Path) -> None:
    original = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="<unk>"))
    original.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizer_files.load(tmp_path)
    assert loaded.encode("a").tolist() == [0]
    with pytest.raises(UserError, match=r"the tokenizer cannot encode a text: .*; its tokenizer\.json is damaged"):
        loaded.encode("b")
