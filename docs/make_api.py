"""Write docs/api.md from the docstrings of the public names: `python docs/make_api.py`.

The functions come first, in the order of `glmtune._PUBLIC`, then the classes that they take and
return. A docstring is shown as it is, with its sections as lists.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import glmtune
from glmtune.data.lint.report import LintReport
from glmtune.run_handle import Run
from glmtune.train.plan.forecast import Plan, Target
from glmtune.use.chat import ChatSession, Reply
from glmtune.use.export.run import Exported

PAGE = Path(__file__).with_name("api.md")
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")
CLASSES = (Run, ChatSession, Reply, Exported, LintReport, Plan, Target)
HEAD = """\
# API of `import glmtune`

[library.md](library.md) shows how these are used. This page is generated from the docstrings by
`make docs`. A name is loaded when it is first used, so `import glmtune` takes no time.
"""


def main() -> None:
    """Write the page, to the path that is given or to docs/api.md."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    path.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the whole page."""
    blocks = [HEAD]
    names = [name for name in glmtune._PUBLIC if inspect.isfunction(getattr(glmtune, name))]
    for name in names:
        blocks += entry(f"glmtune.{name}", getattr(glmtune, name), level=2)
    blocks.append("## What they take and return\n")
    blocks.append(
        "`glmtune.Recipe` is the recipe as a value; its keys are listed in "
        "[recipes.md](recipes.md). `glmtune.GlmtuneError` is the base of all errors that a user "
        "can fix; any other exception is a bug.\n"
    )
    for kind in CLASSES:
        blocks += entry(kind.__name__, kind, level=3)
        for name, member in members(kind):
            blocks += entry(f"{kind.__name__}.{name}", member, level=4)
    return "\n".join(blocks)


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class, in the order of its source."""
    for name, member in vars(kind).items():
        is_ours = callable(member) or isinstance(member, classmethod | property)
        is_cached = type(member).__name__ == "cached_property"
        if not name.startswith("_") and (is_ours or is_cached) and inspect.getdoc(member):
            yield name, member


def entry(name: str, item: Any, *, level: int) -> list[str]:
    """Return the heading, the signature and the docstring of an item."""
    function = item.__func__ if isinstance(item, classmethod) else item
    blocks = [f"{'#' * level} `{name}`\n"]
    if inspect.isfunction(function):
        blocks.append(f"```python\n{signature(name, function)}\n```\n")
    blocks.append(markdown(inspect.getdoc(item) or ""))
    return blocks


def signature(name: str, function: Any) -> str:
    """Return a signature, with a parameter on each line where it is long."""
    parameters = list(inspect.signature(function).parameters.values())
    parts = []
    has_star = False
    for each in parameters:
        if each.name in ("self", "cls"):
            continue
        if each.kind is each.VAR_POSITIONAL:
            has_star = True
        if each.kind is each.KEYWORD_ONLY and not has_star:
            parts.append("*")
            has_star = True
        parts.append(plain(str(each)))
    returns = inspect.signature(function).return_annotation
    end = f" -> {plain(inspect.formatannotation(returns))}" if returns is not inspect._empty else ""
    line = f"{name}({', '.join(parts)}){end}"
    if len(line) <= 88:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){end}"


def plain(text: str) -> str:
    """Shorten annotations: no modules, no quotes around names that are loaded later."""
    text = re.sub(r"\b(?:[a-z_]+\.)+([A-Z]\w*)", r"\1", text).replace("pathlib.", "")
    text = re.sub(r"Optional\[(Literal\[[^\]]*\])\]", r"\1 | None", text)
    return re.sub(r"'([A-Z][\w\[\], |]*)'", r"\1", text)


def markdown(doc: str) -> str:
    """Turn the sections of a docstring into lists."""
    lines: list[str] = []
    in_section = False
    for line in doc.splitlines():
        heading = line.strip().removesuffix(":")
        if line.strip() == f"{heading}:" and heading in SECTIONS:
            lines += [f"**{heading}**", ""]
            in_section = heading not in ("Returns", "Yields")
            continue
        item = re.fullmatch(r"    (?! )(\*{0,2}[\w, .`]+): (.*)", line)
        if in_section and item:
            names = ", ".join(f"`{part.strip()}`" for part in item[1].split(","))
            lines.append(f"- {names}: {item[2]}")
        elif lines and in_section and line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            is_code = line.startswith("    ") and not in_section and "**Returns**" not in lines
            lines.append(line if is_code else line.strip())
    return "\n".join(lines).strip() + "\n"


if __name__ == "__main__":
    main()
