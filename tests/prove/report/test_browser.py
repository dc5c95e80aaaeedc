"""The pages in a real browser: no errors, no requests, readable on a phone and a desktop."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glmtune.prove.compare import compare, write_page
from glmtune.prove.report.facts import ReportFacts
from glmtune.prove.report.page import rewrite_report, write_report, write_rows_page
from glmtune.recipe.reading import build_recipe

pytestmark = pytest.mark.slow

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = {"phone": 390, "desktop": 1280}
ROWS: list[dict[str, Any]] = [
    {"instruction": "写一首诗\n" + "长" * 60, "input": "", "output": "春天来了。鑫😀"},
    {"instruction": "x" * 300, "input": "", "output": "<script>document.title='owned'</script>"},
    {"instruction": "诗", "input": "", "output": "春天来了，" * 300},
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no chromium or google-chrome on the PATH")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture(params=["report", "bare report", "rows", "compare"])
def page_file(
    request: pytest.FixtureRequest, run_dir: Path, facts: ReportFacts, tiny_model_dir: Path
) -> Path:
    """A page of each kind, and a report of a run that left next to nothing."""
    if request.param == "report":
        return write_report(run_dir, facts)
    if request.param == "bare report":
        (run_dir / "metrics.jsonl").unlink()
        return rewrite_report(run_dir)
    if request.param == "compare":
        write_report(run_dir, facts)
        other = shutil.copytree(run_dir, run_dir.with_name("another-run"))
        write_page(compare([run_dir, other]), run_dir / "compare.html")
        return run_dir / "compare.html"
    return write_rows(tiny_model_dir, run_dir)


def write_rows(model: Path, folder: Path) -> Path:
    rows = folder / "rows.json"
    rows.write_text(json.dumps(ROWS, ensure_ascii=False, indent=0), encoding="utf-8")
    tree = {
        "model": {"name_or_path": str(model)},
        "data": {"train": str(rows), "max_length": 900},
        "output": {"dir": "out"},
    }
    return write_rows_page(build_recipe(tree), folder / "rows.html", count=3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
def test_a_page_makes_no_request_logs_no_error_and_fits(
    browser: Any, page_file: Path, device: str, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": WIDTHS[device], "height": 800}, color_scheme=scheme
    )
    page = context.new_page()
    requested: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))

    page.goto(page_file.as_uri())
    for details in page.query_selector_all("details:not([open]) summary"):
        details.click()
    page.check("#show-ids") if page.query_selector("#show-ids") else None

    assert requested == [page_file.as_uri()]
    assert errors == []
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[device]
    assert page.title() != "owned"
    background, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (brightness(background) > brightness(ink)) == (scheme == "light")
    sizes = page.evaluate(
        "[...document.querySelectorAll('p, dd, dt, pre, .t, .xs span, .ys span, summary')]"
        ".map((each) => parseFloat(getComputedStyle(each).fontSize))"
    )
    assert min(sizes) >= 12  # px
    context.close()


def brightness(colour: str) -> int:
    """Of `rgb(1, 2, 3)`."""
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


def test_a_button_copies_its_command(browser: Any, run_dir: Path, facts: ReportFacts) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(write_report(run_dir, facts).as_uri())
    button = page.locator("button[data-copy]").last

    button.click()
    page.wait_for_function("button => button.textContent !== 'copy'", arg=button.element_handle())

    assert button.text_content() == "copied"
    assert page.evaluate("navigator.clipboard.readText()") == button.get_attribute("data-copy")
    command = button.get_attribute("data-copy")
    assert command == "glmtune train run/recipe.yaml output.dir=run-again"
    context.close()


def test_the_policy_of_the_page_blocks_an_injected_script(browser: Any, run_dir: Path) -> None:
    path = rewrite_report(run_dir)
    html = path.read_text(encoding="utf-8")
    evil = "<script>document.title='owned'</script><img src='https://example.com/x.png'>"
    path.write_text(html.replace("<h1>", f"{evil}<h1>"), encoding="utf-8")
    page = browser.new_page()
    loaded: list[str] = []
    page.on("requestfinished", lambda request: loaded.append(request.url))

    page.goto(path.as_uri())

    assert page.title() == "chatglm3-6b · lora r=8 · glmtune"
    assert loaded == [path.as_uri()]
    page.close()


def test_ids_of_a_token_are_shown_to_mouse_finger_and_keyboard(
    browser: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = write_rows(tiny_model_dir, tmp_path)
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    page = context.new_page()
    page.goto(path.as_uri())
    block = page.locator(".tokens").first
    rare = block.locator(".t", has_text="😀")
    ids = rare.get_attribute("data-i")
    assert len(ids.split()) == 4

    rare.hover()
    by_mouse = page.text_content("#readout")
    page.mouse.move(0, 0)
    rare.tap()
    by_finger = page.text_content("#readout")
    block.focus()
    page.keyboard.press("End")  # </s>
    page.keyboard.press("ArrowLeft")
    by_keyboard = page.text_content("#readout")

    assert f"ids {ids} · learned" in by_mouse
    assert by_finger == by_mouse == by_keyboard
    page.keyboard.press("Escape")
    assert page.locator("#readout").is_hidden()
    context.close()


def test_a_chart_shows_its_values_to_mouse_and_keyboard(
    browser: Any, run_dir: Path, facts: ReportFacts
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(write_report(run_dir, facts).as_uri())
    chart = page.locator(".chart").first
    plot, value = chart.locator(".plot"), chart.locator(".value")
    box = plot.bounding_box()

    plot.hover(position={"x": box["width"] - 1, "y": 50})
    by_mouse = value.text_content()
    page.mouse.move(0, 0)
    assert value.text_content().strip() == ""
    plot.focus()
    by_keyboard = value.text_content()
    page.keyboard.press("ArrowLeft")

    assert by_mouse == by_keyboard == "step 40: training 0.6325, held out 1.75"
    assert value.text_content().startswith("step 39: training 0.6405")
    page.close()
