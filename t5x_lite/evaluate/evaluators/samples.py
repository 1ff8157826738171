"""Texts that the model generates while it trains."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from t5x_lite.evaluate.evaluators.evaluator import EvaluatedRun, Evaluation, Evaluator
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, Strings, setting

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel

SHOWN_CHARACTERS = 60
"""Characters of the first text in the line of the evaluation."""


class Samples(Evaluator):
    """Continuations of prompts. They go to RUN/eval/STEP/samples.jsonl, and the report shows them over the steps."""

    prompts: Strings = setting(..., "texts to continue", min_length=1)
    tokens: Int = setting(64, "most new tokens of each", unit="tokens", ge=1)
    temperature: float = setting(0.8, "divides the logits; 0 is greedy", ge=0)
    top_p: float = setting(
        0.95,
        "sample from the most likely tokens that together have this probability",
        gt=0,
        le=1,
        source="Holtzman 2020",
    )
    seed: Int = setting(0, "random seed", ge=0)

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield an error for a model that does not generate."""
        if model.is_encoder_only:
            yield f"samples are for models that generate; this model is of family {model.family}"
        if model.max_length is not None and self.tokens >= model.max_length:
            positions = f"the model's {model.max_length} positions"
            yield f"samples: tokens {self.tokens} leave no room for a prompt in {positions}"

    def metric_names(self, run: EvaluatedRun) -> Sequence[str]:
        """Return nothing."""
        return ()

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Generate and save the texts."""
        from t5x_lite.decode.sampling import Sampling
        from t5x_lite.evaluate.scores_file import save_samples

        decoding = Sampling(tokens=self.tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed)
        texts = model.generator.generate(list(self.prompts), decoding)
        records = []
        for prompt, text in zip(self.prompts, texts, strict=True):
            records.append({"prompt": prompt, "text": text})
        save_samples(model.run.results_folder(model.step), {"samples": records})
        start = (self.prompts[0] + texts[0])[:SHOWN_CHARACTERS]
        return Evaluation({}, summary=f"sample {start!r}")
