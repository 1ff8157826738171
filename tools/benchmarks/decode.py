"""Greedy generation of GPT-2's and T5-small's shapes with random weights, compared with Transformers' `generate`.

Prefill is the time of the first token, decode the time of each token after it. Both libraries read the same prompts of
equal length, in the same dtype, with a cache; no text ends early.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from benchmarks.timing import (
    OUR_ENVIRONMENT,
    TORCH_ENVIRONMENT,
    Case,
    CaseProcess,
    compute_dtype,
    is_on_cpu,
    median_of_turns,
)
from t5x_lite.decode.sampling import Sampling

PROMPT_LENGTH = 64
BATCH_SIZES = (1, 8)
NEW_TOKENS = 128
NEW_TOKENS_IF_QUICK = 16
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", {}),
    "T5-small": ("T5ForConditionalGeneration", "T5Config", {"decoder_start_token_id": 0}),
}
"""Classes of Transformers' models and their configs, and settings of the config."""


def measure(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Measure tokens per second of both libraries for one row and for eight, and the ratios."""
    new_tokens = NEW_TOKENS_IF_QUICK if quick else NEW_TOKENS
    rows = []
    for name in MODELS:
        with (
            tempfile.TemporaryDirectory() as folder,
            # PyTorch's process writes the checkpoint that ours reads.
            CaseProcess(TORCH_ENVIRONMENT, _build_torch_case, name, folder).wait_until_built() as torch_process,
            CaseProcess(OUR_ENVIRONMENT, _build_our_case, folder) as our_process,
        ):
            processes = {"ours": our_process, "theirs": torch_process}
            for batch_size in BATCH_SIZES:
                row: dict[str, Any] = {"decode": f"{name}, {batch_size} × ({PROMPT_LENGTH} + {new_tokens})"}
                rows.append(row | _measure_batch(processes, batch_size, new_tokens, rounds))
    return rows


def _measure_batch(
    processes: dict[str, CaseProcess], batch_size: int, new_tokens: int, rounds: int
) -> dict[str, float]:
    prompts = np.random.default_rng(0).integers(5, 30000, (batch_size, PROMPT_LENGTH), np.int32)
    if is_on_cpu():
        our_tokens = processes["ours"].result(prompts, 1 + new_tokens)
        np.testing.assert_array_equal(our_tokens, processes["theirs"].result(prompts, 1 + new_tokens))
    timers = {}
    for side, process in processes.items():
        timers[f"{side} prefill"] = partial(process.seconds, prompts, 1)
    for side, process in processes.items():
        timers[f"{side} all"] = partial(process.seconds, prompts, 1 + new_tokens)
    seconds = median_of_turns(timers, rounds)
    decode_seconds = {}
    figures = {}
    for side in processes:
        prefill_seconds = seconds[f"{side} prefill"]
        figures[f"prefill {side}, tokens/s"] = batch_size * PROMPT_LENGTH / prefill_seconds
        decode_seconds[side] = seconds[f"{side} all"] - prefill_seconds
    for side in processes:
        figures[f"{side}, tokens/s"] = batch_size * new_tokens / decode_seconds[side]
    figures["ours / theirs"] = decode_seconds["theirs"] / decode_seconds["ours"]
    return figures


def _build_torch_case(name: str, folder: str) -> Case:
    """Return Transformers' generation. Its model is also written into `folder`."""
    import torch
    import transformers

    model_class, config_class, settings = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**settings)
    model = getattr(transformers, model_class)(config).eval()
    model.save_pretrained(f"{folder}/theirs")
    device = "cpu" if is_on_cpu() else "cuda"
    model.to(device, torch.float32 if is_on_cpu() else torch.bfloat16)
    model.generation_config.eos_token_id = None

    def generate(prompts: Int[np.ndarray, "b l"], new_tokens: int) -> Int[np.ndarray, "b new"]:
        ids = torch.tensor(prompts, dtype=torch.long, device=device)
        tokens = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            pad_token_id=0,
            do_sample=False,
            max_new_tokens=new_tokens,
        )
        return tokens.cpu().numpy()[:, -new_tokens:]

    return generate


def _build_our_case(folder: str) -> Case:
    from t5x_lite.api import load
    from t5x_lite.convert.huggingface import import_hf

    import_hf(Path(folder, "theirs"), Path(folder, "run"))
    generator = load(f"{folder}/run", overrides=[f"model.compute={jnp.dtype(compute_dtype())}"]).generator

    def generate(prompts: Int[np.ndarray, "b l"], new_tokens: int) -> Int[np.ndarray, "b new"]:
        *_, tokens = generator.stream_tokens(list(prompts), Sampling(new_tokens, temperature=0))
        return tokens

    return generate
