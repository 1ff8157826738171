"""Every objective from text to a trained model: the metrics that its run reports, and the uses of its model."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

import t5x_lite
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from tests.conftest import lines

CONTROLS = "tokenizer.unigram.controls=['[CLS]','[SEP]','[MASK]']"
T5 = [
    "model.family=encoder_decoder",
    "model.positions.relative.buckets=8",
    "tokenizer.unigram={vocab: 330, extra_ids: 20}",
]
ENCODER = ["model.family=encoder", "model.output_transform=true", CONTROLS]
PAIRS = ["data.format=jsonl", "data.parts=fields", "data.field=[source,target]"]
MODES = "tokenizer.unigram.controls=['[R]','[S]','[X]']"

RUNS = {
    "span_corruption": [*T5, "objective=span_corruption"],
    "span_corruption, packed": [*T5, "objective=span_corruption", "data.packing=documents", "train.seq_len=64"],
    "ul2": [*T5, MODES, "objective=ul2", "train.seq_len=32"],
    "prefix": ["model.positions=rotary", "model.prefix_lm=true", "objective=prefix"],
    "text_to_text": [*T5, *PAIRS, "objective.text_to_text.target_len=16", "data.packing=documents"],
    "next sentence": [
        *ENCODER,
        "objective.masked.sentences=next",
        "model.outputs=[tokens,sentence]",
        "model.token_types=2",
        "data.parts=line",
        "data.packing=sentences",
        "train.seq_len=32",
    ],
    "span boundary": [
        *ENCODER,
        "objective.masked={spans: geometric, boundary: true, replacement: frequency, static: 2}",
        "model.outputs=[tokens,span]",
        "train.seq_len=32",
    ],
    "full sentences": [
        *ENCODER,
        "objective.masked.spans=word",
        "data.parts=line",
        "data.packing=sentences",
        "data.separate_documents=false",
    ],
    "translation": [*ENCODER, *PAIRS, "objective=translation", "model.token_types=2", "data.packing=none"],
    "masked and translation": [
        *ENCODER,
        "objective.masked.language=1",
        "model.token_types=2",
        "data.files=[]",
        "data.mixture=[{name: text, files: TEXT}, {name: pairs, files: PAIRS, format: jsonl, field: [source, target], "
        "parts: fields, packing: none, objective: translation}]",
    ],
    "replaced_token": [
        "model.family=electra",
        "model.outputs=[detection]",
        "model.generator={layers: 1, embed: 8, heads: 2}",
        "model.embedding=16",
        "model.norm_place=post",
        "model.embedding_norm=true",
        "model.token_types=2",
        "model.feedforward.mlp.activation=gelu",
        CONTROLS,
        "objective=replaced_token",
    ],
    "contrastive": [
        *("model.family=encoder", "model.outputs=[]", "model.head={outputs: 0, pool: mean}", CONTROLS),
        *("objective=contrastive", "data.packing=none"),
    ],
}
"""By name: overrides of the config."""
FAST_RUNS = ("span_corruption", "next sentence")
SECOND_TERMS = {"next sentence": "sentence", "span boundary": "span", "replaced_token": "detection"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, prose: Path) -> Path:
    """A JSONL file of sentences and their words in reverse order."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    records = []
    for file in sorted(prose.glob("*.txt")):
        for line in file.read_text().splitlines():
            text = line.strip(".\n")
            records.append({"source": text, "target": " ".join(reversed(text.split()))})
    path.write_text("\n".join(map(json.dumps, records)))
    return path


