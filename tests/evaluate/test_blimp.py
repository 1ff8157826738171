"""BLiMP: equal to lm-evaluation-harness on every pair, and to the published means."""

import csv
import gzip
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.convert.imported_run import write_run
from t5x_lite.data.tokenizer_config import Unigram
from t5x_lite.data.vocabulary import train as train_tokenizer
from t5x_lite.errors import UserError
from t5x_lite.evaluate.blimp import accuracies, read_pairs, score_pairs, summarise
from t5x_lite.evaluate.evaluators import Blimp
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import init_params
from tests.conftest import Shell, lines
from tests.simulated_devices import simulated
from tests.train.whole_runs import train

PAIRS = [
    ("anaphor_number_agreement", "anaphor_agreement", "These wizards mix themselves.", "These wizards mix itself."),
    ("anaphor_number_agreement", "anaphor_agreement", "A fox jumps over itself.", "A fox jumps over themselves."),
    ("anaphor_number_agreement", "anaphor_agreement", "The dogs mix themselves in.", "The dogs mix herself in."),
    ("animate_subject_trans", "s-selection", "A wizard mixed the quartz.", "The opal mixed the quartz."),
    ("animate_subject_trans", "s-selection", "Seven dogs mix the opal.", "Seven quartzes mix the opal."),
    ("causative", "argument_structure", "A wizard breaks the opal.", "A wizard vanishes the opal."),
]
"""Paradigm, term and sentences, as in BLiMP."""
SETS = ("anaphor_number_agreement", "animate_subject_trans", "causative")


def as_records(pairs: list[tuple[str, str, str, str]]) -> list[dict[str, str]]:
    names = ("UID", "linguistics_term", "sentence_good", "sentence_bad")
    return [dict(zip(names, pair, strict=True)) for pair in pairs]


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blimp") / "blimp.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in as_records(PAIRS))
    return path


SIZES: dict[str, Any] = {"layers": 2, "embed": 32, "heads": 4}
MODELS: dict[str, tuple[dict[str, Any], str, str]] = {
    "decoder": ({}, "causal", "conditional"),
    "encoder": ({"family": "encoder", "output_transform": True}, "masked", "pseudo_word"),
    "encoder_decoder, infilled": (
        {"family": "encoder_decoder", "positions": "relative"},
        "span_corruption",
        "pseudo",
    ),
    "encoder_decoder": ({"family": "encoder_decoder", "positions": "relative"}, "prefix", "conditional"),
}
"""Settings, objective, and the way in which texts are scored."""


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of random weights."""
    settings, objective, likelihood = MODELS[request.param]
    texts = [f"{good} {bad}" for _, _, good, bad in PAIRS]
    tokenizer = train_tokenizer(
        Unigram(vocab=340, extra_ids=40, controls=("[CLS]", "[SEP]", "[MASK]"), byte_fallback=True), texts
    )
    config = ModelConfig(**SIZES, **settings, vocab=tokenizer.vocab)
    params = init_params(config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    run = tmp_path_factory.mktemp("model") / "run"
    write_run(run, config, objective, jax.tree.unflatten(tree, leaves), tokenizer)
    return t5x_lite.load(run, overrides=[f"eval.likelihood={likelihood}"])


def write_harness_task(folder: Path, paradigm: str, records: list[Mapping[str, Any]]) -> str:
    """Write a set of pairs and its task, which is the harness's own but for the place of the data."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs the extra eval: pip install -e '.[eval]'")
    source = Path(lm_eval.__file__).parent / "tasks/blimp"
    task = yaml.safe_load((source / "_template_yaml").read_text())
    task |= yaml.safe_load((source / f"{paradigm}.yaml").read_text())
    data = folder / f"{paradigm}.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    for name in ("include", "dataset_name"):
        del task[name]
    task |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {"train": str(data)}}}
    (folder / f"{paradigm}.yaml").write_text(yaml.safe_dump(task))
    return str(task["task"])


def test_every_pair_has_the_scores_that_the_harness_gives_it(model: Model, pairs_file: Path, tmp_path: Path) -> None:
    check_against_harness(model, pairs_file, tmp_path, SETS)


