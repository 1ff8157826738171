"""Training of byte-level BPE and WordPiece: published examples, the library's own trainers, and determinism."""

import inspect
import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.data import vocabulary
from t5x_lite.data.config import DataConfig
from t5x_lite.data.huggingface_tokenizer import HuggingFace
from t5x_lite.data.subword_training import train_byte_bpe, train_word_piece
from t5x_lite.data.tokenizer_config import ByteBPE, TokenizerFile, WordPiece
from t5x_lite.data.tokenizer_files import from_file
from t5x_lite.errors import UserError
from t5x_lite.run_data import open_run_data, open_tokenizer
from t5x_lite.run_dir import new_run
from tests.conftest import REPOSITORY

hypothesis = pytest.importorskip("hypothesis", reason="pip install hypothesis")

SOURCE = inspect.getsource(textwrap) + inspect.getsource(json.decoder)
SENNRICH = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
"""The words of Sennrich et al. 2016, §3.2, by their frequency."""
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def byte_bpe() -> HuggingFace:
    return train_byte_bpe(ByteBPE(vocab=600, extra_ids=10), [SOURCE])


@pytest.fixture(scope="module")
def word_piece() -> HuggingFace:
    return train_word_piece(WordPiece(vocab=500, extra_ids=10), [SOURCE, "naïve café"])


def test_the_merges_of_sennrichs_words_are_the_papers() -> None:
    """The paper merges e s, es t, l o, lo w (its end-of-word symbol is not part of a byte-level BPE)."""
    trained = train_byte_bpe(ByteBPE(vocab=1 + 256 + 4), SENNRICH)
    assert [trained.piece(257 + number) for number in range(4)] == ["es", "est", "lo", "low"]
    words = [[trained.piece(token) for token in trained.encode(word)] for word in ("lower", "lowest", "newest")]
    assert words == [["low", "e", "r"], ["low", "est"], ["n", "e", "w", "est"]]


def test_the_longest_piece_is_matched_first_as_in_berts_example() -> None:
    """BERT's tokenization.py: "unaffable" becomes un ##aff ##able."""
    texts = ["un"] * 9 + ["saff", "taff", "gaff", "cable", "table", "gable"] * 2
    merges = ["un", "##af", "##aff", "##ab", "##le", "##able"]
    trained = train_word_piece(WordPiece(vocab=5 + len("abcefglnstu") + len("nafble") + len(merges)), texts)
    assert {trained.piece(token) for token in range(trained.vocab - 6, trained.vocab)} == set(merges)
    assert [trained.piece(token) for token in trained.encode("Unaffable")] == ["un", "##aff", "##able"]
    assert trained.decode(trained.encode("unaffable")) == "unaffable"


def test_berts_own_test_of_its_tokenizer(tmp_path: Path) -> None:
    """BERT's tokenization_test.py, with its vocabulary, text and ids."""
    words = ["[UNK]", "[CLS]", "[SEP]", "want", "##want", "##ed", "wa", "un", "runn", "##ing", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    bert = from_file(TokenizerFile(path=str(tmp_path / "vocab.txt")))
    assert bert.encode("UNwant\u00e9d,running").tolist() == [7, 4, 5, 10, 8, 9]


@pytest.mark.parametrize("split", ["gpt2", "gpt4"])
def test_byte_bpe_is_that_of_the_librarys_trainer(split: str) -> None:
    ours = train_byte_bpe(ByteBPE(vocab=700, controls=("<s>", "<pad>"), split=split), [SOURCE, "日本語 don't 12345"])  # type: ignore[arg-type]
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split == "gpt4":
        # tiktoken's cl100k_base
        pattern = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+"
        )
        theirs.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<s>", "<pad>"], initial_alphabet=BYTES, show_progress=False
    )
    theirs.train_from_iterator([SOURCE, "日本語 don't 12345"], trainer)
    vocabulary_of_ours = {ours.piece(token): token for token in range(ours.vocab)}
    assert vocabulary_of_ours == theirs.get_vocab()
    for text in (SOURCE, "It's 123456\r\n\r\n  über", "日本語"):
        assert ours.encode(text).tolist() == theirs.encode(text).ids


