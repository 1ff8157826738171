"""Tasks learnt and evaluated by `train`: as text, by a head, with soft prompts, and on a mesh."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from t5x_lite.api import Model, load
from t5x_lite.cli import main
from t5x_lite.data import vocabulary
from t5x_lite.data.config import Character
from tests.adapt.conftest import TASK
from tests.conftest import Shell, lines

STEPS, LENGTH, TARGETS, SOFT = 200, 48, 6, 3
FAMILIES: dict[str, dict[str, Any]] = {
    "t5": {"family": "encoder_decoder", "positions": {"relative": {}}, "norm": "rmsnorm", "bias": False},
    "decoder": {"positions": "rotary"},
}


@pytest.fixture(scope="module")
def config(labelled: Path) -> Path:
    """A config that learns the task of foxes; the family is an override."""
    (labelled / "short.yaml").write_text(json.dumps({**TASK, "target_len": TARGETS}))
    path = labelled / "learn.yaml"
    settings = {
        "model": {"layers": 1, "embed": 32, "heads": 2},
        "tasks": str(labelled / "short.yaml"),
        "tokenizer": "character",
        "data": {
            "files": str(labelled / "train.tsv"),
            "validation_files": str(labelled / "dev.tsv"),
            "cache_dir": str(labelled / "cache"),
        },
        "optimizer": {"learning_rate": 0.01, "schedule": "constant", "weight_decay": 0.0},
        "train": {"steps": STEPS, "batch_size": 8, "seq_len": LENGTH, "peak_flops": 1e9, "log_every_steps": 50},
        "eval": {"batch_size": 3},
    }
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def records(labelled: Path) -> list[tuple[str, int]]:
    rows = [line.split("\t") for line in (labelled / "dev.tsv").read_text().splitlines()[1:]]
    return [(text, ["no", "yes"].index(label)) for text, label in rows]


@pytest.fixture(scope="module")
def t5(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learnt(config, tmp_path_factory.mktemp("t5") / "run", f"model={json.dumps(FAMILIES['t5'])}")


def learnt(config: Path, run: Path, *overrides: str) -> Path:
    assert main(["train", str(config), f"run_dir={run}", *overrides]) == 0
    return run


def answers(run: Path, records: list[tuple[str, int]]) -> list[int]:
    """The predictions that were written; they make the accuracy that was written."""
    last = lines(run)[-1]
    written = (run / "eval" / str(last["step"]) / "short.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in written]
    assert [(row["record"], row["reference"]) for row in rows] == [(n, label) for n, (_, label) in enumerate(records)]
    right = [row["prediction"] == row["reference"] for row in rows]
    assert last["eval/short/accuracy"] == pytest.approx(sum(right) / len(rows))
    return [row["prediction"] for row in rows]


def by_hand(model: Model, records: list[tuple[str, int]], soft: int = 0) -> tuple[list[int], float]:
    """A T5's greedy answers and its mean loss of the targets, one record after the other, without a cache."""
    tokenizer, plan = model.tokenizer, model.run.blueprint

    @jax.jit
    def logits(params: Any, tokens: Any, segments: Any, before: Any) -> Any:
        module = plan.model(params)
        inside = np.ones((1, TARGETS), np.int32)
        return module.logits(module(tokens, before, segment_ids=segments, decoder_segment_ids=inside))[0]

    found, losses = [], []
    for text, label in records:
        ids = [*range(-1, -1 - soft, -1), *tokenizer.encode(f"fox: {text}"), tokenizer.eos]
        tokens = np.array([ids + [0] * (LENGTH - len(ids))])
        segments = np.array([[1] * len(ids) + [0] * (LENGTH - len(ids))])
        right = [*tokenizer.encode(["no", "yes"][label]).tolist(), tokenizer.eos]
        before = np.array([[0, *right[:-1], *[0] * (TARGETS - len(right))]])
        scores = jax.nn.log_softmax(logits(model.params, tokens, segments, before))
        losses += [-float(scores[n, token]) for n, token in enumerate(right)]
        written = [0] * (TARGETS + 1)
        for n in range(TARGETS):
            written[n + 1] = int(logits(model.params, tokens, segments, np.array([written[:-1]]))[n].argmax())
        made = written[1:]
        answer = tokenizer.decode(made[: made.index(tokenizer.eos)] if tokenizer.eos in made else made).strip()
        found.append(["no", "yes"].index(answer) if answer in {"no", "yes"} else -1)
    return found, float(np.mean(losses))


