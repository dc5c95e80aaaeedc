"""The templates of the pages, and the engine that fills them.

The engine escapes everything that comes from data. If that ever fails, the content security policy
of a page still blocks all scripts but ours and every request.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import glmtune
from glmtune.inspect.shown_row import harmless
from glmtune.prove.card import without_paths
from glmtune.prove.report.translated import in_language
from glmtune.units import duration, number


def render(template: str, **values: Any) -> str:
    """Fill a template of `pages/`, in the language of the reader."""
    return in_language(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("glmtune.prove.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = files("glmtune.prove.report") / "pages"
    style = (folder / "style.css").read_text(encoding="utf-8")
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(
        style=Markup(style),  # our own files
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        version=glmtune.__version__,
    )
    environment.filters.update(
        number=number, gib=lambda value: f"{value / 2**30:.2f} GiB", harmless=harmless,
        duration=duration, without_paths=without_paths,
    )  # fmt: skip
    return environment