def reference_word_piece(words: Counter[str], merges: int) -> list[str]:
    """Train by the definition: merge the most frequent pair; of equally frequent ones, that of the smallest ids."""
    pieces = {word: [word[0], *("##" + character for character in word[1:])] for word in words}
    characters = sorted({character for word in words for character in word})
    inside = sorted({piece for parts in pieces.values() for piece in parts[1:]})
    vocab = [*characters, *inside]
    for _ in range(merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in zip(pieces[word], pieces[word][1:], strict=False):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], vocab.index(pair[0]), vocab.index(pair[1])))
        merged = best[0] + best[1].removeprefix("##")
        vocab.append(merged)
        for parts in pieces.values():
            position = 0
            while position < len(parts) - 1:
                if (parts[position], parts[position + 1]) == best:
                    parts[position : position + 2] = [merged]
                position += 1
    return vocab


def test_word_piece_is_the_definition_computed_by_hand() -> None:
    text = "the quick brown fox jumps over a lazy dog while the other foxes jumped and barked over quick brown dogs"
    expected = reference_word_piece(Counter(text.split()), merges=30)
    ours = train_word_piece(WordPiece(vocab=5 + len(expected)), [text])
    assert [ours.piece(5 + number) for number in range(len(expected))] == expected


def test_word_piece_has_the_pieces_of_the_librarys_trainer_where_no_two_pairs_are_equally_frequent() -> None:
    """The library numbers pieces by a hash table, so that only their set can be compared."""
    texts = ["ab"] * 90 + ["abc"] * 41 + ["xyz"] * 35 + ["xyzw"] * 17 + ["mno"] * 7 + ["mnop"] * 4
    theirs = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    theirs.normalizer = normalizers.BertNormalizer(lowercase=True)
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    controls = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    size = 5 + 11 + 8 + 4
    theirs.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=controls, show_progress=False)
    )
    ours = train_word_piece(WordPiece(vocab=size), texts)
    assert {ours.piece(token) for token in range(ours.vocab)} == set(theirs.get_vocab())
    assert [ours.piece(token) for token in range(5)] == controls


def test_the_alphabet_keeps_the_most_frequent_characters() -> None:
    trained = train_word_piece(WordPiece(vocab=5 + 3 + 3, alphabet=3), ["aaaa bbbb cccc xa yb"])
    assert [trained.piece(token) for token in range(5, 11)] == ["a", "b", "c", "##a", "##b", "##c"]
    assert trained.encode("cab x").tolist() == [7, 8, 9, trained.unk]


TRAIN = """
from t5x_lite.data.tokenizer_config import ByteBPE, WordPiece
from t5x_lite.data.subword_training import train_byte_bpe, train_word_piece
import inspect, json, textwrap
texts = [inspect.getsource(textwrap), inspect.getsource(json.decoder), "naïve café 日本語"] * 4
print(train_byte_bpe(ByteBPE(vocab=700), texts).fingerprint, train_word_piece(WordPiece(vocab=700), texts).fingerprint)
"""


def test_training_does_not_depend_on_the_number_of_cores() -> None:
    fingerprints = set()
    for threads in ("1", "7"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads}
        command = [sys.executable, "-c", TRAIN]
        finished = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        fingerprints.add(finished.stdout)
    assert len(fingerprints) == 1


