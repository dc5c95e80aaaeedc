"""The recipes that come with the package: `glmtune train chatglm3-lora` finds one by its name."""

import os.path
from pathlib import Path

RECIPES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
PRETRAINING = tuple(name for name in RECIPES if name.endswith("-pretrain"))
FINE_TUNING = tuple(name for name in RECIPES if name not in PRETRAINING)
DEFAULT = "chatglm3-lora"  # where a model and rows are given, and no recipe


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe.

    Args:
        name: a file; if there is none, the name of a recipe of the package, which may be written
            `chatglm3-lora`, `chatglm3-lora.yaml` or `recipes/chatglm3-lora.yaml`.

    Returns:
        `name` itself unless it is the name of a recipe of the package.
    """
    path = Path(name)
    is_bare = path.parent.as_posix() in (".", "recipes")
    known = path.stem if path.suffix == ".yaml" else path.name
    if os.path.isfile(path) or not is_bare or known not in RECIPES:
        return path
    return RECIPES[known]


def is_recipe(name: str) -> bool:
    """Whether an argument that may name rows or a recipe names a recipe."""
    if name.endswith((".yaml", ".yml")):
        return True
    return name in RECIPES and not os.path.exists(name)
