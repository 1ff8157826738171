"""The report page in a headless Chromium: the curves that a reader sees, zoom, legend, tables and attention.

It needs playwright and a Chromium: that of T5X_LITE_BROWSER, of the PATH, or of `playwright install chromium`.
"""

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from t5x_lite.evaluate.page.page import write_page
from tests.evaluate.test_page import ATTACK, metrics, write_run

pytest.importorskip("playwright.sync_api")

from playwright import sync_api as playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
STEPS = 40
LEFT = 64
RIGHT = 628
WIDTH = 640
"""Ends of the plot in a panel, and the width of the panel, in units of its `viewBox`."""


def find_browser() -> str | None:
    """Return the program; None leaves the choice to playwright."""
    configured = os.environ.get("T5X_LITE_BROWSER")
    if configured:
        return configured
    installed = [path for path in map(shutil.which, BROWSERS) if path]
    return installed[0] if installed else None


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium (T5X_LITE_BROWSER, PATH): {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a run of 40 steps with two evaluations and attention, and of one whose texts attack."""
    folder = tmp_path_factory.mktemp("report")
    lines = metrics(STEPS, **{"eval/loss": 4.5})
    lines[19]["eval/loss"] = 5.5
    lines[9]["grad_norm"] = None
    for step, line in enumerate(lines, start=1):
        line["learning_rate"] = 0.1 / step
    config = {"train": {"steps": STEPS, "seed": 1}, "model": {"embed": 8}}
    run = write_run(folder / "first", config, lines)
    (run / "eval/40").mkdir(parents=True)
    weights = bytes([255, 0, 128, 127, 255, 0, 0, 255])  # of two layers with one head
    content = {"prompt": "a b", "tokens": ["a", "b"], "layers": 2, "heads": 1}
    content["weights"] = base64.b64encode(weights).decode()
    (run / "eval/40/attention.json").write_text(json.dumps(content))
    other_config = {"train": {"steps": STEPS, "seed": 2, "sample_prompt": ATTACK}, "model": {"embed": 8}}
    other = write_run(folder / "<b>other", other_config, metrics(30))
    return write_page([run, other], folder / "page.html")


@pytest.fixture
def page(browser: playwright.Browser, file: Path) -> Iterator[playwright.Page]:
    """The opened page. In the end nothing has failed, and nothing was loaded."""
    problems: list[str] = []
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("request", lambda request: problems.append(request.url))
    page.goto(file.as_uri())
    yield page
    page.close()
    assert problems == [file.as_uri()]


def panel(page: playwright.Page, title: str) -> playwright.Locator:
    return page.locator(f"#panels svg[aria-label='{title}']")


def points(curve: str) -> list[tuple[str, float, float]]:
    """Return the commands of the path of a curve: M begins a piece and L goes on, each with its place."""
    commands = re.findall(r"([ML])([-\d.]+) ([-\d.]+)", curve)
    return [(letter, float(x), float(y)) for letter, x, y in commands]


def curves(page: playwright.Page, title: str) -> list[list[tuple[str, float, float]]]:
    paths = panel(page, title).locator("g > path").all()
    return [points(path.get_attribute("d") or "") for path in paths]


def tick_tokens(page: playwright.Page) -> list[float]:
    """Return the numbers on the axis of tokens of the first panel."""
    texts = page.locator("#panels svg").first.locator("text[text-anchor=middle]").all_text_contents()
    return [1000 * float(text[:-1]) if text.endswith("k") else float(text) for text in texts if text != "tokens"]


def drag(page: playwright.Page, start: float, stop: float) -> None:
    """Drag over the first panel between two shares of its plot."""
    box = page.locator("#panels svg").first.bounding_box()
    assert box is not None
    places = [box["x"] + box["width"] * (LEFT + share * (RIGHT - LEFT)) / WIDTH for share in (start, stop)]
    middle = box["y"] + box["height"] / 2
    page.mouse.move(places[0], middle)
    page.mouse.down()
    page.mouse.move(places[1], middle, steps=3)
    page.mouse.up()


def test_curves_have_a_point_for_each_step_at_its_place(page: playwright.Page) -> None:
    single, smoothed, validation, other_single, other_smoothed = curves(page, "loss (nats per target)")
    assert [len(curve) for curve in (single, smoothed, other_single, other_smoothed)] == [40, 40, 30, 30]
    assert [letter for letter, _, _ in single] == ["M"] + ["L"] * 39
    # Step n is at 100·n tokens, and the axis goes from 100 to 4,000.
    for step, (_, x, _) in enumerate(single, start=1):
        assert x == pytest.approx(LEFT + (step - 1) / (STEPS - 1) * (RIGHT - LEFT), abs=0.06)
    heights = [y for _, _, y in smoothed]
    assert heights == sorted(heights)  # the loss falls, and SVG counts downwards
    assert len(validation) == 2
    last_point = panel(page, "loss (nats per target)").locator("circle").last
    assert float(last_point.get_attribute("cx") or "") == pytest.approx(RIGHT, abs=0.06)
    clip = panel(page, "loss (nats per target)").locator("clipPath rect")
    clip_end = sum(float(clip.get_attribute(name) or "") for name in ("x", "width"))
    assert clip_end >= RIGHT + float(last_point.get_attribute("r") or "")  # it is drawn whole
    assert panel(page, "loss (nats per target)").locator("circle").count() == 2
    assert len(curves(page, "gradient norm")[0]) == 39  # step 10 has none


def test_dragging_zooms_all_panels_and_a_double_click_shows_all_tokens(page: playwright.Page) -> None:
    all_ticks = tick_tokens(page)
    assert 0 < all_ticks[0] <= 1000
    assert 3500 <= all_ticks[-1] <= 4000
    drag(page, 0.25, 0.5)
    low = 100 + 0.25 * 3900
    high = 100 + 0.5 * 3900
    zoomed = tick_tokens(page)
    assert len(zoomed) >= 3
    assert low - 20 <= zoomed[0] <= zoomed[-1] <= high + 20
    for title in ("loss (nats per target)", "gradient norm"):
        visible = [x for _, x, _ in curves(page, title)[0] if LEFT <= x <= RIGHT]
        assert len(visible) == 10  # steps 11 to 20 of 1,075 to 2,050 tokens
    page.locator("#panels svg").first.dblclick()
    assert tick_tokens(page) == all_ticks
    drag(page, 0.5, 0.75)
    assert tick_tokens(page) != all_ticks
    page.get_by_role("button", name="all tokens").click()
    assert tick_tokens(page) == all_ticks


def test_the_pointer_shows_values_and_the_legend_hides_runs(page: playwright.Page) -> None:
    page.locator("#panels svg").first.hover()
    shown = page.locator(".values").first.inner_text()
    # The middle of the panel is at 100 + (320 - 64) / 564 · 3,900 tokens, of which step 19 is the nearest.
    assert re.search(r"^1\.87k tokens\nfirst: training  -?[\d.]+\nfirst: validation  5\.5\n<b>other: training", shown)
    page.get_by_label("first", exact=True).uncheck()
    assert [len(curve) for curve in curves(page, "loss (nats per target)")] == [30, 30]
    page.get_by_label("first", exact=True).check()
    assert len(curves(page, "loss (nats per target)")) == 5


def test_a_scale_can_be_logarithmic(page: playwright.Page) -> None:
    figure = page.locator("figure", has=page.locator("svg[aria-label='learning rate']"))
    linear = curves(page, "learning rate")
    figure.get_by_role("button", name="log").click()
    assert figure.get_by_role("button").inner_text() == "linear"
    heights = [y for _, _, y in curves(page, "learning rate")[0]]
    halvings = [heights[1] - heights[0], heights[3] - heights[1], heights[7] - heights[3]]  # of steps 1, 2, 4 and 8
    assert halvings == pytest.approx([halvings[0]] * 3, abs=0.2)
    assert halvings[0] > 10
    figure.get_by_role("button", name="linear").click()
    assert curves(page, "learning rate") == linear


def test_tables_show_the_newest_metrics_and_the_settings_that_differ(page: playwright.Page) -> None:
    summary = page.locator("table").first
    header = summary.locator("th").all_inner_texts()
    row = dict(zip(header, summary.locator("tr").nth(1).locator("td").all_inner_texts(), strict=True))
    assert row["run"] == "first"
    assert row["step"] == "40"
    assert row["validation loss"] == "4.5000"
    differing = page.locator("h2:has-text('Settings') + table")
    cells = [line.locator("td").all_inner_texts() for line in differing.locator("tr").all()]
    assert ["train.seed", "1", "2"] in cells
    assert "model.embed" not in [cell[0] for cell in cells if cell]
    unfolded = page.locator("details", has_text="all settings of first")
    assert not unfolded.get_by_text("model.embed").is_visible()
    unfolded.locator("summary").click()
    assert unfolded.get_by_text("model.embed").is_visible()


def test_on_a_narrow_screen_no_number_and_no_name_is_broken_into_lines(page: playwright.Page) -> None:
    page.set_viewport_size({"width": 400, "height": 900})
    for place in (
        "table >> nth=0 >> td",
        "#legend label",
        "h2:has-text('Settings') + table >> td:text-is('train.seed')",
    ):
        boxes = [cell.bounding_box() for cell in page.locator(place).all()]
        assert boxes
        assert all(box is not None and box["height"] < 32 for box in boxes)  # of one line


def test_attention_is_one_square_a_head_by_layer(page: playwright.Page) -> None:
    opacity = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 2, 2).data].filter((_, n) => n % 4 == 3)"
    square = page.locator("#attention canvas")
    assert square.evaluate(opacity) == [255, 0, 128, 127]
    page.locator("#attention select").select_option("2")
    assert square.evaluate(opacity) == [255, 0, 0, 255]
    box = square.bounding_box()
    assert box is not None
    square.hover(position={"x": box["width"] / 4, "y": box["height"] * 3 / 4})
    assert page.locator("#attention p").inner_text() == "head 1: “b” attends to “a” with 0.00"
