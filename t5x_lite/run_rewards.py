"""Rewards of sampled answers: from the verifier or the reward run that a run's config names."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, PyTree, UInt8

from t5x_lite.config import RunConfig
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.decode.continuation import decode_continuation
from t5x_lite.errors import UserError
from t5x_lite.integers import ceil_div
from t5x_lite.models.loss_terms import Batch
from t5x_lite.objectives.features import stacked
from t5x_lite.objectives.objective import Features
from t5x_lite.objectives.reward import Reward
from t5x_lite.objectives.special_tokens import build_text_features, num_encoder_special_tokens, split_start
from t5x_lite.objectives.supervised import pooled_states
from t5x_lite.parallel import mesh as meshes
from t5x_lite.run_data import example_context
from t5x_lite.run_dir import Run, open_run, split_step
from t5x_lite.run_weights import BaseCheckpoint, load_weights
from t5x_lite.tasks import find_task
from t5x_lite.trees import flatten_names
from t5x_lite.verifiers import Verifier


@dataclass(frozen=True)
class SampledAnswer:
    """An answer to a prompt.

    Attributes:
        prompt_ids: token ids of the prompt.
        answer_ids: token ids of the answer, without EOS.
        prompt: text of the prompt.
        answer: text of the answer.
        reference: the reference of the record; empty if it has none.
    """

    prompt_ids: Int[np.ndarray, "p"]
    answer_ids: Int[np.ndarray, "t"]
    prompt: str
    answer: str
    reference: str


class RewardSource(Protocol):
    """Rewards answers."""

    @property
    def checkpoint(self) -> BaseCheckpoint | None:
        """The checkpoint of the reward model; None without one."""

    def __call__(self, answers: Sequence[SampledAnswer]) -> Float32[np.ndarray, "answers"]:
        """Return the reward of each answer. All processes of a job call this with the same answers."""


def decode_answer(
    tokenizer: Tokenizer, prompt_ids: Int[np.ndarray, "p"], token_ids: Int[np.ndarray, "t"], reference: str
) -> SampledAnswer:
    """Return an answer with its texts. It ends before the first EOS of `token_ids`, if there is one."""
    ends = np.flatnonzero(token_ids == tokenizer.eos)
    if len(ends):
        token_ids = token_ids[: ends[0]]
    answer = decode_continuation(tokenizer, prompt_ids, token_ids)
    return SampledAnswer(prompt_ids, token_ids, tokenizer.decode(prompt_ids.tolist()), answer, reference)


def decode_reference(text: UInt8[np.ndarray, "bytes"]) -> str:
    """Return a reference from its feature, UTF-8 that is padded with 0."""
    return text.tobytes().rstrip(b"\0").decode()


def check_rewards(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Check the source of rewards of a run, before anything is written or loaded.

    Raises:
        UserError: `reward_run` is not a reward run, has another tokenizer, or reads fewer tokens.
    """
    objective = config.policy_objective
    if objective is not None and objective.reward_run is not None:
        _open_reward_run(objective.reward_run, config, tokenizer)


def open_rewards(
    config: RunConfig, tokenizer: Tokenizer, mesh: Mesh, expected: BaseCheckpoint | None = None
) -> RewardSource:
    """Open the source of rewards of a run whose objective is a `PolicyOptimization`.

    Args:
        config: the run.
        tokenizer: its tokenizer.
        mesh: its devices.
        expected: the checkpoint of the reward run that the run began with, if it is resumed.

    Raises:
        UserError: see `check_rewards`; the reward run has no checkpoint, or its weights have changed.
    """
    objective = config.require_policy_objective()
    if objective.verifier is not None:
        return VerifierRewards(objective.verifier)
    run, step = _open_reward_run(str(objective.reward_run), config, tokenizer)
    if expected is not None:
        step = expected.step
    step, params, _ = load_weights(run, mesh, step)
    key = f"objective.{objective.name}.reward_run {objective.reward_run}"
    subject = f"{key}: is not the reward run that this run began with"
    checkpoint = BaseCheckpoint.of_weights(step, flatten_names(params), expected, subject)
    return RunRewards(run, params, mesh, config.train.seq_len, checkpoint)


