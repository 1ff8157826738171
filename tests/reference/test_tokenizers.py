"""Tokenizers in exported and imported folders against `AutoTokenizer` of Transformers: ids, and special tokens."""

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

from t5x_lite.convert import MODEL_TYPES  # noqa: E402
from t5x_lite.convert.exported_tokenizer import write_tokenizer  # noqa: E402
from t5x_lite.convert.imported_tokenizer import load_tokenizer  # noqa: E402
from t5x_lite.data import vocabulary  # noqa: E402
from t5x_lite.data.byte_tokenizer import Bytes  # noqa: E402
from t5x_lite.data.sentencepiece_conversion import to_tokenizers  # noqa: E402
from t5x_lite.data.subword_training import train_byte_bpe, train_word_piece  # noqa: E402
from t5x_lite.data.tokenizer import SentencePiece, Tokenizer  # noqa: E402
from t5x_lite.data.tokenizer_config import BPE, ByteBPE, Character, Unigram, WordPiece  # noqa: E402
from t5x_lite.data.tokenizer_files import load  # noqa: E402
from t5x_lite.errors import UserError  # noqa: E402
from t5x_lite.models.config import ModelConfig  # noqa: E402
from t5x_lite.models.spec import model_spec  # noqa: E402
from t5x_lite.objectives.objective import ExampleContext  # noqa: E402
from t5x_lite.objectives.special_tokens import build_text_features, encoder_template  # noqa: E402
from t5x_lite.objectives.supervised import TaskTokenizer  # noqa: E402
from t5x_lite.objectives.text_to_text import TextToText  # noqa: E402
from t5x_lite.run_dir import Run  # noqa: E402

ENGLISH = (
    "The quick brown fox doesn't jump over 12,345 lazy dogs; it's \"resting\" (since 1999) at http://x.org/a_b?c=d."
)
TEXTS = [
    ENGLISH,
    "naïve café Straße ÀÉÎÕÜ Łódź e\u0301a\u0308 \ufb01 ½ ①",
    "日本語のテキスト。漢字とカタカナ ｆｕｌｌ　width 한국어 \u1112\u1161\u11ab",
    "emoji \U0001f600\U0001f600 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "lines\n\nand\n  indented\n\ttabs\r\n",
    "double  spaces   three    four ",
    "  leading and trailing  ",
    "",
    "   ",
    "no\u00a0break\u2028line <0x0A> ##x Ġ▁",
    "def f(x):\n    return [y for y in x if y]\n",
]
COMPOSED_TEXTS = [unicodedata.normalize("NFC", text) for text in TEXTS]
"""Without the decomposed Korean that Transformers does not compose as SentencePiece does."""
TRAINING_TEXT = [f"{text} {word}" for text in TEXTS for word in ("fox", "dogs", "resting", "jump", "quick", "lazy")] * 3
ENCODER = {"family": "encoder", "token_types": 2}
DECODER = {"family": "decoder"}
ENCODER_DECODER = {"family": "encoder_decoder"}
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BERT = ("[CLS]", "[SEP]", "[MASK]")
TRAINED: dict[str, tuple[Callable[[], Tokenizer], dict[str, Any], str]] = {
    "unigram, GPT": (lambda: vocabulary.train(Unigram(vocab=370), TRAINING_TEXT), DECODER, "llama"),
    "unigram, T5": (
        lambda: vocabulary.train(Unigram(vocab=370, extra_ids=20, normalization="nmt_nfkc"), TRAINING_TEXT),
        ENCODER_DECODER,
        "t5",
    ),
    "unigram, ALBERT": (
        lambda: vocabulary.train(Unigram(vocab=370, controls=BERT, normalization="nmt_nfkc_cf"), TRAINING_TEXT),
        ENCODER,
        "albert",
    ),
    "unigram with symbols": (
        lambda: vocabulary.train(Unigram(vocab=370, symbols=("<tool>",)), TRAINING_TEXT),
        DECODER,
        "qwen3",
    ),
    "bpe, Llama": (lambda: vocabulary.train(BPE(vocab=450), TRAINING_TEXT), DECODER, "llama"),
    "bpe, T5": (
        lambda: vocabulary.train(BPE(vocab=450, extra_ids=20, normalization="nmt_nfkc"), TRAINING_TEXT),
        ENCODER_DECODER,
        "t5",
    ),
    "character": (lambda: vocabulary.train(Character(), TRAINING_TEXT), DECODER, "gpt2"),
    "bytes": (Bytes, ENCODER_DECODER, "t5"),
    "byte_bpe, GPT-2": (lambda: train_byte_bpe(ByteBPE(vocab=400), TRAINING_TEXT), DECODER, "gpt2"),
    "byte_bpe, Llama 3": (
        lambda: train_byte_bpe(ByteBPE(vocab=400, split="gpt4", controls=("<a>", "<|end_of_text|>")), TRAINING_TEXT),
        DECODER,
        "llama",
    ),
    "byte_bpe, RoBERTa": (
        lambda: train_byte_bpe(ByteBPE(vocab=400, controls=ROBERTA), TRAINING_TEXT),
        {"family": "encoder", "token_types": 1},
        "roberta",
    ),
    "wordpiece, BERT": (lambda: train_word_piece(WordPiece(vocab=280), TRAINING_TEXT), ENCODER, "bert"),
    "wordpiece, cased": (
        lambda: train_word_piece(WordPiece(vocab=300, lowercase=False), TRAINING_TEXT),
        ENCODER,
        "electra",
    ),
}


