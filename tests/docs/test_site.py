"""The site builds without a warning, and its reference holds every setting, command and component."""

import importlib.util
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from t5x_lite import schema
from t5x_lite.cli import COMMANDS
from t5x_lite.config import RunConfig
from t5x_lite.sweep.config import SweepConfig
from t5x_lite.tasks import TaskSpec
from tests.docs.pages import DOCS, REPOSITORY


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    for module in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    return folder


def codes(site: Path, page: str) -> set[str]:
    """Return the code spans of a page."""
    html = (site / page / "index.html").read_text(encoding="utf-8")
    return {unescape(code) for code in re.findall(r"<code>([^<]*)</code>", html)}


def test_every_page_has_a_title_and_no_unfilled_comment(site: Path) -> None:
    for source in DOCS.rglob("*.md"):
        name = source.relative_to(DOCS).with_suffix("")
        if name.name == "index":
            name = name.parent
        html = (site / name / "index.html").read_text(encoding="utf-8")
        assert "<h1" in html, source
        assert not re.search(r"<!-- (settings|components|commands|configs)", html), source


def test_every_setting_of_a_run_is_in_the_reference(site: Path) -> None:
    documented = set()
    for page in ("settings", "settings_model", "settings_objectives"):
        documented |= codes(site, f"reference/{page}")
    settings = {setting.key for setting in schema.explain(RunConfig)}
    assert not settings - documented


@pytest.mark.parametrize("kind", [TaskSpec, SweepConfig])
def test_every_setting_of_tasks_and_sweeps_is_in_the_reference(kind: type[schema.Config], site: Path) -> None:
    settings = {setting.key for setting in schema.explain(kind)}
    assert not settings - codes(site, "reference/settings_files")


def test_every_command_is_in_the_reference(site: Path) -> None:
    assert not set(COMMANDS) - codes(site, "reference/commands")


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    html = (site / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'<(?:link|script|img)[^>]+(?:href|src)="(https?://[^"]+)"', html)
    assert loaded == []