@dataclass(frozen=True)
class VerifierRewards:
    """Rewards by a verifier, on the host."""

    verifier: Verifier
    checkpoint: None = None

    def __call__(self, answers: Sequence[SampledAnswer]) -> Float32[np.ndarray, "answers"]:
        """Return the rewards.

        Raises:
            UserError: the verifier returns something else than a finite number.
        """
        rewards = []
        for answer in answers:
            reward = self.verifier.score(answer.prompt, answer.answer, answer.reference)
            if not isinstance(reward, int | float) or not math.isfinite(reward):
                raise UserError(
                    f"verifier {type(self.verifier).__name__}: returned {reward!r} for the answer {answer.answer!r}; a "
                    "reward is a finite number"
                )
            rewards.append(reward)
        return np.array(rewards, np.float32)


class RunRewards:
    """Rewards by a reward model, on the mesh of the run that is trained.

    Args:
        run: the reward run.
        params: its weights.
        mesh: the devices.
        seq_len: tokens of the longest prompt and answer together.
        checkpoint: where the weights are from.
    """

    def __init__(
        self, run: Run, params: PyTree[Array], mesh: Mesh, seq_len: int, checkpoint: BaseCheckpoint | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self._mesh = mesh
        self._params = params
        context = example_context(run.config, run.tokenizer)
        self._context = replace(context, seq_len=_row_length(run, seq_len))
        # A run whose records have a `text` before both answers has learnt pairs; any other reads one text.
        (task,) = run.config.tasks
        self._reads_pairs = "text" in find_task(task).columns

        def compute_scores(params: PyTree[Array], batch: Batch) -> Float[Array, "n"]:
            module = run.spec.model(params)
            return module.head(pooled_states(module, batch, None), None)[:, 0]

        self._compute_scores = jax.jit(compute_scores, out_shardings=meshes.replicated(mesh))

    def __call__(self, answers: Sequence[SampledAnswer]) -> Float32[np.ndarray, "answers"]:
        """Return the scores of the model."""
        rows = [self._build_features(answer) for answer in answers]
        shards = meshes.batch_shards(self._mesh)
        size = ceil_div(len(rows), shards) * shards
        rows += rows[:1] * (size - len(rows))
        local_batch = stacked([rows[row] for row in meshes.local_rows(self._mesh, size)])
        batch = meshes.to_global(self._mesh, local_batch, size)
        scores = jax.device_get(self._compute_scores(self._params, batch))
        return np.asarray(scores, np.float32)[: len(answers)]

    def _build_features(self, answer: SampledAnswer) -> Features:
        """Return the features of a prompt with its answer, as the reward run has learnt them."""
        _, prompt = split_start(answer.prompt_ids, self._context)  # `build_text_features` adds the start too
        texts = [prompt, answer.answer_ids]
        if not self._reads_pairs:
            texts = [np.concatenate(texts)]
        return build_text_features(texts, self._context)


def _open_reward_run(name: str, config: RunConfig, tokenizer: Tokenizer) -> tuple[Run, int | None]:
    """Open a reward run, and return it with the step that its name has."""
    key = f"objective.{config.require_objective().name}.reward_run {name}"
    folder, step = split_step(name)
    run = open_run(folder)
    objective = run.config.objective
    if not isinstance(objective, Reward):
        name_of_objective = "none" if objective is None else objective.name
        raise UserError(f"{key}: its objective is {name_of_objective}, not reward; train one with tasks=reward")
    if len(run.config.tasks) != 1:
        raise UserError(f"{key}: learns {len(run.config.tasks)} tasks, not one; train one with tasks=reward")
    if run.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{key}: has another tokenizer than this run, so that it would read other tokens than were sampled; train "
            "the reward model from a run with this tokenizer (adapt.from)"
        )
    longest = _row_length(run, config.train.seq_len)
    max_length = run.config.model.max_length
    if max_length is not None and longest > max_length:
        raise UserError(
            f"{key}: its model has {max_length} positions, and a prompt with its answer takes up to {longest}; "
            "shorten train.seq_len"
        )
    return run, step


def _row_length(run: Run, seq_len: int) -> int:
    """Return the tokens of a reward run's row that hold a prompt with its answer, of so many tokens together."""
    context = example_context(run.config, run.tokenizer)
    return seq_len + context.num_virtual_tokens + num_encoder_special_tokens(context.vocabulary, 2)
