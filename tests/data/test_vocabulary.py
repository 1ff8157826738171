"""Training of tokenizers, and their cache."""

import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from t5x_lite import config as configuration
from t5x_lite.data import vocabulary
from t5x_lite.data.config import DataConfig
from t5x_lite.data.sources import SMALLEST_UNIT
from t5x_lite.data.tokenizer_config import BPE, ByteBPE, Character, TokenizerConfig, Unigram, WordPiece, Words
from t5x_lite.errors import UserError
from t5x_lite.run_data import open_tokenizer
from tests.conftest import write_task

SOURCE = inspect.getsource(textwrap) + inspect.getsource(json.decoder)


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


TRAIN = """
import inspect, json, textwrap
from t5x_lite import config as configuration
from t5x_lite.data import vocabulary
from t5x_lite.data.tokenizer_config import Unigram
texts = [inspect.getsource(textwrap), inspect.getsource(json.decoder)] * 4
print(vocabulary.train(Unigram(vocab=600), texts).fingerprint)
"""


def test_training_does_not_depend_on_the_number_of_cores() -> None:
    one_core = f"import os; os.cpu_count = lambda: 1; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    many_cores = "import os; os.cpu_count = lambda: 64"
    fingerprints = set()
    for cores in (one_core, many_cores):
        finished = subprocess.run(
            [sys.executable, "-c", f"{cores}\n{TRAIN}"], check=True, capture_output=True, text=True
        )
        fingerprints.add(finished.stdout)
    assert len(fingerprints) == 1


def test_a_vocabulary_that_the_text_does_not_support_is_refused_with_the_nearest_possible() -> None:
    with pytest.raises(UserError, match=r"tokenizer\.unigram\.vocab .* at most \d+"):
        vocabulary.train(Unigram(vocab=100_000), [SOURCE])
    with pytest.raises(UserError, match=r"tokenizer\.bpe\.vocab .* \d+ is the smallest possible"):
        vocabulary.train(BPE(vocab=270), [SOURCE])
    with pytest.raises(UserError, match="no text"):
        vocabulary.train(Unigram(), [])


def test_special_tokens_that_do_not_fit_are_refused_with_the_config() -> None:
    with pytest.raises(ValueError, match="vocab 64 has no room beside 105 special tokens and extra_ids"):
        Unigram(vocab=64, extra_ids=100, controls=("[CLS]", "[SEP]"))
    with pytest.raises(ValueError, match=r"\[CLS\]: named twice among controls and symbols"):
        BPE(controls=("[CLS]", "[CLS]"))
    for config in (ByteBPE, WordPiece):
        with pytest.raises(ValueError, match=r"\[UNK\]: named twice among controls"):
            config(controls=("[UNK]", "[UNK]"))
        with pytest.raises(ValueError, match="<extra_id_0>: extra_ids adds the sentinels"):
            config(controls=("[UNK]", "<extra_id_0>"), extra_ids=2)
        config(controls=("[UNK]", "<extra_id_0>"))
    for name in ("<pad>", "</s>", "<unk>", "<extra_id_7>", "<0x41>", ""):
        with pytest.raises(ValueError, match=f"{name!r}: no name of a control or symbol"):
            Unigram(controls=("[CLS]", name))
        with pytest.raises(ValueError, match=f"{name!r}: no name of a control or symbol"):
            Character(symbols=(name,))


def test_a_sample_is_spread_over_each_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """About four pieces of nine: every other one of the eight of a source, and the only one of another."""
    monkeypatch.setattr(vocabulary, "SAMPLED_UNITS", 4)
    (tmp_path / "large").mkdir()
    for name in "abcdefgh":
        (tmp_path / "large" / f"{name}.txt").write_text(f"{name} " * SMALLEST_UNIT)
    (tmp_path / "small.txt").write_text("z")
    mixture = [
        {"name": "large", "files": [f"{tmp_path}/large/*.txt"]},
        {"name": "small", "files": [f"{tmp_path}/small.txt"]},
    ]
    data = DataConfig.model_validate({"mixture": mixture, "cache_dir": str(tmp_path / "cache")})
    tokenizer = vocabulary.load_or_train_tokenizer(Words(vocab=8), data)
    assert {tokenizer.piece(number) for number in range(1, 6)} == {"a", "c", "e", "g", "z"}


def test_a_trained_tokenizer_is_cached_until_text_or_settings_change(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(SOURCE)
    data = DataConfig(files=(str(tmp_path / "*.txt"),), cache_dir=str(tmp_path / "cache"))

    def count_cached_after(vocab: int) -> int:
        vocabulary.load_or_train_tokenizer(BPE(vocab=vocab), data)
        return len(list((tmp_path / "cache").glob("tokenizer-*")))

    assert [count_cached_after(400), count_cached_after(400), count_cached_after(410)] == [1, 1, 2]
    (tmp_path / "a.txt").write_text(SOURCE + "more")
    assert count_cached_after(410) == 3


@pytest.mark.parametrize("kind", [Unigram(vocab=300), ByteBPE(vocab=300), Words(vocab=8)])
def test_files_without_text_are_named(tmp_path: Path, kind: TokenizerConfig) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text("")
    data = DataConfig(files=(str(tmp_path / "*.txt"),), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError) as caught:
        vocabulary.load_or_train_tokenizer(kind, data)
    names = ", ".join(str(tmp_path / f"{name}.txt") for name in "abc")
    assert str(caught.value) == f"no text to train a tokenizer on in {names} and 1 more; set data.files"


def test_no_tokenizer_is_trained_on_a_table_unless_tasks_read_it(tiny_config: Path, tmp_path: Path) -> None:
    table = tmp_path / "train.tsv"
    table.write_text("text\tlabel\n" + SOURCE.replace("\t", " "))
    settings = [f"data.files={table}", f"data.cache_dir={tmp_path}/cache", f"run_dir={tmp_path}/run"]
    settings += ["tokenizer=bpe", "tokenizer.bpe.vocab=400"]
    with pytest.raises(UserError, match=r"train\.tsv is not read, because \.tsv is not a format of text"):
        open_tokenizer(configuration.load(tiny_config, settings))
    assert not (tmp_path / "cache").exists()
    write_task(tmp_path / "task.yaml")
    assert open_tokenizer(configuration.load(tiny_config, [*settings, f"tasks={tmp_path}/task.yaml"])).vocab == 400
