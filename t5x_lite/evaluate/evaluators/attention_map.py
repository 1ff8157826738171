"""The attention of a prompt: which tokens attend to which, in each layer and head."""

import base64
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from t5x_lite.evaluate.evaluators.evaluator import EvaluatedRun, Evaluation, Evaluator
from t5x_lite.models.attention.kinds import TransientGlobal
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mixers import StateMixer
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel

FILE = "attention.json"
LEVELS = 255
"""A weight is stored as a whole number of this many parts."""


class AttentionMap(Evaluator):
    """The weights of self-attention on a prompt. They go to RUN/eval/STEP/attention.json, and the report draws them.

    Of an encoder_decoder the encoder is shown.
    """

    prompt: str = setting(..., "text whose tokens attend to each other", min_length=1)
    tokens: Int = setting(64, "most tokens of the prompt", unit="tokens", ge=2, le=256)

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield an error for a model without attention, or with attention to other things than tokens."""
        if any(isinstance(layer.attention, TransientGlobal) for layer in model.pattern):
            yield "attention_map shows pairs of tokens; transient_global also attends to sums of blocks"
        if all(isinstance(layer.mixer, StateMixer) for layer in (*model.first, *model.pattern)):
            yield "attention_map is for models with attention; no layer of this one has it"

    def metric_names(self, run: EvaluatedRun) -> Sequence[str]:
        """Return nothing."""
        return ()

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Compute and save the weights."""
        import jax
        import numpy as np

        from t5x_lite.errors import UserError
        from t5x_lite.evaluate.embed import encode_texts
        from t5x_lite.evaluate.layer_states import compute_attention_weights
        from t5x_lite.files import write_file

        if model.soft_prompt_ids.size:
            raise UserError("attention_map shows the tokens of a text, but this run has a soft prompt before them")
        (row,) = encode_texts(model, [self.prompt], self.tokens)
        (weights,) = model.apply_to_rows(compute_attention_weights, [row], "attention")
        length = len(row["tokens"])
        parts = np.rint(LEVELS * np.asarray(weights)[..., :length, :length]).astype(np.uint8)
        if jax.process_index() == 0:
            content = {
                "prompt": self.prompt,
                "tokens": [model.tokenizer.decode(row["tokens"][n : n + 1]) for n in range(length)],
                "layers": parts.shape[0],
                "heads": parts.shape[1],
                "weights": base64.b64encode(parts.tobytes()).decode(),
            }
            write_file(model.run.results_folder(model.step) / FILE, json.dumps(content, ensure_ascii=False))
        return Evaluation({})