def export_tokenizer(tokenizer: Tokenizer, model_settings: dict[str, Any], model_type: str, folder: Path) -> Any:
    """Write a tokenizer as the export of a run does, and load it with AutoTokenizer."""
    model = ModelConfig(layers=1, embed=8, heads=1, vocab=tokenizer.vocab, **model_settings)
    run_dir = folder / "run"
    tokenizer.save(run_dir)
    out = folder / "out"
    out.mkdir()
    (out / "config.json").write_text(json.dumps({"model_type": model_type}))
    run = Run(run_dir, None, model_spec(model), load(run_dir))  # type: ignore[arg-type]
    write_tokenizer(run, out, model, MODEL_TYPES[model_type].tokenizer_class)
    return transformers.AutoTokenizer.from_pretrained(out)


@pytest.mark.parametrize("name", list(TRAINED))
def test_ids_of_a_tokenizer_that_was_trained_here_are_those_of_its_export(name: str, tmp_path: Path) -> None:
    train, model_settings, model_type = TRAINED[name]
    ours = train()
    theirs = export_tokenizer(ours, model_settings, model_type, tmp_path)
    assert len(theirs) == ours.vocab
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id) == (ours.eos, ours.pad, ours.unk)
    for text in [*TEXTS, "call <tool>now <tool> x<tool>"]:
        ids = ours.encode(text).tolist()
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids, text
    first, second = (ours.encode(text).tolist() for text in (ENGLISH, "a dog"))
    pair = theirs(ENGLISH, "a dog")
    single = theirs(ENGLISH)["input_ids"]
    if model_settings["family"] == "encoder":
        names = BERT if "[CLS]" in ours.special else ("<s>", "</s>", "<mask>")
        cls, sep, mask = (ours.special[name] for name in names)
        assert (theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id) == (cls, sep, mask)
        assert single == [cls, *first, sep]
        assert pair["input_ids"] == [cls, *first, sep, *second, sep]
        if model_settings["token_types"] == 2:
            assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    elif model_settings["family"] == "encoder_decoder":
        assert single == [*first, ours.eos]
    else:
        assert single == first
        assert theirs.bos_token_id == ours.eos


@pytest.mark.parametrize("name", ["unigram, T5", "bpe, T5", "wordpiece, BERT", "byte_bpe, RoBERTa"])
def test_names_of_special_tokens_in_a_prompt_are_the_tokens(name: str, tmp_path: Path) -> None:
    train, model_settings, model_type = TRAINED[name]
    ours = train()
    theirs = export_tokenizer(ours, model_settings, model_type, tmp_path)
    special = list(ours.special)[-1]
    text = f"the quick {special} fox"
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids == ours.encode_named(text).tolist()
    assert ours.special[special] in ids


def test_decoded_texts_are_equal(tmp_path: Path) -> None:
    for number, name in enumerate(["unigram, GPT", "bpe, Llama", "byte_bpe, GPT-2", "bytes"]):
        train, model_settings, model_type = TRAINED[name]
        ours = train()
        theirs = export_tokenizer(ours, model_settings, model_type, tmp_path / str(number))
        for text in TEXTS[:7]:
            assert theirs.decode(ours.encode(text).tolist(), skip_special_tokens=True) == ours.decode(ours.encode(text))