HARD_TEXTS = [
    SOURCE,
    "  two  spaces\tand\n\n\ttabs \r\n",
    "ünïcödé 漢字 \U0001f600 e\u0301 \u200d\ufeff\0\x1b\u2028",
    " leading and trailing ",
    "",
    " ",
    "<|endoftext|><extra_id_0> </s>",
    "ĠĊ▁##",
    "a" * 3000,
]


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_byte_bpe_decodes_hard_texts_exactly(byte_bpe: HuggingFace, text: str) -> None:
    assert byte_bpe.decode(byte_bpe.encode(text)) == text


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(text=hypothesis.strategies.text())
def test_byte_bpe_decodes_any_text_exactly(byte_bpe: HuggingFace, text: str) -> None:
    assert byte_bpe.decode(byte_bpe.encode(text)) == text


def test_special_tokens_are_first_and_sentinels_last(byte_bpe: HuggingFace, word_piece: HuggingFace) -> None:
    assert (byte_bpe.vocab, byte_bpe.eos, byte_bpe.id_of("<extra_id_0>")) == (600, 0, 599)
    assert byte_bpe.sentinels() == tuple(range(599, 589, -1))
    assert (word_piece.vocab, word_piece.pad, word_piece.unk, word_piece.eos) == (500, 0, 1, 3)
    assert word_piece.sentinels() == tuple(range(499, 489, -1))


def test_text_cannot_forge_a_special_token(byte_bpe: HuggingFace, word_piece: HuggingFace) -> None:
    for trained in (byte_bpe, word_piece):
        for copy in (trained, pickle.loads(pickle.dumps(trained))):
            ids = copy.encode("<|endoftext|> [MASK] <extra_id_0>")
            assert not set(ids.tolist()) & (set(copy.special.values()) - {copy.unk})
            assert copy.fingerprint == trained.fingerprint
    assert byte_bpe.encode_named("a<|endoftext|>").tolist() == [*byte_bpe.encode("a"), 0]


def test_lower_casing_is_an_option() -> None:
    lower = train_word_piece(WordPiece(vocab=150), [SOURCE, "Naïve"])
    cased = train_word_piece(WordPiece(vocab=200, lowercase=False), [SOURCE, "Naïve"])
    assert lower.decode(lower.encode("NAIVE naïve")) == "naive naive"
    assert cased.decode(cased.encode("Naïve")) == "Naïve"


def test_a_vocabulary_that_the_text_does_not_support_is_refused_with_the_nearest_possible() -> None:
    with pytest.raises(UserError, match=r"tokenizer\.byte_bpe\.vocab .* at most 266"):
        train_byte_bpe(ByteBPE(vocab=1000, extra_ids=7), SENNRICH[:1])
    with pytest.raises(UserError, match=r"tokenizer\.byte_bpe\.vocab .* 264 is the smallest possible"):
        train_byte_bpe(ByteBPE(vocab=100, extra_ids=7), SENNRICH)
    with pytest.raises(UserError, match=r"tokenizer\.wordpiece\.vocab .* 10 is the smallest possible"):
        train_word_piece(WordPiece(vocab=8), ["low"])
    with pytest.raises(UserError, match="at most 12"):
        train_word_piece(WordPiece(vocab=100), ["low"])
    for train, config in ((train_byte_bpe, ByteBPE()), (train_word_piece, WordPiece())):
        with pytest.raises(UserError, match="no text"):
            train(config, [])  # type: ignore[operator]