@pytest.mark.slow
def test_scores_on_a_mesh_are_those_of_one_device(model: Model, pairs_file: Path, t5x_lite: Shell) -> None:
    likelihood = model.config.eval.likelihood
    mesh = ("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2")
    environment = simulated(4)
    folder = model.run.folder
    done = t5x_lite("eval", folder, f"blimp={pairs_file}", f"eval.likelihood={likelihood}", *mesh, env=environment)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (folder / "eval/0/blimp.jsonl").read_text().splitlines()]
    for record, scores in zip(records, score_pairs(model, read_pairs([str(pairs_file)])), strict=True):
        assert record["log_likelihoods"] == pytest.approx(scores, abs=1e-3)


def check_against_harness(
    model: Model, file: Path, folder: Path, sets: tuple[str, ...], limit: int | None = None
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra eval: pip install -e '.[eval]'")
    from t5x_lite.evaluate.harness import evaluate_tasks

    with gzip.open(file, "rt") as lines_of_file:
        records = [json.loads(line) for line in lines_of_file]
    names = {}
    for paradigm in sets:
        names[paradigm] = write_harness_task(folder, paradigm, [x for x in records if x["UID"] == paradigm])
    their_scores, their_samples = evaluate_tasks(model, list(names.values()), include=folder, limit=limit)
    pairs = [pair for pair in read_pairs([str(file)], limit) if pair.paradigm in sets]
    scores = score_pairs(model, pairs)
    accuracy = accuracies(pairs, scores)
    for paradigm, name in names.items():
        ours = [score for pair, score in zip(pairs, scores, strict=True) if pair.paradigm == paradigm]
        theirs = []
        for sample in their_samples[name]:
            theirs.append(tuple(response.log_likelihood for response in sample["filtered_resps"]))
        assert len(ours) == len(theirs) > 0
        for our_pair, their_pair in zip(ours, theirs, strict=True):
            assert our_pair == pytest.approx(their_pair, abs=1e-3)
        assert accuracy[paradigm] == their_scores[f"{name}/acc"]


@pytest.mark.slow
def test_real_pairs_have_the_scores_that_the_harness_gives_them(
    tiny_config: Path, real_data: Path, tmp_path: Path
) -> None:
    file = real_data / "blimp.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    assert train(tiny_config, tmp_path / "run", "model.positions=rotary") == 0
    model = t5x_lite.load(tmp_path / "run", overrides=["train.seq_len=128"])
    sets = ("wh_island", "drop_argument", "superlative_quantifiers_1")
    check_against_harness(model, file, tmp_path, sets, limit=20)


def test_accuracies_by_hand(pairs_file: Path) -> None:
    """Three sets of 3, 2 and 1 pairs: 2/3, 1/2 and 0. A tie is not correct."""
    pairs = read_pairs([str(pairs_file)])
    scores = [(-1.0, -2.0), (-2.0, -1.0), (-3.0, -3.5), (-1.0, -1.0), (-1.0, -9.0), (-5.0, -4.0)]
    summary = summarise(accuracies(pairs, scores), {pair.paradigm: pair.phenomenon for pair in pairs})
    assert summary == pytest.approx(
        {
            "accuracy": (2 / 3 + 1 / 2 + 0) / 3,
            "phenomenon/anaphor_agreement": 2 / 3,
            "phenomenon/argument_structure": 1 / 4,
            "set/anaphor_number_agreement": 2 / 3,
            "set/animate_subject_trans": 1 / 2,
            "set/causative": 0.0,
        }
    )


PUBLISHED_MEANS = {"ngram": 61.2, "lstm": 69.8, "txl": 69.6, "gpt2": 83.0}
LSTM = {
    "anaphor_agreement": 91.7,
    "argument_structure": 73.2,
    "binding": 73.5,
    "control_raising": 67.0,
    "determiner_noun_agreement": 85.4,
    "ellipsis": 67.6,
    "filler_gap_dependency": 73.9,
    "irregular_forms": 89.1,
    "island_effects": 46.6,
    "npi_licensing": 51.7,
    "quantifiers": 64.5,
    "subject_verb_agreement": 80.1,
}
"""Warstadt et al. 2020, Table 3."""
PARADIGMS = {
    "anaphor_agreement": 2,
    "argument_structure": 9,
    "binding": 7,
    "control_raising": 5,
    "determiner_noun_agreement": 8,
    "ellipsis": 2,
    "filler_gap_dependency": 7,
    "irregular_forms": 2,
    "island_effects": 8,
    "npi_licensing": 7,
    "quantifiers": 4,
    "subject_verb_agreement": 6,
}
"""Warstadt et al. 2020, Table 2: the number of paradigms of each phenomenon."""


def test_means_of_the_published_accuracies_are_the_published_means(real_data: Path) -> None:
    pairs_file = real_data / "blimp.jsonl.gz"
    published_file = real_data / "blimp_published.tsv"
    for file in (pairs_file, published_file):
        if not file.is_file():
            pytest.skip(f"{file} is not there")
    pairs = read_pairs([str(pairs_file)])
    assert len(pairs) == 67_000
    phenomena = {pair.paradigm: pair.phenomenon for pair in pairs}
    assert {name: list(phenomena.values()).count(name) for name in phenomena.values()} == PARADIGMS
    with published_file.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for name, mean in PUBLISHED_MEANS.items():
        summary = summarise({row["UID"]: float(row[name]) for row in rows}, phenomena)
        assert 100 * summary["accuracy"] == pytest.approx(mean, abs=0.05)
    lstm = summarise({row["UID"]: float(row["lstm"]) for row in rows}, phenomena)
    for phenomenon, accuracy in LSTM.items():
        assert 100 * lstm[f"phenomenon/{phenomenon}"] == pytest.approx(accuracy, abs=0.06)


def test_a_limit_takes_the_first_pairs_of_each_set(pairs_file: Path) -> None:
    pairs = read_pairs([str(pairs_file)], limit=1)
    assert [(pair.paradigm, pair.good) for pair in pairs] == [(PAIRS[n][0], PAIRS[n][2]) for n in (0, 3, 5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"sentence_good": "a"}\n', "blimp.jsonl:1: is not a minimal pair"),
        ("[1]\n", "blimp.jsonl:1: is not a minimal pair"),
        ("nothing\n", "blimp.jsonl:1: is not a minimal pair"),
        (json.dumps(as_records(PAIRS)[0] | {"sentence_bad": ""}), "is not a text, or empty"),
        ("\n", "holds no minimal pairs"),
    ],
)
def test_files_that_are_not_blimp_are_refused_with_their_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "blimp.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_pairs([str(tmp_path / "*.jsonl")])