PUBLISHED = ("seqio_test_26.model", "sentencepiece_test_1000.model")


@pytest.mark.parametrize("name", PUBLISHED)
def test_sentencepiece_models_of_others_are_converted_to_equal_ids(name: str, real_data: Path) -> None:
    model = (real_data / "tokenizers" / name).read_bytes()
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    converted = to_tokenizers(model)
    shakespeare = (real_data / "tinyshakespeare/input.txt").read_text()[:20_000].split("\n\n")
    for text in [*TEXTS, *shakespeare]:
        assert converted.encode(text, add_special_tokens=False).ids == reference.encode(text), text


def test_normalisation_of_every_character_is_sentencepieces() -> None:
    model = vocabulary.train(Unigram(vocab=370, normalization="nmt_nfkc"), TRAINING_TEXT).file_bytes
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    normalizer = to_tokenizers(model).normalizer
    syllables = [
        chr(0x1100 + a) + chr(0x1161 + b) + chr(0x11A8 + c) for a in range(19) for b in range(21) for c in (0, 7)
    ]
    voiced = [chr(base) + "\u3099" for base in range(0x304B, 0x3062, 2)]
    accented = [letter + chr(mark) for letter in "aeinouyAEINOUY" for mark in range(0x300, 0x30D)]
    characters = [chr(code) for code in range(1, 0x10000) if not 0xD800 <= code < 0xE000]
    for text in [*characters, *syllables, *voiced, *accented]:
        expected = reference.normalize(f"q{text}q")
        assert normalizer.normalize_str(f"q{text}q") == expected, ascii(text)


