"""Benchmarks start: they import what exists, and so do the programs that they run."""

import ast
import importlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("__"))
COMMANDS = [
    path.stem
    for path in sorted(FOLDER.glob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8") and path.stem != "__main__"
]


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_imports(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def embedded_programs(path: Path) -> list[ast.Module]:
    """The programs that a file runs with `python -c`: strings of several lines with imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [
        ast.parse(text)
        for text in strings
        if isinstance(text, str) and text.startswith("\nimport ")
    ]


def test_the_programs_inside_of_benchmarks_import_what_exists() -> None:
    imported, missing = 0, []
    for path in sorted(FOLDER.glob("*.py")):
        for program in embedded_programs(path):
            for node in ast.walk(program):
                if not isinstance(node, ast.ImportFrom) or not node.module:
                    continue
                if node.module.split(".")[0] != "glmtune":
                    continue
                imported += len(node.names)
                if find_spec(node.module) is None:
                    missing.append(f"{path.name}: {node.module}")
                    continue
                module = importlib.import_module(node.module)
                missing += [
                    f"{path.name}: {node.module}.{alias.name}"
                    for alias in node.names
                    if not hasattr(module, alias.name)
                ]

    assert imported > 5
    assert missing == []


HELP = """\
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(name, run_name="__main__")
    except SystemExit as end:
        assert not end.code, name
    print("explained", name)
"""


@pytest.mark.slow
def test_every_benchmark_explains_itself() -> None:
    modules = ["benchmarks", *(f"benchmarks.{name}" for name in COMMANDS)]
    done = subprocess.run(
        [sys.executable, "-c", HELP, *modules],
        cwd=FOLDER.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") == done.stdout.count("explained ") == len(modules) > 10


def test_the_benchmark_of_a_gpu_says_what_to_do_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks import gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"sees no CUDA GPU.*benchmarks\.gpu --small"):
        gpu.main([])


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_through_on_a_tiny_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import gpu

    gpu.main(["--small", "--quick", "--json", str(tmp_path / "gpu.json")])

    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert {figure["point"] for figure in found["figures"]} == {"step", "writing"}
    assert all(figure["ours"] > 0 for figure in found["figures"])
    assert [line for line in found["left_out"] if not line.startswith("TRL")] == []
    out = capsys.readouterr().out
    assert "these figures say nothing" in out
    assert "Trainer, padded batches of 2" in out


@pytest.mark.slow
def test_the_benchmark_of_the_arithmetic_on_a_gpu_runs_through_on_a_tiny_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import gpu_compute

    monkeypatch.setattr(gpu_compute, "TURNS", 1)
    gpu_compute.main(["--small", "--json", str(tmp_path / "gpu_compute.json")])

    found = json.loads((tmp_path / "gpu_compute.json").read_text(encoding="utf-8"))
    assert {"bf16", "int8", "fp8"} <= found["steps"].keys()
    for name in ("int8", "fp8"):
        cosine = found["steps"][name]["cosine_of_gradient_with_bf16"]
        assert 0.95 < cosine < 1.001
        assert all(speed > 0 for speed in found["steps"][name]["tokens_per_second"].values())
    assert "these figures say nothing" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_of_plans_runs_through_on_a_tiny_model_and_foretells_its_memory(
    tmp_path: Path,
) -> None:
    from benchmarks import gpu_plan

    gpu_plan.main(["--small", "--only", "LoRA", "--json", str(tmp_path / "gpu_plan.json")])

    found = json.loads((tmp_path / "gpu_plan.json").read_text(encoding="utf-8"))
    assert found["left_out"] == []
    assert len(found["points"]) == 4
    for point in found["points"]:
        assert point["foretold_gib"] == pytest.approx(point["measured_gib"], rel=0.05)
        assert point["by_layer_ms"] > 0
