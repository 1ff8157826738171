"""Repetition in generated text: seq-rep-n (Welleck et al. 2020)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from t5x_lite.evaluate.evaluators.evaluator import Evaluation, Evaluator
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, Strings, setting

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


class Repetition(Evaluator):
    """The share of n-grams of words that repeat an earlier one, in greedy continuations of prompts."""

    prompts: Strings = setting(..., "texts to continue", min_length=1)
    tokens: Int = setting(64, "new tokens of each", unit="tokens", ge=1)
    n: Int = setting(2, "words of an n-gram", ge=1)

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield an error for a model that does not generate."""
        if model.is_encoder_only:
            yield f"repetition is for models that generate; this model is of family {model.family}"

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Generate and count."""
        from t5x_lite.decode.sampling import Sampling

        texts = model.generator.generate(list(self.prompts), Sampling(tokens=self.tokens, temperature=0.0))
        share = sum(repeated_share(text.split(), self.n) for text in texts) / len(texts)
        name = f"eval/repeated_{self.n}_grams"
        return Evaluation({name: share}, summary=f"repeated {self.n}-grams {share:.1%}")


def repeated_share(words: Sequence[str], n: int) -> float:
    """Return one minus the number of distinct n-grams over that of all; 0 if there are none."""
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    if not ngrams:
        return 0.0
    return 1 - len(set(ngrams)) / len(ngrams)
