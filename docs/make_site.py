"""Build the documentation as a site in two languages: `python docs/make_site.py [FOLDER]`.

    docs/data.md                       site/data.html       site/zh/data.html    (English in both)
    docs/index.md, docs/index_zh.md    site/index.html      site/zh/index.html

The pages are written for a reader of the repository, so three kinds of links change on the way: a
page's twin in the other language is in the other half of the site, `index_zh.md` is `index.md` in
the Chinese half, and a file of the source is not on the site, so only its path is shown.

Zensical renders each half and stops at a link that leads nowhere; links that are not to pages
(pictures, the other half) are checked here. The result needs neither a server nor a network.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import unquote

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LANGUAGES = ("en", "zh")
OTHER_PAGES = {"../CONTRIBUTING.md": "contributing.md", "../CHANGELOG.md": "changelog.md"}
REMOTE_WORKER = "https://unpkg.com/iframe-worker/shim"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def main() -> None:
    """Build the site in the folder that is given, or in build/site."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"
    if (folder / "site").exists():
        shutil.rmtree(folder / "site")
    for language, config in zip(LANGUAGES, ("zensical.toml", "zensical_zh.toml"), strict=True):
        prepare(language, folder / language)
        shutil.copy(DOCS / "site" / config, folder / config)
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", config]
        built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if built.returncode:
            sys.exit(f"{config}: {built.stdout}\n{built.stderr}".split("Traceback")[0])
    load_nothing_from_elsewhere(folder / "site")
    if dead := list(dead_links(folder / "site")):
        sys.exit("These links of the site lead nowhere:\n" + "\n".join(dead))
    print(f"The site: {folder / 'site' / 'index.html'}")


def prepare(language: str, folder: Path) -> None:
    """Write the pages of one language, as Zensical takes them."""
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(DOCS / "pictures", folder / "pictures")
    for page in sorted(DOCS.glob("*.md")):
        if page.stem.endswith("_zh"):
            continue
        twin = page.with_name(f"{page.stem}_zh.md")
        source = twin if language == "zh" and twin.exists() else page
        text = source.read_text(encoding="utf-8")
        (folder / page.name).write_text(links_of_site(text, source, language), encoding="utf-8")
    for path, name in OTHER_PAGES.items():
        page = DOCS / path
        text = page.read_text(encoding="utf-8").replace("](docs/", "](")
        (folder / name).write_text(links_of_site(text, page, language), encoding="utf-8")


def links_of_site(text: str, source: Path, language: str) -> str:
    """Change the links of a page to what they are on the site; code blocks stay."""

    def change(match: re.Match[str]) -> str:
        mark, label, target = match.groups()
        path, hash_mark, anchor = target.partition("#")
        name = path.removesuffix(".md")
        if "://" in target or not path:
            return match[0]
        page = name.removesuffix("_zh")
        if page == source.stem.removesuffix("_zh") and name != source.stem:
            return f'<a href="{"../" if language == "zh" else "zh/"}{page}.html">{label}</a>'
        if path in OTHER_PAGES:
            return f"{mark}[{label}]({OTHER_PAGES[path]}{hash_mark}{anchor})"
        inside = (DOCS / path).resolve()
        if not inside.is_relative_to(DOCS) or not (DOCS / path).exists():
            shown = inside.relative_to(ROOT) if inside.is_relative_to(ROOT) else path
            return label if label.endswith(str(path).lstrip("./")) else f"{label} (`{shown}`)"
        return f"{mark}[{label}]({path.replace('_zh.md', '.md')}{hash_mark}{anchor})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        part if part.startswith("```") else joined(LINK.sub(change, part)) for part in parts
    )


def joined(text: str) -> str:
    """Join lines within a Chinese sentence, where a line break would be shown as a space."""
    return re.sub(r"(?<=[\u3000-\u9fff\uff00-\uffef])\n(?=[\u4e00-\u9fff])", "", text)


def load_nothing_from_elsewhere(site: Path) -> None:
    """Put our script in place of the one that Zensical loads from a server for offline search."""
    shutil.copy(DOCS / "site" / "worker.js", site / "assets" / "worker.js")
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        own = "../" * (len(page.relative_to(site).parts) - 1) + "assets/worker.js"
        text = text.replace(REMOTE_WORKER, own)
        if remote := re.search(r'<(?:script|link|img)[^>]*(?:src|href)="?(https?:[^"\s>]+)', text):
            sys.exit(f"{page.relative_to(site)} would load {remote[1]} from a server")
        page.write_text(text, encoding="utf-8")


def dead_links(site: Path) -> Iterator[str]:
    """Yield links and pictures of the built pages for which there is no file or no anchor."""
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    anchors = {page: set(re.findall(r'\bid="?([^"\s>]+)', text)) for page, text in pages.items()}
    for page, text in pages.items():
        if page.name == "404.html":
            continue
        for raw in sorted(set(re.findall(r'<[a-z][^>]*?\s(?:href|src)="?([^"\s>]+)', text))):
            path, _, anchor = unquote(unescape(raw)).partition("#")
            if re.match(r"[a-z]+:", path):
                continue
            target = (page.parent / path).resolve() if path else page
            exists = target.is_file()
            if not exists or (anchor and target in anchors and anchor not in anchors[target]):
                yield f"{page.relative_to(site)}: {raw}"


if __name__ == "__main__":
    main()
