"""Settings of adapters and of their fusion that cannot be computed are refused."""

import pytest

from t5x_lite.adapt import AdaptationMethod, Fusion, Houlsby, LoRA, Pfeiffer
from t5x_lite.adapt.adapters import Bottleneck
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from tests.adapt.conftest import MethodConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("pfeiffer: {original_ln_after: false}", "it needs original_ln_before: true and residual_before_ln: false"),
        (
            "houlsby: {original_ln_before: true, original_ln_after: false}",
            "it needs original_ln_before: true and residual_before_ln: false",
        ),
        ("fusion: {adapters: [a], kind: {original_ln_after: false}}", "takes the residual stream from x"),
        ("fusion: {adapters: [a], chosen: 1}", "there is no such adapter among 1"),
    ],
)
def test_adapters_that_would_lose_the_residual_stream_are_refused(
    settings: str, message: str, method_config: MethodConfig
) -> None:
    with pytest.raises(UserError, match=message):
        method_config(f"adapt.method={{{settings}}}")


@pytest.mark.parametrize(
    "method",
    [
        Pfeiffer(original_ln_before=True),
        Fusion(adapters=("a",), kind=Bottleneck(original_ln_before=True)),
    ],
    ids=["pfeiffer", "fusion"],
)
def test_parallel_sublayers_have_no_sum_that_an_adapter_could_read(method: AdaptationMethod) -> None:
    model = ModelConfig(layers=2, embed=8, heads=2, sublayers="parallel")
    with pytest.raises(ValueError, match=r"original_ln_before needs model\.sublayers=sequential, found parallel"):
        method.check(model)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Pfeiffer(width=8), "width 8, not 4"),
        (Pfeiffer(width=4, activation="gelu"), "activation gelu, not relu"),
        (Pfeiffer(width=4, original_ln_before=True), "original_ln_before True, not False"),
        (Houlsby(width=4), "was trained by houlsby, and fusion is of pfeiffer adapters"),
        (LoRA(), "was trained by lora"),
    ],
)
def test_a_fusion_refuses_adapters_of_another_kind(method: AdaptationMethod, message: str) -> None:
    fusion = Fusion(adapters=("a",), kind=Bottleneck(width=4))
    fusion.check_source(Pfeiffer(width=4))
    with pytest.raises(ValueError, match=message):
        fusion.check_source(method)
