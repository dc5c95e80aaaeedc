"""Fine-tune ChatGLM on today's libraries, with proofs that it worked.

    import glmtune

    run = glmtune.fine_tune("nano", [{"instruction": "你好", "output": "你好！"}], r=8)
    run.chat("你好").text

The modules follow one row of data from a line in a file to an answer; `docs/journey.md`
walks through them. Importing this package is cheap: a name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glmtune.errors import GlmtuneError as GlmtuneError
    from glmtune.library import chat as chat
    from glmtune.library import evaluate as evaluate
    from glmtune.library import export as export
    from glmtune.library import fine_tune as fine_tune
    from glmtune.library import lint as lint
    from glmtune.library import load as load
    from glmtune.library import merge as merge
    from glmtune.library import plan as plan
    from glmtune.library import predict as predict
    from glmtune.recipe.recipe import Recipe as Recipe
    from glmtune.run_handle import Run as Run

__version__ = "0.1.0"

# Where each public name is; `docs/api.md` lists them in this order.
_PUBLIC = {
    "fine_tune": "glmtune.library",
    "Run": "glmtune.run_handle",
    "load": "glmtune.library",
    "chat": "glmtune.library",
    "predict": "glmtune.library",
    "evaluate": "glmtune.library",
    "merge": "glmtune.library",
    "export": "glmtune.library",
    "lint": "glmtune.library",
    "plan": "glmtune.library",
    "Recipe": "glmtune.recipe.recipe",
    "GlmtuneError": "glmtune.errors",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'glmtune' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
