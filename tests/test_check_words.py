"""The lint of words, tools/check_words.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def check(*paths: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/check_words.py", *map(str, paths)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_the_package_and_the_tools_use_the_projects_words() -> None:
    done = check()
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("source", "line", "word"),
    [
        ("found = 1\n", 1, "found"),
        ("x = 1\nfor one in (1, 2):\n    pass\n", 2, "one"),
        ("def load(of):\n    return of\n", 1, "of"),
        ("def load(path, *, wanted=()):\n    return path\n", 1, "wanted"),
        ("class Model:\n    def fit(self):\n        self.held = 1\n", 3, "held"),
        ("own_tasks = ()\n", 1, "own_tasks"),
        ("class Blueprint:\n    pass\n", 1, "Blueprint"),
        ("import numpy as these\n", 1, "these"),
        ('"""What a module does."""\n', 1, "What"),
        ('def f():\n    """Whether it is true."""\n', 2, "Whether"),
        ('SIZE = 1\n"""How large it is."""\n', 2, "How"),
        ('def f():\n    """K."""\n', 2, "K."),
        ('"""Print a table.\n\nThe reader is\ntold more."""\n', 3, "is told"),
        ("x = 1  # the tensor reads at its end\n", 1, "reads at"),
        ("a, b = 1, 2\n", 1, "a, b = (1, 2)"),
    ],
)
def test_a_word_is_refused_with_its_line(source: str, line: int, word: str, tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(source)
    done = check(path)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{path}:{line}: {word}: use ")
    assert done.stdout.endswith(" instead\n")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "source",
    [
        "one_hot = 1\nheld_out = 2\nweights_sum_to_one = True\n",  # the field's words
        "first = 1\nsecond = 2\nfirst, second = second, first\n",  # a swap
        "head, *tail = range(3)\n",
        "def load(path):\n    return path.own.found\n",  # names of others that are used alone
        '"""Return the number of tokens that the model reads at once."""\n',
        "text = 'What a string says is not checked'\n",
    ],
)
def test_other_code_passes(source: str, tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(source)
    done = check(path)
    assert (done.returncode, done.stdout) == (0, "")
