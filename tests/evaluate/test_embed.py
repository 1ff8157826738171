"""Embeddings against the hidden states of Hugging Face Transformers."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import t5x_lite
from t5x_lite.adapt.features import Features
from t5x_lite.adapt.trainable import TrainableSplit
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.evaluate.probe import pooled_layer_states, token_layer_states
from t5x_lite.evaluate.word_neighbours import find_neighbours
from t5x_lite.models.head_config import HeadConfig
from t5x_lite.models.layer_mix import LayerMean, ScalarMix
from t5x_lite.models.spec import model_spec
from t5x_lite.trees import flatten_names, unflatten_names

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")
tokenizers = pytest.importorskip("tokenizers")

from t5x_lite.convert.huggingface import import_hf  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "brown", "fox", "jumps", "over", "a", "lazy"]
TEXTS = ["the quick brown fox", "a lazy fox jumps over the quick brown lazy fox", "fox", "over " * 17]
LAYERS = 3


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, list[np.ndarray]]:
    """Return an imported random BERT, and Transformers' states of each text `[layers + 1, tokens, embed]`."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    sizes = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=20, **sizes)
    torch.manual_seed(0)
    hf_model = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in hf_model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    hf_model.save_pretrained(folder / "hf")
    (folder / "hf/vocab.txt").write_text((folder / "vocab.txt").read_text())
    import_hf(folder / "hf", folder / "run")
    states = []
    for text in TEXTS:
        ids = torch.tensor([[2, *[WORDS.index(word) for word in text.split()], 3]])
        with torch.no_grad():
            states.append(np.stack([x[0].numpy() for x in hf_model(ids, output_hidden_states=True).hidden_states]))
    return t5x_lite.load(folder / "run"), states


@pytest.mark.parametrize("layer", [None, 1, -2])
def test_states_of_every_token_equal_transformers(bert: tuple[Model, list[np.ndarray]], layer: int | None) -> None:
    model, states = bert
    index = {None: LAYERS, 1: 1, -2: LAYERS - 1}[layer]
    for embeddings, expected in zip(model.embed(TEXTS, pool="none", layer=layer), states, strict=True):
        np.testing.assert_allclose(embeddings, expected[index], atol=2e-5)


