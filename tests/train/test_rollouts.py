"""Policy optimisation: what is sampled, what is learnt from it, and what is refused."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PyTree

from t5x_lite import config as configuration
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.config import RunConfig
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.decode.decoding_steps import Prompts
from t5x_lite.decode.generate import Generator
from t5x_lite.decode.sample_answers import sample_answers
from t5x_lite.decode.sampling import Sampling
from t5x_lite.errors import UserError
from t5x_lite.models.losses import LossSettings
from t5x_lite.models.spec import init_params, model_spec
from t5x_lite.objectives.grpo import GRPO
from t5x_lite.objectives.objective import ExampleContext
from t5x_lite.objectives.policy_optimization import PolicyOptimization
from t5x_lite.objectives.reward import Reward
from t5x_lite.objectives.supervised import TaskTokenizer
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.run_dir import Run, new_run
from t5x_lite.run_rewards import RunRewards, SampledAnswer, VerifierRewards, check_rewards, decode_answer
from t5x_lite.train.policy_step import policy_step
from t5x_lite.train.rollout_step import RolloutStep
from t5x_lite.train.state import TrainState
from t5x_lite.train.steps import Steps, make_steps
from t5x_lite.verifiers import ExactMatch, Verifier
from tests.conftest import REPOSITORY, Shell, lines
from tests.simulated_devices import simulated
from tests.train.whole_runs import assert_same_weights, train

TOKENIZER = Bytes()
TASK_TOKENIZER = TaskTokenizer(TOKENIZER.encode, TOKENIZER.encode_placed, TOKENIZER.decode)
PROMPTS = ["ab", "c", "abcdefg", "xyz"]
OBJECTIVES = {
    "grpo": {"verifier": "exact_match", "group": 4, "answer_len": 6, "epochs": 2, "minibatches": 2},
    "ppo": {"verifier": "exact_match", "answer_len": 6, "epochs": 2, "minibatches": 2},
}


class Length(Verifier):
    """Reward the length of the answer in characters, which differs between answers."""

    def score(self, prompt: str, answer: str, reference: str) -> float:
        return float(len(answer))


def policy_run(name: str, folder: Path, **train: object) -> Run:
    """A run of a tiny model of bytes, whose objective is `name`."""
    head = {"head": {"outputs": 1, "pool": "none"}} if name == "ppo" else {}
    config = RunConfig.model_validate(
        {
            "run_dir": str(folder),
            "model": {"layers": 1, "embed": 16, "heads": 2, "vocab": TOKENIZER.vocab, **head},
            "tokenizer": "bytes",
            "objective": {name: OBJECTIVES[name]},
            "optimizer": {"learning_rate": 0.01, "schedule": "constant"},
            "train": {"steps": 4, "batch_size": len(PROMPTS), "seq_len": 16, **train},
            "adapt": {"from": "base", "method": "reference"},
        }
    )
    return Run(folder, config, model_spec(config.model, config.method.surgery), TOKENIZER)


def prompt_batch(run: Run) -> dict[str, np.ndarray]:
    context = ExampleContext(run.config.train.seq_len, TOKENIZER.vocabulary())
    objective = run.config.require_objective()
    assert isinstance(objective, PolicyOptimization)
    examples = []
    for prompt in PROMPTS:
        examples += objective.examples({"prompt": prompt, "reference": "a"}, TASK_TOKENIZER, context)
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def rollout_step(run: Run) -> tuple[Steps, RolloutStep, dict[str, np.ndarray]]:
    mesh = make_mesh(run.config.mesh)
    with jax.set_mesh(mesh):
        steps = make_steps(run.config, run.spec, mesh)
        batch = prompt_batch(run)
        shapes = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), batch)
        return steps, RolloutStep(run, mesh, steps, VerifierRewards(Length()), shapes), batch


@pytest.mark.parametrize("name", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_step_depends_on_seed_step_and_parameters_alone_and_counts_once(name: str, tmp_path: Path) -> None:
    steps, step, batch = rollout_step(policy_run(name, tmp_path))

    def after(number: int) -> tuple[TrainState, dict[str, jax.Array]]:
        state = replace(steps.create_state(), step=np.int32(number))
        return step(state, batch)

    state, metrics = after(3)
    same_state, same_metrics = after(3)
    for array, same_array in zip(jax.tree.leaves(state), jax.tree.leaves(same_state), strict=True):
        np.testing.assert_array_equal(array, same_array)
    assert {key: float(value) for key, value in metrics.items()} == {
        key: float(value) for key, value in same_metrics.items()
    }
    _, other_metrics = after(4)
    assert float(other_metrics["reward"]) != float(metrics["reward"])
    assert int(state.step) == 4
    # Adam has counted every update: two epochs of two minibatches.
    counts = [int(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 0]
    assert set(counts) == {4}
    assert metrics.keys() >= {"reward", "answer_length", "kl", "entropy", "clipped_share", "loss", "grad_norm"}
    assert ("value_loss" in metrics) == (name == "ppo")


def rows_of_updates(epochs: int, minibatches: int, step: int) -> tuple[np.ndarray, TrainState, dict[str, jax.Array]]:
    """Return the numbers of the rows of each update on eight answers, the state after it, and the metrics."""
    objective = GRPO(verifier=ExactMatch(), epochs=epochs, minibatches=minibatches)
    updates = epochs * minibatches

    def prepare(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {"answer": jnp.arange(8)[:, None], "answer_weights": jnp.ones((8, 1))}

    def update_step(state: TrainState, rows: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        seen = state.params.at[state.step - step * updates].set(rows["answer"][:, 0])
        return replace(state, params=seen, step=state.step + 1), {"loss": state.step, "skipped": state.step}

    zero = jnp.zeros((), jnp.int32)
    first = TrainState(jnp.int32(step), jnp.zeros((updates, 8 // minibatches), jnp.int32), {}, zero, zero, {})
    rewards = {"rewards": jnp.ones((2, 4))}
    state, metrics = policy_step(objective, prepare, update_step, 0, first, rewards)
    return np.asarray(state.params), state, metrics


def test_each_epoch_deals_every_answer_to_one_minibatch_in_another_order() -> None:
    """Two epochs of two minibatches are four updates, numbers 12 to 15 after three steps, which count as one step."""
    rows, state, metrics = rows_of_updates(epochs=2, minibatches=2, step=3)
    epochs = rows.reshape(2, 8)
    for epoch in epochs:
        assert sorted(epoch) == list(range(8))
        assert epoch.tolist() != list(range(8))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert int(state.step) == 4
    assert float(metrics["loss"]) == 13.5
    assert int(metrics["skipped"]) == 15
    other_rows, _, _ = rows_of_updates(epochs=2, minibatches=2, step=4)
    assert other_rows.tolist() != rows.tolist()
    whole_batches, _, _ = rows_of_updates(epochs=3, minibatches=1, step=3)
    assert whole_batches.tolist() == [list(range(8))] * 3


def test_answers_are_those_of_the_generator_and_end_at_eos(tmp_path: Path) -> None:
    run = policy_run("grpo", tmp_path)
    steps = make_steps(run.config, run.spec, make_mesh(run.config.mesh))
    state = steps.create_state()
    weights = steps.join(state.params, state.frozen)
    batch = prompt_batch(run)
    prompts = Prompts(batch["prompt"], batch["prompt_segments"], batch["prompt"])
    new_tokens = 40
    generator = Generator(run.config.model, run.spec, weights, TOKENIZER)
    ids = [TOKENIZER.encode(prompt) for prompt in PROMPTS]
    *_, expected = generator.stream_tokens(ids, Sampling(new_tokens, seed=5))
    eos = int(expected[0, 7])  # a token that is sampled, so that one answer ends early and others later or never
    sample = partial(sample_answers, run.spec, Sampling(new_tokens), 1, eos)
    answers = np.asarray(jax.jit(sample)(weights, prompts, np.uint32(5)))
    for answer, row in zip(answers, expected, strict=True):
        ends = np.flatnonzero(row == eos)
        size = int(ends[0]) + 1 if len(ends) else new_tokens
        np.testing.assert_array_equal(answer[:size], row[:size])
        assert (answer[size:] == -1).all()
    assert (answers[0] == -1).sum() >= new_tokens - 8


@pytest.mark.parametrize("eval_temperature", [0.0, 1.0])
def test_validation_answers_have_their_own_temperature(eval_temperature: float, tmp_path: Path) -> None:
    """At 0 each token is the most likely after the text so far; at 1 some are not."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt, "reference": "e"}) + "\n" for prompt in PROMPTS))
    values = policy_run("grpo", tmp_path / "run").config.model_dump(mode="json", exclude={"objective"})
    objective = {"grpo": {**OBJECTIVES["grpo"], "temperature": 0.5, "eval_temperature": eval_temperature}}
    files = {"files": str(prompts), "validation_files": str(prompts)}
    config = RunConfig.model_validate({**values, "objective": objective, "tasks": ["verified"], "data": files})
    run = Run(tmp_path / "run", config, model_spec(config.model, config.method.surgery), TOKENIZER)
    mesh = make_mesh(config.mesh)
    steps = make_steps(config, run.spec, mesh)
    state = steps.create_state()
    weights = steps.join(state.params, state.frozen)
    Model(run, 0, weights, mesh).task_evaluation.scores(tmp_path)
    answers = [json.loads(line)["prediction"] for line in (tmp_path / "verified.jsonl").read_text().splitlines()]
    policy = run.spec.model(weights)
    greedy_answers = []
    for prompt in PROMPTS:
        text = TOKENIZER.encode(prompt).tolist()
        for _ in range(OBJECTIVES["grpo"]["answer_len"]):
            logits = policy.logits(policy(np.array([text], np.int32)))
            text.append(int(logits[0, -1].argmax()))
        answer = text[len(TOKENIZER.encode(prompt)) :]
        if TOKENIZER.eos in answer:
            answer = answer[: answer.index(TOKENIZER.eos)]
        greedy_answers.append(TOKENIZER.decode(answer).strip())
    assert (answers == greedy_answers) == (eval_temperature == 0)


