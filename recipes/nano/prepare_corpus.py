"""Debian's documentation packages -> the text that nano is pre-trained on.

    python recipes/nano/prepare_corpus.py nano-corpus

Runs on any Debian or Ubuntu: packages come by `apt-get download` from wherever the machine's own
sources point, and are unpacked by `dpkg-deb`; nothing is installed. A package that this release
does not have is left out, which is printed. Written into the folder:

    corpus.jsonl    one document a line: text, language, package, licence
    pairs.jsonl     English and Chinese of the same sentence, from the programs' own translations
    sources.json    for each package: version, licence, documents and characters kept

A paragraph is kept the first time it is met, so that menus, footers and notices that are on every
page are kept once. Half-translated pages are split: their Chinese and their English paragraphs are
two documents.
"""

import argparse
import gettext
import gzip
import hashlib
import json
import random
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

CHINESE = re.compile(r"[\u3400-\u9fff]")
SHORTEST_PARAGRAPH = 6
SHORTEST_DOCUMENT = 40
BLOCKS = frozenset(
    {"p", "div", "li", "dt", "dd", "tr", "td", "th", "table", "caption", "ul", "ol", "dl"}
    | {"h1", "h2", "h3", "h4", "h5", "h6", "pre", "br", "section", "title", "desc", "item"}
    | {"note", "blockquote", "media", "figure", "page"}
)
SKIPPED = frozenset(
    {"script", "style", "head", "nav", "header", "aside", "footer", "noscript", "credit"}
    | {"info", "svg"}
)
SKIPPED_CLASSES = frozenset(
    ("navheader", "navfooter", "docnav", "toc", "nav", "banner", "related-topics")
)


@dataclass(frozen=True)
class Source:
    """A package: where its text is, how it is read, and under which license."""

    package: str
    pattern: str  # below the root of the package
    kind: str  # a key of READERS
    licence: str  # as debian/copyright of the package says


SOURCES = (
    Source("libreoffice-help-zh-cn", "**/help/zh-CN/**/*.html", "html", "MPL-2.0"),
    Source("libreoffice-help-en-us", "**/help/en-US/**/*.html", "html", "MPL-2.0"),
    Source("gimp-help-zh-cn", "**/help/zh_CN/*.html", "html", "GFDL-1.2+"),
    Source("gimp-help-en", "**/help/en/*.html", "html", "GFDL-1.2+"),
    Source("gnome-user-docs", "**/help/zh_CN/**/*.page", "html", "CC-BY-SA-3.0"),
    Source("gnome-user-docs", "**/help/C/**/*.page", "html", "CC-BY-SA-3.0"),
    Source("debian-handbook", "**/html/zh-CN/*.html", "html", "GPL-2+ or CC-BY-SA-3.0"),
    Source("debian-handbook", "**/html/en-US/*.html", "html", "GPL-2+ or CC-BY-SA-3.0"),
    Source("debian-reference-zh-cn", "**/*.zh-cn.html", "html", "GPL-2+"),
    Source("debian-reference-en", "**/*.en.html", "html", "GPL-2+"),
    Source("debian-faq-zh-cn", "**/zh-cn/*.html", "html", "a notice of its own, copyleft"),
    Source("debian-faq", "**/FAQ/*.html", "html", "a notice of its own, copyleft"),
    Source("debian-edu-doc-zh-cn", "**/*.html", "html", "GPL-2+"),
    Source("maint-guide-zh-cn", "**/*.html", "html", "GPL-2+"),
    Source("maint-guide", "**/*.html", "html", "GPL-2+"),
    Source("developers-reference", "**/*.html", "html", "GPL-2+"),
    Source("debian-policy", "**/policy.html/*.html", "html", "GPL-2+"),
    Source("kicad-doc-zh", "**/*.html", "html", "GPL-3+ or CC-BY-3.0+"),
    Source("lilypond-doc-html-zh", "**/*.html", "html", "GFDL-1.3+"),
    Source("linuxcnc-doc-zh-cn", "**/*.html", "html", "GFDL-1.1+"),
    Source("manpages-zh", "**/man/zh_CN/man*/*.gz", "man", "GFDL-1.2+; single pages GPL-2, GPL-2+"),
    Source("fortunes-zh", "**/fortunes/*", "fortunes", "GPL-3+"),
    Source("fortunes", "**/fortunes/literature", "fortunes", "BSD-3-clause"),
    Source("fortunes", "**/fortunes/wisdom", "fortunes", "BSD-3-clause"),
    Source("wesnoth-1.16-data", "**/zh_CN/LC_MESSAGES/*.mo", "mo", "GPL-2+"),
    Source("freeciv-data", "**/zh_CN/LC_MESSAGES/*.mo", "mo", "GPL-2+"),
    Source("gimp-data", "**/zh_CN/LC_MESSAGES/*.mo", "mo", "GPL-3+ and others"),
    Source("libreoffice-l10n-zh-cn", "**/zh_CN/LC_MESSAGES/*.mo", "mo", "MPL-2.0"),
)


