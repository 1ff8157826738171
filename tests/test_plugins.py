"""Components that other packages register as entry points, and the project that `t5x-lite new` writes."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from t5x_lite import plugins
from t5x_lite.cli import main
from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.evaluate.arguments import named_evaluators
from t5x_lite.evaluate.evaluators import Memorisation
from t5x_lite.evaluate.evaluators.evaluator import Argument
from t5x_lite.schema import explain
from t5x_lite.schema.rebuild import rebuild
from tests.conftest import REPOSITORY

MODULE = '''
from t5x_lite.evaluate.evaluators.evaluator import Argument, Evaluation, Evaluator
from t5x_lite.schema import Int, setting
from t5x_lite.train.schedules.schedule import Schedule

class Halves(Schedule):
    """A schedule of two constants."""

    share: float = setting(0.5, "factor of the second half")

    def factor(self, horizon):
        return lambda step: 1.0

class Letters(Evaluator):
    """The letters of a word."""

    argument = Argument("letters", "word whose letters are counted", field="word")

    word: str = setting(..., "word whose letters are counted")
    times: Int = setting(1, "how often each is counted", ge=1)

    def run(self, model):
        return Evaluation({"eval/letters": len(self.word) * self.times})

class Other:
    """No component."""
'''


def write_package(folder: Path, name: str, groups: dict[str, str]) -> None:
    """Write a module, and the metadata that an installer writes for a package with entry points.

    Args:
        folder: a folder of the module path.
        name: of the module and of the distribution.
        groups: an entry point, `name = module:class`, by group.
    """
    (folder / f"{name}.py").write_text(MODULE)
    info = folder / f"{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    lines = [f"[{group}]\n{entry}\n" for group, entry in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the module path, whose components are forgotten at the end."""
    monkeypatch.syspath_prepend(tmp_path)
    registered = {name: dict(seam.registry) for name, seam in plugins.EXTENSION_POINTS.items()}
    plugins.load_plugins.cache_clear()
    yield tmp_path
    plugins.load_plugins.cache_clear()
    for name, seam in plugins.EXTENSION_POINTS.items():
        seam.registry.clear()
        seam.registry.update(registered[name])
    rebuild()


def test_a_component_of_another_package_is_a_setting_like_any_other(site: Path, tiny_config: Path) -> None:
    write_package(site, "halves_package", {"t5x_lite.schedules": "halves = halves_package:Halves"})
    (plugin,) = plugins.load_plugins.__wrapped__()
    assert (plugin.kind, plugin.name, plugin.package) == ("schedules", "halves", "halves_package 1.5")
    settings = {setting.key for setting in explain(RunConfig)}
    assert "optimizer.schedule.halves.share" in settings
    values = json.loads(tiny_config.read_text())
    values["optimizer"] = {"schedule": {"halves": {"share": 0.25}}}
    config = RunConfig.model_validate(values)
    assert config.optimizer.schedule.model_dump() == {"share": 0.25}
    # The name is written, so that the run directory can be opened again.
    assert config.model_dump(mode="json")["optimizer"]["schedule"] == {"halves": {"share": 0.25}}


