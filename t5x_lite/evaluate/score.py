"""Log-likelihood of texts: of a continuation of inputs, or of each token given all others (pseudo-log-likelihood)."""

from collections.abc import Sequence

import jax
import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.objectives.features import Pair
from t5x_lite.objectives.masked import MASK

MASKED_BATCH = 16
"""Masks predicted at one time."""


def score(model: EvaluationModel, texts: Sequence[str], inputs: Sequence[str] | None = None) -> list[float]:
    """Return the log-probability of each text in nats, the sum over its tokens.

    White space at the end of `inputs` belongs to the text, as in lm-evaluation-harness, because the tokens of a word
    begin with it.

    * A decoder predicts the text after the token that begins a document and the text of `inputs`.
    * An encoder_decoder predicts the text and EOS given the text of `inputs` (empty if left out).
    * An encoder predicts each token given all others, one masked at a time (pseudo-log-likelihood, Salazar et al.
      2020).

    Raises:
        UserError: `inputs` of another number than `texts`, or for an encoder; texts longer than the model's positions.
    """
    if inputs is not None and len(inputs) != len(texts):
        raise UserError(f"score: {len(texts)} texts but {len(inputs)} inputs")
    if model.config.model.family not in {"decoder", "encoder_decoder"}:
        if inputs is not None:
            raise UserError("score: an encoder takes no inputs")
        return [_pseudo_log_likelihood(model, text) for text in texts]
    if inputs is None:
        inputs = [""] * len(texts)
    pairs = []
    longest = 1
    for before, text in zip(inputs, texts, strict=True):
        pair = _encode_pair(model, before, text)
        longest = max(longest, _tokens_read(model, pair))
        pairs.append(pair)
    window = model.resolve_window(longest)
    return [target_score.log_likelihood for target_score in model.likelihood(pairs, window)]


def _encode_pair(model: EvaluationModel, before: str, text: str) -> Pair:
    """Return the ids of inputs and targets. Those of a decoder are cut from the ids of both texts together.

    If the text only makes the last token of the inputs longer, that token is the target.
    """
    inputs_text = before.rstrip()
    target_text = before[len(inputs_text) :] + text
    if model.config.model.family == "encoder_decoder":
        return model.encode_text(inputs_text), np.append(model.tokenizer.encode(target_text), model.eos)
    inputs, both = model.tokenizer.encode_batch([inputs_text, inputs_text + target_text])
    if target_text and len(both) <= len(inputs):
        shortest = min(len(inputs), len(both))
        (differences,) = np.nonzero(inputs[:shortest] != both[:shortest])
        inputs = inputs[: differences[0]] if len(differences) else inputs[: shortest - 1]
    return np.append(model.prefix_token_id, inputs), both[len(inputs) :]


def _tokens_read(model: EvaluationModel, pair: Pair) -> int:
    """Return the tokens that the model reads to score a pair, on the longer side of an encoder_decoder."""
    inputs, targets = pair
    if model.config.model.family == "encoder_decoder":
        return max(len(inputs), len(targets))
    return len(inputs) + len(targets) - 1


def _pseudo_log_likelihood(model: EvaluationModel, text: str) -> float:
    mask = model.tokenizer.vocabulary().require_token("scores of an encoder", *MASK)
    token_ids = model.encode_text(text)
    # [CLS] follows the soft prompt; [SEP] is the last token.
    positions = np.arange(len(model.soft_prompt_ids) + 1, len(token_ids) - 1)
    total = 0.0
    for start in range(0, len(positions), MASKED_BATCH):
        masked = positions[start : start + MASKED_BATCH]
        rows = np.arange(len(masked))
        tokens = np.repeat(token_ids[None], len(masked), axis=0)
        tokens[rows, masked] = mask
        logits = model.logits(tokens)[rows, masked]
        log_probs = np.asarray(jax.nn.log_softmax(logits))
        total += float(log_probs[rows, token_ids[masked]].sum())
    return total
