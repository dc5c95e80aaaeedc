"""The files of the page, without a browser."""

import re
from importlib.resources import files

from glmtune.cli.board.app import PAGE

FOLDER = files("glmtune.cli.board") / "page"


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def test_every_file_of_the_page_is_served() -> None:
    assert {file.name for file in FOLDER.iterdir()} == set(PAGE)


def test_both_languages_say_the_same_things() -> None:
    texts = read("texts.js")
    english, chinese = texts.split("  en: {")[1].split("const STORE")[0].split("  zh: {")
    said = [set(re.findall(r"[{,\s]([a-zA-Z_]+): [\"{]", each)) for each in (english, chinese)]
    used = {name for file in PAGE for name in re.findall(r"\bt\(\"(\w+)\"\)", read(file))}
    used |= set(re.findall(r"data-(?:text|label)=\"(\w+)\"", read("index.html")))

    assert said[0] == said[1]
    assert len(used) > 100
    assert used <= said[0]


def test_nothing_becomes_html_and_nothing_is_loaded_from_elsewhere() -> None:
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\("
    for name in PAGE:
        content = read(name)
        urls = set(re.findall(r"https?://[^\s\"'`)]+", content))
        assert not re.search(unsafe, content)
        assert urls <= {"http://www.w3.org/2000/svg"}  # a name, not an address
        assert "style=" not in content  # the Content-Security-Policy would drop it
