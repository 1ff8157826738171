"""Training of tokenizers, and their cache."""

from pathlib import Path

import pytest

from t5x_lite.data import sources, vocabulary
from t5x_lite.data.config import BPE, Character, DataConfig, Unigram
from t5x_lite.errors import UserError

SOURCE = Path(sources.__file__).read_text() + Path(vocabulary.__file__).read_text()


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


def test_training_is_deterministic() -> None:
    first = vocabulary.train(BPE(vocab=600), [SOURCE])
    second = vocabulary.train(BPE(vocab=600), [SOURCE])
    assert first.fingerprint == second.fingerprint


def test_a_vocabulary_that_the_text_does_not_support_is_refused_with_the_nearest_possible() -> None:
    with pytest.raises(UserError, match=r"tokenizer\.unigram\.vocab .* at most \d+"):
        vocabulary.train(Unigram(vocab=100_000), [SOURCE])
    with pytest.raises(UserError, match=r"tokenizer\.bpe\.vocab .* \d+ is the smallest possible"):
        vocabulary.train(BPE(vocab=270), [SOURCE])
    with pytest.raises(UserError, match="no text"):
        vocabulary.train(Unigram(), [])


def test_a_trained_tokenizer_is_cached_until_text_or_settings_change(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(SOURCE)
    data = DataConfig(files=(str(tmp_path / "*.txt"),), cache_dir=str(tmp_path / "cache"))

    def count_cached_after(vocab: int) -> int:
        vocabulary.load_or_train_tokenizer(BPE(vocab=vocab), data)
        return len(list((tmp_path / "cache").glob("tokenizer-*")))

    assert [count_cached_after(400), count_cached_after(400), count_cached_after(410)] == [1, 1, 2]
    (tmp_path / "a.txt").write_text(SOURCE + "more")
    assert count_cached_after(410) == 3
