"""The board in a real browser: a whole run, from its rows to a chat with what it made."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.board.conftest import ROWS, Board, running, write_rows

pytestmark = pytest.mark.slow

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 240_000  # of a command that loads PyTorch, on a busy machine
WIDTHS = {"phone": 390, "desktop": 1280}
TABS = ("data", "recipe", "run", "runs")
RECIPE = """
model: {name_or_path: nano}
data: {train: rows.jsonl, max_length: 64, eval_fraction: 4}
training:
  max_steps: 150
  gradient_accumulation_steps: 1
  logging_steps: 1
  eval_strategy: "no"
  save_strategy: "no"
checks: {stock_reader: false, answers_fit: false, stop_prompts: 0, forgetting: null}
lint: {before_training: false}
output: {dir: out/first, report_to: []}
"""


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


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    folder = tmp_path_factory.mktemp("board")
    write_rows(folder / "rows.jsonl", [*ROWS, ROWS[0]])
    with running(folder) as started:
        yield started


class Visit:
    """A page of the board, and all that it requested and logged."""

    def __init__(self, browser: Any, board: Board, device: str, scheme: str, locale: str) -> None:
        self.board = board
        self.context = browser.new_context(
            viewport={"width": WIDTHS[device], "height": 900}, color_scheme=scheme, locale=locale
        )
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=board.url)
        self.context.set_default_timeout(PATIENCE_MS)
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.page = self.open()
        self.page.goto(board.url)

    def open(self, page: Any = None) -> Any:
        """Watch a page for errors and requests to others."""
        page = page or self.context.new_page()
        page.on("request", lambda request: self.note(request.url))
        page.on("console", lambda message: self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        return page

    def note(self, url: str) -> None:
        if not url.startswith((self.board.url, "data:")):
            self.foreign.append(url)

    def check_layout(self) -> None:
        """Nothing is wider than the page, too small to read, or without a name."""
        page = self.page
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
        sizes = page.evaluate(
            "[...document.querySelectorAll('button, p, span, label, summary, td, dd, .tick')]"
            ".filter((each) => each.getClientRects().length).map((each) => {"
            " const svg = each.ownerSVGElement;"
            " const scale = svg ? svg.getBoundingClientRect().width / 420 : 1;"
            " return parseFloat(getComputedStyle(each).fontSize) * scale; })"
        )
        assert min(sizes) >= 10  # px; ticks on a phone
        unnamed = page.evaluate(
            "[...document.querySelectorAll('button, input, textarea, select, summary, a')]"
            ".filter((each) => each.offsetParent && !(each.labels?.length"
            " || each.textContent.trim() || each.getAttribute('aria-label')))"
            ".map((each) => each.outerHTML)"
        )
        assert unnamed == []
        assert "undefined" not in page.text_content("body")  # a text that a language lacks

    def close(self) -> None:
        assert self.foreign == []
        assert self.errors == []
        self.context.close()


def read_until(page: Any, element: str, text: str) -> None:
    """Wait until an element has a text."""
    page.locator(f"#{element}", has_text=text).wait_for()


def state(page: Any, name: str) -> Any:
    """Wait for a state of the run."""
    return page.locator(f"#run-state .badge.{name}").wait_for()


def test_a_run_from_its_rows_to_a_chat(browser: Any, board: Board) -> None:
    visit = Visit(browser, board, "desktop", "light", "en-US")
    page = visit.page

    page.get_by_role("button", name="rows.jsonl").click()
    page.locator(".rows li").first.wait_for()
    assert page.locator(".rows li").count() == 20
    page.click("#check-rows")
    page.locator("#report").wait_for()
    assert "25 rows · Format: alpaca · 0 errors" in page.text_content("#report-summary")
    assert page.locator("#report .findings li").count() >= 1  # the duplicate
    lengths = page.get_attribute("#report svg", "aria-label")
    assert lengths.startswith("Lengths (characters). 15: 6; 16: 5; ")
    page.click("#fix-rows")
    read_until(page, "status", "24 rows written")
    assert len((board.folder / "rows.clean.jsonl").read_text("utf-8").splitlines()) == 24
    page.fill("#data-model", "nano")
    page.get_by_role("button", name="Tokens: Row 1", exact=True).click()
    page.locator("#tokens .piece.learned").first.wait_for()
    learned = page.locator("#tokens .pieces .piece.learned").all_text_contents()
    assert "等于" in "".join(learned)
    page.click("#use-rows")

    page.locator("#recipe-form fieldset").first.wait_for()
    assert page.input_value("[id='key-data.train']") == "rows.jsonl"
    page.click("#recipe-tools summary")
    page.fill("#recipe-text", RECIPE)
    page.click("#recipe-tools details button")
    read_until(page, "recipe-yaml", "dir: out/first")
    page.fill("[id='key-adapter.r']", "none")
    page.locator("#recipe-problems").wait_for()
    assert "adapter.r is 'none'" in page.text_content("#recipe-problems")
    assert page.get_attribute("[id='key-adapter.r']", "aria-invalid") == "true"
    assert page.is_disabled("#start")
    page.fill("[id='key-adapter.r']", "4")
    page.locator("#verdict.good").wait_for()
    assert re.search(r"this machine: .* needed, .* free", page.text_content("#verdict"))
    assert " adapter.r=4 " in page.text_content("#recipe-command")
    page.click("#save-recipe")
    read_until(page, "status", "Saved as")
    assert "r: 4 " in (board.folder / "recipe.yaml").read_text("utf-8")
    visit.check_layout()

    page.click("#start")
    state(page, "running")
    page.locator("#run svg").first.wait_for()
    page.locator("#run-log").wait_for()
    visit.check_layout()
    page.click("#stop-run")
    state(page, "stopped")
    assert "saved out/first/checkpoint-" in page.text_content("#run-log")
    stopped_at = page.locator("#run .figures dd").first.text_content()
    assert stopped_at.endswith(" / 150")
    page.reload()  # the run is not of this page
    page.click("#tab-runs")
    page.click("[id='watch-out/first']")
    page.click("#resume-run")
    state(page, "finished")
    page.locator("#proofs .passed").first.wait_for()
    assert page.locator("#proofs .failed").count() == 0
    assert page.locator("#run .figures dd").first.text_content() == "150 / 150"
    visit.check_layout()

    page.click("#use-run")
    page.click("#chat")
    with page.expect_popup() as opened:
        page.click("#chat-link")
    chat = visit.open(opened.value)
    chat.locator("#model option").first.wait_for(state="attached")
    chat.fill("#question", "3 加 3 等于几？")
    chat.keyboard.press("Enter")
    chat.locator("#send:not([disabled])").wait_for()
    chat.locator(".stats").first.wait_for()
    assert chat.locator(".problem[role=alert]").all_text_contents() in ([""], [])
    chat.close()
    page.click("#close-chat")
    page.locator("#chat").wait_for()

    page.click("#use-export summary")
    page.click("#export")
    page.locator("#jobs .badge.running").wait_for()
    assert page.text_content("#jobs code") == "glmtune merge out/first -o out/first-merged"
    page.click("#jobs button")
    page.locator("#jobs .badge.stopped").wait_for()
    visit.check_layout()
    visit.close()


def test_a_phone_shows_all_of_it_in_chinese(browser: Any, board: Board) -> None:
    if not (board.folder / "out" / "first").is_dir():
        pytest.skip("the run of the test before is missing")
    shutil.copytree(board.folder / "out" / "first", board.folder / "out" / "second")
    visit = Visit(browser, board, "phone", "dark", "zh-CN")
    page = visit.page
    page.locator("#entries li").first.wait_for()

    assert page.text_content("#tab-recipe") == "配方"
    for tab in TABS:
        page.click(f"#tab-{tab}")
        page.locator(f"#{tab}:not([hidden])").wait_for()
        if tab == "runs":
            page.check("[id='pick-out/first']")
            page.check("[id='pick-out/second']")
            page.click("#compare")
            page.locator("#compared svg").first.wait_for()
        visit.check_layout()
    page.click("[id='watch-out/second']")
    page.locator("#proofs li").first.wait_for()
    assert "从磁盘重新加载后完全一致" in page.text_content("#proofs")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="报告").click()
    opened.value.locator("h1").first.wait_for()  # in a sandbox of its own
    opened.value.close()
    page.focus("#tab-run")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#tab-runs", "aria-selected") == "true"
    page.click("#language")
    assert page.text_content("#tab-recipe") == "Recipe"
    assert page.get_attribute("html", "lang") == "en"
    visit.check_layout()
    visit.close()


def test_a_key_is_asked_for_once(browser: Any, tmp_path: Path) -> None:
    from glmtune.use.serve.access import Access

    with running(tmp_path, Access(api_key="secret")) as board:
        visit = Visit(browser, board, "phone", "light", "en-US")
        page = visit.page
        page.locator("#login[open]").wait_for()
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        read_until(page, "key-problem", "wrong")
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        page.get_by_text("This folder is empty.").wait_for()
        page.reload()
        page.get_by_text("This folder is empty.").wait_for()
        visit.errors[:] = [each for each in visit.errors if "status of 401" not in each]
        visit.close()
