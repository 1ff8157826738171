"""Embeddings against the hidden states of Transformers."""

from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.errors import UserError

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")
tokenizers = pytest.importorskip("tokenizers")

from t5x_lite.convert.huggingface import import_hf  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "brown", "fox", "jumps", "over", "a", "lazy"]
TEXTS = ["the quick brown fox", "a lazy fox jumps over the quick brown lazy fox", "fox", "over " * 17]
LAYERS = 3


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, list[np.ndarray]]:
    """An imported BERT of random weights, and of each text the states there: `[layers + 1, tokens, embed]`."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    sizes = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=20, **sizes)
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(folder / "hf")
    (folder / "hf/vocab.txt").write_text((folder / "vocab.txt").read_text())
    import_hf(folder / "hf", folder / "run")
    states = []
    for text in TEXTS:
        ids = torch.tensor([[2, *[WORDS.index(word) for word in text.split()], 3]])
        with torch.no_grad():
            states.append(np.stack([x[0].numpy() for x in theirs(ids, output_hidden_states=True).hidden_states]))
    return t5x_lite.load(folder / "run"), states


@pytest.mark.parametrize("layer", [None, 1, -2])
def test_states_of_every_token_equal_transformers(bert: tuple[Model, list[np.ndarray]], layer: int | None) -> None:
    model, states = bert
    index = {None: LAYERS, 1: 1, -2: LAYERS - 1}[layer]
    for found, expected in zip(model.embed(TEXTS, pool="none", layer=layer), states, strict=True):
        np.testing.assert_allclose(found, expected[index], atol=2e-5)


@pytest.mark.parametrize(
    ("pool", "of"), [("mean", lambda x: x.mean(0)), ("cls", lambda x: x[0]), ("max", lambda x: x.max(0))]
)
def test_pooled_states(bert: tuple[Model, list[np.ndarray]], pool: str, of: object) -> None:
    model, states = bert
    found = model.embed(TEXTS, pool=pool)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack([of(x[-1]) for x in states]), atol=2e-5)  # type: ignore[operator]


def test_a_long_text_loses_its_end(bert: tuple[Model, list[np.ndarray]], caplog: pytest.LogCaptureFixture) -> None:
    model, _ = bert
    found = model.embed(["fox " * 18, "fox " * 30], pool="none")
    assert [len(x) for x in found] == [20, 20]
    np.testing.assert_array_equal(found[0], found[1])
    assert "1 of 2 texts lost their end" in caplog.text


def test_what_is_not_there_is_refused(bert: tuple[Model, list[np.ndarray]]) -> None:
    for settings in ({"pool": "median"}, {"layer": 4}, {"layer": 0}, {"layer": -4}):
        with pytest.raises(UserError):
            bert[0].embed(["fox"], **settings)  # type: ignore[arg-type]


def test_the_command_writes_files(
    bert: tuple[Model, list[np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, states = bert
    run, file = str(model.run.folder), tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n")
    assert main(["embed", run, str(file)]) == 0
    assert f"{tmp_path / 'texts.npy'}: 4 × 16" in capsys.readouterr().out
    np.testing.assert_allclose(np.load(tmp_path / "texts.npy"), np.stack([x[-1].mean(0) for x in states]), atol=2e-5)
    assert main(["embed", run, str(file), "--pool=none", "--layer=1", "--to", str(tmp_path / "all.npz")]) == 0
    with np.load(tmp_path / "all.npz") as found:
        assert found["borders"].tolist() == np.cumsum([0, *(x.shape[1] for x in states)]).tolist()
        np.testing.assert_allclose(found["states"], np.concatenate([x[1] for x in states]), atol=2e-5)
    for wrong in (["no.txt"], [str(file), "--to=x.npz"], [str(file), "--pool=all"]):
        assert main(["embed", run, *wrong]) == 2


def test_a_decoder_gives_its_own_states(tiny_run: Path) -> None:
    """The mean of the states from which its logits come: the output matrix applied to them is the logits."""
    model = t5x_lite.load(tiny_run)
    (states,) = model.embed(["the quick brown fox"], pool="none")
    logits = model.logits(model.encoded("the quick brown fox"))[0]
    table = np.asarray(model.params["tokens"]["weight"])
    np.testing.assert_allclose(states @ table.T, logits, atol=1e-4)
    with pytest.raises(UserError, match="first token of a decoder"):
        model.embed(["x"], pool="cls")