def test_word_piece_needs_a_token_for_unknown_text(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("tokenizer: {wordpiece: {controls: ['[CLS]', '[SEP]']}}\n")
    with pytest.raises(UserError, match=r"tokenizer.*\[UNK\]"):
        configuration.load(path, [])


def test_long_texts_are_cut_where_no_word_is(monkeypatch: pytest.MonkeyPatch) -> None:
    entire = [train_byte_bpe(ByteBPE(vocab=500), [SOURCE]), train_word_piece(WordPiece(vocab=300), [SOURCE])]
    monkeypatch.setattr("t5x_lite.data.subword_training.BLOCK_CHARACTERS", 400)
    cut = [train_byte_bpe(ByteBPE(vocab=500), [SOURCE]), train_word_piece(WordPiece(vocab=300), [SOURCE])]
    assert [trained.file_bytes for trained in cut] == [trained.file_bytes for trained in entire]


def test_only_the_sample_is_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("slow lowest " * 500 + "wide " * 1000)
    data = DataConfig(files=(str(tmp_path / "a.txt"),), cache_dir=str(tmp_path / "cache"))
    sampled = vocabulary.load_or_train_tokenizer(ByteBPE(vocab=260, sample_megabytes=0.002), data)
    assert "wide" not in {sampled.piece(token) for token in range(sampled.vocab)}
    again = vocabulary.load_or_train_tokenizer(ByteBPE(vocab=260, sample_megabytes=0.002), data)
    assert again.fingerprint == sampled.fingerprint
    assert len(list((tmp_path / "cache").glob("tokenizer-*/tokenizer.json"))) == 1


def test_words_begin_without_the_sign_of_a_continuation(word_piece: HuggingFace) -> None:
    ids = word_piece.encode("The textwrapping, done")
    words = np.split(ids, np.flatnonzero(word_piece.begins_word()[ids])[1:])
    assert [word_piece.decode(word) for word in words] == ["the", "textwrapping", ",", "done"]


def test_a_byte_level_vocabulary_with_the_piece_of_a_heading_is_no_word_piece() -> None:
    """GPT-2's vocabulary has the piece ##, as Markdown's headings do."""
    trained = train_byte_bpe(ByteBPE(vocab=270), ["## heading ## heading text"] * 3)
    assert trained.id_of("##") is not None
    ids = trained.encode("a heading text")
    words = np.split(ids, np.flatnonzero(trained.begins_word()[ids]))
    assert [trained.decode(word) for word in words] == ["a", " heading", " text"]


WORD_PIECE_RUN = (
    "tokenizer={wordpiece: {vocab: 100}}",
    "model={family: encoder, outputs: [tokens, sentence], token_types: 2, layers: 1, embed: 16, heads: 2}",
    "objective={masked: {sentences: next, spans: word}}",
    "data.parts=line",
    "data.packing=sentences",
    "data.end_of_document=false",
)
BYTE_BPE_RUN = (
    "tokenizer={byte_bpe: {vocab: 330, controls: [<s>, <pad>, </s>, <unk>, <mask>]}}",
    *WORD_PIECE_RUN[1:],
)
RUNS = {"wordpiece": WORD_PIECE_RUN, "byte_bpe": BYTE_BPE_RUN}


def run_settings(kind: str, prose: Path, folder: Path) -> list[str]:
    """Write one file of text with a document in each paragraph, and return the settings of a run on it."""
    text = folder / "text.txt"
    text.write_text("\n".join(path.read_text() for path in sorted(prose.glob("*.txt"))))
    places = [
        f"run_dir={folder}/run",
        f"data.files={text}",
        f"data.cache_dir={folder}/cache",
        "data.prepare_processes=1",
    ]
    return [*RUNS[kind], *places, "data.document=paragraph", "train.seq_len=32"]


@pytest.mark.parametrize("kind", list(RUNS))
def test_a_run_has_one_tokenizer_for_life(kind: str, tiny_config: Path, prose: Path, tmp_path: Path) -> None:
    settings = run_settings(kind, prose, tmp_path)
    assert main(["prepare", str(tiny_config), *settings]) == 0
    config = configuration.load(tiny_config, settings)
    new_run(config, open_tokenizer(config)).save()
    run = tmp_path / "run"
    cached = next((tmp_path / "cache").glob("tokenizer-*/tokenizer.json"))
    assert (run / "tokenizer.json").read_bytes() == cached.read_bytes()
    assert json.loads((run / "tokenizer_config.json").read_text()) == {"split_special_tokens": True}
    assert not (run / "tokenizer.model").exists()
    with (tmp_path / "text.txt").open("a") as file:
        file.write("Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.\n" * 50)
    stored = open_tokenizer(config)
    assert stored.file_bytes == cached.read_bytes()
    assert not set(stored.encode("[MASK] <mask>").tolist()) & (set(stored.special.values()) - {stored.unk})
    from_another_run = from_file(TokenizerFile(path=str(run / "tokenizer.json")))
    assert from_another_run.fingerprint == stored.fingerprint


@pytest.mark.parametrize("kind", list(RUNS))
def test_sentence_pairs_and_masked_words_are_those_of_the_text(
    kind: str, tiny_config: Path, prose: Path, tmp_path: Path
) -> None:
    config = configuration.load(tiny_config, run_settings(kind, prose, tmp_path))
    tokenizer = open_tokenizer(config)
    rows = open_run_data(config, tokenizer).rows()
    begins_word = tokenizer.begins_word()
    text = " ".join((tmp_path / "text.txt").read_text().split())
    special = list(tokenizer.special.values())
    labels = set()
    for number in range(20):
        example = rows[number]
        count = int(example["loss_weights"].sum())
        targets = example["target_positions"][:count]
        original = example["tokens"].copy()
        original[targets] = example["targets"][:count]
        for passage in np.split(original, np.flatnonzero(np.isin(original, special))):
            assert tokenizer.decode(passage).replace(" .", ".").strip().removeprefix("##") in text
        for position in targets:  # with a piece of a word the next one is masked too
            next_token = int(original[position + 1])
            is_same_word = not begins_word[next_token] and next_token not in special
            assert not is_same_word or position + 1 in targets
        labels.add(int(example["sentence_targets"]))
    assert labels == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(RUNS))
