"""Tasks that `train` learns and evaluates: as text, with a head, with soft prompts, and on a mesh."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from t5x_lite.api import Model, load
from t5x_lite.cli import main
from t5x_lite.data import vocabulary
from t5x_lite.data.tokenizer_config import Character
from tests.adapt.conftest import FOX_TASK
from tests.conftest import Shell, lines
from tests.simulated_devices import simulated

STEPS = 200
LENGTH = 48
TARGETS = 6
VIRTUAL_TOKENS = 3
LABELS = ["no", "yes"]
FAMILIES: dict[str, dict[str, Any]] = {
    "t5": {"family": "encoder_decoder", "positions": {"relative": {}}, "norm": "rmsnorm", "bias": False},
    "decoder": {"positions": "rotary"},
}


@pytest.fixture(scope="module")
def config(fox_task: Path) -> Path:
    """Write a config that learns whether a sentence says fox; the model's family is an override."""
    (fox_task / "short.yaml").write_text(json.dumps({**FOX_TASK, "target_len": TARGETS}))
    path = fox_task / "learn.yaml"
    settings = {
        "model": {"layers": 1, "embed": 32, "heads": 2},
        "tasks": str(fox_task / "short.yaml"),
        "tokenizer": "character",
        "data": {
            "files": str(fox_task / "train.tsv"),
            "validation_files": str(fox_task / "dev.tsv"),
            "cache_dir": str(fox_task / "cache"),
        },
        "optimizer": {"learning_rate": 0.01, "schedule": "constant", "weight_decay": 0.0},
        "train": {"steps": STEPS, "batch_size": 8, "seq_len": LENGTH, "peak_flops": 1e9, "log_every_steps": 50},
        "eval": {"batch_size": 3},
    }
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def records(fox_task: Path) -> list[tuple[str, int]]:
    rows = [line.split("\t") for line in (fox_task / "dev.tsv").read_text().splitlines()[1:]]
    return [(text, LABELS.index(label)) for text, label in rows]


@pytest.fixture(scope="module")
def t5(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config, tmp_path_factory.mktemp("t5") / "run", f"model={json.dumps(FAMILIES['t5'])}")


def train(config: Path, run: Path, *overrides: str) -> Path:
    assert main(["train", str(config), f"run_dir={run}", *overrides]) == 0
    return run


def label_of_text(text: str) -> int:
    return LABELS.index(text) if text in LABELS else -1