class _Paragraphs(HTMLParser):
    """Collects the text of a page, a line for each block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = [""]
        self.skipping: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        tag = tag.rpartition(":")[2]
        if self.skipping:
            if tag == self.skipping[-1]:
                self.skipping.append(tag)
            return
        classes = set((dict(attrs).get("class") or "").split())
        if tag in SKIPPED or classes & SKIPPED_CLASSES:
            self.skipping.append(tag)
        elif tag in BLOCKS:
            self.lines.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in BLOCKS and not self.skipping:
            self.lines.append("")

    def handle_endtag(self, tag: str) -> None:
        tag = tag.rpartition(":")[2]
        if self.skipping:
            if tag == self.skipping[-1]:
                self.skipping.pop()
        elif tag in BLOCKS:
            self.lines.append("")

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.lines[-1] += re.sub(r"\s+", " ", data)


def read_html(path: Path) -> Iterator[list[str]]:
    """A page of HTML or Mallard is one document."""
    parser = _Paragraphs()
    parser.feed(path.read_text(encoding="utf-8", errors="strict"))
    parser.close()
    yield parser.lines


ESCAPES = ((r"\-", "-"), (r"\(aq", "'"), (r"\(lq", "“"), (r"\(rq", "”"), (r"\e", "\\"))
ESCAPES += ((r"\(bu", "•"), (r"\&", ""), (r"\,", ""), (r"\/", ""), (r"\:", ""), ("\\ ", " "))
HEADINGS = frozenset(("SH", "SS", "Sh", "Ss"))
TEXT_REQUESTS = HEADINGS | {"B", "I", "BR", "BI", "IB", "IR", "RB", "RI", "SM", "SB", "Nm"}


def read_man(path: Path) -> Iterator[list[str]]:
    """A manual page is one document; of its markup only the paragraphs are kept."""
    lines = [""]
    for raw in gzip.decompress(path.read_bytes()).decode("utf-8").splitlines():
        line, ends_paragraph = raw, False
        if match := re.match(r"[.'](\w*)\s*(.*)", raw):
            request, rest = match.groups()
            if request not in TEXT_REQUESTS:
                lines.append("")
                continue
            ends_paragraph = request in HEADINGS
            line = rest.replace('"', "")
        elif raw.startswith((".\\", "'\\", '\\"')) or not raw.strip():
            lines.append("")
            continue
        line = re.sub(r"\\f(?:\[\w*\]|\(\w\w|.)|\\s[-+]?\d", "", line)
        for escape, meaning in ESCAPES:
            line = line.replace(escape, meaning)
        if "\\" in re.sub(r"\\(?=[nt0\\])", "", line):  # a table, an equation: not text
            continue
        if ends_paragraph:
            lines += [line, ""]
        else:
            lines[-1] += _joint(lines[-1], line) + line.strip()
    yield lines


def _joint(before: str, after: str) -> str:
    """Two lines of Chinese join without a space."""
    if not before or not after.strip():
        return ""
    return "" if ord(before[-1]) > 0x2E7F and ord(after.strip()[0]) > 0x2E7F else " "


def read_fortunes(path: Path) -> Iterator[list[str]]:
    """Sayings and poems, each a document, without the colours of the terminal."""
    if path.suffix or path.is_symlink():
        return
    text = re.sub(r"\x1b\[[\d;]*m", "", path.read_text(encoding="utf-8"))
    for saying in re.split(r"^%\n", text, flags=re.MULTILINE):
        yield [line.strip() for line in saying.splitlines()]


def read_mo(path: Path) -> Iterator[list[str]]:
    """Sentences of a program, in the order of their English, a dozen to a document."""
    sentences = [zh for _, zh in translations(path) if len(zh) >= 2 * SHORTEST_PARAGRAPH]
    for start in range(0, len(sentences), 12):
        yield [line for zh in sentences[start : start + 12] for line in zh.splitlines()]


def translations(path: Path) -> Iterator[tuple[str, str]]:
    """English and Chinese of every message of a compiled catalogue."""
    with path.open("rb") as file:
        catalogue = gettext.GNUTranslations(file)._catalog
    for english, chinese in catalogue.items():
        if not isinstance(english, str) or not english or not CHINESE.search(chinese):
            continue
        yield _plain(english.rpartition("\x04")[2]), _plain(chinese)


def _plain(text: str) -> str:
    """Take markup and the mark of a menu's key out of a message."""
    text = re.sub(r"\(_\w\)|\(~\w\)|<[^<>]{1,80}>|\[/?\w+\]", "", text)
    text = re.sub(r"dst='[^']*'|text='([^']*)'", r"\1", text)  # links of Wesnoth's help
    text = text.replace("\\n", "\n").replace("_", "").replace("~", "")
    return re.sub(r"^[a-z_ ]+\^", "", text).strip()  # "unit name^Archer" says where it is used


READERS: dict[str, Callable[[Path], Iterator[list[str]]]] = {
    "html": read_html,
    "man": read_man,
    "fortunes": read_fortunes,
    "mo": read_mo,
}