TrainedRun: TypeAlias = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained_run(tiny_config: Path, pairs: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A function that returns the run directory of a name of RUNS, and trains the run when it is first requested."""
    folder = tmp_path_factory.mktemp("objectives")
    sizes = ("model.layers=1", "model.embed=16", "train.steps=8", "eval.every_steps=8", "checkpoint.every_steps=8")
    learning_rate = "optimizer.learning_rate=0.02"

    def run_dir_of(name: str) -> Path:
        run_dir = folder / name.replace(", ", "_")
        if not run_dir.exists():
            overrides = [*sizes, learning_rate, *RUNS[name]]
            overrides = [text.replace("TEXT", f"{prose}/*.txt").replace("PAIRS", str(pairs)) for text in overrides]
            if PAIRS[0] in RUNS[name]:
                overrides.append(f"data.files={pairs}")
            assert main(["train", str(tiny_config), f"run_dir={run_dir}", *overrides]) == 0
        return run_dir

    return run_dir_of


@pytest.mark.parametrize(
    "name", [name if name in FAST_RUNS else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_a_run_trains_evaluates_and_reports_its_terms(name: str, trained_run: TrainedRun) -> None:
    records = lines(trained_run(name))
    assert len(records) == 8
    terms = {"loss", "accuracy"}
    if name in SECOND_TERMS:
        terms |= {f"{SECOND_TERMS[name]}_loss", f"{SECOND_TERMS[name]}_accuracy"}
    assert terms <= records[-1].keys()
    assert {f"eval/{term}" for term in terms} <= records[-1].keys()
    assert "eval/bits_per_byte" not in records[-1]  # only objectives that predict every token report it
    assert all(np.isfinite(records[-1][term]) for term in terms)
    if name != "contrastive":  # whose loss depends on how alike the four texts of a batch are
        # The first loss is that of nearly equal probabilities of 300 tokens, 5.7; text of 18 words is soon less.
        assert records[-1]["loss"] < records[0]["loss"] - 0.5


@pytest.mark.slow
def test_validation_reports_each_objective_of_a_mixture_and_the_mean_over_all_targets(trained_run: TrainedRun) -> None:
    record = lines(trained_run("masked and translation"))[-1]
    losses = [record[f"eval/{source}/loss"] for source in ("text", "pairs")]
    tokens = [record[f"eval/{source}/tokens"] for source in ("text", "pairs")]
    assert record["eval/tokens"] == sum(tokens)
    assert record["eval/loss"] == pytest.approx(np.average(losses, weights=tokens), rel=1e-5)


@pytest.fixture
def model(trained_run: TrainedRun, request: pytest.FixtureRequest) -> Model:
    return t5x_lite.load(trained_run(request.param))


@pytest.mark.parametrize("model", ["span_corruption"], indirect=True)
def test_an_encoder_decoder_generates_scores_and_fills(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(model.generate(["the quick", "a lazy dog jumps"], tokens=5)) == 2
    text = "fox jumps"
    target_ids = np.append(model.tokenizer.encode(text), model.tokenizer.eos)
    inputs = np.append(model.tokenizer.encode("the quick"), model.tokenizer.eos)
    logits = model.logits(inputs, np.concatenate([[0], target_ids[:-1]]))[0].astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = log_probabilities[np.arange(len(target_ids)), target_ids].sum()
    assert model.score([text], ["the quick"])[0] == pytest.approx(expected, rel=1e-4)
    prompt = "the <extra_id_0> fox <extra_id_1> over"
    assert main(["generate", str(model.run.folder), "--prompt", prompt, "--tokens", "8"]) == 0
    output = capsys.readouterr().out.strip()
    assert output.startswith("the [")
    assert "] fox [" in output
    assert main(["generate", str(model.run.folder), "--prompt", "the quick", "--tokens", "4"]) == 0
    assert "the quick" not in capsys.readouterr().out
    with pytest.raises(UserError, match="decoder inputs"):
        model.logits(inputs)
    with pytest.raises(UserError, match="only encoders fill masks; this model is of family encoder_decoder"):
        model.fill(prompt)


@pytest.mark.parametrize("model", ["next sentence"], indirect=True)
def test_an_encoder_fills_masks_and_scores(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    filled = model.fill("the [MASK] fox [MASK] over", count=3)
    assert [len(candidates) for candidates in filled] == [3, 3]
    for candidates in filled:
        assert all(better[1] >= worse[1] > 0 for better, worse in pairwise(candidates))
    token_ids = model.tokenizer.encode("fox dog")
    special = model.tokenizer.special
    expected = 0.0
    for position, token in enumerate(token_ids, start=1):
        row = np.array([special["[CLS]"], *token_ids, special["[SEP]"]])
        row[position] = special["[MASK]"]
        logits = model.logits(row)[0, position].astype(np.float64)
        expected += logits[token] - np.log(np.exp(logits).sum())
    assert model.score(["fox dog"])[0] == pytest.approx(expected, rel=1e-4)
    assert main(["generate", str(model.run.folder), "--prompt", "the [MASK] fox"]) == 0
    assert "mask 1" in capsys.readouterr().out
    assert main(["generate", str(model.run.folder), "--prompt", "no mask"]) == 2
    with pytest.raises(UserError, match="does not generate"):
        model.generate("the")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["contrastive"], indirect=True)
def test_a_contrastive_encoder_embeds_and_predicts_no_tokens(model: Model) -> None:
    vectors = model.embed(["the fox", "a dog"])
    assert isinstance(vectors, np.ndarray)
    assert vectors.shape == (2, 16)
    with pytest.raises(UserError, match=r"outputs: \[\]"):
        model.logits(np.arange(5, 15))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["replaced_token"], indirect=True)
def test_electra_detects_replaced_tokens_and_its_discriminator_is_exported(model: Model, tmp_path: Path) -> None:
    scores = model.logits(np.arange(5, 15))
    assert scores.shape == (1, 10)
    assert main(["export", "hf", str(model.run.folder), str(tmp_path / "hf")]) == 0
    assert json.loads((tmp_path / "hf/config.json").read_text())["architectures"] == ["ElectraForPreTraining"]
    assert main(["import", "hf", str(tmp_path / "hf"), str(tmp_path / "run")]) == 0
    imported = t5x_lite.load(tmp_path / "run")
    np.testing.assert_allclose(imported.logits(np.arange(5, 15)), scores, atol=1e-6)
    assert imported.tokenizer.vocab == model.tokenizer.vocab


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=span_corruption", "model.family=encoder"], "span_corruption trains encoder_decoder or decoder"),
        (["objective=masked"], "masked trains encoder, not a model of family decoder"),
        (
            [*T5, "objective=span_corruption", "tokenizer.unigram={vocab: 300, extra_ids: 0}"],
            "the tokenizer has 0 sentinels",
        ),
        ([*ENCODER[:2], "objective=masked"], "the tokenizer has no [CLS] or <s>"),
        ([*RUNS["next sentence"], "data.packing=stream"], "needs data.packing=sentences"),
        ([*RUNS["next sentence"], "model.outputs=[tokens]"], "trains the outputs"),
        ([*T5, "objective=text_to_text"], "needs data.parts=fields"),
        ([*T5, "objective=denoising"], "needs data.parts=line or punctuation, found parts=none"),
        (["data.field=[a,b]"], "several fields need parts=fields"),
        (["data.packing=sentences"], "needs parts=line or parts=punctuation"),
        (["objective=null"], "no objective"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(
    overrides: list[str], message: str, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tiny_config), f"run_dir={tmp_path}/run", *overrides]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("t5x-lite: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "run/config.yaml").exists()