def test_states_of_layers_that_share_weights_in_groups_equal_transformers(tmp_path: Path) -> None:
    """Three of four layers are those of the first group twice, and of the second once."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.AlbertConfig(vocab_size=len(WORDS), embedding_size=8, num_hidden_groups=2, **sizes)
    torch.manual_seed(0)
    hf_model = transformers.AlbertModel(config).eval()
    hf_model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf/vocab.txt").write_text("\n".join(WORDS) + "\n")
    import_hf(tmp_path / "hf", tmp_path / "run")
    ids = torch.tensor([[2, *[WORDS.index(word) for word in TEXTS[0].split()], 3]])
    with torch.no_grad():
        expected = hf_model(ids, output_hidden_states=True).hidden_states
    model = t5x_lite.load(tmp_path / "run")
    for layer in (2, 3, 4):
        (states,) = model.embed(TEXTS[:1], pool="none", layer=layer)
        np.testing.assert_allclose(states, expected[layer][0].numpy(), atol=2e-5)


@pytest.mark.parametrize(
    ("pool", "pool_states"), [("mean", lambda x: x.mean(0)), ("cls", lambda x: x[0]), ("max", lambda x: x.max(0))]
)
def test_pooled_states_equal_transformers(
    bert: tuple[Model, list[np.ndarray]], pool: str, pool_states: Callable[[np.ndarray], np.ndarray]
) -> None:
    model, states = bert
    embeddings = model.embed(TEXTS, pool=pool)
    assert isinstance(embeddings, np.ndarray)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, np.stack([pool_states(x[-1]) for x in states]), atol=2e-5)


def test_a_long_text_loses_its_end(bert: tuple[Model, list[np.ndarray]], caplog: pytest.LogCaptureFixture) -> None:
    model, _ = bert
    exact, cut = model.embed(["fox " * 18, "fox " * 30], pool="none")
    assert len(exact) == 20
    assert len(cut) == 20
    np.testing.assert_array_equal(exact, cut)
    assert "1 of 2 texts lost their end" in caplog.text


def test_unknown_pools_and_layers_are_refused(bert: tuple[Model, list[np.ndarray]]) -> None:
    for settings in ({"pool": "median"}, {"layer": 4}, {"layer": 0}, {"layer": -4}):
        with pytest.raises(UserError):
            bert[0].embed(["fox"], **settings)


def test_the_command_does_not_write_over_its_input(
    bert: tuple[Model, list[np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.npy"
    file.write_text("a text\n")
    assert main(["embed", str(bert[0].run.folder), str(file)]) == 2
    assert "is read by this command and would be overwritten" in capsys.readouterr().err
    assert file.read_text() == "a text\n"


def test_only_line_feeds_separate_texts(bert: tuple[Model, list[np.ndarray]], tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("one\u2028text\nanother\x0cone\n\n")
    assert main(["embed", str(bert[0].run.folder), str(file)]) == 0
    assert np.load(tmp_path / "texts.npy").shape[0] == 3


def test_the_texts_of_records_are_one_of_their_columns(
    bert: tuple[Model, list[np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(bert[0].run.folder)
    expected = bert[0].embed(TEXTS[:2])
    records = [{"text": text, "question": text.upper(), "year": 2020} for text in TEXTS[:2]]
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text("".join(json.dumps(record) + "\n" for record in records))
    table = tmp_path / "b.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["label", "sentence"], *(["1", text] for text in TEXTS[:2])])
    assert main(["embed", run, str(jsonl)]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), expected, atol=2e-5)
    assert main(["embed", run, str(table), "--text", "sentence"]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "b.npy"), expected, atol=2e-5)
    capsys.readouterr()
    lines = tmp_path / "c.txt"
    lines.write_text("a text\n")
    for arguments, message in (
        ([str(table)], "b.csv:2: no column 'text' (found label, sentence); name the column of the text by --text"),
        ([str(jsonl), "--text=year"], "a.jsonl:1: column 'year' is int, not a text"),
        ([str(lines), "--text=sentence"], "has lines and no columns"),
    ):
        assert main(["embed", run, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_text_that_is_not_utf8_is_refused(
    bert: tuple[Model, list[np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes("one\ncafé\n".encode("latin-1"))
    assert main(["embed", str(bert[0].run.folder), str(file)]) == 2
    assert "texts.txt:2: is not UTF-8 at byte 4 (0xe9)" in capsys.readouterr().err


def test_the_command_writes_files(
    bert: tuple[Model, list[np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, states = bert
    run = str(model.run.folder)
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n")
    assert main(["embed", run, str(file)]) == 0
    assert f"{tmp_path / 'texts.npy'}: 4 × 16" in capsys.readouterr().out
    np.testing.assert_allclose(np.load(tmp_path / "texts.npy"), np.stack([x[-1].mean(0) for x in states]), atol=2e-5)
    assert main(["embed", run, str(file), "--pool=none", "--layer=1", "--to", str(tmp_path / "all.npz")]) == 0
    with np.load(tmp_path / "all.npz") as arrays:
        assert arrays["borders"].tolist() == np.cumsum([0, *(x.shape[1] for x in states)]).tolist()
        assert len(arrays["tokens"]) == len(arrays["offsets"]) == arrays["borders"][-1]
        for number, text in enumerate(TEXTS):
            offsets = arrays["offsets"][arrays["borders"][number] : arrays["borders"][number + 1]]
            assert (offsets[[0, -1]] == -1).all()  # [CLS] and [SEP]
            words = [text[start:stop] for start, stop in offsets[1:-1].tolist()]
            assert "".join(words).split() == "".join(text.split()).split()
        np.testing.assert_allclose(arrays["states"], np.concatenate([x[1] for x in states]), atol=2e-5)
    assert main(["embed", run, str(file), "--to", str(tmp_path / "missing/x.npy")]) == 2
    assert "there is no such folder; create it first" in capsys.readouterr().err
    assert main(["embed", run, str(file), "tokenizer=bytes"]) == 2
    assert "the weights of a run belong to its own" in capsys.readouterr().err
    for arguments in (["no.txt"], [str(file), "--to=x.npz"], [str(file), "--pool=all"]):
        assert main(["embed", run, *arguments]) == 2


def test_the_states_of_a_decoder_give_its_logits(tiny_run: Path) -> None:
    """The output matrix applied to the states gives the logits."""
    model = t5x_lite.load(tiny_run)
    (states,) = model.embed(["the quick brown fox"], pool="none")
    logits = model.logits(model.encode_text("the quick brown fox"))[0]
    table = np.asarray(model.params["tokens"]["weight"])
    np.testing.assert_allclose(states @ table.T, logits, atol=1e-4)
    with pytest.raises(UserError, match="first token of a decoder"):
        model.embed(["x"], pool="cls")


@pytest.mark.parametrize("layers", [(1, 3), *(pytest.param(case, marks=pytest.mark.slow) for case in ((-2, -1), (2,)))])
def test_the_mean_of_layers_equals_transformers(bert: tuple[Model, list[np.ndarray]], layers: tuple[int, ...]) -> None:
    model, states = bert
    numbers = [layer if layer > 0 else LAYERS + 1 + layer for layer in layers]
    for embedding, expected in zip(model.embed(TEXTS, pool="mean", layer=layers), states, strict=True):
        np.testing.assert_allclose(embedding, expected[numbers].mean(0).mean(0), atol=2e-5)


@pytest.mark.parametrize("mixed", [pytest.param(2, marks=pytest.mark.slow), LAYERS + 1])
def test_the_scalar_mix_of_layers_equals_its_formula(bert: tuple[Model, list[np.ndarray]], mixed: int) -> None:
    """Peters et al. 2018, eq. 1, on Transformers' states: γ·Σ softmax(w)_j·h_j."""
    model, states = bert
    config = model.config.model.model_copy(update={"head": HeadConfig(outputs=2)})
    method = Features(layers=mixed, mix="softmax")
    spec = model_spec(config, method.surgery)
    weights = flatten_names(model_spec(config, method.surgery).shapes)
    old = flatten_names(model.params)
    logits = np.linspace(-1, 2, mixed).astype(np.float32)
    values = {"encoder.stack.mix.weights": jnp.asarray(logits), "encoder.stack.mix.gamma": jnp.float32(1.7)}
    for name, shape in weights.items():
        values.setdefault(name, old.get(name, jnp.zeros(shape.shape)))
    module = spec.model(unflatten_names(values))
    tokens = jnp.asarray(model.encode_text(TEXTS[0]))[None]
    shares = 1.7 * np.exp(logits) / np.exp(logits).sum()
    expected = np.einsum("n,nld->ld", shares, states[0][-mixed:])
    np.testing.assert_allclose(module(tokens, key=None)[0], expected, atol=5e-5)

    split = TrainableSplit.of(method, config, list(weights))
    added = {"encoder.stack.mix.weights", "encoder.stack.mix.gamma"}
    assert {name for name, first in split.first_trained_repeat.items() if first == 0} == added | {
        name for name in weights if name.startswith("head.")
    }
    if mixed == 2:
        assert spec.parameters == model_spec(config).parameters + 3


