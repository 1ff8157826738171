"""Folders of sentence-transformers: vectors of texts as its modules define them, computed by hand in NumPy."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

import t5x_lite  # noqa: E402
from t5x_lite.cli import main  # noqa: E402
from t5x_lite.convert.huggingface import export_hf, import_hf  # noqa: E402
from t5x_lite.errors import UserError  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "brown", "fox"]
TEXTS = ["the quick brown fox", "fox", "the fox the fox the fox the fox the fox"]
MAX_LENGTH = 7
"""Tokens after which texts are cut, [CLS] and [SEP] included; the last text has more."""
WIDTH = 16
FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def pool_by_hand(states: np.ndarray, mode: str) -> np.ndarray:
    """Return the vector of a text from the states of its tokens `[tokens, width]`."""
    match mode:
        case "cls_token":
            return states[0]
        case "max_tokens":
            return states.max(0)
        case "lasttoken":
            return states[-1]
    return states.mean(0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT and its vocabulary."""
    folder = tmp_path_factory.mktemp("encoder")
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=20, **sizes)
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.fixture(scope="module")
def states(encoder: Path) -> list[np.ndarray]:
    """The states of the last layer of each text, cut to the longest."""
    model = transformers.BertModel.from_pretrained(encoder).eval()
    all_states = []
    for text in TEXTS:
        token_ids = [2, *[WORDS.index(word) for word in text.split()][: MAX_LENGTH - 2], 3]
        with torch.no_grad():
            all_states.append(model(torch.tensor([token_ids])).last_hidden_state[0].numpy())
    return all_states


def write_modules(
    encoder: Path, folder: Path, modes: tuple[str, ...], kinds: tuple[str, ...] = ("Transformer", "Pooling")
) -> None:
    """Write the encoder as a folder of sentence-transformers."""
    shutil.copytree(encoder, folder)
    modules = []
    for number, kind in enumerate(kinds):
        path = "" if kind == "Transformer" else f"{number}_{kind}"
        modules.append(
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
        (folder / path).mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling = {"word_embedding_dimension": WIDTH, **{f"pooling_mode_{flag}": flag in modes for flag in FLAGS}}
    (folder / "1_Pooling/config.json").write_text(json.dumps({**pooling, "include_prompt": True}))
    settings = {"max_seq_length": MAX_LENGTH, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("mode", "is_normalized"),
    [("cls_token", False), ("mean_tokens", True), ("max_tokens", False), ("lasttoken", True)],
)
def test_the_vectors_are_those_of_the_modules(
    mode: str, is_normalized: bool, encoder: Path, states: list[np.ndarray], tmp_path: Path
) -> None:
    kinds = ("Transformer", "Pooling", "Normalize") if is_normalized else ("Transformer", "Pooling")
    write_modules(encoder, tmp_path / "theirs", (mode,), kinds)
    expected = np.stack([pool_by_hand(text_states, mode) for text_states in states])
    if is_normalized:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    import_hf(tmp_path / "theirs", tmp_path / "run")
    np.testing.assert_allclose(t5x_lite.load(tmp_path / "run").embed(TEXTS), expected, atol=2e-5)
    export_hf(tmp_path / "run", tmp_path / "out")
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((tmp_path / "theirs" / name).read_text())
    assert (tmp_path / "out/2_Normalize").is_dir() == is_normalized


def test_the_command_writes_the_vectors_and_a_pool_of_the_command_line_comes_first(
    encoder: Path, states: list[np.ndarray], tmp_path: Path
) -> None:
    write_modules(encoder, tmp_path / "theirs", ("cls_token",), ("Transformer", "Pooling", "Normalize"))
    import_hf(tmp_path / "theirs", tmp_path / "run")
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS[:2]) + "\n")
    assert main(["embed", str(tmp_path / "run"), str(file)]) == 0
    first = np.stack([text_states[0] for text_states in states[:2]])
    expected = first / np.linalg.norm(first, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "texts.npy"), expected, atol=2e-5)
    assert main(["embed", str(tmp_path / "run"), str(file), "--pool=mean"]) == 0
    means = np.stack([text_states.mean(0) for text_states in states[:2]])
    np.testing.assert_allclose(np.load(tmp_path / "texts.npy"), means, atol=2e-5)


def test_an_older_folder_has_its_transformer_in_a_folder_of_its_own(encoder: Path, tmp_path: Path) -> None:
    write_modules(encoder, tmp_path / "new", ("mean_tokens",))
    write_modules(encoder, tmp_path / "old", ("mean_tokens",))
    transformer = tmp_path / "old/0_Transformer"
    transformer.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt", "sentence_bert_config.json"):
        (tmp_path / "old" / name).rename(transformer / name)
    modules = json.loads((tmp_path / "old/modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "old/modules.json").write_text(json.dumps(modules))
    for name in ("new", "old"):
        import_hf(tmp_path / name, tmp_path / f"run-{name}")
    vectors = t5x_lite.load(tmp_path / "run-new").embed(TEXTS)
    np.testing.assert_array_equal(t5x_lite.load(tmp_path / "run-old").embed(TEXTS), vectors)


def refuse(folder: Path, run: Path) -> str:
    """Return the message with which an import is refused."""
    with pytest.raises(UserError) as raised:
        import_hf(folder, run)
    assert not run.exists()
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        (("weightedmean_tokens",), "pooling by weightedmean is not supported"),
        (("mean_sqrt_len_tokens",), "pooling by mean_sqrt_len_tokens is not supported"),
        (("cls_token", "mean_tokens"), "pooling by cls and mean is not supported"),
        ((), "pooling by nothing is not supported"),
    ],
)
def test_other_poolings_are_refused_by_name(
    modes: tuple[str, ...], message: str, encoder: Path, tmp_path: Path
) -> None:
    write_modules(encoder, tmp_path / "theirs", modes)
    assert message in refuse(tmp_path / "theirs", tmp_path / "run")


def test_other_modules_and_settings_are_refused_by_name(encoder: Path, tmp_path: Path) -> None:
    write_modules(encoder, tmp_path / "dense", ("mean_tokens",), ("Transformer", "Pooling", "Dense"))
    message = refuse(tmp_path / "dense", tmp_path / "run")
    assert "the modules Transformer, Pooling, Dense are not supported" in message
    for number, (file, content, message) in enumerate(
        [
            ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default_prompt_name='query'"),
            ("sentence_bert_config.json", {"max_seq_length": 7, "do_lower_case": True}, "do_lower_case=true"),
            ("sentence_bert_config.json", {"max_seq_length": 7, "brand_new": 1}, "the field brand_new"),
            ("1_Pooling/config.json", {"pooling_mode": "mean", "brand_new": 1}, "the fields brand_new are not known"),
            ("1_Pooling/config.json", {"pooling_mode": "mean"}, "'word_embedding_dimension' is missing"),
            (
                "1_Pooling/config.json",
                {"pooling_mode": "mean", "word_embedding_dimension": 8},
                "states of width 16, and its pooling is for 8",
            ),
            ("modules.json", {"idx": 0}, "is not a list of modules"),
            ("modules.json", [{"idx": 0, "name": "0", "path": "../x", "type": "m.Transformer"}], "not in its folder"),
        ]
    ):
        folder = tmp_path / str(number)
        write_modules(encoder, folder, ("mean_tokens",))
        (folder / file).write_text(json.dumps(content))
        assert message in refuse(folder, tmp_path / "run")
