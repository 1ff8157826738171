"""Models without the layers that a method adapts are refused."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from t5x_lite.adapt import IA3, AdaptationMethod, LoRA, Prefix
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import init_params, model_spec
from t5x_lite.trees import flatten_names
from tests.adapt.conftest import MethodConfig

SIZES = {"layers": 2, "embed": 16, "heads": 2, "vocab": 20}
LATENT = {"latent_attention": {"rank": 4, "query_rank": 4, "rotary": 4, "value": 4}}
MAMBA2 = {"mamba2": {"head_dim": 8, "state": 4}}
SHARED_EXPERTS = {"moe": {"experts": 2, "expert": "glu", "shared": 1, "shared_gate": True}}


def model_of(**settings: Any) -> ModelConfig:
    return ModelConfig.model_validate({**SIZES, **settings})


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (LoRA(targets="q_proj"), {}, "'q_proj' is found in the name of no .* attention.query, .*feedforward.down"),
        (
            LoRA(trainable="embed_tokens"),
            {},
            "'embed_tokens' is found in the name of no parameter .* with decoder, tokens",
        ),
        (LoRA(), {"pattern": [{"mixer": MAMBA2}]}, "their names end in feedforward.down, .*mixer.value"),
        (LoRA(), {"pattern": [{"mixer": "lstm"}]}, "mixer.forward_0.input"),
        (IA3(), {"pattern": [{"mixer": "lstm"}]}, r"key\|value"),
        (IA3(), {"feedforward": "none"}, "down"),
        (Prefix(), {"positions": "rotary", "pattern": [{"mixer": LATENT}]}, "has no keys and values"),
        (Prefix(), {"pattern": [{}, {"mixer": "lstm"}]}, "has no keys and values"),
    ],
)
def test_a_model_without_the_layers_of_a_method_is_refused(
    method: AdaptationMethod, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"adapt.method.*{message}"):
        model_spec(model_of(**settings), method.surgery)


def test_a_model_of_which_a_part_has_these_layers_is_accepted() -> None:
    for method, settings in (
        (LoRA(), {"pattern": [{"mixer": MAMBA2}, {}]}),
        (LoRA(targets="mixer"), {"pattern": [{"mixer": MAMBA2}]}),
        (Prefix(), {"family": "encoder_decoder", "decoder_mixer": "gru"}),
        # The decoder's cross-attention has keys and values.
        (IA3(), {"family": "encoder_decoder", "pattern": [{"mixer": "gru"}]}),
    ):
        model_spec(model_of(**settings), method.surgery)


def test_targets_that_match_nothing_end_a_run_before_it_writes(
    tiny_config: Path, tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    words = [f"run_dir={run_dir}", f"adapt={{from: {tiny_run}, method: {{lora: {{targets: q_proj}}}}}}"]
    assert main(["train", str(tiny_config), *words]) == 2
    assert "adapt.method: 'q_proj' is found in the name of no linear layer" in capfd.readouterr().err
    assert not run_dir.exists()


def test_targets_that_are_no_regular_expression_are_refused_with_the_config(method_config: MethodConfig) -> None:
    with pytest.raises(UserError, match=r"targets 'att\(' is not a regular expression"):
        method_config("adapt.method={lora: {targets: 'att('}}")
    with pytest.raises(UserError, match=r"trainable 'norm\(' is not a regular expression"):
        method_config("adapt.method={lora: {trainable: 'norm('}}")


def test_ia3_scales_the_inner_channels_of_experts_and_of_shared_experts() -> None:
    """In the merged weights, the rows of `down` that the channels are multiplied with."""
    weights = flatten_names(init_params(model_of(feedforward=SHARED_EXPERTS), jax.random.key(0), IA3().surgery))
    for layer, stacked in (("experts", (2, 2)), ("shared", (2,))):
        down = f"decoder.stack.layers.0.feedforward.{layer}.down"
        factor = np.arange(2 * 64).reshape(2, 64)
        merged = IA3().merged_weights({**weights, f"{down}.adapter.factor": factor})
        rows = factor.reshape(2, *[1] * (len(stacked) - 1), 64, 1)
        np.testing.assert_allclose(merged[f"{down}.weight"], weights[f"{down}.weight"] * rows)
        assert merged[f"{down}.weight"].shape == (*stacked, 64, 16)
        assert weights[f"{down}.adapter.factor"].shape == (2, 64)