def test_a_new_scalar_mix_is_the_mean(bert: tuple[Model, list[np.ndarray]]) -> None:
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 1, 2, 3)))
    np.testing.assert_allclose(ScalarMix(3)(outputs), LayerMean(3)(outputs), rtol=1e-6)
    np.testing.assert_allclose(LayerMean(3)(outputs), outputs[1:].mean(0), rtol=1e-6)


def test_the_states_of_all_layers_equal_transformers(bert: tuple[Model, list[np.ndarray]]) -> None:
    model, states = bert
    pooled = pooled_layer_states(model, TEXTS, "mean")
    for ours, theirs in zip(pooled, states, strict=True):
        np.testing.assert_allclose(ours, theirs.mean(1), atol=2e-5)
    words, ids, numbers = token_layer_states(model, TEXTS[:2])
    # Without [CLS] and [SEP].
    expected = np.concatenate([states[0][:, 1:-1], states[1][:, 1:-1]], axis=1)
    np.testing.assert_allclose(words, expected, atol=2e-5)
    assert [WORDS[token] for token in ids] == [*TEXTS[0].split(), *TEXTS[1].split()]
    assert numbers.tolist() == [0] * 4 + [1] * 10


def test_the_nearest_words_in_context_are_those_of_all_by_cosine(
    bert: tuple[Model, list[np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The states are those of Transformers; each word's vector is the mean over the tokens between its borders."""
    model, states = bert
    vectors = []
    words = []
    for text, layers in zip(TEXTS, states, strict=True):
        _, places = model.tokenizer.encode_placed(text)
        for match in re.finditer(r"\w+", text):
            inside = [n for n, (start, stop) in enumerate(places) if start >= match.start() and stop <= match.end()]
            vectors.append(layers[-1][1:-1][inside].mean(0))
            words.append(match[0])
    word = words[0]
    unit = np.stack(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit[0]
    expected = sorted(zip(cosines[1:].tolist(), words[1:], strict=True), reverse=True)[:2]
    neighbours = find_neighbours(model, TEXTS, word, 2)
    occurrence, nearest = neighbours[0]
    assert (occurrence.word, occurrence.text, occurrence.start) == (word, 0, TEXTS[0].index(word))
    assert [other.word for _, other in nearest] == [other for _, other in expected]
    np.testing.assert_allclose([cosine for cosine, _ in nearest], [cosine for cosine, _ in expected], atol=2e-5)
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS))
    assert main(["embed", str(model.run.folder), str(file), "--word", word, "-k", "2"]) == 0
    assert capsys.readouterr().out.count(f"[{word}]") >= len(neighbours)
    assert main(["embed", str(model.run.folder), str(file), "--word", "zzz"]) == 2
    assert main(["embed", str(model.run.folder), str(file), "--word", "two words"]) == 2
    assert main(["embed", str(model.run.folder), str(file), "--word", word, "--pool", "mean"]) == 2