def test_a_sentence_that_is_too_long_is_refused_with_its_line(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = as_records(PAIRS[:2])
    records[1]["sentence_bad"] = "A fox jumps over themselves. " * 20
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["eval", str(tiny_run), f"blimp={path}"]) == 2
    assert re.search(r"pairs\.jsonl:2: \d+ tokens are more than the model's 32 positions", capsys.readouterr().err)


def test_an_evaluator_in_training_gives_what_the_command_gives(
    tiny_config: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = json.dumps([{"blimp": {"files": str(pairs_file), "limit": 2, "every_steps": 5}}])
    assert train(tiny_config, run, f"eval.evaluators={settings}") == 0
    records = lines(run)
    assert [record["step"] for record in records if "eval/blimp/accuracy" in record] == [5, 10, 12]
    scores = {name: value for name, value in records[-1].items() if name.startswith("eval/blimp/")}
    assert scores["eval/blimp/pairs"] == 5
    folder = run / "eval/12"
    saved = json.loads((folder / "scores.json").read_text())
    samples = [json.loads(line) for line in (folder / "blimp.jsonl").read_text().splitlines()]
    assert {name: saved[name] for name in scores} == pytest.approx(scores)
    assert [sample["sentences"][0] for sample in samples] == [PAIRS[n][2] for n in (0, 1, 3, 4, 5)]
    capsys.readouterr()
    assert main(["eval", str(run), f"blimp={pairs_file}", "--limit", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx({"step": 12, **scores})


def test_pairs_that_cannot_be_read_are_refused_before_training(
    tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    override = f"eval.evaluators=[{{blimp: {{files: {tmp_path}/missing.jsonl}}}}]"
    assert train(tiny_config, tmp_path / "run", override) == 2
    assert "no file matches" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_that_predicts_no_tokens_is_refused(tiny_config: Path) -> None:
    overrides = ["model.family=encoder", "model.outputs=[sentence]", "objective=null"]
    with pytest.raises(UserError, match="minimal pairs need a model that predicts tokens"):
        configuration.load(tiny_config, [*overrides, "eval.evaluators=[{blimp: {files: x}}]"])


def test_the_evaluator_can_be_called_from_python(tiny_run: Path, pairs_file: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")  # scores are saved in it
    metrics = t5x_lite.load(run).evaluate(Blimp(files=(str(pairs_file),)))
    assert metrics["blimp/pairs"] == len(PAIRS)
    assert 0 <= metrics["blimp/accuracy"] <= 1
