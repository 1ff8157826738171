"""The recipes of docs/extending: each is one new file and one registration, trains, and holds its own checks."""

import importlib
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.extended_package import apply_recipe, copy_repository, imported_from
from tests.docs.pages import RECIPES, REPOSITORY, code_blocks, commands
from tests.docs.tiny_runs import tiny_overrides

RECIPE_NAMES = [recipe.stem for recipe in RECIPES]
FAST_RECIPES = {"objective", "attention", "adaptation", "evaluator"}
"""Recipes whose commands every run of the tests executes; the commands of the others take as long again."""
EXECUTED_RECIPES = [
    pytest.param(recipe, id=recipe.stem, marks=() if recipe.stem in FAST_RECIPES else pytest.mark.slow)
    for recipe in RECIPES
]
COMPONENT_RECIPES = [recipe for recipe in RECIPES if recipe.stem not in {"task", "family"}]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, prose: Path) -> Iterator[Path]:
    """A working directory with the extended package, all configs, and a run of `configs/quickstart.yaml`."""
    folder = tmp_path_factory.mktemp("extended")
    copy_repository(folder)
    for recipe in RECIPES:
        apply_recipe(recipe, folder)
    with imported_from(folder):
        run_command("t5x-lite train configs/quickstart.yaml", prose)
        yield folder


def run_command(command: str, text: Path) -> None:
    """Run a command of the extended package in this process; the runs that it trains are tiny."""
    program, *arguments = shlex.split(command)
    assert program == "t5x-lite", command
    if arguments[0] == "train":
        config = importlib.import_module("t5x_lite.config")
        arguments += tiny_overrides(arguments[1], text, config.load)
    cli = importlib.import_module("t5x_lite.cli")
    assert cli.main(arguments) == 0, command


def test_there_is_a_recipe_for_every_kind_of_component() -> None:
    assert set(RECIPE_NAMES) == {
        "objective",
        "attention",
        "mixer",
        "router",
        "positions",
        "adaptation",
        "evaluator",
        "optimizer",
        "schedule",
        "verifier",
        "task",
        "family",
    }


@pytest.mark.parametrize("recipe", COMPONENT_RECIPES, ids=lambda recipe: recipe.stem)
def test_a_component_is_one_new_file_and_one_registration(recipe: Path) -> None:
    python_files = [block for block in code_blocks(recipe, "python") if block.title]
    (registration,) = code_blocks(recipe, "diff")
    assert len(python_files) == 1
    assert not (REPOSITORY / python_files[0].title).exists()
    assert (REPOSITORY / registration.title).exists()
    changes = [line for line in registration.text.splitlines() if line[0] in "+-"]
    import_line, entry = changes
    assert import_line.startswith("+from t5x_lite.")
    assert entry.startswith('+    "')


def test_a_family_is_a_table_of_names_and_a_config() -> None:
    (recipe,) = [recipe for recipe in RECIPES if recipe.stem == "family"]
    (table,) = [block for block in code_blocks(recipe, "python") if block.title]
    assert not (REPOSITORY / table.title).exists()
    assert "def " not in table.text
    (registration,) = code_blocks(recipe, "diff")
    changes = [line for line in registration.text.splitlines() if line[0] in "+-"]
    assert changes == ["+    starcoder2,", "+    starcoder2.STARCODER2,"]
    (config,) = code_blocks(recipe, "yaml")
    assert config.title


def test_a_task_is_one_file_without_a_registration() -> None:
    (recipe,) = [recipe for recipe in RECIPES if recipe.stem == "task"]
    assert not code_blocks(recipe, "diff")
    assert not [block for block in code_blocks(recipe, "python") if block.title]


@pytest.mark.parametrize("recipe", EXECUTED_RECIPES)
def test_the_commands_and_the_checks_of_a_recipe_succeed(recipe: Path, workspace: Path, prose: Path) -> None:
    if recipe.stem == "family":
        pytest.importorskip("transformers", reason="pip install -e '.[hf]'")
        pytest.importorskip("torch", reason="pip install -e '.[hf]'")
    shell_blocks = code_blocks(recipe, "bash")
    checks = [block for block in code_blocks(recipe, "python") if not block.title]
    assert shell_blocks
    assert checks
    for block in shell_blocks:
        for command in commands(block):
            run_command(command, prose)
    for block in checks:
        exec(compile(block.text, str(block), "exec"), {"__name__": "recipe"})


def test_the_files_of_the_recipes_pass_the_linter(workspace: Path) -> None:
    titles = []
    for recipe in RECIPES:
        titles += [block.title for block in code_blocks(recipe) if block.title.endswith(".py")]
    command = [sys.executable, "-m", "ruff", "check", "--config", str(REPOSITORY / "pyproject.toml"), *titles]
    linter = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    assert linter.returncode == 0, linter.stdout + linter.stderr
    command[3:4] = ["format", "--check"]
    formatter = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    assert formatter.returncode == 0, formatter.stdout + formatter.stderr
