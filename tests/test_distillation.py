"""Distillation from the command line: a student of a tiny BERT, its checkpoints and its export."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite.adapt import CopyLayers
from t5x_lite.cli import main
from t5x_lite.data.tokenizer_config import Words
from t5x_lite.data.word_vocabulary import read_words
from t5x_lite.errors import UserError
from t5x_lite.models.character_ids import PADDING, WORD_BEGIN, WORD_END
from t5x_lite.models.spec import model_spec
from t5x_lite.objectives.objective import ExampleLengths
from t5x_lite.parallel import mesh as meshes
from t5x_lite.run_dir import new_run
from t5x_lite.run_teacher import open_teacher
from t5x_lite.train.flops import flops_per_example
from t5x_lite.train.optimizers.adamw import AdamW
from t5x_lite.train.step_flops import step_flops_per_example
from t5x_lite.train.steps import make_steps
from t5x_lite.trees import flatten_names
from tests.conftest import Shell, lines
from tests.simulated_devices import simulated

BERT = {
    **{"family": "encoder", "outputs": ["tokens"], "output_transform": True, "output_bias": True, "token_types": 2},
    **{"embedding_norm": True, "norm": {"layernorm": {"epsilon": 1e-12}}, "norm_place": "post", "dropout": 0.1},
    **{"layers": 3, "embed": 32, "heads": 2, "positions": {"learned": {"length": 48}}},
    "feedforward": {"mlp": {"activation": "gelu"}},
}
STUDENT = {**BERT, "layers": 2, "token_types": 0}
STEPS = 4


def write_config(path: Path, tiny_config: Path, **settings: object) -> Path:
    values = {
        "base": str(tiny_config),
        "objective": "masked",
        "tokenizer": {"unigram": {"vocab": 300, "controls": ["[CLS]", "[SEP]", "[MASK]"]}},
        "train": {"steps": STEPS, "batch_size": 4, "seq_len": 32, "log_every_steps": 1},
        "checkpoint": {"every_steps": 2},
        "eval": {"every_steps": 4},
        **settings,
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def teacher(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tiny BERT of three layers."""
    folder = tmp_path_factory.mktemp("teacher")
    config = write_config(folder / "bert.yaml", tiny_config, model=BERT)
    assert main(["train", str(config), f"run_dir={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def student_config(teacher: Path, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a config that distils the teacher into two layers."""
    return write_config(
        tmp_path_factory.mktemp("student") / "student.yaml",
        tiny_config,
        model=STUDENT,
        adapt={"from": str(teacher), "method": "copy_layers"},
        distillation={"teacher": str(teacher)},
    )


@pytest.mark.slow
def test_a_student_trains_and_resumes_to_the_same_numbers(student_config: Path, tmp_path: Path) -> None:
    command = ["train", str(student_config), f"run_dir={tmp_path / 'run'}"]
    assert main(command) == 0
    records = lines(tmp_path / "run")
    assert len(records) == STEPS
    for record in records:
        assert {"loss", "soft_loss", "soft_accuracy", "cosine_loss"} <= record.keys()
        assert "cosine_accuracy" not in record
    # The loss is the cross-entropy of the tokens, as without a teacher: near that of a uniform guess.
    assert records[0]["loss"] == pytest.approx(np.log(300), rel=0.3)
    assert records[-1]["soft_loss"] < records[0]["soft_loss"]
    assert records[-1]["cosine_loss"] < records[0]["cosine_loss"]

    shutil.rmtree(tmp_path / "run/checkpoints" / str(STEPS))
    assert main(command) == 0
    resumed = lines(tmp_path / "run")
    for name in ("loss", "soft_loss", "cosine_loss", "grad_norm", "eval/loss"):
        assert resumed[-1][name] == records[-1][name], name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        (["data.separate_documents=false"], ["model.layers=1"]),
        (
            ["model.family=encoder_decoder", "model.positions=sinusoidal", "objective=span_corruption"],
            ["model.layers=1", "model.decoder_layers=1"],
        ),
    ],
    ids=["decoder", "encoder_decoder"],
)
def test_decoders_and_encoder_decoders_are_distilled(
    settings: list[str], layers: list[str], tiny_config: Path, tmp_path: Path
) -> None:
    """A student that is its teacher has no soft loss; one of half the layers has."""
    steps = ["train.steps=2", "checkpoint.every_steps=2", "eval.every_steps=2"]
    command = ["train", str(tiny_config), *steps, *settings]
    folder = tmp_path / "teacher"
    assert main([*command, f"run_dir={folder}", "tokenizer.unigram={vocab: 330, extra_ids: 20}"]) == 0
    adapted = [*command, f"adapt.from={folder}", f"distillation.teacher={folder}"]
    assert main([*adapted, f"run_dir={tmp_path / 'copy'}"]) == 0
    first = lines(tmp_path / "copy")[0]
    assert first["soft_loss"] == pytest.approx(0, abs=1e-5)
    assert first["cosine_loss"] == pytest.approx(0, abs=1e-5)
    assert first["soft_accuracy"] == 1
    assert main([*adapted, f"run_dir={tmp_path / 'run'}", "adapt.method=copy_layers", *layers]) == 0
    assert lines(tmp_path / "run")[0]["soft_loss"] > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["mesh={fsdp: 2, tensor: 2}", "train.microbatches=2"])
