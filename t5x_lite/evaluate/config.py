"""Settings of evaluation. Nothing here imports JAX."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Strict

from t5x_lite.evaluate.evaluators import EVALUATORS, Evaluator
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Config, Int, OneOf, setting

LikelihoodKind = Literal["conditional", "pseudo", "pseudo_word"]


class EvalConfig(Config):
    """Evaluation during and after training."""

    every_steps: Int = setting(1000, "steps between evaluations; the last step is always evaluated", unit="steps", ge=1)
    batches: Int = setting(0, "most validation batches to evaluate; 0 evaluates the whole split", unit="batches", ge=0)
    batch_size: Int | None = setting(None, "sequences per batch; null takes train.batch_size", ge=1)
    likelihood: LikelihoodKind | None = setting(
        None,
        "how texts are scored: each token given those before it and the inputs (conditional); each token given all "
        "others, one hidden at a time (pseudo), or hidden with those to its right in the same word (pseudo_word); "
        "null: pseudo in an encoder, else conditional",
        source="Salazar et al. 2020; Kauf & Ivanova 2023",
    )
    evaluators: Annotated[tuple[Annotated[Evaluator, OneOf(EVALUATORS)], ...], Strict(False)] = setting(
        (),
        "evaluators beside the validation loss and the run's own tasks, such as [{few_shot: {tasks: [lambada]}}]; "
        "{validation: {every_steps: 100}} sets the steps of the former",
    )

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield why a model cannot be evaluated this way."""
        if model.family == "decoder" and self.likelihood not in {None, "conditional"}:
            yield f"eval.likelihood: {self.likelihood} is for models that read a text both ways, not a decoder"
        if model.is_encoder_only and self.likelihood == "conditional":
            yield f"eval.likelihood: conditional is not for a model of family {model.family}, which has no decoder"
        for number, evaluator in enumerate(self.evaluators):
            if evaluator in self.evaluators[:number]:
                yield f"eval.evaluators.{number} repeats another one"
            for problem in evaluator.model_problems(model):
                yield f"eval.evaluators: {problem}"

    def likelihood_of(self, model: ModelConfig) -> LikelihoodKind:
        """Return how the texts of a model are scored."""
        if self.likelihood is not None:
            return self.likelihood
        return "pseudo" if model.is_encoder_only else "conditional"