def test_a_bpe_with_symbols_that_adds_spaces_has_no_equal_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = vocabulary.train(BPE(vocab=450, symbols=("<tool>",), normalization="nmt_nfkc"), TRAINING_TEXT)
    with pytest.raises(UserError, match="cannot express user symbols"):
        ours.to_tokenizers()
    model = ModelConfig(layers=1, embed=8, heads=1, vocab=ours.vocab)
    ours.save(tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    run = Run(tmp_path / "run", None, model_spec(model), load(tmp_path / "run"))  # type: ignore[arg-type]
    write_tokenizer(run, out, model, "LlamaTokenizer")
    assert [path.name for path in out.iterdir()] == ["tokenizer.model"]
    assert "no tokenizer.json" in capsys.readouterr().err


DECODERS = {"gpt2", "opt", "qwen3"}
"""Model types whose tokenizers put nothing after a text: the model goes on with it."""


def compare_import(folder: Path, model_type: str, texts: list[str]) -> tuple[Tokenizer, Any]:
    """Read the tokenizer of a folder here and by AutoTokenizer, and check that the ids of texts are equal."""
    config_path = folder / "config.json"
    if not config_path.is_file():
        config_path.write_text(json.dumps({"model_type": model_type}))
    config = json.loads(config_path.read_text())
    ours = load_tokenizer(folder, MODEL_TYPES[model_type].tokenizer_class, config)
    assert ours is not None
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in texts:
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"], text
    ending = [] if model_type in DECODERS else ours.suffix_tokens().tolist()
    assert [*ours.prefix_tokens(), *ours.encode(ENGLISH), *ending] == theirs(ENGLISH)["input_ids"]
    return ours, theirs


def write_byte_level(folder: Path, special: tuple[str, ...]) -> None:
    """Write the vocab.json and merges.txt of a byte-level BPE whose first entries have the names `special`."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = tokenizers.Tokenizer.from_str(
        train_byte_bpe(ByteBPE(vocab=400, controls=special), TRAINING_TEXT).file_bytes.decode()
    )
    trained.model.save(str(folder))


NAMES = "a <unk> b <pad> c</s> d <s> <mask> e <|endoftext|>"


def test_gpt2s_two_files_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    write_byte_level(tmp_path, ("<|endoftext|>",))
    ours, theirs = compare_import(tmp_path, "gpt2", [*TEXTS, NAMES])
    assert ours.eos == theirs.eos_token_id == 0


def test_robertas_two_files_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    write_byte_level(tmp_path, ROBERTA)
    ours, theirs = compare_import(tmp_path, "roberta", [*TEXTS, NAMES])
    assert [ours.id_of(name) for name in ROBERTA] == theirs.convert_tokens_to_ids(list(ROBERTA)) == [0, 1, 2, 3, 4]
    assert ours.eos == theirs.eos_token_id
    first, second = (ours.encode(text) for text in (ENGLISH, "a dog"))
    pair = theirs(ENGLISH, "a dog")["input_ids"]
    assert encoder_template(ours.vocabulary(), "test").tokens([first, second]).tolist() == pair
    context = ExampleContext(len(pair), ours.vocabulary(), "encoder")
    assert build_text_features([first, second], context)["tokens"].tolist() == pair


def test_a_pair_for_bart_is_that_of_its_fine_tuning_in_transformers(tmp_path: Path) -> None:
    write_byte_level(tmp_path, ROBERTA)
    ours, theirs = compare_import(tmp_path, "bart", TEXTS[:2])
    inputs = theirs("The quick fox")["input_ids"]
    labels = theirs(text_target="lazy dogs")["input_ids"]
    shifted = transformers.models.bart.modeling_bart.shift_tokens_right(torch.tensor([labels]), 1, 2)
    tokenizer = TaskTokenizer(ours.encode, ours.encode_placed, ours.decode)
    context = ExampleContext(len(inputs), ours.vocabulary(), "encoder_decoder", start_token=2)
    features = TextToText(target_len=len(labels)).records_example("The quick fox", "lazy dogs", tokenizer, context)
    assert features["tokens"].tolist() == inputs
    assert features["targets"].tolist() == labels
    assert features["decoder_tokens"].tolist() == shifted[0].tolist()


def test_special_tokens_that_a_vocabulary_lacks_are_appended_as_transformers_does(tmp_path: Path) -> None:
    write_byte_level(tmp_path, ("<s>", "<pad>"))
    ours, theirs = compare_import(tmp_path, "roberta", [*TEXTS, NAMES])
    assert [ours.id_of(name) for name in ROBERTA] == theirs.convert_tokens_to_ids(list(ROBERTA))
    assert ours.vocab == len(theirs) == 403


OPT = ("<s>", "<pad>", "</s>", "<unk>")
OPT_SETTINGS = {
    "add_bos_token": True,
    "add_prefix_space": False,
    "bos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": True, "rstrip": False},
    "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": True, "rstrip": False},
    "pad_token": {"__type": "AddedToken", "content": "<pad>", "lstrip": False, "normalized": True, "rstrip": False},
    "unk_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": True, "rstrip": False},
    "tokenizer_class": "GPT2Tokenizer",
}
"""The settings in facebook/opt-125m."""


def test_unk_in_a_text_for_opt_is_text(tmp_path: Path) -> None:
    write_byte_level(tmp_path, OPT)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(OPT_SETTINGS))
    ours, theirs = compare_import(tmp_path, "opt", [*TEXTS, NAMES])
    assert ours.id_of("<unk>") not in ours.encode("<unk>")
    assert ours.id_of("</s>") in ours.encode("a</s>")
    assert (ours.eos, ours.pad) == (theirs.eos_token_id, theirs.pad_token_id) == (2, 1)


def test_settings_beside_the_file_of_a_config_name_its_special_tokens(tmp_path: Path) -> None:
    write_byte_level(tmp_path, OPT)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(OPT_SETTINGS))
    ours = load(tmp_path / "vocab.json")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, NAMES]:
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    ours.save(tmp_path / "run")
    assert load(tmp_path / "run").eos == ours.eos == theirs.eos_token_id


def test_files_that_are_no_tokenizer_end_in_one_line(tmp_path: Path) -> None:
    for name, content in (("spiece.model", b""), ("spiece.model", b"junk"), ("vocab.json", b"{")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / "merges.txt").write_bytes(b"a b c")
        for class_name in ("AlbertTokenizer", "T5Tokenizer", "GPT2Tokenizer", "BertTokenizer"):
            with pytest.raises(UserError, match="not a tokenizer that can be read"):
                load_tokenizer(tmp_path, class_name, {})
        (tmp_path / name).unlink()


def test_unk_is_text_for_opt_without_settings_too(tmp_path: Path) -> None:
    """Then its class names <|endoftext|>, which the vocabulary lacks."""
    write_byte_level(tmp_path, OPT)
    ours, theirs = compare_import(tmp_path, "opt", [*TEXTS, NAMES])
    assert ours.eos == theirs.eos_token_id == 400


def test_qwens_two_files_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    write_byte_level(tmp_path, ("<|endoftext|>",))
    compare_import(tmp_path, "qwen3", [*TEXTS, "It's 123456\r\n\r\n  über", NAMES])


def test_settings_beside_the_file_of_a_config_say_how_its_texts_are_read(tmp_path: Path) -> None:
    """Qwen's digits are words of their own, and composed characters are equal to decomposed ones."""
    write_byte_level(tmp_path, ("<|endoftext|>",))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<|endoftext|>"}))
    ours = load(tmp_path / "vocab.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "It's 123456\r\n\r\n  u\u0308ber", NAMES]:
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]


def test_an_import_without_merges_names_the_file_and_no_key_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError) as raised:
        load_tokenizer(tmp_path, "GPT2Tokenizer", {})
    assert str(raised.value) == f"{tmp_path / 'merges.txt'}: no such file; a vocab.json needs its merges"