def test_the_numbers_do_not_depend_on_the_mesh_or_the_microbatches(
    axes: str, student_config: Path, tmp_path: Path, t5x_lite: Shell
) -> None:
    """Both models have no dropout, whose masks microbatches draw apart."""
    settings = ("train.steps=2", "model.dropout=0", "checkpoint.every_steps=2", "eval.every_steps=2")
    assert main(["train", str(student_config), f"run_dir={tmp_path / 'alone'}", *settings]) == 0
    environment = simulated(4 if "mesh" in axes else 1)
    done = t5x_lite("train", student_config, f"run_dir={tmp_path / 'run'}", *settings, axes, env=environment)
    assert done.returncode == 0, done.stderr
    for record, expected in zip(lines(tmp_path / "run"), lines(tmp_path / "alone"), strict=True):
        for name in ("loss", "soft_loss", "soft_accuracy", "cosine_loss", "grad_norm"):
            assert record[name] == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.slow
def test_a_student_is_used_and_exported_without_its_teacher(
    student_config: Path, teacher: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")
    torch = pytest.importorskip("torch", reason="pip install -e '.[hf]'")
    copy = shutil.copytree(teacher, tmp_path / "teacher")
    run = tmp_path / "run"
    overrides = [f"adapt.from={copy}", f"distillation.teacher={copy}"]
    assert main(["train", str(student_config), f"run_dir={run}", *overrides]) == 0
    shutil.rmtree(copy)
    for manifest in (run / "checkpoints").rglob("*"):
        assert "teacher" not in manifest.name
    model = t5x_lite.load(run)
    assert all("teacher" not in name for name in flatten_names(model.params))
    assert main(["eval", str(run)]) == 0
    assert main(["export", "hf", str(run), str(tmp_path / "hf")]) == 0
    assert json.loads((tmp_path / "hf/config.json").read_text())["model_type"] == "distilbert"
    exported = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    tokens = np.random.default_rng(0).integers(5, 300, (2, 12))
    with torch.no_grad():
        expected = exported(input_ids=torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(model.logits(tokens), expected, atol=1e-4)


@pytest.mark.slow
def test_a_run_refuses_another_tokenizer_and_a_teacher_that_changed(
    student_config: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["train", str(student_config), f"run_dir={run}"]
    other = [*command, "adapt=null", "tokenizer.unigram.vocab=295", "model.vocab=300"]
    assert main(other) == 2
    assert "has another tokenizer than this run; take the teacher's, by adapt.from" in capsys.readouterr().err
    assert not run.exists()
    assert main([*command, "adapt=null"]) == 0  # the same text trains the same tokenizer
    shutil.rmtree(run / "checkpoints" / str(STEPS))
    other_teacher = tmp_path / "other"
    assert main(["train", str(teacher.parent / "bert.yaml"), f"run_dir={other_teacher}", "train.seed=1"]) == 0
    capsys.readouterr()
    assert main([*command, "adapt=null", f"distillation.teacher={other_teacher}"]) == 2
    assert "is not the teacher that this run began with" in capsys.readouterr().err


def described_teacher(folder: Path, name: str = "bert/base", *overrides: str) -> Path:
    """Write the config of a run that has no weights, and return its run directory."""
    config = configuration.load(name, ["model.vocab=300", *overrides])
    (folder / "config.yaml").write_text(configuration.dump(config))
    return folder


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("gpt2/117m", [], "is a model of family decoder, and this config's is encoder"),
        ("bert/large", [], "width 1024, and this config's model.embed is 768, so that they have no cosine"),
        ("electra/small", [], "is a model of family electra, and this config's is encoder"),
        ("bert/base", ["model.positions.learned.length=128", "train.seq_len=128"], "has 128 positions; shorten"),
    ],
)
def test_a_teacher_that_cannot_teach_the_model_is_refused(
    name: str, overrides: list[str], message: str, tmp_path: Path
) -> None:
    folder = described_teacher(tmp_path, name, *overrides)
    config = configuration.load(
        "distilbert/base", [f"distillation.teacher={folder}", "objective.masked.sentences=none"]
    )
    with pytest.raises(UserError, match=message):
        open_teacher(config)
    if "cosine" in message:
        without_cosine = f"distillation={{teacher: {folder}, cosine: 0}}"
        assert open_teacher(configuration.load("distilbert/base", [without_cosine])) is not None


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("distilbert/base", "model.token_types=3", r"knows 2 token types, and this config's model\.token_types is 3"),
        ("t5/small", "model.start_token=2", r"its decoder begins with token 0; set model\.start_token to it, now 2"),
    ],
)
def test_a_teacher_that_cannot_read_the_rows_is_refused(name: str, override: str, message: str, tmp_path: Path) -> None:
    folder = described_teacher(tmp_path, "bert/base" if name == "distilbert/base" else name)
    assert open_teacher(configuration.load(name, [f"distillation.teacher={folder}"])) is not None
    with pytest.raises(UserError, match=message):
        open_teacher(configuration.load(name, [f"distillation.teacher={folder}", override]))


