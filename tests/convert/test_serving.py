"""Exported decoders in the config parser of vLLM, which serves them."""

from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")
vllm_config = pytest.importorskip(
    "vllm.transformers_utils.config",
    reason="pip install --no-deps vllm cbor2 pyzmq openai_harmony openai, which is enough for its parsers",
)
pytestmark = pytest.mark.slow

from t5x_lite.convert.huggingface import export_hf  # noqa: E402
from tests.reference.cases import make  # noqa: E402

DECODERS = (
    "GPT-2",
    "GPT-NeoX",
    "OPT",
    "Falcon 7B",
    "BLOOM",
    "Llama 3.1",
    "Mistral",
    "Mixtral",
    "OLMo 2",
    "Qwen2",
    "Qwen3",
    "Qwen3-MoE",
    "Gemma 2",
    "Gemma 3",
    "DeepSeek-V2",
    "DeepSeek-V3",
    "gpt-oss",
    "Mamba-2",
)


@pytest.mark.parametrize("name", DECODERS)
def test_vllm_has_the_architecture_and_reads_the_sizes(name: str, tmp_path: Path) -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    case = make(name, tmp_path)
    folder = tmp_path / "export"
    export_hf(case.run, folder)
    config = vllm_config.get_config(str(folder), trust_remote_code=False)
    assert set(config.architectures) <= set(ModelRegistry.get_supported_archs())
    ours = case.theirs.config
    for size in ("vocab_size", "hidden_size", "num_hidden_layers"):
        assert getattr(config, size) == getattr(ours, size), size
