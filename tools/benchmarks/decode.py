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

from benchmarks.timing import dtype_here, medians, on_cpu
from t5x_lite.decode.sampling import Sampling

PROMPT = 64


def table(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Tokens a second of ours and theirs for one row and for eight, and the ratios."""
    import torch
    import transformers

    from t5x_lite.api import load
    from t5x_lite.convert.huggingface import import_hf

    count = 32 if quick else 128
    device, floats = ("cpu", torch.float32) if on_cpu() else ("cuda", torch.bfloat16)
    shapes = {
        "GPT-2": (transformers.GPT2LMHeadModel, transformers.GPT2Config()),
        "T5-small": (transformers.T5ForConditionalGeneration, transformers.T5Config(decoder_start_token_id=0)),
    }
    lines = []
    for name, (kind, sizes) in shapes.items():
        theirs = kind(sizes).eval()
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(f"{folder}/theirs")
            import_hf(Path(folder, "theirs"), Path(folder, "run"), lambda *_: None)
            generator = load(f"{folder}/run", overrides=[f"model.compute={jnp.dtype(dtype_here())}"]).generator
        theirs.to(device, floats).generation_config.eos_token_id = None
        for batch in (1, 8):
            prompts = np.random.default_rng(0).integers(5, 30000, (batch, PROMPT), np.int32)

            def own(tokens: int, prompts: np.ndarray = prompts, generator: Any = generator) -> Any:
                *_, made = generator.tokens(list(prompts), Sampling(tokens, temperature=0))
                return made

            def other(tokens: int, prompts: np.ndarray = prompts, theirs: Any = theirs) -> Any:
                ids = torch.tensor(prompts, dtype=torch.long, device=device)
                given = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False}
                return theirs.generate(ids, max_new_tokens=tokens, **given).cpu().numpy()[:, -tokens:]

            if on_cpu():
                np.testing.assert_array_equal(own(1 + count), other(1 + count))
            makers = {"ours": own, "theirs": other}
            cases = {f"{who} {n}": partial(make, n) for n in (1, 1 + count) for who, make in makers.items()}
            seconds = medians(cases, rounds)
            prefill = {who: seconds[f"{who} 1"] for who in makers}
            steps = {who: seconds[f"{who} {1 + count}"] - prefill[who] for who in makers}
            lines.append(
                {"decode": f"{name}, {batch} × ({PROMPT} + {count})"}
                | {f"prefill {who}, tokens/s": batch * PROMPT / prefill[who] for who in makers}
                | {f"{who}, tokens/s": batch * count / steps[who] for who in makers}
                | {"ours / theirs": steps["theirs"] / steps["ours"]}
            )
    return lines
