"""Attention of a prompt: the weights are those of Transformers, in every layer and head."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite.cli import main
from t5x_lite.convert.huggingface import import_hf
from t5x_lite.evaluate.evaluators.attention_map import AttentionMap

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "brown", "fox", "jumps", "over", "a", "lazy"]
TEXT = "the quick brown fox jumps over a lazy fox"


def sizes(**further: int) -> dict[str, int]:
    return {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24, **further}


CONFIGS = {
    "bert": lambda: transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=20, **sizes()),
    "llama": lambda: transformers.LlamaConfig(vocab_size=len(WORDS), **sizes(num_key_value_heads=2)),
    "gemma2": lambda: transformers.Gemma2Config(
        vocab_size=len(WORDS), head_dim=4, sliding_window=4, **sizes(num_key_value_heads=2)
    ),
    "albert": lambda: transformers.AlbertConfig(vocab_size=len(WORDS), embedding_size=8, **sizes()),
}


@pytest.mark.parametrize("family", ["bert", "llama", pytest.param("gemma2", marks=pytest.mark.slow), "albert"])
def test_weights_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    """Eleven tokens, more than the four channels of a head."""
    torch.manual_seed(0)
    config = CONFIGS[family]()
    model_class = transformers.AutoModelForMaskedLM
    if family in {"llama", "gemma2"}:
        model_class = transformers.AutoModelForCausalLM
    hf_model = model_class.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in hf_model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    hf_model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf/vocab.txt").write_text("\n".join(WORDS) + "\n")
    import_hf(tmp_path / "hf", tmp_path / "run")
    model = t5x_lite.load(tmp_path / "run")
    AttentionMap(prompt=TEXT).run(model)
    saved = json.loads((tmp_path / "run/eval/0/attention.json").read_text())
    ids = model.encode_text(TEXT)
    with torch.no_grad():
        expected = hf_model(torch.tensor(ids[None]), output_attentions=True).attentions
    length = len(ids)
    shape = (saved["layers"], saved["heads"], length, length)
    assert shape == (3, 4, length, length)
    weights = np.frombuffer(base64.b64decode(saved["weights"]), np.uint8).reshape(shape)
    np.testing.assert_allclose(weights / 255, np.stack([layer[0].numpy() for layer in expected]), atol=0.5 / 255 + 1e-5)
    assert len(saved["tokens"]) == length
    assert "".join(saved["tokens"]).count("fox") == 2


def test_the_report_of_a_run_has_the_map(tiny_run: Path, tmp_path: Path) -> None:
    model = t5x_lite.load(tiny_run)
    AttentionMap(prompt="the quick </script> fox", tokens=8).run(model)
    page = tmp_path / "report.html"
    try:
        assert main(["report", str(tiny_run), "--to", str(page)]) == 0
    finally:
        (tiny_run / "eval" / str(model.step) / "attention.json").unlink()
    text = page.read_text()
    assert text.count("</script>") == 2
    content = text.partition('id="report">')[2].partition("</script>")[0]
    (shown,) = json.loads(content)["attention"]
    assert (shown["run"], shown["step"], shown["layers"], shown["heads"]) == (tiny_run.name, model.step, 2, 2)
    assert len(shown["tokens"]) ** 2 * 4 == len(base64.b64decode(shown["weights"]))