def test_a_run_is_trained_and_resumed(kind: str, tiny_config: Path, prose: Path, tmp_path: Path) -> None:
    settings = run_settings(kind, prose, tmp_path)
    assert main(["train", str(tiny_config), *settings, "train.steps=4"]) == 0
    assert main(["train", str(tiny_config), *settings, "train.steps=8", "train.allow_changed_config=true"]) == 0
    loaded = t5x_lite.load(tmp_path / "run")
    assert loaded.step == 8
    assert loaded.tokenizer.file_bytes == (tmp_path / "run/tokenizer.json").read_bytes()


def test_shipped_configs_train_the_tokenizer_of_their_family() -> None:
    kinds = {
        "gpt2/117m": "byte_bpe",
        "gpt3/125m": "byte_bpe",
        "gptneo/125m": "byte_bpe",
        "opt/125m": "byte_bpe",
        "roberta/base": "byte_bpe",
        "llama3/8b": "byte_bpe",
        "bert/base": "wordpiece",
        "electra/base": "wordpiece",
        "albert/base": "unigram",
        "t5/base": "unigram",
        "xlnet/base": "unigram",
        "llama/7b": "bpe",
        "byt5/base": "bytes",
        "bart/base": "byte_bpe",
        "deberta/base": "byte_bpe",
        "deberta_v3/base": "unigram",
        "bert/multilingual": "wordpiece",
        "neobert/250m": "wordpiece",
        "modernbert/base": "byte_bpe",
        "ettin/decoder_17m": "byte_bpe",
        "xlm/mlm_en_2048": "bpe",
        "xlm_roberta/base": "unigram",
        "bloom/560m": "byte_bpe",
        "falcon/7b": "byte_bpe",
        "smollm/135m": "byte_bpe",
        "qwen2.5/0.5b": "byte_bpe",
        "qwen3/0.6b": "byte_bpe",
        "gemma/2b": "bpe",
        "gemma3/1b": "bpe",
        "recurrentgemma/2b": "bpe",
        "t5gemma/b": "bpe",
        "deepseek_v3/671b": "byte_bpe",
        "gpt_oss/20b": "byte_bpe",
        "mamba2/130m": "byte_bpe",
    }
    for name, kind in kinds.items():
        config = configuration.load(REPOSITORY / f"configs/{name}.yaml", ["data.files=x"])
        assert list(config.model_dump(mode="json")["tokenizer"]) == [kind], name
