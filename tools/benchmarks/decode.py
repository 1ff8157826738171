"""Greedy generation of GPT-2's and T5-small's shapes with random weights, against Transformers' `generate`.

Prefill is what a first token takes; decode what each token after it takes. Both read the same prompts of equal length,
in the same dtype, with a cache, and end nowhere.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.timing import OURS, THEIRS, Case, Side, dtype_here, on_cpu, raced
from t5x_lite.decode.sampling import Sampling

PROMPT = 64
MODELS = {
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", {}),
    "T5-small": ("T5ForConditionalGeneration", "T5Config", {"decoder_start_token_id": 0}),
}


def table(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Tokens a second of ours and theirs for one row and for eight, and the ratios."""
    count, lines = 16 if quick else 128, []
    for name in MODELS:
        with (
            tempfile.TemporaryDirectory() as folder,
            Side(THEIRS, _theirs, name, folder).ready() as theirs,  # it writes what ours reads
            Side(OURS, _ours, folder) as own,
        ):
            sides = {"ours": own, "theirs": theirs}
            for batch in (1, 8):
                prompts = np.random.default_rng(0).integers(5, 30000, (batch, PROMPT), np.int32)
                if on_cpu():
                    np.testing.assert_array_equal(*(side.result(prompts, 1 + count) for side in sides.values()))
                cases = {
                    f"{who} {n}": partial(side.seconds, prompts, n)
                    for n in (1, 1 + count)
                    for who, side in sides.items()
                }
                seconds = raced(cases, rounds)
                prefill = {who: seconds[f"{who} 1"] for who in sides}
                steps = {who: seconds[f"{who} {1 + count}"] - prefill[who] for who in sides}
                lines.append(
                    {"decode": f"{name}, {batch} × ({PROMPT} + {count})"}
                    | {f"prefill {who}, tokens/s": batch * PROMPT / prefill[who] for who in sides}
                    | {f"{who}, tokens/s": batch * count / steps[who] for who in sides}
                    | {"ours / theirs": steps["theirs"] / steps["ours"]}
                )
    return lines


def _theirs(name: str, folder: str) -> Case:
    """Transformers' model, which is also written into `folder`."""
    import torch
    import transformers

    kind, sizes, given = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, sizes)(**given)).eval()
    model.save_pretrained(f"{folder}/theirs")
    device, floats = ("cpu", torch.float32) if on_cpu() else ("cuda", torch.bfloat16)
    model.to(device, floats).generation_config.eos_token_id = None

    def generate(prompts: np.ndarray, tokens: int) -> Any:
        ids = torch.tensor(prompts, dtype=torch.long, device=device)
        given = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False}
        return model.generate(ids, max_new_tokens=tokens, **given).cpu().numpy()[:, -tokens:]

    return generate


def _ours(folder: str) -> Case:
    from t5x_lite.api import load
    from t5x_lite.convert.huggingface import import_hf

    import_hf(Path(folder, "theirs"), Path(folder, "run"))
    generator = load(f"{folder}/run", overrides=[f"model.compute={jnp.dtype(dtype_here())}"]).generator

    def generate(prompts: np.ndarray, tokens: int) -> Any:
        *_, made = generator.stream_tokens(list(prompts), Sampling(tokens, temperature=0))
        return made

    return generate
