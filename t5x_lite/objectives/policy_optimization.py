"""The interface of objectives that learn from rewards of answers that the model samples itself.

A step samples answers to each prompt of its batch, rewards them, and then makes `epochs` × `minibatches` updates on
them. Answers depend on (seed, step, parameters) alone and are not stored, so that a run resumes exactly.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family
from t5x_lite.objectives.model_protocols import Array, Batch, DropoutKey, LossSettings, LossSums
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features
from t5x_lite.objectives.special_tokens import split_start, text_start
from t5x_lite.objectives.supervised import Answer, Record, Supervised, TaskTokenizer
from t5x_lite.schema import Int, OneOf, setting
from t5x_lite.verifiers import VERIFIERS, Verifier

EMPTY_ANSWER = [{"role": "assistant", "content": "."}]
"""An answer that is appended to messages so that the chat template writes the beginning of the assistant's turn."""


class PolicyOptimization(Supervised):
    """Raise the rewards of sampled answers, near a frozen reference.

    Role: `prompt`, a text or a list of messages, which the tokenizer's chat template writes; optionally `reference`,
    the text that a verifier compares with. A long prompt loses its first tokens.

    Features: `prompt` int32 `[seq_len - answer_len]`, padded on the left; `prompt_segments` likewise, 0 is padding;
    `reference` uint8 `[reference_len]`, UTF-8 padded with 0. `train.batch_size` counts prompts.

    Class attributes:
        kl_in_loss: the KL divergence is a term of each token's loss, and not of the rewards.

    Dropout is off (Ziegler et al. 2019, §2.2), since it would change the ratio of probabilities.
    """

    families: ClassVar[tuple[Family, ...]] = ("decoder",)
    roles: ClassVar[tuple[str, ...]] = ("prompt",)
    optional_roles: ClassVar[tuple[str, ...]] = ("reference",)
    uses_head: ClassVar[bool] = False
    checks_records: ClassVar[bool] = True
    has_validation_loss: ClassVar[bool] = False
    kl_in_loss: ClassVar[bool] = False

    verifier: Annotated[Verifier | None, OneOf(VERIFIERS)] = setting(
        None, "program that rewards an answer; null takes `reward_run`"
    )
    reward_run: str | None = setting(
        None, "run of the objective `reward` that rewards an answer: RUN, or RUN/checkpoints/STEP", min_length=1
    )
    answer_len: Int = setting(128, "longest answer, EOS included; prompts have the rest of `train.seq_len`", ge=1)
    reference_len: Int = setting(256, "longest reference", unit="bytes of UTF-8", ge=1)
    temperature: float = setting(1.0, "temperature of the policy, in sampling and in the loss", gt=0)
    eval_temperature: float = setting(
        0.0, "temperature of the answers to validation prompts; 0 is greedy, 1 as in training", ge=0
    )
    clip_low: float = setting(
        0.2, "ε: the ratio of probabilities is clipped below 1 - ε", gt=0, le=1, source="Schulman et al. 2017, eq. 7"
    )
    clip_high: float = setting(
        0.2, "the ratio is clipped above 1 + this", gt=0, source="DAPO, Yu et al. 2025, §3.1: 0.28"
    )
    epochs: Int = setting(1, "passes over the answers of a step", ge=1)
    minibatches: Int = setting(1, "updates in a pass", ge=1)

    def problems(self) -> Iterator[str]:
        """Yield an error unless there is one source of rewards."""
        if (self.verifier is None) == (self.reward_run is None):
            found_rewards = "found neither" if self.verifier is None else "found both"
            yield f"{self.name} needs one reward: `verifier` ({', '.join(VERIFIERS)}) or `reward_run`, {found_rewards}"

    @property
    @abstractmethod
    def group_size(self) -> int:
        """Number of answers to a prompt."""

    @property
    @abstractmethod
    def kl_weight(self) -> float:
        """Weight of the KL divergence to the reference."""

    @property
    def needs_reference(self) -> bool:
        """True unless the KL divergence has no weight."""
        return self.kl_weight > 0

    @property
    def updates_per_step(self) -> int:
        return self.epochs * self.minibatches

    def loss_rows(self, rows: int) -> int:
        """Return the answers in a minibatch, of so many prompts."""
        return rows * self.group_size // self.minibatches

    @property
    def sources(self) -> tuple[str, ...]:
        """The run that rewards answers, if one does."""
        return () if self.reward_run is None else (self.reward_run,)

    def with_sources(self, sources: tuple[str, ...]) -> "PolicyOptimization":
        """Return the objective with another name for its `reward_run`."""
        if not sources:
            return self
        (reward_run,) = sources
        return self.model_copy(update={"reward_run": reward_run})

    @property
    def texts(self) -> int:
        return self.group_size

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without EOS, and a row without room for prompts."""
        context.vocabulary.require_eos(f"objective {self.name}")
        if context.seq_len - len(text_start(context)) <= self.answer_len:
            raise UserError(
                f"objective {self.name}: train.seq_len {context.seq_len} has no room for a prompt beside answer_len "
                f"{self.answer_len}"
            )

    def check_record(self, record: Record) -> None:
        """Refuse a prompt that is no text and no messages, and a reference that is missing or too long."""
        if not isinstance(record["prompt"], str | list) or not record["prompt"]:
            raise ValueError("`prompt` is neither a text nor a list of messages, or it is empty")
        if self.verifier is not None and self.verifier.needs_reference and "reference" not in record:
            raise ValueError("the verifier compares with `reference`; give it a column in the task's `columns`")
        reference = reference_text(record)
        if self.verifier is not None and self.verifier.needs_reference:
            if not reference.strip():
                raise ValueError("the verifier compares with `reference`, which is empty")
            self.verifier.check_reference(reference)
        size = len(reference.encode())
        if size > self.reference_len:
            raise ValueError(f"`reference` has {size} bytes; the objective's reference_len is {self.reference_len}")

    def example_lengths(self, context: ExampleContext) -> ExampleLengths:
        return ExampleLengths(context.seq_len, self.answer_len, texts=self.group_size)

    def examples(self, record: Record, tokenizer: TaskTokenizer, context: ExampleContext) -> list[Features]:
        self.check_record(record)
        length = context.seq_len - self.answer_len
        prompt = encode_prompt(record, tokenizer)
        if not len(prompt):
            raise ValueError("`prompt` has no tokens")
        start = np.array(text_start(context), np.int32)
        if isinstance(record["prompt"], list):
            start, prompt = split_start(prompt, context)  # the chat template writes it itself
        prompt = np.concatenate([start, prompt[-(length - len(start)) :]])
        reference = np.frombuffer(reference_text(record).encode(), np.uint8)
        padding = length - len(prompt)
        features: dict[str, np.ndarray] = {
            "prompt": np.pad(prompt, (padding, 0)).astype(np.int32),
            "prompt_segments": np.pad(np.ones(len(prompt), np.int32), (padding, 0)),
            "reference": np.pad(reference, (0, self.reference_len - len(reference))),
        }
        return [features]

    def reference(self, record: Record) -> Answer:
        return reference_text(record)

    @abstractmethod
    def prepare(self, model: Any, batch: Batch, settings: LossSettings) -> dict[str, Array]:
        """Return the features that `loss` reads, a row for each answer, from answers and their rewards.

        Args:
            model: a `LanguageModel`, with the parameters that have sampled the answers.
            batch: the features of prompts; `answers` int32 `[batch, group, answer_len]`, -1 after EOS; `rewards`
                float32 `[batch, group]`.
            settings: how logits are cut in chunks; `rows` counts answers.
        """

    @abstractmethod
    def loss(self, model: Any, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return the terms of the loss, from features that `prepare` has made. Rows of `settings` count answers."""


def encode_prompt(record: Record, tokenizer: TaskTokenizer) -> np.ndarray:
    """Return the ids of a prompt; for messages, with the beginning of the assistant's turn."""
    if isinstance(record["prompt"], str):
        return tokenizer.encode(record["prompt"])
    prompt, _ = tokenizer.encode_answer(record["prompt"], EMPTY_ANSWER)
    return prompt


def reference_text(record: Record) -> str:
    """Return the reference of a record; empty if it has none."""
    reference = record.get("reference")
    return "" if reference is None else str(reference)
