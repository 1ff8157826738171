"""Tokenizers: trained ones, and files that others made."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers

from t5x_lite.config import RunConfig
from t5x_lite.data import tokenizer as tk
from t5x_lite.data import vocabulary
from t5x_lite.data.config import BPE, Character, TokenizerFile, Unigram
from t5x_lite.errors import UserError

SOURCE = Path(tk.__file__).read_text() + Path(vocabulary.__file__).read_text()
AWKWARD = [
    "  two  spaces\tand\n\n\ttabs \r\n",
    "ünïcödé 漢字 \U0001f600",
    " leading",
    "trailing ",
    "",
    "</s><pad>",
    "a" * 300,
]


@pytest.fixture(scope="module")
def trained() -> dict[str, tk.SentencePiece]:
    return {
        "unigram": vocabulary.train(Unigram(vocab=600, extra_ids=10), [SOURCE]),
        "bpe": vocabulary.train(BPE(vocab=600), [SOURCE]),
    }


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_identity_gives_every_text_back(trained: dict[str, tk.SentencePiece], kind: str) -> None:
    for text in [SOURCE, *AWKWARD]:
        assert trained[kind].decode(trained[kind].encode(text)) == text


def test_special_ids_and_size_are_t5s(trained: dict[str, tk.SentencePiece]) -> None:
    model = trained["unigram"]
    assert (model.pad, model.eos, model.unk, model.vocab) == (0, 1, 2, 600)
    assert [model.id_of(f"<extra_id_{n}>") for n in (0, 1, 9)] == [599, 598, 590]
    assert trained["bpe"].vocab == 600


def test_text_cannot_forge_a_sentinel_or_the_end(trained: dict[str, tk.SentencePiece]) -> None:
    model = trained["unigram"]
    ids = model.encode("<extra_id_0> </s> <pad>")
    assert ids.max() < 590
    assert not {0, 1} & set(ids.tolist())


def test_long_text_is_encoded_as_if_whole(
    trained: dict[str, tk.SentencePiece], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {kind: model.encode(SOURCE) for kind, model in trained.items()}
    monkeypatch.setattr(tk, "BLOCK", 200)
    for kind, model in trained.items():
        np.testing.assert_array_equal(model.encode(SOURCE), whole[kind])


def test_user_symbols_are_one_token() -> None:
    model = vocabulary.train(Unigram(vocab=400, symbols=("<tool>",)), [SOURCE])
    assert len(model.encode("<tool>")) == 1


def test_nfkc_normalises() -> None:
    model = vocabulary.train(Unigram(vocab=400, normalization="nmt_nfkc"), [SOURCE])
    assert model.decode(model.encode("ｆｕｌｌ　width")) == "full width"


def test_characters_of_tinyshakespeare(real_data: Path) -> None:
    text = (real_data / "tinyshakespeare/input.txt").read_text()
    model = vocabulary.train(Character(), [text])
    assert model.vocab == 65 + 3
    ids = model.encode(text)
    assert len(ids) == len(text)
    assert model.decode(ids) == text


def test_training_is_deterministic(trained: dict[str, tk.SentencePiece]) -> None:
    assert vocabulary.train(BPE(vocab=600), [SOURCE]).fingerprint == trained["bpe"].fingerprint


def test_a_vocabulary_beyond_the_text_is_refused_with_the_largest() -> None:
    with pytest.raises(UserError, match=r"tokenizer\.unigram\.vocab .* at most \d+"):
        vocabulary.train(Unigram(vocab=100_000), [SOURCE])
    with pytest.raises(UserError, match=r"tokenizer\.bpe\.vocab .* \d+ is the smallest possible"):
        vocabulary.train(BPE(vocab=270), [SOURCE])
    with pytest.raises(UserError, match="no text"):
        vocabulary.train(Unigram(), [])


def test_saved_and_loaded_is_the_same(trained: dict[str, tk.SentencePiece], tmp_path: Path) -> None:
    path = trained["bpe"].save(tmp_path)
    assert path.name == "tokenizer.model"
    for again in (tk.load(path), tk.load(tmp_path), pickle.loads(pickle.dumps(trained["bpe"]))):
        assert again.fingerprint == trained["bpe"].fingerprint
        np.testing.assert_array_equal(again.encode("def f(x):"), trained["bpe"].encode("def f(x):"))


def test_models_of_others(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "tokenizers"
    path = folder / "sentencepiece_test_1000.model"
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = tk.from_file(TokenizerFile(path=str(path)))
    assert ours.encode("Hello world, a test.").tolist() == reference.encode("Hello world, a test.")
    with_sentinels = tk.from_file(TokenizerFile(path=str(folder / "seqio_test_26.model"), extra_ids=100))
    plain = tk.from_file(TokenizerFile(path=str(folder / "seqio_test_26.model")))
    assert with_sentinels.vocab == plain.vocab + 100
    assert with_sentinels.id_of("<extra_id_0>") == with_sentinels.vocab - 1


def test_gpt2_and_bert_by_published_ids(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "tokenizers"
    gpt2 = tk.from_file(TokenizerFile(path=str(folder / "gpt2_encoder.json"), merges=str(folder / "gpt2_vocab.bpe")))
    # "Hello world" is 15496 995 and <|endoftext|> 50256 in every GPT-2 release.
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert (gpt2.vocab, gpt2.eos) == (50257, 50256)
    assert gpt2.decode(gpt2.encode("tabs\tand ünï\n")) == "tabs\tand ünï\n"
    bert = tk.from_file(TokenizerFile(path=str(folder / "bert_base_uncased_vocab.txt")))
    # "hello world" is 7592 2088, [PAD] 0, [SEP] 102, [UNK] 100 in bert-base-uncased.
    assert bert.encode("Hello World").tolist() == [7592, 2088]
    assert (bert.vocab, bert.pad, bert.eos, bert.unk) == (30522, 0, 102, 100)
    gpt2.save(tmp_path)
    assert tk.load(tmp_path).encode("Hello world").tolist() == [15496, 995]


def test_files_that_are_no_tokenizer_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.model is not there"):
        tk.from_file(TokenizerFile(path=str(tmp_path / "missing.model")))
    for name, content in {"a.model": b"junk", "a.json": b"{", "b.json": b'{"model": 3}'}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            tk.from_file(TokenizerFile(path=str(tmp_path / name)))
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(UserError, match=r"merges\.txt"):
        tk.from_file(TokenizerFile(path=str(tmp_path / "vocab.json")))


def test_a_tokenizer_json_is_read(tmp_path: Path) -> None:
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "hello": 1, "</s>": 2}, unk_token="<unk>"))
    other.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    other.save(str(tmp_path / "tokenizer.json"))
    ours = tk.load(tmp_path)
    assert ours.encode("hello there").tolist() == [1, 0]
    assert ours.eos == 2


def test_a_trained_tokenizer_is_kept_until_text_or_options_change(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(SOURCE)
    base = {"model": {"layers": 1, "embed": 8, "heads": 1}, "train": {"steps": 1, "batch_size": 1, "seq_len": 8}}
    data = {"files": str(tmp_path / "*.txt"), "cache_dir": str(tmp_path / "cache")}

    def folders(vocab: int) -> int:
        vocabulary.load_or_train_tokenizer(
            RunConfig.model_validate(base | {"data": data, "tokenizer": {"bpe": {"vocab": vocab}}})
        )
        return len(list((tmp_path / "cache").glob("tokenizer-*")))

    assert [folders(400), folders(400), folders(410)] == [1, 1, 2]
    (tmp_path / "a.txt").write_text(SOURCE + "more")
    assert folders(410) == 3
