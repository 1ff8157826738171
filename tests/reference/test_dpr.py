"""DPR's encoders of questions and of passages: vectors of random models equal Transformers', and exports load there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

import t5x_lite  # noqa: E402
from t5x_lite.cli import main  # noqa: E402
from t5x_lite.convert.huggingface import export_hf, import_hf  # noqa: E402
from t5x_lite.errors import UserError  # noqa: E402
from t5x_lite.objectives.passages import Passage  # noqa: E402
from t5x_lite.retrieval.encoder import VectorEncoder  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "brown", "fox", "jumps", "over"]
TEXTS = ["the quick brown fox", "fox", "over the fox jumps the fox"]
CLASSES = {"questions": "DPRQuestionEncoder", "passages": "DPRContextEncoder"}


def random_dpr(folder: Path, class_name: str, **settings: Any) -> Any:
    """Write a folder of a tiny random encoder, and return the encoder."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.DPRConfig(vocab_size=len(WORDS), max_position_embeddings=20, **sizes, **settings)
    torch.manual_seed(len(class_name))
    model = getattr(transformers, class_name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return model


def their_vector(model: Any, *texts: str) -> np.ndarray:
    """The vector of `[CLS] text [SEP] text [SEP]`, all of one token type as in DPR's own code."""
    ids = [2]
    for text in texts:
        ids += [*[WORDS.index(word) for word in text.split()], 3]
    with torch.no_grad():
        return model(torch.tensor([ids])).pooler_output[0].numpy()


@pytest.mark.parametrize("side", CLASSES)
def test_vectors_equal_transformers_and_exports_load_there(side: str, tmp_path: Path) -> None:
    theirs = random_dpr(tmp_path / "hf", CLASSES[side])
    import_hf(tmp_path / "hf", tmp_path / "run")
    model = t5x_lite.load(tmp_path / "run")
    expected = np.stack([their_vector(theirs, text) for text in TEXTS])
    np.testing.assert_allclose(model.embed(TEXTS), expected, atol=2e-5)
    encoder = VectorEncoder(model)
    np.testing.assert_allclose(encoder.queries(TEXTS), expected, atol=2e-5)
    titled = [Passage(text, title="quick fox") for text in TEXTS]
    expected_titled = np.stack([their_vector(theirs, "quick fox", text) for text in TEXTS])
    np.testing.assert_allclose(encoder.passages(titled), expected_titled, atol=2e-5)

    export_hf(tmp_path / "run", tmp_path / "exported")
    assert not (tmp_path / "exported/modules.json").exists()
    loaded, info = getattr(transformers, CLASSES[side]).from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert json.loads((tmp_path / "exported/config.json").read_text())["architectures"] == [CLASSES[side]]
    np.testing.assert_allclose(their_vector(loaded.eval(), TEXTS[0]), expected[0], atol=2e-5)


def test_a_projection_is_refused(tmp_path: Path) -> None:
    random_dpr(tmp_path / "hf", "DPRQuestionEncoder", projection_dim=8)
    with pytest.raises(UserError, match="projection_dim=8 is not supported"):
        import_hf(tmp_path / "hf", tmp_path / "run")


def test_a_pair_of_encoders_searches_as_transformers_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = {}
    for side, class_name in CLASSES.items():
        theirs[side] = random_dpr(tmp_path / side, class_name)
        import_hf(tmp_path / side, tmp_path / f"{side}_run")
    (tmp_path / "passages.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    folders = [str(tmp_path / name) for name in ("passages_run", "passages.txt", "index")]
    assert main(["index", *folders, "--query-run", str(tmp_path / "questions_run")]) == 0
    capsys.readouterr()
    command = ["search", str(tmp_path / "questions_run"), folders[2], "--query", "quick fox", "-k", "3", "--json"]
    assert main(command) == 0
    (result,) = json.loads(capsys.readouterr().out)["queries"]
    question = their_vector(theirs["questions"], "quick fox")
    products = {str(n): float(their_vector(theirs["passages"], text) @ question) for n, text in enumerate(TEXTS)}
    assert {item["id"]: pytest.approx(item["score"], abs=1e-4) for item in result["passages"]} == products
    assert [item["id"] for item in result["passages"]] == sorted(products, key=products.__getitem__, reverse=True)
    assert main(["search", str(tmp_path / "passages_run"), *command[2:]]) == 2
    assert "is for queries of another model" in capsys.readouterr().err
