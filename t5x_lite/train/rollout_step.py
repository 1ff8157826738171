"""A step of policy optimisation: sample answers on the mesh, reward them, and update the weights."""

from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int, PyTree

from t5x_lite.decode.decoding_steps import Prompts
from t5x_lite.decode.sample_answers import sample_answers
from t5x_lite.decode.sampling import Sampling
from t5x_lite.models.loss_terms import Batch
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.compiler_options import compile_lowered
from t5x_lite.run_dir import Run
from t5x_lite.run_rewards import RewardSource, decode_answer, decode_reference
from t5x_lite.train.state import TrainState
from t5x_lite.train.steps import Steps

SAMPLING_STREAM = 2**31 - 3
"""Number of the random stream of sampling among those of a step."""


class RolloutStep:
    """The step of a run on prompts. What it samples depends on (seed, step, parameters) alone.

    Rewards are computed by every process for all answers, and are the same in all of them.

    Args:
        run: the run, whose objective is a `PolicyOptimization`.
        mesh: its devices.
        steps: its compiled functions; `steps.train` updates the weights.
        rewards: rewards answers.
        batch: shapes of a batch of prompts, to compile for.
    """

    def __init__(
        self, run: Run, mesh: Mesh, steps: Steps, rewards: RewardSource, batch: dict[str, jax.ShapeDtypeStruct]
    ) -> None:
        objective = run.config.require_policy_objective()
        self._objective = objective
        self._mesh = mesh
        self._tokenizer = run.tokenizer
        self._rewards = rewards
        replicated = meshes.replicated(mesh)
        eos = run.tokenizer.vocabulary().require_eos(f"objective {objective.name}")
        sampling = Sampling(objective.answer_len, temperature=objective.temperature)
        sample = partial(sample_answers, run.spec, sampling, objective.group_size, eos)

        def sample_batch(
            params: PyTree, frozen: PyTree, step: Int[Array, ""], batch: Batch
        ) -> tuple[Int[Array, "n t"], Batch]:
            key = jax.random.fold_in(jax.random.key(run.config.train.seed), step)
            seed = jax.random.bits(jax.random.fold_in(key, SAMPLING_STREAM))
            prompts = Prompts(batch["prompt"], batch["prompt_segments"], history=batch["prompt"][:, :0])
            return sample(steps.join(params, frozen), prompts, seed), batch

        state = steps.state
        self._sample = (
            jax.jit(sample_batch, out_shardings=replicated)
            .lower(state.params, state.frozen, state.step, batch)
            .compile()
        )
        (batch_size,) = {shape.shape[0] for shape in batch.values()}
        self._batch_size = batch_size
        group = objective.group_size
        answers = {
            "answers": np.zeros((group, objective.answer_len), np.int32),
            "rewards": np.zeros(group, np.float32),
        }
        shapes = {**batch, **meshes.batch_shapes(mesh, answers, batch_size)}
        self._update = compile_lowered(steps.train.lower(state, shapes))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """Return the state after the step, and the metrics of the step. The old state is consumed."""
        answers, prompts = jax.device_get(self._sample(state.params, state.frozen, state.step, batch))
        answers = answers.reshape(self._batch_size, -1, answers.shape[-1])
        rewards = self._reward(answers, prompts)
        rows = meshes.local_rows(self._mesh, self._batch_size)
        answered = {"answers": answers[rows], "rewards": rewards[rows]}
        return self._update(state, {**batch, **meshes.to_global(self._mesh, answered, self._batch_size)})

    def _reward(
        self, answers: Int[np.ndarray, "b group t"], prompts: dict[str, np.ndarray]
    ) -> Float32[np.ndarray, "b group"]:
        """Return the reward of each answer."""
        decoded = []
        for number, group in enumerate(answers):
            prompt = prompts["prompt"][number][prompts["prompt_segments"][number] > 0]
            reference = decode_reference(prompts["reference"][number])
            decoded += [decode_answer(self._tokenizer, prompt, answer[answer >= 0], reference) for answer in group]
        return self._rewards(decoded).reshape(answers.shape[:2])
