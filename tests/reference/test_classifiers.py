"""Classifiers of Transformers: the same scores, labels and files here; other heads for tasks are refused by name."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from jax import numpy as jnp

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

import transformers  # noqa: E402

import t5x_lite  # noqa: E402
from t5x_lite.api import Model  # noqa: E402
from t5x_lite.cli import main  # noqa: E402
from t5x_lite.convert.huggingface import export_hf, import_hf  # noqa: E402
from t5x_lite.errors import UserError  # noqa: E402
from t5x_lite.objectives.classify import Classify  # noqa: E402
from t5x_lite.objectives.supervised import Supervised  # noqa: E402
from tests.reference.tiny_models import COMMON_SIZES, DEBERTA, DEBERTA_V3  # noqa: E402

LABELS = {0: "entailment", 1: "neutral", 2: "contradiction"}
LENGTHS = (9, 6)
"""Tokens of each text that are not padding."""


def save_model(folder: Path, name: str, head: str, **settings: object) -> transformers.PreTrainedModel:
    """Save a tiny model of the class `{name}For{head}` with noise on every weight."""
    config_class = getattr(transformers, f"{name}Config")
    config = config_class(**{**COMMON_SIZES, "max_position_embeddings": 40, **settings})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}For{head}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def make_batch() -> tuple[np.ndarray, np.ndarray]:
    """Tokens of two texts, and which of them are not padding."""
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    tokens = np.random.default_rng(0).integers(5, 90, mask.shape)
    return np.where(mask, tokens, 1), mask.astype(np.int32)


def their_scores(model: transformers.PreTrainedModel) -> np.ndarray:
    tokens, mask = make_batch()
    with torch.no_grad():
        return model(torch.tensor(tokens), attention_mask=torch.tensor(mask)).logits.numpy()


def our_scores(run: Path) -> np.ndarray:
    """Scores by the run's objective."""
    model = t5x_lite.load(run)
    tokens, mask = make_batch()
    batch = {"tokens": jnp.asarray(tokens), "segment_ids": jnp.asarray(mask)}
    objective = model.config.require_objective()
    assert isinstance(objective, Supervised)
    return np.asarray(objective.scores(model.spec.model(model.params), batch)["scores"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Bert", {}),
        ("Roberta", {}),
        ("Albert", {}),
        ("MegatronBert", {}),
        pytest.param("Deberta", DEBERTA, marks=pytest.mark.slow),
        pytest.param("DebertaV2", DEBERTA_V3, marks=pytest.mark.slow),
    ],
)
def test_a_classifier_gives_transformers_scores_and_keeps_its_labels(name: str, settings: dict, tmp_path: Path) -> None:
    settings = {**settings, "id2label": LABELS, "label2id": {label: number for number, label in LABELS.items()}}
    theirs = save_model(tmp_path / "theirs", name, "SequenceClassification", **settings)
    import_hf(tmp_path / "theirs", tmp_path / "run")
    np.testing.assert_allclose(our_scores(tmp_path / "run"), their_scores(theirs), atol=1e-5)
    objective = t5x_lite.load(tmp_path / "run").config.require_objective()
    assert isinstance(objective, Classify)
    assert objective.labels == tuple(LABELS.values())
    export_hf(tmp_path / "run", tmp_path / "out")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_array_equal(their_scores(again), their_scores(theirs))
    assert again.config.id2label == LABELS
    # A run that was trained here has no config of Transformers.
    (tmp_path / "run/config.huggingface.json").unlink()
    export_hf(tmp_path / "run", tmp_path / "trained")
    trained = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained").eval()
    np.testing.assert_array_equal(their_scores(trained), their_scores(theirs))
    assert trained.config.id2label == LABELS


def test_a_model_that_scores_a_number_is_imported_for_regression(tmp_path: Path) -> None:
    theirs = save_model(tmp_path / "theirs", "Bert", "SequenceClassification", num_labels=1)
    import_hf(tmp_path / "theirs", tmp_path / "run")
    np.testing.assert_allclose(our_scores(tmp_path / "run"), their_scores(theirs), atol=1e-5)
    assert t5x_lite.load(tmp_path / "run").config.require_objective().name == "regress"


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "the"]
TEXTS = ["the good film", "the bad film", "good", "bad bad", "film", "the the"]


def import_classifier(folder: Path, **settings: object) -> list[int]:
    """Import a classifier of the words `WORDS` as `folder/run`, and return its answers to `TEXTS` in Transformers."""
    theirs = save_model(folder / "theirs", "Bert", "SequenceClassification", vocab_size=len(WORDS), **settings)
    (folder / "theirs/vocab.txt").write_text("\n".join(WORDS) + "\n")
    import_hf(folder / "theirs", folder / "run")
    answers = []
    for text in TEXTS:
        token_ids = [2, *[WORDS.index(word) for word in text.split()], 3]
        with torch.no_grad():
            answers.append(int(theirs(torch.tensor([token_ids])).logits.argmax()))
    return answers