def clean(line: str) -> str:
    """One space at most between words, none between Chinese characters, no control characters."""
    line = re.sub(r"[\s\u00a0\u3000]+", " ", line.replace("\u200b", "").replace("\ufeff", ""))
    line = re.sub(r"(?<=[\u2e80-\u9fff\uff00-\uffef]) (?=[\u2e80-\u9fff\uff00-\uffef])", "", line)
    return re.sub(r"[\x00-\x1f\x7f\ufffd\ue000-\uf8ff]", "", line).strip()


def is_chinese(line: str) -> bool:
    """Whether a paragraph is Chinese, even with names of commands in it."""
    return len(CHINESE.findall(line)) * 6 >= len(line)


def is_prose(line: str) -> bool:
    """Whether it is more than numbers, keys and punctuation, and in one of the two languages."""
    letters = len(re.findall(r"[A-Za-z\u3400-\u9fff]", line))
    return len(line) >= SHORTEST_PARAGRAPH and letters * 2 >= len(line)


def documents(root: Path, source: Source, seen: set[bytes]) -> Iterator[tuple[str, str]]:
    """Language and text of each document of an unpacked package."""
    for path in sorted(p for p in root.glob(source.pattern) if p.is_file()):
        try:
            for lines in READERS[source.kind](path):
                kept: dict[str, list[str]] = {"zh": [], "en": []}
                for line in map(clean, lines):
                    digest = hashlib.sha256(line.encode()).digest()[:12]
                    if digest in seen or not is_prose(line):
                        continue
                    seen.add(digest)
                    kept["zh" if is_chinese(line) else "en"].append(line)
                for language, paragraphs in kept.items():
                    text = "\n".join(paragraphs)
                    if len(text) >= SHORTEST_DOCUMENT:
                        yield language, text
        except (UnicodeDecodeError, gzip.BadGzipFile) as error:
            print(f"  {path.name} is left out: {error}")


def download(package: str, folder: Path) -> Path | None:
    """Fetch a package by apt, if this release has it and it is not there yet."""
    if not list(folder.glob(f"{package}_*.deb")):
        done = subprocess.run(
            ["apt-get", "download", "-q", package],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(f"{package}: left out: {done.stderr.strip().splitlines()[-1:]}")
            return None
    return next(folder.glob(f"{package}_*.deb"))


def main() -> None:
    """Read the command line and write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where the corpus goes")
    parser.add_argument("--packages", type=Path, help="keep the downloaded packages here")
    parser.add_argument(
        "--english", type=float, default=0.3, help="largest share of English characters"
    )
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    packages = (arguments.packages or arguments.folder / "packages").resolve()
    packages.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    pairs: dict[str, dict[str, str]] = {}
    about: dict[str, dict[str, str | int]] = {}
    seen: set[bytes] = set()
    # The Chinese first, so that what both have (names of commands) is kept there.
    for source in sorted(SOURCES, key=lambda s: s.package.endswith(("-en", "-us"))):
        archive = download(source.package, packages)
        if archive is None:
            continue
        with tempfile.TemporaryDirectory() as unpacked:
            subprocess.run(["dpkg-deb", "-x", str(archive), unpacked], check=True)
            found = list(documents(Path(unpacked), source, seen))
            if source.kind == "mo":
                for path in sorted(Path(unpacked).glob(source.pattern)):
                    for english, chinese in translations(path):
                        pairs.setdefault(english, {"en": english, "zh": chinese})
        version = archive.name.split("_")[1].replace("%3a", ":")
        facts = about.setdefault(
            source.package, {"version": version, "licence": source.licence, "zh": 0, "en": 0}
        )
        for language, text in found:
            facts[language] = int(facts[language]) + len(text)
            rows.append(
                {
                    "text": text,
                    "language": language,
                    "source": source.package,
                    "licence": source.licence,
                }
            )
        print(f"{source.package} {source.pattern}: {len(found)} documents")
    random.Random(0).shuffle(rows)
    rows = _limit_english(rows, arguments.english)
    _write_lines(arguments.folder / "corpus.jsonl", rows)
    _write_lines(arguments.folder / "pairs.jsonl", list(pairs.values()))
    (arguments.folder / "sources.json").write_text(json.dumps(about, indent=2, ensure_ascii=False))
    for language in ("zh", "en"):
        kept = [row["text"] for row in rows if row["language"] == language]
        print(f"{language}: {len(kept)} documents, {sum(map(len, kept)):,} characters")
    print(f"{len(pairs):,} pairs of sentences")


def _limit_english(rows: list[dict[str, str]], share: float) -> list[dict[str, str]]:
    """Leave out the English documents beyond a share of all characters."""
    chinese = sum(len(row["text"]) for row in rows if row["language"] == "zh")
    room = chinese * share / (1 - share)
    kept = []
    for row in rows:
        if row["language"] == "en":
            room -= len(row["text"])
            if room < 0:
                continue
        kept.append(row)
    return kept


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
