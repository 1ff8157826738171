"""Distillation: a student learns from a teacher's distributions and states, beside the tokens of the text.

Hinton et al. 2015, §2; DistilBERT, Sanh et al. 2019, §2 and §3, with the weights of its published code.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from t5x_lite.objectives.model_protocols import Batch, DropoutKey, LossSettings, LossSums
from t5x_lite.objectives.objective import ExampleLengths
from t5x_lite.objectives.token_prediction import TokenPrediction
from t5x_lite.schema import Config, setting

if TYPE_CHECKING:
    from t5x_lite.models.distillation_losses import StatesAndLogits

TOKEN_WEIGHTS = "token_weights"
"""Feature of a batch: 1 where a token is no padding, float32 `[batch, length]`."""


class Distillation(Config):
    """Distillation from a teacher, whose weights are frozen.

    The loss is `soft`·soft targets + `hard`·objective + `cosine`·states. Each is a mean over its
    tokens.
    """

    teacher: str = setting(
        ...,
        "run directory of the teacher, or one of its steps, RUN/checkpoints/STEP; its tokenizer is this run's",
        min_length=1,
    )
    temperature: float = setting(
        2.0, "divisor T of the logits of both models under the soft targets", gt=0, source="Hinton et al. 2015, §2"
    )
    soft: float = setting(
        5.0, "weight of T²·KL divergence from the teacher's distribution", ge=0, source="DistilBERT's code, alpha_ce"
    )
    hard: float = setting(2.0, "weight of the objective's loss", ge=0, source="DistilBERT's code, alpha_mlm")
    cosine: float = setting(
        1.0,
        "weight of 1 - cosine of the states of both last layers, which must be equally wide; 0 computes none",
        ge=0,
        source="Sanh et al. 2019, §3; DistilBERT's code, alpha_cos",
    )
    soft_tokens: Literal["all", "predicted"] = setting(
        "all",
        "tokens with soft targets: all but padding, or those that the objective predicts",
        source="DistilBERT's code, restrict_ce_to_mask",
    )

    def problems(self) -> Iterator[str]:
        """Yield the reason if nothing is learnt from the teacher."""
        if not self.soft and not self.cosine:
            yield "distillation.soft and distillation.cosine are 0, so that nothing is learnt from the teacher"

    def term_weights(self, objective: TokenPrediction) -> Mapping[str, str]:
        """Return the feature that holds the weights of each term; see `Objective.term_weights`."""
        weights = {**objective.term_weights}
        if self.soft:
            weights["soft"] = TOKEN_WEIGHTS if self.soft_tokens == "all" else "loss_weights"
        if self.cosine:
            weights["cosine"] = TOKEN_WEIGHTS
        return weights

    def example_lengths(self, lengths: ExampleLengths) -> ExampleLengths:
        """Return the numbers of tokens that both models process in one example."""
        if not self.soft or self.soft_tokens == "predicted":
            return lengths
        return replace(lengths, predicted=lengths.targets or lengths.tokens)

    def loss(
        self,
        objective: TokenPrediction,
        student: Any,
        teacher: "StatesAndLogits",
        batch: Batch,
        key: DropoutKey,
        settings: LossSettings,
    ) -> Mapping[str, LossSums]:
        """Return the terms of the objective, `soft` and `cosine`.

        Args:
            objective: what the student learns without a teacher.
            student: a `LanguageModel`.
            teacher: its states of the batch, without dropout and gradient, and its output.
            batch: the features of the objective, with `TOKEN_WEIGHTS`.
            key: for dropout of the student.
            settings: of the loss.
        """
        from t5x_lite.models.distillation_losses import StatesAndLogits, cosine_loss

        states = objective.states(student, batch, key)
        hard_terms = objective.loss_from_states(student, states, batch, settings)
        terms = {name: term.scaled(self.hard) for name, term in hard_terms.items()}
        if self.soft:
            student_outputs = StatesAndLogits(states, student.logits)
            soft_term = self._soft_term(objective, student_outputs, teacher, batch, settings)
            terms["soft"] = soft_term.scaled(self.soft)
        if self.cosine:
            terms["cosine"] = cosine_loss(states, teacher.states, batch[TOKEN_WEIGHTS]).scaled(self.cosine)
        return terms

    def _soft_term(
        self,
        objective: TokenPrediction,
        student: "StatesAndLogits",
        teacher: "StatesAndLogits",
        batch: Batch,
        settings: LossSettings,
    ) -> LossSums:
        from t5x_lite.models.distillation_losses import soft_target_loss

        if self.soft_tokens == "all":
            return soft_target_loss(student, teacher, batch[TOKEN_WEIGHTS], settings, self.temperature)
        student = replace(student, states=objective.predicting_states(student.states, batch))
        teacher = replace(teacher, states=objective.predicting_states(teacher.states, batch))
        return soft_target_loss(student, teacher, batch["loss_weights"], settings, self.temperature)


def add_token_weights(batch: Batch) -> Batch:
    """Return the batch with `TOKEN_WEIGHTS`: those of an encoder_decoder are of the decoder's tokens."""
    import jax.numpy as jnp

    segments = batch.get("decoder_segment_ids", batch["segment_ids"])
    return {**batch, TOKEN_WEIGHTS: (segments > 0).astype(jnp.float32)}
