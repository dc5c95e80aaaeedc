"""The page in a real browser: a conversation, and everything that its buttons promise."""

import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import LESSONS, TURNS
from tests.use.serve.conftest import Running, until

from glmtune.use.serve.hosted import Hosted

pytestmark = pytest.mark.slow

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = {"phone": 390, "desktop": 1280}
QUESTION, ANSWER = TURNS[0][1], TURNS[1][1]


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


class Visit:
    """A page of the server, and all that it requested and logged."""

    def __init__(
        self, browser: Any, server: Running, device: str, scheme: str, locale: str
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": WIDTHS[device], "height": 800}, color_scheme=scheme, locale=locale
        )
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
        self.page = self.context.new_page()
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda r: self.note(self.foreign, r.url, server.url))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(server.url)
        self.wait_for_models()

    @staticmethod
    def note(foreign: list[str], url: str, own: str) -> None:
        if not url.startswith((own, "data:")):
            foreign.append(url)

    def ask(self, text: str) -> None:
        self.page.fill("#question", text)
        self.page.keyboard.press("Enter")
        self.wait()

    def wait_for_models(self) -> None:
        self.page.locator("#model option").first.wait_for(state="attached")

    def wait(self) -> None:
        self.page.locator("#send:not([disabled])").wait_for()

    def settings(self, **values: str) -> None:
        if self.page.locator("#show-side").is_visible():
            self.page.click("#show-side")
        if self.page.get_attribute("#settings", "open") is None:
            self.page.click("#settings summary")
        for name, value in values.items():
            self.page.fill(f"#{name.replace('_', '-')}", value)
        self.page.keyboard.press("Escape")

    def close(self) -> None:
        assert self.foreign == []
        assert self.errors == []
        width = self.page.viewport_size["width"]
        assert self.page.evaluate("document.documentElement.scrollWidth") <= width
        self.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
def test_a_conversation_beside_another_model(
    browser: Any, server: Running, device: str, scheme: str
) -> None:
    visit = Visit(browser, server, device, scheme, "zh-CN")
    page = visit.page
    assert page.text_content("#send") == "发送"
    page.select_option("#model", server.base)
    page.select_option("#beside", "one")
    visit.settings(temperature="0", max_tokens="24")

    visit.ask(QUESTION)

    assert page.locator(".answers.two section").count() == 2
    assert page.locator(".answers .bubble").first.text_content() == ANSWER
    assert "词元/秒" in page.locator(".stats").first.text_content()
    assert page.locator(".answers .bubble").nth(1).text_content() != ANSWER
    page.locator(".answers section").first.get_by_role("button", name="复制").click()
    page.wait_for_function(
        "document.querySelector('.answers .tail button').textContent === '已复制'"
    )
    assert page.evaluate("navigator.clipboard.readText()") == ANSWER
    sizes = page.evaluate(
        "[...document.querySelectorAll('button, p, span, label, summary')]"
        ".filter((each) => each.offsetParent)"
        ".map((each) => parseFloat(getComputedStyle(each).fontSize))"
    )
    assert min(sizes) >= 12  # px
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, textarea, select')]"
        ".filter((each) => each.offsetParent && !(each.labels?.length || each.textContent.trim()"
        " || each.getAttribute('aria-label'))).map((each) => each.outerHTML)"
    )
    assert unnamed == []
    page.click("#language")
    assert page.text_content("#send") == "Send"
    assert page.get_attribute("html", "lang") == "en"
    visit.close()


def test_a_question_is_edited_retried_and_kept(browser: Any, server: Running) -> None:
    visit = Visit(browser, server, "desktop", "light", "en-US")
    page = visit.page
    page.select_option("#model", server.base)
    visit.settings(temperature="0", max_tokens="24")
    visit.ask("一个问题")
    visit.ask(QUESTION)
    assert page.locator(".turn").count() == 4

    page.locator(".user").first.get_by_role("button", name="Edit").click()
    assert page.input_value("#question") == "一个问题"
    visit.ask(QUESTION)
    assert page.locator(".turn").count() == 2
    assert page.locator(".answers .bubble").text_content() == ANSWER
    page.get_by_role("button", name="Retry").click()
    visit.wait()
    assert page.locator(".answers .bubble").text_content() == ANSWER
    visit.ask("再说一次")
    assert page.locator(".answers .bubble").last.text_content() == TURNS[3][1]

    page.reload()
    visit.wait_for_models()
    page.locator("#chats button").first.click()
    assert page.locator(".turn").count() == 4
    assert page.input_value("#temperature") == "0"
    page.locator("#chats li button").nth(1).click()  # delete
    assert page.locator("#chats li").count() == 0
    assert page.evaluate("localStorage.getItem('glmtune.chats')") == "[]"
    visit.close()


