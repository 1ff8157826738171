"""The text of new tokens after a prompt."""

import numpy as np
from jaxtyping import Int

from t5x_lite.data.tokenizer import Tokenizer

CONTEXT_TOKENS = 8
"""Tokens at the end of a prompt that are decoded together with its continuation."""


def decode_continuation(tokenizer: Tokenizer, prompt_ids: Int[np.ndarray, "p"], token_ids: Int[np.ndarray, "t"]) -> str:
    """Return the text of tokens that continue a prompt.

    A tokenizer that puts a space before every text, and removes it when it decodes, would remove the space of the first
    new word. The last tokens of the prompt are decoded too, and their text is cut off.
    """
    prompt_end = [token_id for token_id in prompt_ids[-CONTEXT_TOKENS:].tolist() if token_id >= 0]
    prompt_text = tokenizer.decode(prompt_end).rstrip("\ufffd")
    return tokenizer.decode(prompt_end + token_ids.tolist())[len(prompt_text) :]
