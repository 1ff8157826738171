"""Dynamic NTK scaling against Transformers: inside the original window, and for one longer context."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

import t5x_lite  # noqa: E402
from t5x_lite.convert.huggingface import export_hf  # noqa: E402
from t5x_lite.decode.generate import Sampling  # noqa: E402
from t5x_lite.errors import UserError  # noqa: E402
from tests.reference.cases import Case, make  # noqa: E402

WINDOW = 32
"""The original context of the tiny model."""
LENGTH = 50
SCALING = "model.positions.rotary.scaling.dynamic"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make("Llama, dynamic", tmp_path_factory.mktemp("dynamic"), noise=1.0)


def their_logits(case: Case, tokens: np.ndarray) -> np.ndarray:
    """Logits of a fresh copy of the model: Transformers keeps the base of the longest text that it has seen."""
    theirs = type(case.theirs).from_pretrained(case.folder).eval()
    with torch.no_grad():
        return theirs(torch.tensor(tokens)).logits.numpy()


def make_tokens(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(5, 90, (1, length))


def test_a_text_as_long_as_the_scaled_context_has_transformers_logits(case: Case) -> None:
    tokens = make_tokens(LENGTH)
    expected = their_logits(case, tokens)
    model = t5x_lite.load(case.run, overrides=[f"{SCALING}.length={LENGTH}"])
    np.testing.assert_allclose(model.logits(tokens), expected, atol=2e-3)
    unscaled = t5x_lite.load(case.run, overrides=["model.positions.rotary.scaling=null"])
    assert np.abs(unscaled.logits(tokens) - expected).max() > 0.5


def test_a_full_window_is_not_scaled(case: Case) -> None:
    tokens = make_tokens(WINDOW)
    np.testing.assert_allclose(case.ours.logits(tokens), their_logits(case, tokens), atol=2e-3)


def test_longer_texts_are_refused_by_the_setting_that_admits_them(case: Case) -> None:
    with pytest.raises(UserError) as raised:
        case.ours.logits(make_tokens(WINDOW + 1))
    assert f"33 tokens are more than the model's 32 positions ({SCALING}.length)" in str(raised.value)
    with pytest.raises(UserError, match="length 20 is below original_length 32"):
        t5x_lite.load(case.run, overrides=[f"{SCALING}.length=20"])


def test_cached_decoding_equals_uncached_beyond_the_original_window(case: Case) -> None:
    model = t5x_lite.load(case.run, overrides=[f"{SCALING}.length={LENGTH}"])
    prompt = make_tokens(WINDOW - 4)[0].astype(np.int32)
    *_, generated = model.generator.stream_tokens([prompt], Sampling(tokens=LENGTH - len(prompt), temperature=0))
    logits = model.logits(np.concatenate([prompt, generated[0, :-1]]))[0, len(prompt) - 1 :]
    assert logits.argmax(-1).tolist() == generated[0].tolist()


def test_an_export_has_the_original_window(case: Case, tmp_path: Path) -> None:
    export_hf(case.run, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.max_position_embeddings == WINDOW
    assert config.rope_parameters == {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