def test_a_t5_writes_its_answers(t5: Path, records: list[tuple[str, int]]) -> None:
    expected, loss = by_hand(load(t5), records)
    assert answers(t5, records) == expected
    assert lines(t5)[-1]["eval/loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    # A constant rate leaves one or two of 16 records wrong now and then; guessing leaves half.
    assert lines(t5)[-1]["eval/short/accuracy"] > 0.8


def test_soft_prompts_stand_before_the_inputs_in_training_and_in_answers(
    t5: Path, config: Path, records: list[tuple[str, int]], tmp_path: Path
) -> None:
    method = json.dumps({"prompt": {"length": SOFT}})
    run = learnt(config, tmp_path / "run", f"adapt.from={t5}", f"adapt.method={method}", "train.steps=4")
    model = load(run)
    expected, loss = by_hand(model, records, SOFT)
    assert answers(run, records) == expected
    assert lines(run)[-1]["eval/loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    texts = model.generate([f"fox: {text}" for text, _ in records], temperature=0.0, tokens=TARGETS)
    assert [["no", "yes"].index(text) if text in {"no", "yes"} else -1 for text in texts] == expected
    model.params["tokens"]["prompt"]["vectors"] *= 100  # they are heard
    assert by_hand(model, records, SOFT)[1] != pytest.approx(loss, rel=0.01)


@pytest.mark.slow
def test_a_decoder_writes_its_answers_or_scores_them_at_the_last_token(
    config: Path, records: list[tuple[str, int]], tmp_path: Path
) -> None:
    decoder = f"model={json.dumps(FAMILIES['decoder'])}"
    run = learnt(config, tmp_path / "text", decoder)
    model = load(run)
    texts = model.generate([f"fox: {text}" for text, _ in records], temperature=0.0, tokens=TARGETS)
    assert answers(run, records) == [["no", "yes"].index(text) if text in {"no", "yes"} else -1 for text in texts]
    assert lines(run)[-1]["eval/short/accuracy"] > 0.8

    run = learnt(config, tmp_path / "head", decoder, "task_form=head")
    model = load(run)
    module, head, found = model.run.blueprint.model(model.params), model.params["head"]["scores"], []
    forward = jax.jit(module)
    for text, _ in records:
        ids = [*model.tokenizer.encode(text), model.tokenizer.eos]
        states = forward(np.array([ids + [0] * (LENGTH - len(ids))]))[0, len(ids) - 1]
        found.append(int((states @ head["weight"] + head["bias"]).argmax()))
    assert answers(run, records) == found
    assert lines(run)[-1]["eval/short/accuracy"] > 0.8


def test_a_metric_that_does_not_exist_is_refused_before_training(
    config: Path,
    labelled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = labelled / "wrong.yaml"
    task.write_text(json.dumps({**TASK, "metrics": ["acuracy"]}))
    assert main(["train", str(config), f"run_dir={tmp_path / 'run'}", f"tasks={task}"]) == 2
    assert "task wrong: no metric 'acuracy'; there are accuracy, bleu" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_lora_on_experts_has_the_losses_of_one_device_on_a_mesh(config: Path, tmp_path: Path, t5x_lite: Shell) -> None:
    """In float32: each loss to 2e-5 of itself. The base is trained on one device, and read by eight."""
    moe = {"experts": 2, "router": {"top_k": {"k": 1}}, "dispatch": {"capacity": {"factor": 4.0}}, "expert": "mlp"}
    pattern = [{"feedforward": "mlp"}, {"feedforward": {"moe": moe}}]
    model = json.dumps({**FAMILIES["decoder"], "layers": 2, "pattern": pattern})
    base = learnt(config, tmp_path / "base", f"model={model}", "train.steps=5", "eval.batch_size=8")
    method = json.dumps({"lora": {"rank": 2, "targets": "(query|value|up)$"}})
    own = [f"adapt.from={base}", f"adapt.method={method}", "task_form=head", "train.steps=8", "eval.batch_size=8"]
    one = lines(learnt(config, tmp_path / "one", f"model={model}", *own, "train.log_every_steps=1"))
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "16"}
    mesh = [f"model={model}", *own, "train.log_every_steps=1", "mesh={data: 2, fsdp: 2, tensor: 2}"]
    done = t5x_lite("train", config, f"run_dir={tmp_path / 'eight'}", *mesh, env=os.environ | flags)
    assert done.returncode == 0, done.stderr
    eight = lines(tmp_path / "eight")
    assert [x["loss"] for x in eight] == pytest.approx([x["loss"] for x in one], rel=2e-5)
    assert eight[-1]["eval/loss"] == pytest.approx(one[-1]["eval/loss"], rel=2e-5)
    assert eight[-1]["eval/short/accuracy"] == one[-1]["eval/short/accuracy"]
    assert one[-1]["loss"] < one[0]["loss"]
    assert len(one) == 8


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
"""Of each objective with a head: its settings, its roles, records, and what says that it has learnt them."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_is_learnt_by_the_command(
    kind: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective, roles, rows, key = KINDS[kind]
    metric = {"exact_match": "squad"}.get(key, key)
    task = {"about": "a test", "columns": {r: r for r in roles}, "objective": objective, "metrics": [metric]}
    (tmp_path / "short.yaml").write_text(json.dumps(task))
    characters = Character(controls=("[CLS]", "[SEP]"))
    tokenizer = vocabulary.train(characters, ["abcdefgh no!"]).save(tmp_path)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = {
        "tasks": tmp_path / "short.yaml",
        "data.files": tmp_path / "rows.jsonl",
        "data.validation_files": tmp_path / "rows.jsonl",
        "model.family": "encoder",
        "model.token_types": 2,
        "tokenizer": f"{{file: {{path: {tokenizer}}}}}",
        "train.seq_len": 32,
    }
    run = learnt(config, tmp_path / "run", *(f"{name}={value}" for name, value in own.items()))
    last = lines(run)[-1]
    found = last[f"eval/short/{key}"]
    assert found > 0.9, last
    written = (run / "eval" / str(last["step"]) / "short.jsonl").read_text().splitlines()
    assert len(written) == len(rows)
    counted = "4 of 12 training records skipped" in capsys.readouterr().err
    assert counted == (kind == "extract")
