"""Preference optimisation without a reward model: DPO, IPO and ORPO, from comparisons of two answers.

DPO: Rafailov et al. 2023, eq. 7. IPO: Azar et al. 2023, eq. 17. ORPO: Hong et al. 2024, §4.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family
from t5x_lite.objectives.answer_probabilities import answer_log_probabilities
from t5x_lite.objectives.comparison import Comparison
from t5x_lite.objectives.features import pad, stacked, token_features
from t5x_lite.objectives.model_protocols import (
    Array,
    Batch,
    DropoutKey,
    LossSettings,
    LossSums,
)
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features
from t5x_lite.objectives.special_tokens import input_start, split_start, virtual_tokens
from t5x_lite.objectives.supervised import Record, Supervised, TaskTokenizer
from t5x_lite.schema import setting

ANSWERS = ("chosen", "rejected")


class Preference(Comparison, Supervised):
    """Make the better of two answers likelier.

    Roles: `prompt`, `chosen` and `rejected`. They are texts, EOS after each answer; or all three are lists of messages,
    which the tokenizer's chat template writes. A long prompt loses its first tokens, then a long answer its last.

    Features of both answers after the prompt, `[2, seq_len]`: `tokens`, `targets` (the next token), `positions` and
    `segment_ids` (0 is padding) int32, `answer_weights` float32, 1 where the target is of the answer; `loss_weights`,
    a float32 scalar.

    `dpo` and `ipo` compare with a frozen reference: the base of `adapt.from` (see `models.reference`).
    """

    name: ClassVar[str] = "preference"
    families: ClassVar[tuple[Family, ...]] = ("decoder",)
    roles: ClassVar[tuple[str, ...]] = ("prompt", *ANSWERS)
    texts: ClassVar[int] = 2
    uses_head: ClassVar[bool] = False
    checks_records: ClassVar[bool] = True

    method: Literal["dpo", "ipo", "orpo"] = setting(
        "dpo",
        "the loss",
        source="Rafailov et al. 2023, eq. 7; Azar et al. 2023, eq. 17; Hong et al. 2024, eq. 6",
    )
    beta: float = setting(
        0.1, "β of DPO, τ of IPO: how near the model stays to its reference; λ of ORPO: weight of the odds ratio", gt=0
    )

    @property
    def needs_reference(self) -> bool:
        """True if the loss compares with the model that the run adapts."""
        return self.method != "orpo"

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without EOS, and a row without room for a prompt and an answer."""
        context.vocabulary.require_eos(f"objective {self.name}")
        if context.seq_len - len(input_start(context)) < 2:
            raise UserError(f"objective {self.name}: train.seq_len {context.seq_len} has no room for an answer")

    def check_record(self, record: Record) -> None:
        """Refuse a comparison without a winner, and answers that are equal."""
        for role in ANSWERS:
            if record[role] is None or record[role] in ("", []):
                raise ValueError(f"`{role}` is empty, so that the comparison has no winner; remove it")
        kinds = {type(record[role]) for role in self.roles}
        if kinds not in ({str}, {list}):
            names = ", ".join(type(record[role]).__name__ for role in self.roles)
            raise ValueError(
                f"prompt, chosen and rejected are {names}; expected three texts or three lists of messages"
            )
        super().check_record(record)

    def example_lengths(self, context: ExampleContext) -> ExampleLengths:
        return ExampleLengths(context.seq_len, context.seq_len, texts=self.texts)

    def examples(self, record: Record, tokenizer: TaskTokenizer, context: ExampleContext) -> list[Features]:
        self.check_record(record)
        pairs = [self._encode(record, role, tokenizer, context) for role in ANSWERS]
        # Both answers follow one prompt (Rafailov et al. 2023, equation 7), in their code too if it is cut.
        longest = max(len(answer) for _, answer in pairs)
        features = stacked([_answer_features(prompt, answer, longest, context) for prompt, answer in pairs])
        features["loss_weights"] = np.array(1, np.float32)
        return [features]

    def _encode(
        self, record: Record, role: str, tokenizer: TaskTokenizer, context: ExampleContext
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the prompt and of an answer. A chat template writes itself what comes before a text."""
        if isinstance(record["prompt"], list):
            prompt, answer = tokenizer.encode_answer(record["prompt"], record[role])
            return np.concatenate([virtual_tokens(context.num_virtual_tokens), prompt]), answer
        eos = context.vocabulary.require_eos(f"objective {self.name}")
        prompt = np.concatenate([input_start(context), tokenizer.encode(record["prompt"])])
        return prompt, np.append(tokenizer.encode(record[role]), eos)

    def scores(self, model: Any, batch: Batch, key: DropoutKey = None) -> dict[str, Array]:
        """Return the rewards of the two answers, `[batch, 2]`."""
        from t5x_lite.models.preference_losses import answer_rewards

        policy, reference = self._log_probabilities(model, batch, key, None)
        sizes = batch["answer_weights"].sum(-1)
        return {"scores": answer_rewards(self.method, self.beta, policy, reference, sizes)}

    def loss(self, model: Any, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return the loss of the method, with the rewards. The model is a `LanguageModel`."""
        from t5x_lite.models.preference_losses import answer_rewards, preference_losses, sum_comparisons

        policy, reference = self._log_probabilities(model, batch, key, settings)
        sizes = batch["answer_weights"].sum(-1)
        losses = preference_losses(self.method, self.beta, policy, reference, sizes)
        rewards = answer_rewards(self.method, self.beta, policy, reference, sizes)
        return {"loss": sum_comparisons(losses, rewards, batch["loss_weights"])}

    def _log_probabilities(
        self, model: Any, batch: Batch, key: DropoutKey, settings: LossSettings | None
    ) -> tuple[Array, Array]:
        """Return the log-probabilities of both answers, by the model and by its reference, each `[batch, 2]`.

        Without a reference its log-probabilities are 0.
        """
        import jax
        import jax.numpy as jnp

        from t5x_lite.models.reference import reference_model

        policy = answer_log_probabilities(model, batch, key, settings)
        if not self.needs_reference:
            return policy, jnp.zeros_like(policy)
        reference = answer_log_probabilities(reference_model(model), batch, None, settings)
        return policy, jax.lax.stop_gradient(reference)


def _answer_features(prompt: np.ndarray, answer: np.ndarray, longest: int, context: ExampleContext) -> Features:
    """Return the features of a prompt with one answer.

    A prompt without room for the longest answer to it loses its first tokens, but for those before every text.
    """
    room = context.seq_len + 1  # the last token is only a target
    start, words = split_start(prompt, context)
    room_for_words = max(room - len(start) - longest, 1)
    words = words[max(len(words) - room_for_words, 0) :]
    answer = answer[: room - len(start) - len(words)]
    text = np.concatenate([start, words, answer])
    features = token_features(text[:-1], np.ones(len(text) - 1, np.int32), context.seq_len)
    features["targets"] = pad(text[1:], context.seq_len)
    is_answer = np.arange(1, len(text)) >= len(text) - len(answer)
    features["answer_weights"] = pad(is_answer, context.seq_len).astype(np.float32)
    return features
