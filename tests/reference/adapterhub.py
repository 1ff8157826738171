"""A tiny BERT with adapters in AdapterHub's package `adapters`: its weights, its cases and the recorded outputs.

`adapters` 1.3.0 needs Transformers 4.57, and the other references a newer one. So the outputs are recorded, in an
environment of their own:

    pip install adapters==1.3.0 torch numpy
    python tests/reference/adapterhub.py tests/reference/adapterhub.npz

All weights are drawn by their names, so that the file holds outputs alone.
"""

import sys
import zlib
from pathlib import Path

import numpy as np

RECORDED = Path(__file__).with_suffix(".npz")
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}
REDUCTION_FACTOR = 4
WIDTH = SIZES["hidden_size"] // REDUCTION_FACTOR
TOKENS = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (3, 9))
ADAPTERS: dict[str, tuple[str, dict[str, object]]] = {
    "houlsby": ("double_seq_bn", {}),
    "pfeiffer": ("seq_bn", {}),
    "pfeiffer, residual after the norm": ("seq_bn", {"residual_before_ln": False}),
    "pfeiffer, no norm after": ("seq_bn", {"residual_before_ln": False, "original_ln_after": False}),
}
"""AdapterHub's config and its changed fields, by case."""
FUSIONS: dict[str, tuple[str, dict[str, object]]] = {
    "dynamic": ("dynamic", {}),
    "static": ("static", {}),
    "dynamic, residual before, query before the norm": ("dynamic", {"residual_before": True, "query_before_ln": True}),
}
"""The same of fusions of two `pfeiffer` adapters."""


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the weight of a name."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if name.endswith("LayerNorm.weight"):
        return 1 + 0.3 * noise
    return 0.3 * noise


def outputs_of_adapters() -> dict[str, np.ndarray]:
    """Compute the last states of every case with the package `adapters`."""
    import adapters
    import torch
    import transformers

    def build() -> transformers.BertModel:
        config = transformers.BertConfig(**{**SIZES, "attn_implementation": "eager"})
        model = transformers.BertModel(config, add_pooling_layer=False).eval()
        adapters.init(model)
        return model

    def states(model: transformers.BertModel) -> np.ndarray:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(draw(name, tuple(parameter.shape))))
            return model(torch.from_numpy(TOKENS)).last_hidden_state.numpy()

    results = {}
    for case, (config, fields) in ADAPTERS.items():
        model = build()
        model.add_adapter("a", adapters.AdapterConfig.load(config, reduction_factor=REDUCTION_FACTOR, **fields))
        model.set_active_adapters("a")
        results[case] = states(model)
    for case, (config, fields) in FUSIONS.items():
        model = build()
        for name in ("a", "b"):
            model.add_adapter(name, adapters.AdapterConfig.load("seq_bn", reduction_factor=REDUCTION_FACTOR))
        model.add_adapter_fusion(["a", "b"], adapters.AdapterFusionConfig.load(config, **fields))
        model.set_active_adapters(adapters.composition.Fuse("a", "b"))
        results[case] = states(model)
    model = build()
    results["no adapter"] = states(model)
    return results


if __name__ == "__main__":
    np.savez_compressed(sys.argv[1], **outputs_of_adapters())