def read_predictions(run: Path, records: list[tuple[str, int]]) -> list[int]:
    """Read the predictions of the last evaluation, and check that the logged accuracy is theirs."""
    last = lines(run)[-1]
    predictions = (run / "eval" / str(last["step"]) / "short.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in predictions]
    assert [(row["record"], row["reference"]) for row in rows] == [(n, label) for n, (_, label) in enumerate(records)]
    hits = [row["prediction"] == row["reference"] for row in rows]
    assert last["eval/short/accuracy"] == pytest.approx(sum(hits) / len(rows))
    return [row["prediction"] for row in rows]


def answer_without_cache(
    model: Model, records: list[tuple[str, int]], virtual_tokens: int = 0
) -> tuple[list[int], float]:
    """Return a T5's greedy answers and its mean loss on the targets, computed record by record without a cache."""
    tokenizer = model.tokenizer
    spec = model.run.spec

    @jax.jit
    def logits(params: Any, tokens: Any, segment_ids: Any, decoder_tokens: Any) -> Any:
        module = spec.model(params)
        decoder_segment_ids = np.ones((1, TARGETS), np.int32)
        states = module(tokens, decoder_tokens, segment_ids=segment_ids, decoder_segment_ids=decoder_segment_ids)
        return module.logits(states)[0]

    answers = []
    losses = []
    for text, label in records:
        soft_prompt = range(-1, -1 - virtual_tokens, -1)
        token_ids = [*soft_prompt, *tokenizer.encode(f"fox: {text}"), tokenizer.eos]
        padding = [0] * (LENGTH - len(token_ids))
        tokens = np.array([token_ids + padding])
        segment_ids = np.array([[1] * len(token_ids) + padding])
        targets = [*tokenizer.encode(LABELS[label]).tolist(), tokenizer.eos]
        decoder_tokens = np.array([[0, *targets[:-1], *[0] * (TARGETS - len(targets))]])
        log_probs = jax.nn.log_softmax(logits(model.params, tokens, segment_ids, decoder_tokens))
        losses += [-float(log_probs[n, token]) for n, token in enumerate(targets)]
        generated = [0] * (TARGETS + 1)
        for n in range(TARGETS):
            next_logits = logits(model.params, tokens, segment_ids, np.array([generated[:-1]]))[n]
            generated[n + 1] = int(next_logits.argmax())
        answer = generated[1:]
        if tokenizer.eos in answer:
            answer = answer[: answer.index(tokenizer.eos)]
        answers.append(label_of_text(tokenizer.decode(answer).strip()))
    return answers, float(np.mean(losses))


@pytest.mark.slow
def test_a_t5_generates_its_answers(t5: Path, records: list[tuple[str, int]]) -> None:
    expected, loss = answer_without_cache(load(t5), records)
    assert read_predictions(t5, records) == expected
    assert lines(t5)[-1]["eval/loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    # A constant learning rate sometimes leaves one or two of 16 records wrong; guessing leaves half of them wrong.
    assert lines(t5)[-1]["eval/short/accuracy"] > 0.8


@pytest.mark.slow
def test_soft_prompts_precede_the_inputs_in_training_and_in_generation(
    t5: Path, config: Path, records: list[tuple[str, int]], tmp_path: Path
) -> None:
    method = json.dumps({"prompt": {"length": VIRTUAL_TOKENS}})
    run = train(config, tmp_path / "run", f"adapt.from={t5}", f"adapt.method={method}", "train.steps=4")
    model = load(run)
    expected, loss = answer_without_cache(model, records, VIRTUAL_TOKENS)
    assert read_predictions(run, records) == expected
    assert lines(run)[-1]["eval/loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    texts = model.generate([f"fox: {text}" for text, _ in records], temperature=0.0, tokens=TARGETS)
    assert [label_of_text(text) for text in texts] == expected
    model.params["tokens"]["prompt"]["vectors"] *= 100
    _, changed_loss = answer_without_cache(model, records, VIRTUAL_TOKENS)
    assert changed_loss != pytest.approx(loss, rel=0.01)


@pytest.mark.slow
def test_a_decoder_generates_its_answers_or_scores_them_at_the_last_token(
    config: Path, records: list[tuple[str, int]], tmp_path: Path
) -> None:
    decoder = f"model={json.dumps(FAMILIES['decoder'])}"
    run = train(config, tmp_path / "text", decoder)
    model = load(run)
    texts = model.generate([f"fox: {text}" for text, _ in records], temperature=0.0, tokens=TARGETS)
    assert read_predictions(run, records) == [label_of_text(text) for text in texts]
    assert lines(run)[-1]["eval/short/accuracy"] > 0.8

    run = train(config, tmp_path / "head", decoder, "task_form=head")
    model = load(run)
    forward = jax.jit(model.run.spec.model(model.params))
    head = model.params["head"]["scores"]
    expected = []
    for text, _ in records:
        token_ids = [*model.tokenizer.encode(text), model.tokenizer.eos]
        tokens = np.array([token_ids + [0] * (LENGTH - len(token_ids))])
        last_state = forward(tokens)[0, len(token_ids) - 1]
        expected.append(int((last_state @ head["weight"] + head["bias"]).argmax()))
    assert read_predictions(run, records) == expected
    assert lines(run)[-1]["eval/short/accuracy"] > 0.8


def test_a_metric_that_does_not_exist_is_refused_before_training(
    config: Path,
    fox_task: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = fox_task / "wrong.yaml"
    task.write_text(json.dumps({**FOX_TASK, "metrics": ["acuracy"]}))
    assert main(["train", str(config), f"run_dir={tmp_path / 'run'}", f"tasks={task}"]) == 2
    assert "task wrong: no metric 'acuracy'; there are accuracy, bleu" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_lora_on_experts_has_the_losses_of_one_device_on_a_mesh(config: Path, tmp_path: Path, t5x_lite: Shell) -> None:
    """Losses agree to a relative 2e-5 in float32. The base is trained on one device and loaded by eight."""
    moe = {"experts": 2, "router": {"top_k": {"k": 1}}, "dispatch": {"capacity": {"factor": 4.0}}, "expert": "mlp"}
    pattern = [{"feedforward": "mlp"}, {"feedforward": {"moe": moe}}]
    model = json.dumps({**FAMILIES["decoder"], "layers": 2, "pattern": pattern})
    base = train(config, tmp_path / "base", f"model={model}", "train.steps=5", "eval.batch_size=8")
    method = json.dumps({"lora": {"rank": 2, "targets": "(query|value|up)$"}})
    overrides = [
        f"model={model}",
        f"adapt.from={base}",
        f"adapt.method={method}",
        "task_form=head",
        "train.steps=8",
        "eval.batch_size=8",
        "train.log_every_steps=1",
    ]
    one_device = lines(train(config, tmp_path / "one", *overrides))
    mesh = "mesh={data: 2, fsdp: 2, tensor: 2}"
    process = t5x_lite("train", config, f"run_dir={tmp_path / 'eight'}", *overrides, mesh, env=simulated(8))
    assert process.returncode == 0, process.stderr
    eight_devices = lines(tmp_path / "eight")
    losses = [line["loss"] for line in one_device]
    assert [line["loss"] for line in eight_devices] == pytest.approx(losses, rel=2e-5)
    assert eight_devices[-1]["eval/loss"] == pytest.approx(one_device[-1]["eval/loss"], rel=2e-5)
    assert eight_devices[-1]["eval/short/accuracy"] == one_device[-1]["eval/short/accuracy"]
    assert losses[-1] < losses[0]
    assert len(losses) == 8


WORDS = ["ab", "cd", "ef", "gh"]
KINDS: dict[str, tuple[Any, list[str], list[dict[str, Any]], str]] = {
    "regress": ("regress", ["text", "label"], [{"text": "a" * n, "label": n / 2} for n in range(1, 9)], "pearson"),
    "tag": (
        {"tag": {"labels": ["O", "B-X"]}},
        ["words", "tags"],
        [{"words": WORDS, "tags": [0, 1, 0, 0]}, {"words": WORDS[::-1], "tags": [0, 0, 1, 0]}] * 4,
        "span_f1",
    ),
    "extract": (
        {"extract": {"question_len": 8, "window_stride": 6}},
        ["question", "context", "answers", "starts"],
        [
            {"question": "ef", "context": context, "answers": ["ef"], "starts": [context.index("ef") + wrong]}
            for context in (" ".join(WORDS[n:] + WORDS[:n] + ["no"] * 8) for n in range(4))
            for wrong in (0, 0, 1)
        ],
        "exact_match",
    ),
    "choice": (
        {"choice": {"count": 2}},
        ["text", "choices", "label"],
        [{"text": word, "choices": [word, "no"][:: 1 - 2 * n], "label": n} for word in WORDS for n in (0, 1)],
        "accuracy",
    ),
    "similarity": (
        {"similarity": {"by": "cosine", "pool": "max"}},
        ["text", "second", "label"],
        [{"text": a, "second": b, "label": 5 * (a == b)} for a in WORDS for b in WORDS],
        "pearson",
    ),
    "reward": ("reward", ["chosen", "rejected"], [{"chosen": f"{w}!", "rejected": w} for w in WORDS], "accuracy"),
}
"""For each objective with a head: its settings, its roles, records, and the score that shows that it learns them."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_command_learns_every_objective(
    kind: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective, roles, rows, key = KINDS[kind]
    metric = {"exact_match": "squad"}.get(key, key)
    task = {"about": "a test", "columns": {r: r for r in roles}, "objective": objective, "metrics": [metric]}
    (tmp_path / "short.yaml").write_text(json.dumps(task))
    characters = Character(controls=("[CLS]", "[SEP]"))
    tokenizer = vocabulary.train(characters, ["abcdefgh no!"]).save(tmp_path)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    overrides = {
        "tasks": tmp_path / "short.yaml",
        "data.files": tmp_path / "rows.jsonl",
        "data.validation_files": tmp_path / "rows.jsonl",
        "model.family": "encoder",
        "model.token_types": 2,
        "tokenizer": f"{{file: {{path: {tokenizer}}}}}",
        "train.seq_len": 32,
    }
    run = train(config, tmp_path / "run", *(f"{name}={value}" for name, value in overrides.items()))
    last = lines(run)[-1]
    assert last[f"eval/short/{key}"] > 0.9, last
    predictions = (run / "eval" / str(last["step"]) / "short.jsonl").read_text().splitlines()
    assert len(predictions) == len(rows)
    records_were_skipped = "4 of 12 training records skipped" in capsys.readouterr().err
    assert records_were_skipped == (kind == "extract")