def test_the_names_in_a_special_tokens_map_are_read(tmp_path: Path) -> None:
    write_byte_level(tmp_path, ("[B]", "[E]", "[P]"))
    mask = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    names = {"bos_token": "[B]", "eos_token": "[E]", "pad_token": "[P]", "unk_token": "[E]", "mask_token": mask}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    ours, theirs = compare_import(tmp_path, "gpt2", [*TEXTS, NAMES, "a [B] b[E] <mask> [P]"])
    assert (ours.eos, ours.id_of("<mask>")) == (theirs.eos_token_id, theirs.mask_token_id) == (1, 400)


@pytest.mark.parametrize("is_lowercase", [True, False])
def test_berts_vocabulary_is_read_as_transformers_reads_it(is_lowercase: bool, real_data: Path, tmp_path: Path) -> None:
    words = (real_data / "tokenizers/bert_base_uncased_vocab.txt").read_text(encoding="utf-8")
    (tmp_path / "vocab.txt").write_text(words, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": is_lowercase}))
    _, theirs = compare_import(tmp_path, "bert", [*TEXTS, "the [MASK] of [CLS]", "unaffable"])
    assert theirs.tokenize("unaffable") == ["una", "##ffa", "##ble"]  # of this vocabulary


def test_gpt2s_published_files_are_read_as_transformers_reads_them(real_data: Path, tmp_path: Path) -> None:
    for source, name in (("gpt2_encoder.json", "vocab.json"), ("gpt2_vocab.bpe", "merges.txt")):
        (tmp_path / name).write_bytes((real_data / "tokenizers" / source).read_bytes())
    ours, theirs = compare_import(tmp_path, "gpt2", [*TEXTS, NAMES])
    assert ours.eos == theirs.eos_token_id == 50256


def parse_model(content: bytes) -> Any:
    """Return a SentencePiece model."""
    return sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]


def spiece(model: bytes, pieces: list[tuple[str, int]]) -> bytes:
    """Append pieces of a type to a SentencePiece model."""
    proto = parse_model(model)
    for name, kind in pieces:
        proto.pieces.add(piece=name, score=0.0, type=kind)
    return proto.SerializeToString()


T5_MODEL_SETTINGS = Unigram(vocab=120, normalization="nmt_nfkc", byte_fallback=False)
USER_DEFINED = 4


@pytest.mark.parametrize("settings", [{"extra_ids": 0, "tokenizer_class": "T5Tokenizer"}, None])
def test_the_sentinels_in_mt5s_file_are_found_and_no_others_added(
    settings: dict[str, Any] | None, tmp_path: Path
) -> None:
    """In mT5's spiece.model the last hundred pieces are \u2581<extra_id_99> to \u2581<extra_id_0>."""
    names = [(f"\u2581<extra_id_{number}>", USER_DEFINED) for number in reversed(range(100))]
    (tmp_path / "spiece.model").write_bytes(
        spiece(vocabulary.train(T5_MODEL_SETTINGS, TRAINING_TEXT).file_bytes, names)
    )
    if settings is None:  # then Transformers adds a hundred more, past the embedding
        ours = load_tokenizer(tmp_path, "T5Tokenizer", {})
        assert ours is not None
    else:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        ours, theirs = compare_import(tmp_path, "mt5", [*COMPOSED_TEXTS, "fox <extra_id_0> dogs"])
        assert len(theirs) == 220
    assert ours.vocab == 220
    assert ours.sentinels() == tuple(range(219, 119, -1))
    assert ours.encode_named("fox<extra_id_1>")[-1] == 218
    assert ours.decode([*ours.encode("fox"), 219, *ours.encode("dogs")]) == ours.decode(ours.encode("fox dogs"))


