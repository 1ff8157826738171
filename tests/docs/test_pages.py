"""Whatever README and the pages name exists, and the configs that they show are valid."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from t5x_lite import config as configuration
from t5x_lite import schema
from t5x_lite.arguments import build_parser
from t5x_lite.cli import main
from t5x_lite.config import RunConfig
from t5x_lite.evaluate.arguments import named_evaluators, option_owners
from t5x_lite.evaluate.evaluators.cloze import load_cloze
from t5x_lite.sweep import config as sweeps
from t5x_lite.sweep.config import SweepConfig
from t5x_lite.tasks import TaskSpec
from tests.docs.pages import PAGES, RECIPES, REPOSITORY, CodeBlock, all_code_blocks, code_blocks, commands, page_name

FOLDERS = ("configs", "docs", "launch", "t5x_lite", "tests", "tools")
PATH = re.compile(rf"(?<![\w/.])(?:{'|'.join(FOLDERS)})/[\w./-]*\w")
LINK = re.compile(r"\]\(([^)\s]+)\)")
MINIMAL_CONFIG = {
    "model": {"layers": 2, "embed": 48, "heads": 6, "positions": "rotary"},
    "train": {"steps": 1000, "batch_size": 8, "seq_len": 128},
}
MIGRATION = REPOSITORY / "docs/guides/migrate.md"
"""Its tables have the names of other codebases in the first column, and the settings of this one in the second."""
SHOWN_FILES = {block.title for block in all_code_blocks() if block.title}
"""Files that the pages tell the reader to write."""


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_relative_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in LINK.findall(text):
        target = link.partition("#")[0]
        if target and "://" not in target:
            assert (page.parent / target).exists(), f"{page_name(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_named_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in PATH.findall(text):
        if path not in SHOWN_FILES:
            assert (REPOSITORY / path).exists(), f"{page_name(page)}: {path}"


def error_examples() -> list[CodeBlock]:
    """Return the console blocks that show an error of `t5x-lite`."""
    return [block for block in all_code_blocks("console") if "\nt5x-lite: " in block.text]


def command_examples() -> list[CodeBlock]:
    """Return the blocks with commands that succeed."""
    errors = error_examples()
    return [block for block in all_code_blocks("bash", "console") if block not in errors]


@pytest.mark.parametrize("block", command_examples(), ids=str)
def test_commands_have_these_names_options_and_settings(block: CodeBlock) -> None:
    for command in commands(block):
        words = shlex.split(command.translate(str.maketrans("", "", "[]…")), comments=True)
        if words and words[0] == "t5x-lite":
            check_command(words[1:], str(block))
        elif words and words[0] == "bash":
            assert (REPOSITORY / words[1]).is_file(), f"{block}: {command}"


def check_command(words: list[str], where: str) -> None:
    """Parse a command as the program does. Single capital letters stand for numbers."""
    arguments = [re.sub(r"^[A-Z]$", "1", word) for word in words]
    try:
        options, unknown = build_parser().parse_known_args(arguments)
    except SystemExit:
        pytest.fail(f"{where}: {' '.join(words)} is not a command")
    overrides = [*getattr(options, "overrides", []), *unknown]
    settings = {setting.key for setting in schema.explain(RunConfig)}
    evaluation_arguments = named_evaluators().keys() | option_owners().keys()
    if options.command == "eval":
        settings |= evaluation_arguments
    if options.command == "sweep":
        settings_of_runs = settings
        settings = {setting.key for setting in schema.explain(SweepConfig)}
        if options.words[0] in {"eval", "plot"}:
            settings |= evaluation_arguments | settings_of_runs
        overrides = [word for word in options.words if "=" in word] + unknown
    for override in overrides:
        key = override.removeprefix("--").partition("=")[0]
        is_group = any(setting.startswith(f"{key}.") for setting in settings)
        assert "=" in override, f"{where}: {override} is neither an option nor an override"
        assert key in settings or is_group or key == "key", f"{where}: there is no setting {key}"


def test_settings_to_migrate_to_exist() -> None:
    settings = {setting.key for setting in schema.explain(RunConfig)} | {"base"}
    rows = re.findall(r"^\| `[^|]*\| ([^|]*) \|[^|]*\|$", MIGRATION.read_text(encoding="utf-8"), flags=re.MULTILINE)
    names = [name for cell in rows for name in re.findall(r"`([^`]*)`", cell)]
    assert len(names) > 80
    for name in names:
        is_group = any(setting.startswith(f"{name}.") for setting in settings)
        assert name in settings or is_group, f"{page_name(MIGRATION)}: there is no setting {name}"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the configs, a minimal config, and the run directories that the pages name."""
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    (folder / "configs" / "minimal.yaml").write_text(json.dumps(MINIMAL_CONFIG))
    for run, config in (("bert_base", "bert/base"), ("quickstart", "quickstart")):
        run_folder = folder / "runs" / run
        run_folder.mkdir(parents=True)
        resolved = configuration.load(folder / "configs" / f"{config}.yaml")
        (run_folder / "config.yaml").write_text(configuration.dump(resolved))
    for recipe in RECIPES:
        for block in code_blocks(recipe, "yaml", "json"):
            if block.title:
                (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.title).write_text(block.text)
    return folder


def configs_on_pages() -> list[CodeBlock]:
    """Return the YAML blocks, without the configs of recipes, which need the recipe's component."""
    blocks = []
    for block in all_code_blocks("yaml"):
        is_component_config = block.page in RECIPES and block.page.stem != "task"
        if not is_component_config:
            blocks.append(block)
    return blocks


@pytest.mark.parametrize("block", configs_on_pages(), ids=str)
def test_shown_configs_are_valid(block: CodeBlock, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    settings = yaml.safe_load(block.text)
    if {"columns", "metrics"} <= settings.keys():
        schema.validate(TaskSpec, schema.read(TaskSpec, block.title))
        return
    path = workspace / (block.title or "configs/fragment.yaml")
    path.write_text(block.text)
    if {"pattern", "verbalizer"} <= settings.keys():
        load_cloze(path)
        return
    if "axes" in settings:
        for base in sweeps.load(path).bases:
            configuration.load(base)
        return
    if not block.title:
        path.write_text(f"base: minimal.yaml\n{block.text}")
    configuration.load(path)


@pytest.mark.parametrize("block", error_examples(), ids=str)
def test_shown_errors_are_those_of_the_program(
    block: CodeBlock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    command, _, message = block.text.partition("\n")
    arguments = shlex.split(command.removeprefix("$ t5x-lite "))
    assert main(arguments) == 2
    assert capsys.readouterr().err.strip() == message.strip()


def test_a_misspelt_setting_is_found() -> None:
    """The check of commands itself can fail."""
    with pytest.raises(AssertionError, match="stepz"):
        check_command(["train", "CONFIG", "train.stepz=1"], "here")
