"""Which module may import which: the journey of a row goes one way."""

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"

# From the ground up; a module imports from its own layer and from those before it.
LAYERS = [
    ["errors"],
    ["files", "cycles", "conversation"],
    ["chatglm"],
    ["frozen"],
    ["auto", "attention", "arithmetic", "int8"],
    ["cache"],
    ["generate"],
    ["load"],
    ["template", "recipe", "metrics"],
    ["other_recipes"],
    ["data"],
    ["loss"],
    ["evaluate", "alive", "preference"],
    ["methods"],
    ["adapter"],
    ["whole", "ptuning", "prompts"],
    ["tuning"],
    ["chat", "inspection", "doctor"],
    ["proofs", "predict"],
    ["forgetting"],
    ["report"],
    ["train"],
    ["plan"],
    ["demo"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> set[str]:
    """The parts of glmtune that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names if name.startswith("glmtune.")]
    return {part[1] for part in parts if part[1] in RANK}


def test_every_module_has_its_layer() -> None:
    found = {path.stem for path in (SOURCE / "glmtune").iterdir() if path.suffix == ".py"}
    found |= {
        path.name for path in (SOURCE / "glmtune").iterdir() if (path / "__init__.py").is_file()
    }

    assert found - {"__init__"} == set(RANK)


def test_no_module_imports_from_a_layer_above_it() -> None:
    wrong = []
    for path in sorted((SOURCE / "glmtune").rglob("*.py")):
        own = path.relative_to(SOURCE / "glmtune").parts[0].removesuffix(".py")
        if own != "__init__":
            wrong += [f"{path.name}: {n}" for n in imported(path) if RANK[n] > RANK[own]]

    assert wrong == []


def test_the_command_line_starts_without_anything_heavy() -> None:
    code = (
        "import sys, glmtune.cli.main; "
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets', 'pyarrow', 'numpy') "
        "if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "[]"