def test_an_answer_is_stopped_by_a_key(browser: Any, server: Running, hosted: Hosted) -> None:
    visit = Visit(browser, server, "desktop", "light", "en-US")
    page = visit.page
    visit.settings(temperature="2", max_tokens="450")
    stop_ids = list(hosted.names[server.base].template.stop_ids)

    def never_end(module: Any, arguments: Any, output: Any) -> None:
        time.sleep(0.03)
        output.logits[..., stop_ids] = -1e9

    handle = hosted.lanes[0].model.register_forward_hook(never_end)
    try:
        page.select_option("#model", server.base)
        page.fill("#question", "讲一个很长的故事")
        page.keyboard.press("Enter")
        until(lambda: len(page.text_content(".answers .bubble")) > 3)
        page.keyboard.press("Escape")
        visit.wait()
        assert page.text_content("#status") == "Stopped."
        assert page.locator(".answers .bubble").text_content() not in ("", "…")
    finally:
        handle.remove()
    visit.close()


def test_a_tool_is_called_and_its_result_sent(browser: Any, server: Running) -> None:
    visit = Visit(browser, server, "desktop", "dark", "en-US")
    page = visit.page
    question, _, result, answer = LESSONS[1]
    page.select_option("#model", server.base)
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    deltas: list[dict[str, Any]] = [{"tool_calls": [{"index": 0, **call}]}, {}]
    sent: list[Any] = []

    def reply(route: Any) -> None:
        body = route.request.post_data_json
        sent.append(body)
        if len(sent) > 1:
            deltas[:] = [{"content": answer}]
        parts = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
        text = "".join(f"data: {json.dumps(part)}\n\n" for part in parts)
        route.fulfill(body=f"{text}data: [DONE]\n\n", content_type="text/event-stream")

    page.route("**/v1/chat/completions", reply)
    visit.settings(tools="{", system="简短")
    page.fill("#question", question)
    page.keyboard.press("Enter")
    assert "not a JSON list" in page.text_content("#tools-problem")
    visit.settings(tools='[{"name": "weather"}]')
    visit.ask(question)
    assert "weather" in page.text_content(".answers .bubble")
    page.fill(".tool-result textarea", result)
    page.click(".tool-result button")
    visit.wait()

    assert page.locator(".answers .bubble").last.text_content() == answer
    assert sent[0]["tools"] == [{"type": "function", "function": {"name": "weather"}}]
    assert [m["role"] for m in sent[1]["messages"]] == ["system", "user", "assistant", "tool"]
    assert sent[1]["messages"][2]["tool_calls"] == [call]
    visit.close()


EVIL = (
    """# 标题 <script>document.title='owned'</script>
<img src=x onerror="document.title='owned'"> [link](javascript:document.title='owned')
**粗体** *斜体* `a<b>` [site](https://example.com/)

| 甲 | 乙 |
|---|---|
| 1 | <b>2</b> |

1. 一
2. 二

```python
print("<你好>")  # very long line, """
    + "x" * 200
    + """
```
> 引用
"""
)


def answer_with(text: str) -> Any:
    """Answer a request of the page with a stream of events."""
    return lambda route: route.fulfill(body=text, content_type="text/event-stream")


def test_what_a_model_writes_is_shown_and_never_run(browser: Any, server: Running) -> None:
    for device in WIDTHS:
        visit = Visit(browser, server, device, "light", "en-US")
        page = visit.page
        chunk = {"choices": [{"index": 0, "delta": {"content": EVIL}, "finish_reason": "stop"}]}
        text = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        page.route("**/v1/chat/completions", answer_with(text))
        visit.ask("<img src=y onerror=document.title='owned'>")

        assert page.title() == "glmtune"
        assert page.locator("#log img, #log script, #log b").count() == 0
        assert page.text_content("#log strong") == "粗体"
        assert page.text_content("#log em") == "斜体"
        assert page.locator("#log li").all_text_contents() == ["一", "二"]
        assert page.locator("#log td").all_text_contents() == ["1", "<b>2</b>"]
        assert page.text_content("#log pre code").startswith('print("<你好>")')
        assert page.locator("#log a").evaluate_all("all => all.map((a) => a.href)") == [
            "https://example.com/"
        ]
        visit.close()


def test_a_problem_of_the_server_is_shown(browser: Any, server: Running) -> None:
    visit = Visit(browser, server, "phone", "dark", "zh-CN")
    page = visit.page
    visit.ask("长" * 600)

    assert "leaves no room for an answer" in page.text_content(".problem[role=alert] >> nth=-1")
    visit.errors[:] = [e for e in visit.errors if "status of 400" not in e]  # the browser's own
    visit.close()