def test_rows_hold_prompt_and_answer_and_their_log_probabilities_are_those_of_the_text(tmp_path: Path) -> None:
    run = policy_run("grpo", tmp_path)
    steps = make_steps(run.config, run.spec, make_mesh(run.config.mesh))
    state = steps.create_state()
    weights = steps.join(state.params, state.frozen)
    names = ("old_log_probabilities", "reference_log_probabilities")

    @jax.jit
    def compute_logits(weights: PyTree, text: jax.Array) -> list[jax.Array]:
        policy = run.spec.model(weights)
        return [model.logits(model(text)) for model in (policy, policy.reference)]

    batch = prompt_batch(run)
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 100, (len(PROMPTS), 4, 6)).astype(np.int32)
    answers[0, 0, 2:] = -1
    answers[3, 1, 5:] = -1
    rewards = rng.standard_normal((len(PROMPTS), 4)).astype(np.float32)
    objective = run.config.require_objective()
    assert isinstance(objective, PolicyOptimization)
    loss_settings = LossSettings(TOKENIZER.vocab, 16)
    answered = {**batch, "answers": answers, "rewards": rewards}
    rows = jax.jit(lambda weights: objective.prepare(run.spec.model(weights), answered, loss_settings))(weights)
    for number in (0, 13):  # an answer that ends early, and one that ends a token before the limit
        answer = answers[number // 4, number % 4]
        answer = answer[answer >= 0]
        prompt = TOKENIZER.encode(PROMPTS[number // 4])
        text = np.concatenate([prompt, answer])
        assert rows["tokens"][number, : len(text)].tolist() == text.tolist()
        assert np.flatnonzero(rows["segment_ids"][number]).tolist() == list(range(len(text)))
        for name, text_logits in zip(names, compute_logits(weights, text[None]), strict=True):
            logits = np.asarray(text_logits[0], np.float64)
            log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            expected = log_probabilities[len(prompt) - 1 : len(text) - 1][np.arange(len(answer)), answer]
            np.testing.assert_allclose(rows[name][number, : len(answer)], expected, rtol=1e-4, atol=1e-5)
        assert rows["answer_weights"][number].sum() == len(answer)


def test_a_verifier_sees_the_texts_and_must_return_a_number() -> None:
    prompt = TOKENIZER.encode("2 + 2 =")
    tokens = np.array([*TOKENIZER.encode(" 4"), TOKENIZER.eos, 3, 3], np.int32)
    answer = decode_answer(TOKENIZER, prompt, tokens, "4")
    assert (answer.prompt, answer.answer, answer.reference) == ("2 + 2 =", " 4", "4")
    assert VerifierRewards(Length())([answer]).tolist() == [2]

    class Broken(Verifier):
        def score(self, prompt: str, answer: str, reference: str) -> float:
            return float("nan")

    with pytest.raises(UserError, match="verifier Broken: returned nan for the answer ' 4'"):
        VerifierRewards(Broken())([answer])


def reward_config(folder: Path, **settings: object) -> RunConfig:
    values: dict[str, object] = {
        "run_dir": str(folder),
        "model": {
            "layers": 1,
            "embed": 16,
            "heads": 2,
            "vocab": TOKENIZER.vocab,
            "head": {"outputs": 1, "pool": "last"},
        },
        "tokenizer": "bytes",
        "tasks": ["reward"],
        "objective": "reward",
        "train": {"steps": 4, "batch_size": 4, "seq_len": 24},
    }
    return RunConfig.model_validate({**values, **settings})


def test_a_reward_run_scores_answers_as_it_has_learnt_to(tmp_path: Path) -> None:
    config = reward_config(tmp_path)
    spec = model_spec(config.model)
    mesh = make_mesh(config.mesh)
    params = make_steps(config, spec, mesh).create_state().params
    rewards = RunRewards(Run(tmp_path, config, spec, TOKENIZER), params, mesh, seq_len=16)
    texts = [("2 + 2 =", " 4"), ("ab", "cdefgh"), ("x", "")]
    answers = [
        SampledAnswer(TOKENIZER.encode(prompt), TOKENIZER.encode(answer), prompt, answer, "")
        for prompt, answer in texts
    ]
    scores = rewards(answers)
    context = ExampleContext(config.train.seq_len, TOKENIZER.vocabulary())
    for (prompt, answer), score in zip(texts, scores, strict=True):
        record = {"chosen": prompt + answer, "rejected": "other"}
        (features,) = Reward().examples(record, TASK_TOKENIZER, context)
        batch = {name: value[None] for name, value in features.items()}
        expected = Reward().scores(spec.model(params), batch)["scores"]
        assert float(score) == pytest.approx(float(expected[0, 0]), rel=1e-4)


def test_a_reward_run_with_virtual_tokens_reads_whole_answers(tmp_path: Path) -> None:
    config = reward_config(tmp_path, adapt={"from": "base", "method": {"prompt": {"length": 5}}})
    spec = model_spec(config.model, config.method.surgery)
    params = init_params(config.model, 0, config.method.surgery)
    rewards = RunRewards(Run(tmp_path, config, spec, TOKENIZER), params, make_mesh(config.mesh), seq_len=16)
    texts = ["2 + 2 = is four!", "2 + 2 = is four."]
    answers = [SampledAnswer(TOKENIZER.encode(text[:8]), TOKENIZER.encode(text[8:]), "", "", "") for text in texts]
    context = ExampleContext(64, TOKENIZER.vocabulary(), num_virtual_tokens=5)
    (features,) = Reward().examples({"chosen": texts[0], "rejected": texts[1]}, TASK_TOKENIZER, context)
    batch = {name: value[None] for name, value in features.items()}
    expected = Reward().scores(spec.model(params), batch)["scores"]
    np.testing.assert_allclose(rewards(answers), expected[0], rtol=1e-4)
    assert expected[0, 0] != expected[0, 1]


def test_a_reward_run_must_be_one_with_the_same_tokenizer_and_room(tmp_path: Path) -> None:
    def check(reward_run: Path, tokenizer: Bytes = TOKENIZER) -> None:
        run = policy_run("grpo", tmp_path / "run")
        objective = {"grpo": {"reward_run": str(reward_run), "answer_len": 6}}
        values = {**run.config.model_dump(mode="json"), "objective": objective}
        check_rewards(RunConfig.model_validate(values), tokenizer)

    with pytest.raises(UserError, match="missing: is not a run directory"):
        check(tmp_path / "missing")
    new_run(policy_run("grpo", tmp_path / "policy").config, TOKENIZER).save()
    with pytest.raises(UserError, match=r"its objective is .*, not reward; train one with tasks=reward"):
        check(tmp_path / "policy")
    config = reward_config(tmp_path / "short")
    short = config.model.model_dump(mode="json") | {"positions": {"learned": {"length": 12}}}
    train_settings = {"steps": 4, "batch_size": 4, "seq_len": 12}
    new_run(reward_config(tmp_path / "short", model=short, train=train_settings), TOKENIZER).save()
    with pytest.raises(UserError, match="its model has 12 positions, and a prompt with its answer takes up to 19"):
        check(tmp_path / "short")
    new_run(reward_config(tmp_path / "reward"), TOKENIZER).save()
    check(tmp_path / "reward")
    with pytest.raises(UserError, match=r"reward_run .*: has another tokenizer than this run"):
        check(tmp_path / "reward", Bytes(b'{"model": "other"}'))


def test_a_long_prompt_loses_its_first_tokens_after_bos(tmp_path: Path) -> None:
    objective = policy_run("grpo", tmp_path).config.require_objective()
    assert isinstance(objective, PolicyOptimization)
    record = {"prompt": "abcdefghijklm", "reference": "é"}
    (features,) = objective.examples(record, TASK_TOKENIZER, ExampleContext(16, TOKENIZER.vocabulary()))
    assert features["prompt"].tolist() == TOKENIZER.encode("defghijklm").tolist()
    assert features["reference"].tobytes().rstrip(b"\0").decode() == "é"
    vocabulary = replace(TOKENIZER.vocabulary(), prefix_tokens=(2,))
    (features,) = objective.examples(record, TASK_TOKENIZER, ExampleContext(16, vocabulary))
    assert features["prompt"].tolist() == [2, *TOKENIZER.encode("efghijklm").tolist()]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "", "reference": "a"}, "`prompt` is neither a text nor a list of messages, or it is empty"),
        ({"prompt": "a"}, "the verifier compares with `reference`"),
        ({"prompt": "a", "reference": "b" * 300}, "`reference` has 300 bytes; the objective's reference_len is 256"),
    ],
)
def test_records_that_cannot_be_learnt_from_are_refused(record: dict[str, str], message: str, tmp_path: Path) -> None:
    objective = policy_run("grpo", tmp_path).config.require_objective()
    assert isinstance(objective, PolicyOptimization)
    with pytest.raises(ValueError, match=message):
        objective.examples(record, TASK_TOKENIZER, ExampleContext(16, TOKENIZER.vocabulary()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.grpo.verifier=arithmetics"], "expected one of exact_match, contains, arithmetic"),
        (["adapt.method=full"], "compares the model with the one that it adapts"),
        (["objective.grpo.minibatches=3"], "not a multiple of objective.grpo.minibatches"),
        (["train.spike_factor=2"], "train.spike_factor is for losses above zero"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(configuration.dump(configuration.load("llama/7b")))
    with pytest.raises(UserError, match=message):
        configuration.load(REPOSITORY / "configs/rl/grpo.yaml", [f"adapt.from={tmp_path}", *overrides])


def test_a_run_that_adapts_a_policy_has_no_head_of_its_own(tmp_path: Path) -> None:
    policy_run("ppo", tmp_path).save()
    settings = [f"adapt.from={tmp_path}", "train.seq_len=16"]
    plain = configuration.load(REPOSITORY / "configs/finetune/chat.yaml", settings)
    assert plain.model.head is None
    objective = "objective={ppo: {verifier: contains, reward_run: null, answer_len: 4}}"
    policy = configuration.load(REPOSITORY / "configs/rl/ppo.yaml", [*settings, objective])
    assert policy.model.head is not None
    assert (policy.model.head.outputs, policy.model.head.pool) == (1, "none")


def write_prompts(path: Path) -> Path:
    """Prompts whose answers should have the letter e."""
    with path.open("w") as file:
        for number in (0, 13):  # an answer that ends early, and one that ends a token before the limit
            file.write(json.dumps({"prompt": f"{number} ", "reference": "e"}) + "\n")
    return path


def settings(name: str, base: Path, folder: Path) -> list[str]:
    prompts = write_prompts(folder / "prompts.jsonl")
    overrides = [
        f"adapt.from={base}",
        f"data.files={prompts}",
        f"data.validation_files={prompts}",
        "optimizer.learning_rate=0.003",
        "optimizer.warmup_steps=0",
        "train={steps: 6, batch_size: 8, seq_len: 16, peak_flops: 1e9}",
        "checkpoint.every_steps=3",
        "eval.every_steps=3",
        f"objective.{name}.answer_len=8",
    ]
    if name == "ppo":
        choices = ["reward_run=null", "verifier=contains", "epochs=2", "minibatches=2"]
        metric = "checkpoint.best_metric=eval/verified/reward"
        return [*overrides, "tasks=verified", metric, *[f"objective.ppo.{choice}" for choice in choices]]
    return [*overrides, "objective.grpo.group=4", "objective.grpo.verifier=contains"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("grpo", "reference"), ("ppo", "lora")])
def test_a_run_that_lost_its_last_steps_resumes_to_the_same_bits(
    name: str, method: str, tiny_run: Path, tmp_path: Path
) -> None:
    config = REPOSITORY / f"configs/rl/{name}.yaml"
    overrides = [*settings(name, tiny_run, tmp_path), f"adapt.method={method}"]
    assert train(config, tmp_path / "run", *overrides) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/6")
    assert train(config, tmp_path / "resumed", *overrides) == 0
    assert_same_weights(tmp_path / "resumed", tmp_path / "run")
    rewards = [record["reward"] for record in lines(tmp_path / "run")]
    assert rewards == [record["reward"] for record in lines(tmp_path / "resumed")]
    assert len(set(rewards)) > 1
    assert "eval/verified/reward" in lines(tmp_path / "run")[-1]
    assert main(["export", "hf", str(tmp_path / "run"), str(tmp_path / "exported")]) == 0


@pytest.mark.slow
def test_a_resumed_run_is_rewarded_by_the_checkpoint_that_it_began_with(tiny_run: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"chosen": f"{n} e", "rejected": f"{n} x"}) + "\n" for n in range(8)))
    reward_settings = [
        f"adapt.from={tiny_run}",
        "tasks=reward",
        "task_form=head",
        f"data={{files: {pairs}, validation_files: {pairs}}}",
        "train={steps: 1, batch_size: 4, seq_len: 16, peak_flops: 1e9, allow_changed_config: true}",
        "optimizer={learning_rate: 0.1, schedule: constant}",
    ]
    reward_config_path = tmp_path / "reward.yaml"
    reward_config_path.write_text("{}")
    assert train(reward_config_path, tmp_path / "reward", *reward_settings) == 0
    config = REPOSITORY / "configs/rl/grpo.yaml"
    rewarded = ["objective.grpo.verifier=null", f"objective.grpo.reward_run={tmp_path / 'reward'}"]
    overrides = [*settings("grpo", tiny_run, tmp_path), *rewarded]
    assert train(config, tmp_path / "run", *overrides) == 0
    first_rewards = [record["reward"] for record in lines(tmp_path / "run")]
    assert train(reward_config_path, tmp_path / "reward", *reward_settings, "train.steps=4") == 0
    shutil.rmtree(tmp_path / "run/checkpoints/6")
    assert train(config, tmp_path / "run", *overrides) == 0
    assert [record["reward"] for record in lines(tmp_path / "run")] == first_rewards
    # A new run takes the newest checkpoint.
    assert train(config, tmp_path / "other", *overrides, "train.steps=1") == 0
    assert lines(tmp_path / "other")[0]["reward"] != first_rewards[0]


@pytest.mark.slow
def test_two_devices_learn_what_one_learns(tiny_run: Path, tmp_path: Path, t5x_lite: Shell) -> None:
    config = REPOSITORY / "configs/rl/grpo.yaml"
    overrides = settings("grpo", tiny_run, tmp_path)
    assert train(config, tmp_path / "one", *overrides) == 0
    environment = simulated(2)
    done = t5x_lite("train", config, *overrides, f"run_dir={tmp_path / 'two'}", env=environment)
    assert done.returncode == 0, done.stderr
    assert any(record["reward"] not in {0, 1} for record in lines(tmp_path / "one"))
    for one_device, two_devices in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert one_device["reward"] == two_devices["reward"]
        assert one_device["answer_length"] == two_devices["answer_length"]
        assert one_device["grad_norm"] == pytest.approx(two_devices["grad_norm"], rel=1e-2, abs=1e-4)
        assert one_device["kl"] == pytest.approx(two_devices["kl"], rel=1e-2, abs=1e-5)
