"""README is short, and the Python examples of README and of the guides run."""

import json
import re
from pathlib import Path

import jax
import pytest

from t5x_lite import config as configuration
from t5x_lite.adapt import ADAPTATIONS
from t5x_lite.cli import COMMANDS, main
from t5x_lite.convert.imported_run import write_run
from t5x_lite.models.head_config import HeadConfig
from t5x_lite.models.positions import POSITIONS
from t5x_lite.models.spec import init_params
from t5x_lite.objectives import OBJECTIVES
from t5x_lite.objectives.policy_optimization import PolicyOptimization
from t5x_lite.objectives.supervised import Supervised
from t5x_lite.run_dir import open_run
from t5x_lite.train.schedules import SCHEDULES
from tests.docs.pages import DOCS, README, REPOSITORY, CodeBlock, code_blocks, commands, page_name
from tests.docs.tiny_runs import tiny_overrides

MAX_WORDS = 1300
TRAINED = ("quickstart", "quickstart_bert")
EXAMPLE_PAGES = [README, *sorted((DOCS / "guides").glob("*.md")), DOCS / "reference" / "api.md"]


def python_examples() -> list[CodeBlock]:
    return [block for page in EXAMPLE_PAGES for block in code_blocks(page, "python")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, prose: Path) -> Path:
    """A folder with `runs/quickstart` and `runs/quickstart_bert`, trained for a few steps, and `runs/classifier`."""
    folder = tmp_path_factory.mktemp("examples")
    for name in TRAINED:
        config = str(REPOSITORY / "configs" / f"{name}.yaml")
        overrides = tiny_overrides(config, prose, configuration.load)
        overrides += [f"run_dir={folder}/runs/{name}", f"data.cache_dir={folder}/cache"]
        assert main(["train", config, *overrides]) == 0
    write_classifier(folder)
    return folder


def write_classifier(folder: Path) -> None:
    """Write `runs/classifier`, a classifier of two labels with random weights, and texts in the format of SST-2."""
    run = open_run(folder / "runs/quickstart_bert")
    head = HeadConfig(outputs=2, pool="first", transform=True)
    model = run.config.model.model_copy(update={"vocab": run.tokenizer.vocab, "outputs": (), "head": head})
    objective = {"classify": {"labels": ["negative", "positive"], "transform": True}}
    write_run(folder / "runs/classifier", model, objective, init_params(model, jax.random.key(0)), run.tokenizer)
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("sentence\tlabel\na fine film\t1\na dull film\t0\n")


def test_readme_has_at_most_1300_words() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= MAX_WORDS


def test_readme_names_every_command() -> None:
    named = set()
    for block in code_blocks(README, "bash"):
        for command in commands(block):
            words = command.split()
            named |= {words[number + 1] for number, word in enumerate(words[:-1]) if word == "t5x-lite"}
    assert set(COMMANDS) == named


def test_there_are_python_examples() -> None:
    assert {page_name(block.page) for block in python_examples()} >= {"README.md", "docs/guides/generate.md"}


@pytest.mark.parametrize("block", python_examples(), ids=str)
def test_python_examples_run(block: CodeBlock, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    exec(compile(block.text, str(block), "exec"), {"__name__": "example"})


def documented_spellings(metric: str) -> list[str]:
    """Return the ways in which the page may name a metric: itself, as a term of the loss, or as an activity."""
    spellings = [metric]
    for suffix in ("loss", "accuracy"):
        if metric.endswith(f"_{suffix}"):
            spellings.append(f"x_{suffix}")
    if metric.startswith("goodput/"):
        spellings.append(metric.removeprefix("goodput/").removesuffix("_seconds"))
    return spellings


def test_every_metric_of_a_run_is_documented(runs: Path) -> None:
    page = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    metrics = set()
    for name in TRAINED:
        for line in (runs / "runs" / name / "metrics.jsonl").read_text().splitlines():
            metrics |= set(json.loads(line))
    for metric in metrics:
        assert any(f"`{spelling}`" in page for spelling in documented_spellings(metric)), metric


def test_every_file_of_a_run_is_documented(runs: Path) -> None:
    page = (DOCS / "reference" / "run_directory.md").read_text(encoding="utf-8")
    for path in (runs / "runs" / "quickstart").iterdir():
        if not path.name.startswith("."):
            assert f"`{path.name}" in page, path.name


def test_the_numbers_of_components_in_readme_are_those_of_the_package() -> None:
    text = " ".join(README.read_text(encoding="utf-8").split())
    configs = REPOSITORY / "configs"
    parts = {"base", "cloze", "finetune", "harness", "nanogpt", "pods", "prompting", "rl", "schedules"}
    parts |= {"study", "sweeps", "tasks"}
    published = [path for path in configs.glob("*/*.yaml") if path.parent.name not in parts]
    names_of_numbers = {5: "five", 6: "six", 7: "seven", 8: "eight", 10: "ten", 18: "eighteen"}
    from_rewards = [kind for kind in OBJECTIVES.values() if issubclass(kind, PolicyOptimization)]
    supervised = [kind for kind in OBJECTIVES.values() if issubclass(kind, Supervised) and kind not in from_rewards]
    assert f"all {len(list((configs / 'pods').rglob('*.yaml')))} pod configs" in text
    assert f"{len(published)} published sizes" in text
    assert f"{names_of_numbers[len(ADAPTATIONS)]} methods" in text
    assert f"{names_of_numbers[len(SCHEDULES)]} schedules" in text
    assert f"{names_of_numbers[len(POSITIONS) - 1]} position encodings" in text  # without `none`
    assert f"{names_of_numbers[len(supervised)]} for labelled tasks" in text


def test_classes_of_the_glossary_are_in_the_files_that_it_names() -> None:
    page = (DOCS / "reference" / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[A-Z].*?) \| .*? \| (`t5x_lite/.*?) \|$", page, re.MULTILINE)
    assert len(rows) > 20
    for classes, paths in rows:
        source = "".join((REPOSITORY / path).read_text(encoding="utf-8") for path in re.findall(r"`(.*?)`", paths))
        for name in re.findall(r"`(.*?)`", classes):
            assert re.search(rf"^class {name}\b", source, re.MULTILINE), name
