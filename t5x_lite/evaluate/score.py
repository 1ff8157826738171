"""Log-likelihood of texts: of each token given those before it, or given all others (pseudo-log-likelihood)."""

from collections.abc import Sequence

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.objectives.features import Pair


def score(model: EvaluationModel, texts: Sequence[str], inputs: Sequence[str] | None = None) -> list[float]:
    """Return the log-probability of each text in nats, the sum over its tokens.

    White space at the end of `inputs` belongs to the text, as in lm-evaluation-harness, because the tokens of a word
    begin with it. `eval.likelihood` says what a token is predicted from:

    * In a decoder: the token that begins a document, the text of `inputs`, and the tokens before it.
    * In an encoder_decoder: the text of `inputs` (empty if left out), and the tokens before it. EOS after the text is
      predicted too.
    * By pseudo-log-likelihood, in an encoder and in an encoder_decoder that fills in spans: `inputs` and all other
      tokens; see `evaluate.pseudo_likelihood`.

    Raises:
        UserError: `inputs` of another number than `texts`; texts longer than the model's positions.
    """
    if inputs is not None and len(inputs) != len(texts):
        raise UserError(f"score: {len(texts)} texts but {len(inputs)} inputs")
    if inputs is None:
        inputs = [""] * len(texts)
    pairs = []
    longest = 1
    for before, text in zip(inputs, texts, strict=True):
        pair = _encode_pair(model, before, text)
        longest = max(longest, model.likelihood.tokens_read(pair))
        pairs.append(pair)
    window = model.resolve_window(longest)
    return [target_score.log_likelihood for target_score in model.likelihood(pairs, window)]


def _encode_pair(model: EvaluationModel, before: str, text: str) -> Pair:
    """Return the ids of inputs and targets. Unless an encoder reads the inputs, they are cut from those of both texts.

    If the text only makes the last token of the inputs longer, that token is the target.
    """
    inputs_text = before.rstrip()
    target_text = before[len(inputs_text) :] + text
    if model.config.model.family == "encoder_decoder" and model.config.scores_left_to_right:
        return model.encode_text(inputs_text), np.append(model.tokenizer.encode(target_text), model.eos)
    inputs, both = model.tokenizer.encode_batch([inputs_text, inputs_text + target_text])
    if target_text and len(both) <= len(inputs):
        shortest = min(len(inputs), len(both))
        (differences,) = np.nonzero(inputs[:shortest] != both[:shortest])
        inputs = inputs[: differences[0]] if len(differences) else inputs[: shortest - 1]
    return np.concatenate([model.empty_context, inputs]).astype(np.int32), both[len(inputs) :]