def load_on_task(folder: Path, labels: Sequence[object], names: list[str], *overrides: str) -> Model:
    """Load the imported run with a task whose labels have names, and whose validation records are `TEXTS`."""
    lines = [f"{text}\t{label}" for text, label in zip(TEXTS, labels, strict=True)]
    (folder / "dev.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    task = {
        "about": "six texts",
        "columns": {"text": "sentence", "label": "label"},
        "objective": {"classify": {"labels": names}},
        "metrics": ["accuracy"],
    }
    (folder / "views.yaml").write_text(json.dumps(task))
    files = [f"data.files={folder}/dev.tsv", f"data.validation_files={folder}/dev.tsv"]
    return t5x_lite.load(folder / "run", overrides=[f"tasks={folder}/views.yaml", *files, *overrides])


def test_an_imported_classifier_is_evaluated_on_a_task(tmp_path: Path) -> None:
    answers = import_classifier(tmp_path)
    labels = [1 - answers[0], *answers[1:]]  # all right but one
    model = load_on_task(tmp_path, labels, ["LABEL_0", "LABEL_1"])
    assert model.evaluate()["views/accuracy"] == pytest.approx(5 / 6)


def test_labels_in_another_order_than_a_tasks_are_compared_by_their_names(tmp_path: Path) -> None:
    """A classifier of the labels BAD and GOOD, and a task whose labels are good and bad."""
    answers = import_classifier(tmp_path, id2label={0: "BAD", 1: "GOOD"}, label2id={"BAD": 0, "GOOD": 1})
    labels = [("bad", "good")[answer] for answer in answers]
    model = load_on_task(tmp_path, labels, ["good", "bad"], "objective.classify.labels=[BAD, GOOD]")
    assert model.evaluate()["views/accuracy"] == 1
    answers_file = next((tmp_path / "run/eval").rglob("views.jsonl"))
    rows = [json.loads(line) for line in answers_file.read_text().splitlines()]
    assert [row["prediction"] for row in rows] == [1 - answer for answer in answers]


@pytest.mark.parametrize(
    ("name", "head", "settings", "message"),
    [
        (
            "Bert",
            "TokenClassification",
            {},
            "BertForTokenClassification has a head for a task (classifier.bias, …); of heads for tasks that of "
            "BertForSequenceClassification alone is imported; --without-head imports the encoder alone",
        ),
        ("Bert", "QuestionAnswering", {}, "BertForQuestionAnswering has a head for a task (qa_outputs.bias, …)"),
        (
            "Electra",
            "SequenceClassification",
            {},
            "no head for a task is imported for this model type; --without-head imports the encoder alone",
        ),
        (
            "Llama",
            "SequenceClassification",
            {},
            "LlamaForSequenceClassification has a head for a task (score.weight, …); no head for a task is imported "
            "for this model type; it has no output that predicts tokens",
        ),
        (
            "Bert",
            "SequenceClassification",
            {"problem_type": "multi_label_classification"},
            "problem_type='multi_label_classification' with 2 labels is not supported",
        ),
    ],
)
def test_other_heads_for_tasks_are_refused_by_name(
    name: str, head: str, settings: dict, message: str, tmp_path: Path
) -> None:
    save_model(tmp_path / "theirs", name, head, **settings)
    with pytest.raises(UserError) as raised:
        import_hf(tmp_path / "theirs", tmp_path / "run")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "is not a table of labels by their numbers from 0"),
        ({"id2label": {"0": "a", "1": "a"}}, "names no label, or the same twice"),
        ({"id2label": None, "num_labels": 10**30}, "num_labels=1000000000000000000000000000000 is not a number"),
        ({"problem_type": ["regression"]}, "problem_type=['regression'] with 2 labels is not supported"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "classifier.weight is [2, 32], expected [3, 32]"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_one_line(config: dict, message: str, tmp_path: Path) -> None:
    save_model(tmp_path / "theirs", "Bert", "SequenceClassification")
    path = tmp_path / "theirs/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(UserError) as raised:
        import_hf(tmp_path / "theirs", tmp_path / "run")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_encoder_is_imported_without_its_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = save_model(tmp_path / "theirs", "Bert", "TokenClassification")
    run = tmp_path / "run"
    assert main(["import", "hf", str(tmp_path / "theirs"), str(run), "--without-head"]) == 0
    model = t5x_lite.load(run)
    assert model.config.model.outputs == ()
    tokens, mask = make_batch()
    with torch.no_grad():
        expected = theirs.bert(torch.tensor(tokens), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    states = np.asarray(model.spec.model(model.params)(jnp.asarray(tokens), segment_ids=jnp.asarray(mask)))
    np.testing.assert_allclose(states[mask > 0], expected[mask > 0], atol=1e-5)
    save_model(tmp_path / "gpt", "Llama", "CausalLM")
    assert main(["import", "hf", str(tmp_path / "gpt"), str(tmp_path / "run2"), "--without-head"]) == 2
    assert "model_type 'llama' is not imported without its output" in capsys.readouterr().err
