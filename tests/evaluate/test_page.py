"""The report as an HTML page: it loads nothing, all texts of runs are escaped, and it holds the numbers of the runs."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5x_lite.cli import main
from t5x_lite.evaluate.curves import distinct_names, expert_loads
from t5x_lite.evaluate.page.page import write_page
from t5x_lite.evaluate.page.panels import MOST_POINTS, make_curve
from t5x_lite.evaluate.report import draw_report

ATTACK = "</script><img src=x onerror=alert(1)>&\u2028"


class Page(HTMLParser):
    """The elements of a page: their names and attributes, and the texts of scripts and of cells."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.cells: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in {"script", "td"}:
            self._open.append(tag)
            texts = self.scripts if tag == "script" else self.cells
            texts.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            texts = self.scripts if self._open[-1] == "script" else self.cells
            texts[-1] += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])

    def panel(self, title: str) -> dict[str, Any]:
        (panel,) = [panel for panel in self.data["panels"] if panel["title"] == title]
        return panel


def write_run(folder: Path, config: dict[str, object], lines: list[dict[str, object]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def metrics(steps: int, **last: object) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    for step in range(1, steps + 1):
        lines.append({"step": step, "tokens": step * 100, "loss": 8.0 - step, "grad_norm": 1.0, "learning_rate": 0.1})
    lines[-1] |= last
    return lines


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """The report of a run with experts, stages, samples and goodput, and of one whose texts attack the page."""
    load = {"expert_load": [0.25, 0.75], "dropped_tokens": 0.125, "expert_load_entropy": 0.9}
    lines = metrics(4, **{"eval/loss": 4.5, "eval/squad/f1": 0.5, "predicted/loss": 3.0})
    lines[-1] |= {"predicted/low": 2.5, "predicted/high": 3.5, "predicted/tokens": 1000, "goodput": 0.6}
    lines = [{**line, **load} for line in lines]
    config = {"train": {"steps": 10, "seed": 1}, "model": {"embed": 8}, "run_dir": "a"}
    run = write_run(tmp_path / "experts", config, lines)
    (run / "goodput.json").write_text(json.dumps({"compile": 30.0, "step": 60.0, "lost": 10.0}))
    for step, text in ((2, "early"), (4, ATTACK)):
        (run / f"eval/{step}").mkdir(parents=True)
        sample = {"prompt": "def f", "text": text}
        (run / f"eval/{step}/samples.jsonl").write_text(json.dumps(sample) + "\n")
    shares = [{"name": "", "first_step": 0, "seq_len": 50, "batch_size": 2, "shares": {"web": 0.75, "books": 0.25}}]
    shares.append({"name": "anneal", "first_step": 2, "seq_len": 50, "batch_size": 2, "shares": {"web": 0, "books": 1}})
    (run / "mixture.json").write_text(json.dumps({"stages": shares}))
    other_config = {"train": {"steps": 10, "seed": 2, "sample_prompt": ATTACK}, "model": {"embed": 8}, "run_dir": "b"}
    other = write_run(tmp_path / "<b>other&", other_config, metrics(3))
    return Page(write_page([run, other], tmp_path / "page.html"))


def test_the_page_loads_nothing_and_texts_of_runs_are_no_elements(page: Page) -> None:
    assert page.tags.count("script") == 2
    assert not {"img", "link", "iframe", "b"} & set(page.tags)
    assert {name for name, _ in page.attributes} <= {
        *("charset", "class", "content", "http-equiv", "id", "lang", "name", "style", "title", "type"),
    }
    assert ("http-equiv", "Content-Security-Policy") in page.attributes
    (policy,) = [value for _, value in page.attributes if value and value.startswith("default-src")]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert "http" not in page.scripts[1].replace("http://www.w3.org/2000/svg", "")
    assert ATTACK in page.cells  # the sample and the prompt, as text
    assert page.data["runs"] == ["experts", "<b>other&"]


def test_settings_that_differ_and_only_those_are_compared(page: Page) -> None:
    first_row = page.cells.index("train.seed")
    assert page.cells[first_row : first_row + 3] == ["train.seed", "1", "2"]
    prompt_row = page.cells.index("train.sample_prompt")
    assert page.cells[prompt_row : prompt_row + 3] == ["train.sample_prompt", "", ATTACK]
    assert page.cells.count("model.embed") == 2  # in the settings of each run alone
    assert page.cells.count("train.seed") == 3


def test_the_curves_are_those_of_the_metrics(page: Page) -> None:
    loss = page.panel("loss (nats per target)")
    steps = [curve for curve in loss["curves"] if curve["style"] == "faint"]
    assert [(curve["run"], curve["x"], curve["y"]) for curve in steps] == [
        (0, [100, 200, 300, 400], [7.0, 6.0, 5.0, 4.0]),
        (1, [100, 200, 300], [7.0, 6.0, 5.0]),
    ]
    (validation,) = [curve for curve in loss["curves"] if curve["style"] == "points"]
    assert (validation["x"], validation["y"]) == ([400], [4.5])
    assert loss["intervals"] == [[0, 1000, 3.0, 2.5, 3.5]]
    assert loss["marks"] == [[200, "anneal"]]
    assert page.panel("eval/squad/f1")["curves"][0]["y"] == [0.5]
    assert page.panel("gradient norm")["scale"] == "log"


def test_experts_stages_goodput_and_samples_are_shown(page: Page) -> None:
    load = page.panel("experts: share of the choices of each expert")
    assert load["stacked"] is True
    assert [curve["y"] for curve in load["curves"]] == [[0.25] * 4, [0.75] * 4]
    mixture = page.panel("experts: share of each source in the rows")
    assert [(curve["name"], curve["x"], curve["y"]) for curve in mixture["curves"]] == [
        ("web", [0, 200, 200, 400], [0.75, 0.75, 0.0, 0.0]),
        ("books", [0, 200, 200, 400], [0.25, 0.25, 1.0, 1.0]),
    ]
    assert "compile 30.0% (30s), step 60.0% (1m00s), lost 10.0% (10s)" in page.cells
    start = page.cells.index("early") - 2
    assert page.cells[start : start + 6] == ["2", "def f", "early", "4", "def f", ATTACK]


def test_a_long_curve_is_drawn_as_means_of_neighbours() -> None:
    points = 2 * MOST_POINTS + 1
    curve = make_curve(0, "long", np.arange(points, dtype=float), np.arange(points, dtype=float))
    assert len(curve.x) <= MOST_POINTS
    assert curve.y[:2] == [1.0, 4.0]  # of 0, 1, 2 and of 3, 4, 5
    broken = make_curve(0, "broken", np.arange(3.0), np.array([1.0, np.nan, 2.0]))
    assert broken.y == [1.0, None, 2.0]


def test_runs_of_the_same_name_are_told_apart_by_their_folders() -> None:
    assert distinct_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert distinct_names([Path("/a/one"), Path("/b/two")]) == ["one", "two"]


def test_a_line_without_the_load_of_experts_is_left_out_of_it(tmp_path: Path) -> None:
    load = {"expert_load": [0.25, 0.75], "dropped_tokens": 0.125}
    lines = [{**line, **load} for line in metrics(4)]
    del lines[1]["expert_load"]
    tokens, loads = expert_loads(lines)
    assert tokens.tolist() == [100, 300, 400]
    assert loads.tolist() == [[0.25, 0.75]] * 3
    assert draw_report([write_run(tmp_path / "run", {}, lines)], tmp_path / "report.png").is_file()


def test_a_report_is_a_picture_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {"train": {"steps": 3}}, metrics(3))
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{run}/report.png", f"{run}/report.html"]
    assert main(["report", str(run), "--to", str(tmp_path / "curves.html")]) == 0
    assert Page(tmp_path / "curves.html").data["runs"] == ["run"]
    assert not (tmp_path / "curves.png").exists()