def test_a_teacher_knows_the_characters_of_its_tokens(tmp_path: Path) -> None:
    """Its token vectors are computed from them."""
    overrides = ["model={vocab: 8, tied: false, characters: {filters: [8], length: 5}}"]
    config = configuration.load("gpt2/117m", [*overrides, f"run_dir={tmp_path}"])
    words = tmp_path / "words.txt"
    words.write_text("on\na\nthe\nto\nof\n")
    new_run(config, read_words(Words(vocab=8, file=str(words)))).save()
    teacher = open_teacher(configuration.load("gpt2/117m", [*overrides, f"distillation.teacher={tmp_path}"]))
    assert teacher is not None
    assert teacher.spec.character_ids is not None
    assert teacher.spec.character_ids.table[1].tolist() == [WORD_BEGIN, ord("o"), ord("n"), WORD_END, PADDING]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distillation={teacher: t, soft: 0, cosine: 0}", "so that nothing is learnt from the teacher"),
        ("distillation={teacher: t, temperature: 0}", "distillation.temperature"),
        ("distillation={soft: 1}", "distillation.teacher"),
        ("objective=null", "distillation is for objectives that predict the tokens of a text, not for objective none"),
    ],
)
def test_settings_that_teach_nothing_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        overrides = [override] if "distillation" in override else ["distillation.teacher=t", override]
        configuration.load("distilbert/base", overrides)


def test_objectives_without_states_of_tokens_have_no_teacher() -> None:
    with pytest.raises(UserError, match="the tokens of a text, not for objective replaced_token"):
        configuration.load("electra/small", ["distillation.teacher=t"])


def test_the_shipped_config_has_the_published_settings(tmp_path: Path) -> None:
    """Sanh et al. 2019, its README (5, 2 and 1), train.py, distiller.py and extract_distilbert.py."""
    folder = described_teacher(tmp_path)
    config = configuration.load("finetune/distilbert", [f"adapt.from={folder}", f"distillation.teacher={folder}"])
    settings = config.distillation
    assert settings is not None
    assert (settings.soft, settings.hard, settings.cosine, settings.temperature) == (5, 2, 1, 2)
    assert isinstance(config.method, CopyLayers)
    assert config.method.layers == (0, 2, 4, 7, 9, 11)
    assert (config.model.layers, config.model.token_types, config.model.outputs) == (6, 0, ("tokens",))
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.clip_norm) == (5e-4, 0, 5)
    assert optimizer.warmup_steps == 0.05 * config.train.steps
    assert isinstance(optimizer.method, AdamW)
    assert (optimizer.method.b1, optimizer.method.b2, optimizer.method.epsilon) == (0.9, 0.98, 1e-6)


def test_a_missing_teacher_is_named(tmp_path: Path) -> None:
    config = configuration.load("distilbert/base", [f"distillation.teacher={tmp_path / 'none'}"])
    with pytest.raises(UserError, match=r"distillation\.teacher .*none: is not a run directory"):
        open_teacher(config)


def test_memory_and_flops_count_the_teacher(tmp_path: Path) -> None:
    """BERT Base has twice the layers of DistilBERT; its weights are in the state, and its forward pass in the FLOPs."""
    folder = described_teacher(tmp_path, "bert/base", "model.outputs=[tokens]", "objective.masked.sentences=none")
    alone = configuration.load("distilbert/base", ["model.vocab=300", "train.batch_size=8"])
    distilled = configuration.load(
        "distilbert/base", ["model.vocab=300", "train.batch_size=8", f"distillation.teacher={folder}"]
    )
    spec = model_spec(distilled.model)
    mesh = meshes.make_mesh(distilled.mesh)
    teacher_spec = model_spec(configuration.load(folder / "config.yaml").model)
    extra = meshes.shard_bytes(make_steps(distilled, spec, mesh).state) - meshes.shard_bytes(
        make_steps(alone, spec, mesh).state
    )
    assert extra == 4 * teacher_spec.parameters

    lengths = ExampleLengths(tokens=512, predicted=77)
    all_predicted = ExampleLengths(tokens=512, predicted=512)
    teacher_model = configuration.load(folder / "config.yaml").model
    expected = flops_per_example(distilled.model, spec, all_predicted)
    expected += flops_per_example(teacher_model, teacher_spec, all_predicted) / 3
    assert step_flops_per_example(distilled, spec, lengths) == pytest.approx(expected)
    assert step_flops_per_example(alone, spec, lengths) == flops_per_example(alone.model, spec, lengths)