@pytest.mark.parametrize(("settings", "count"), [({}, 100), ({"extra_ids": 300}, 300)])
def test_sentinels_are_added_to_t5s_file_by_its_settings(settings: dict[str, int], count: int, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(vocabulary.train(T5_MODEL_SETTINGS, TRAINING_TEXT).file_bytes)
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = compare_import(tmp_path, "t5", COMPOSED_TEXTS)
    assert ours.vocab == len(theirs) == 120 + count
    assert ours.id_of("<extra_id_0>") == theirs.convert_tokens_to_ids("<extra_id_0>") == ours.vocab - 1


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False, "keep_accents": True}])
def test_alberts_file_is_read_with_the_changes_that_its_tokenizer_makes_first(
    settings: dict[str, bool], tmp_path: Path
) -> None:
    config = Unigram(vocab=120, normalization="nmt_nfkc_cf", byte_fallback=False)
    trained = vocabulary.train(config, TRAINING_TEXT).file_bytes
    proto = parse_model(trained)
    # ALBERT's layout: <pad>, <unk>, [CLS], [SEP], [MASK].
    del proto.pieces[:3]
    pieces = list(proto.pieces)
    del proto.pieces[:]
    for name, kind in (("<pad>", 3), ("<unk>", 2), ("[CLS]", 3), ("[SEP]", 3), ("[MASK]", 3)):
        proto.pieces.add(piece=name, score=0.0, type=kind)
    proto.pieces.extend(pieces)
    proto.trainer_spec.unk_id = 1
    (tmp_path / "spiece.model").write_bytes(proto.SerializeToString())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    texts = [re.sub("[가-힣]", "", text) for text in COMPOSED_TEXTS]  # which it decomposes
    ours, theirs = compare_import(tmp_path, "albert", [*texts, "``quoted'' É", "the [MASK] fox"])
    assert (ours.eos, ours.pad) == (theirs.eos_token_id, theirs.pad_token_id)


DEBERTA = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")


def test_debertas_two_files_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    write_byte_level(tmp_path, DEBERTA)
    ours, theirs = compare_import(tmp_path, "deberta", [*TEXTS, NAMES, "the [MASK] fox [SEP]"])
    assert (ours.id_of("[MASK]"), ours.pad) == (theirs.mask_token_id, theirs.pad_token_id) == (400, 0)


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": True}])
def test_debertas_sentencepiece_file_is_read_with_a_mask_at_its_end(settings: dict[str, bool], tmp_path: Path) -> None:
    """The ids are those of SentencePiece; Transformers 5 leaves out the normalisation of the file."""
    trained = vocabulary.train(T5_MODEL_SETTINGS, TRAINING_TEXT)
    proto = parse_model(trained.file_bytes)
    del proto.pieces[:3]
    pieces = list(proto.pieces)
    del proto.pieces[:]
    for name, kind in (("[PAD]", 3), ("[CLS]", 3), ("[SEP]", 3), ("[UNK]", 2)):
        proto.pieces.add(piece=name, score=0.0, type=kind)
    proto.pieces.extend(pieces)
    proto.trainer_spec.unk_id = 3
    (tmp_path / "spm.model").write_bytes(proto.SerializeToString())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = compare_import(tmp_path, "deberta-v2", [ENGLISH, "The Quick brown fox", "the [MASK] fox"])
    assert ours.id_of("[MASK]") == theirs.mask_token_id == len(proto.pieces)
    assert (ours.eos, ours.pad) == (theirs.eos_token_id, theirs.pad_token_id) == (2, 0)
    assert theirs(ENGLISH, "fox")["input_ids"] == ours.to_tokenizers().encode(ENGLISH, "fox").ids


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": True}])
def test_xlnets_file_is_read_and_exported_with_its_tokens_at_the_end(settings: dict[str, bool], tmp_path: Path) -> None:
    config = Unigram(vocab=120, normalization="nmt_nfkc", byte_fallback=False)
    proto = parse_model(vocabulary.train(config, TRAINING_TEXT).file_bytes)
    pieces = list(proto.pieces)[3:]
    del proto.pieces[:]
    names = ("<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>")
    proto.pieces.add(piece="<unk>", score=0.0, type=2)
    for name in names:
        proto.pieces.add(piece=name, score=0.0, type=3)
    proto.pieces.extend(pieces)
    proto.trainer_spec.unk_id = 0
    source = tmp_path / "source"
    source.mkdir()
    (source / "spiece.model").write_bytes(proto.SerializeToString())
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    texts = [re.sub("[가-힣]", "", text) for text in COMPOSED_TEXTS]  # which it decomposes
    ours, theirs = compare_import(source, "xlnet", [*texts, "``quoted'' É", "the <mask> fox"])
    assert (ours.eos, ours.pad) == (theirs.eos_token_id, theirs.pad_token_id) == (2, 5)
    first, second = (ours.encode(text) for text in (ENGLISH, "a dog"))
    template = encoder_template(ours.vocabulary(), "test")
    framed = theirs(ENGLISH, "a dog", return_token_type_ids=True)
    assert template.tokens([first, second]).tolist() == framed["input_ids"]
    assert template.token_types([first, second]).tolist() == framed["token_type_ids"]
    exported = export_tokenizer(ours, {"family": "encoder"}, "xlnet", tmp_path)
    assert exported(ENGLISH, "a dog")["input_ids"] == framed["input_ids"]


