"""The rooms of the package, and which may import which: the journey of a row goes one way."""

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "glmtune"

# From the ground up: a module imports from its own room, from the rooms above it in this list,
# and never from a room beside it on the same line.
GROUND = (
    "errors", "files", "units", "machine", "tool_calls", "conversation", "gc_pause", "messages",
)  # fmt: skip
ROOMS = (
    ("kernels", "recipe"),
    ("model",),
    ("template",),
    ("data",),
    ("objective", "methods"),
    ("use", "inspect"),
    ("prove",),
    ("train",),
    ("cli",),
)
FLOOR: dict[str, float] = dict.fromkeys(GROUND, 0)
FLOOR |= {room: floor for floor, rooms in enumerate(ROOMS, start=1) for room in rooms}
FLOOR |= {"auto": FLOOR["model"], "__main__": len(ROOMS) + 1}
# The functions and the run of `import glmtune`: above all rooms, and below the commands.
LIBRARY = ("library", "run_handle")
FLOOR |= dict.fromkeys(LIBRARY, FLOOR["cli"] - 0.5)
# `auto` is the public name of the model's registration, so each may import the other.
LIMIT_LINES = 600
# One decoder from top to bottom: one thought.
LONG_FILES = {"modeling_chatglm.py"}


def imported(path: Path) -> set[str]:
    """The rooms and ground files that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names if name.startswith("glmtune.")]
    return {part[1] for part in parts if part[1] in FLOOR}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_there_are_at_most_twelve_rooms_and_a_handful_of_ground_files() -> None:
    files = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py"}
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}

    assert rooms == {room for floor in ROOMS for room in floor}
    assert len(rooms) <= 12
    assert files - {"__init__"} <= {*GROUND, *LIBRARY, "auto", "__main__"}


def test_no_module_imports_from_a_room_above_or_beside_its_own() -> None:
    checked, wrong = 0, []
    for path in sorted(SOURCE.rglob("*.py")):
        own = room_of(path)
        if own == "__init__":
            continue
        for name in imported(path):
            checked += 1
            is_beside = FLOOR[name] == FLOOR[own] != 0 and name != own
            is_beside = is_beside and {name, own} not in ({"auto", "model"}, set(LIBRARY))
            if FLOOR[name] > FLOOR[own] or is_beside:
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")

    assert checked > 300
    assert wrong == []


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = [
        f"{path.relative_to(SOURCE)}: {lines} lines"
        for path in sorted(SOURCE.rglob("*.py"))
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LIMIT_LINES
        and path.name not in LONG_FILES
    ]

    assert long == []


def test_commands_do_not_import_commands() -> None:
    commands = {path.stem for path in (SOURCE / "cli").glob("*.py")}
    commands -= {
        "__init__",
        "main",
        "options",
        "localized",
        "printing",
        "streams",
        "child_process",
        "given_recipe",
    }
    wrong = []
    for path in sorted((SOURCE / "cli").glob("*.py")):
        if path.stem == "main":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = node.module.split(".")
                if parts[:2] == ["glmtune", "cli"] and set(parts[2:3]) & commands:
                    wrong.append(f"{path.name} imports {node.module}")

    assert len(commands) > 10
    assert wrong == []


def test_the_command_line_starts_without_anything_heavy() -> None:
    code = (
        "import sys, glmtune.cli.main; "
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets', 'pyarrow', 'numpy') "
        "if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "[]"
