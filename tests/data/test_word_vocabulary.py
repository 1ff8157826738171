"""Vocabularies of words: ids by frequency, words of a file, special tokens that text cannot spell."""

from pathlib import Path

import pytest

from t5x_lite.data.config import DataConfig
from t5x_lite.data.tokenizer_config import Words
from t5x_lite.data.tokenizer_files import load
from t5x_lite.data.vocabulary import load_or_train_tokenizer
from t5x_lite.data.word_vocabulary import read_words, train_words
from t5x_lite.errors import UserError

TEXT = "b a c\na b d , a. a. </s>"


def test_words_have_ids_by_frequency_and_then_by_the_alphabet(tmp_path: Path) -> None:
    """By hand: a and b occur twice, as does a. with its full stop; the comma comes first of the others."""
    trained = train_words(Words(vocab=8), [TEXT])
    pieces = ["<unk>", "a", "a.", "b", ",", "c", "<s>", "</s>"]
    assert [trained.piece(number) for number in range(trained.vocab)] == pieces
    assert trained.encode("a  b\tzebra a.").tolist() == [1, 3, 0, 2]
    assert trained.decode([1, 3, 7]) == "a b"
    trained.save(tmp_path)
    assert load(tmp_path / "tokenizer.json").encode("c a").tolist() == [5, 1]


def test_text_cannot_spell_the_end_of_a_text() -> None:
    trained = train_words(Words(vocab=8), [TEXT])
    assert (trained.unk, trained.eos) == (0, 7)
    assert trained.encode("a </s> <s> <unk>").tolist() == [1, 0, 0, 0]


def test_every_word_begins_a_word_and_its_place_is_known() -> None:
    trained = train_words(Words(vocab=9, split="punctuation", lowercase=True), [TEXT])
    ids, offsets = trained.encode_placed("A, zoo.")
    assert [trained.piece(token) for token in ids.tolist()] == ["a", ",", "<unk>", "."]
    assert offsets.tolist() == [[0, 1], [1, 2], [3, 6], [6, 7]]
    assert trained.vocabulary().begins_word.all()


def test_a_file_gives_its_first_words(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("</s>\n<s>\n<unk>\nthe\n\nquick\nthe\nfox\nover\njumps\n")
    config = Words(vocab=8, file=str(file))
    words = read_words(config)
    assert words.encode("the fox over jumps quick </s>").tolist() == [1, 3, 4, 5, 2, 0]
    assert load_or_train_tokenizer(config, DataConfig(files="none")).fingerprint == words.fingerprint
    with pytest.raises(UserError, match=r"vocab is more than .*vocab\.txt has: at most 8"):
        read_words(Words(vocab=9, file=str(file)))
    with pytest.raises(UserError, match=r"tokenizer\.words\.file .*absent\.txt: cannot be read"):
        read_words(Words(file=str(tmp_path / "absent.txt")))


def test_a_vocabulary_larger_than_the_text_is_refused() -> None:
    """Six words, and three special tokens of which the text has one as a word."""
    with pytest.raises(UserError, match=r"tokenizer\.words\.vocab is more than this text supports: at most 9"):
        train_words(Words(vocab=20), [TEXT])
    with pytest.raises(UserError, match="holds no text"):
        train_words(Words(vocab=20), [""])
    with pytest.raises(ValueError, match="controls must hold <unk>"):
        Words(controls=("<s>",))