def test_a_trained_tokenizer_with_xlnets_tokens_is_exported_with_them_at_the_end(tmp_path: Path) -> None:
    ours = vocabulary.train(Unigram(vocab=370, controls=("<cls>", "<sep>", "<mask>")), TRAINING_TEXT)
    theirs = export_tokenizer(ours, {"family": "encoder"}, "xlnet", tmp_path)
    cls, sep = (ours.special[name] for name in ("<cls>", "<sep>"))
    assert (theirs.cls_token_id, theirs.sep_token_id) == (cls, sep)
    first, second = (ours.encode(text).tolist() for text in (ENGLISH, "a dog"))
    assert theirs(ENGLISH)["input_ids"] == [*first, sep, cls]
    assert theirs(ENGLISH, "a dog")["input_ids"] == [*first, sep, *second, sep, cls]


def test_byt5_has_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "tokenizer_class": "ByT5Tokenizer"}))
    settings = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 125}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, _ = compare_import(tmp_path, "t5", TEXTS)
    assert isinstance(ours, Bytes)


IMPORTED: dict[str, tuple[str, dict[str, Any], tuple[str, ...], dict[str, Any]]] = {
    "GPT-2": ("gpt2", DECODER, ("<|endoftext|>",), {}),
    "OPT": ("opt", DECODER, OPT, OPT_SETTINGS),
    "RoBERTa": ("roberta", {"family": "encoder"}, ROBERTA, {"model_max_length": 512}),
}


@pytest.mark.parametrize("name", list(IMPORTED))
def test_an_imported_tokenizer_is_exported_as_it_was(name: str, tmp_path: Path) -> None:
    model_type, model_settings, special, settings = IMPORTED[name]
    source = tmp_path / "source"
    write_byte_level(source, special)
    if settings:
        (source / "tokenizer_config.json").write_text(
            json.dumps({**settings, "chat_template": "{{ messages[0].content }}"})
        )
    ours, theirs = compare_import(source, model_type, TEXTS)
    exported = export_tokenizer(ours, model_settings, model_type, tmp_path)
    for text in [*TEXTS, NAMES]:
        assert exported(text)["input_ids"] == theirs(text)["input_ids"]
    assert exported(ENGLISH, "a dog")["input_ids"] == theirs(ENGLISH, "a dog")["input_ids"]
    assert exported.special_tokens_map == theirs.special_tokens_map
    assert exported.chat_template == theirs.chat_template


def test_an_imported_sentencepiece_model_is_exported_with_its_settings(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    trained = vocabulary.train(T5_MODEL_SETTINGS, TRAINING_TEXT)
    (source / "spiece.model").write_bytes(trained.file_bytes)
    settings = {"extra_ids": 100, "tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "model_max_length": 77}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = compare_import(source, "t5", COMPOSED_TEXTS)
    exported = export_tokenizer(ours, ENCODER_DECODER, "t5", tmp_path)
    for text in [*COMPOSED_TEXTS, "fox <extra_id_0> dogs <extra_id_99>"]:
        assert exported(text)["input_ids"] == theirs(text)["input_ids"], text
    assert exported.model_max_length == 77
    assert SentencePiece((tmp_path / "out/spiece.model").read_bytes()).vocab == 220