def test_an_evaluator_of_another_package_is_an_argument_of_eval_with_options(
    site: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_package(site, "letters_package", {"t5x_lite.evaluators": "letters = letters_package:Letters"})
    command = ["eval", str(tiny_run), "--json"]
    assert main([*command, "letters=fox", "times=3"]) == 0
    assert json.loads(capsys.readouterr().out) == {"step": 12, "eval/letters": 9}
    for words, message in (
        (["letters=fox", "times=0"], "command line: `times` is 0: input should be greater than or equal to 1"),
        (["letters=fox", "stride=2"], "stride= is for text="),
        (["times=3"], "times= is for letters="),
    ):
        assert main([*command, *words]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    assert re.search("letters= +word whose letters are counted\n +times= +how often", capsys.readouterr().out)


def test_two_evaluators_cannot_have_the_same_argument(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memorisation, "argument", Argument("blimp", "strings"))
    with pytest.raises(UserError, match=r"blimp= is the argument of .*\.Blimp and .*\.Memorisation; change"):
        named_evaluators()


@pytest.mark.parametrize(
    ("group", "entry", "reason"),
    [
        ("t5x_lite.schedules", "halves = broken_package:Absent", "cannot be imported: AttributeError"),
        ("t5x_lite.schedules", "halves = absent_module:Halves", "No module named 'absent_module'"),
        ("t5x_lite.schedules", "halves = broken_package:Other", "is not a subclass of t5x_lite.train.schedules"),
        ("t5x_lite.objectives", "halves = broken_package:Halves", "is not a subclass of t5x_lite.objectives"),
        ("t5x_lite.schedules", "cosine = broken_package:Halves", "t5x_lite has a component of this name"),
        ("t5x_lite.schedule", "halves = broken_package:Halves", "did you mean t5x_lite.schedules?"),
    ],
)
def test_a_broken_plugin_is_one_line_that_names_its_package(
    site: Path, tiny_config: Path, group: str, entry: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_package(site, "broken_package", {group: entry})
    assert main(["train", str(tiny_config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"t5x-lite: plugin broken_package 1.5, [{group}] {entry}: ")
    assert reason in line
    assert line.endswith("pip uninstall broken_package")


def test_two_packages_cannot_register_the_same_name(site: Path) -> None:
    for name in ("first_package", "second_package"):
        write_package(site, name, {"t5x_lite.schedules": f"halves = {name}:Halves"})
    with pytest.raises(UserError, match=r"first_package 1\.5 has a component of this name"):
        plugins.load_plugins.__wrapped__()
    assert "halves" not in plugins.EXTENSION_POINTS["schedules"].registry


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("My-Project", "lower-case letters"),
        ("2fast", "lower-case letters"),
        ("class", "keyword"),
        ("match", "keyword"),
        ("json", "already has a module"),
        ("jax", "already has a module"),
        ("tests", "another folder"),
        ("gs://bucket/project", "must be a local path"),
    ],
)
def test_a_name_that_no_package_can_have_is_refused(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["new", name])
    except SystemExit as stop:  # argparse exits by itself
        code = stop.code
    assert code == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for existing in ("with_a_file", "empty"):
        (tmp_path / existing).mkdir()
        (tmp_path / "with_a_file/README.md").write_text("mine")
        assert main(["new", existing]) == 2
        assert f"{existing} exists already" in capsys.readouterr().err
    assert (tmp_path / "with_a_file/README.md").read_text() == "mine"
    assert list((tmp_path / "empty").iterdir()) == []


def test_no_file_of_a_project_has_the_name_of_the_template(tmp_path: Path) -> None:
    assert main(["new", str(tmp_path / "my_models")]) == 0
    files = [path for path in (tmp_path / "my_models").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"pyproject.toml", "pretrain.yaml", "deshuffling.py", ".gitignore"}
    for path in files:
        assert "my_project" not in str(path.relative_to(tmp_path)) + path.read_text()
    metadata = tomllib.loads((tmp_path / "my_models/pyproject.toml").read_text())
    assert metadata["project"]["name"] == "my_models"
    for module_and_class in metadata["project"]["entry-points"]["t5x_lite.objectives"].values():
        module, _, _ = module_and_class.partition(":")
        assert (tmp_path / "my_models" / f"{module.replace('.', '/')}.py").is_file()


@pytest.mark.slow
def test_a_new_project_is_installed_tested_trained_and_evaluated(tmp_path: Path, prose: Path) -> None:
    assert main(["new", str(tmp_path / "my_models")]) == 0
    project = tmp_path / "my_models"
    site = tmp_path / "site"
    pip = ["-m", "pip", "--quiet", "install", "--no-deps", "--no-index", "--no-build-isolation"]
    run_python(project, REPOSITORY, *pip, "--target", str(site), str(project))
    run_python(project, site, "-m", "pytest", "-p", "no:cacheprovider")

    text = ["data.validation_fraction=0.2", f"data.files={prose}/*.txt", "tokenizer.unigram.vocab=320"]
    model = ["model.layers=1", "model.embed=16", "model.heads=2", "model.mlp=16"]
    steps = [
        "train.steps=3",
        "train.batch_size=4",
        "train.seq_len=32",
        "optimizer.warmup_steps=1",
        "eval.every_steps=3",
    ]
    train = ["-m", "t5x_lite", "train"]
    run_python(project, site, *train, "configs/pretrain.yaml", *text, *model, *steps)
    last = json.loads((project / "runs/pretrain/metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3
    assert 0 <= last["eval/repeated_2_grams"] <= 1
    done = run_python(project, site, "-m", "t5x_lite", "eval", "runs/pretrain", "--json")
    scores = json.loads(done.stdout)
    assert scores["eval/repeated_2_grams"] == pytest.approx(last["eval/repeated_2_grams"])

    run_python(project, site, *train, "configs/sentiment.yaml", *steps)
    last = json.loads((project / "runs/sentiment/metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval/sentiment/accuracy"] in {0, 0.25, 0.5, 0.75, 1}  # of four validation records


def run_python(cwd: Path, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages of a folder, and with this package."""
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done
