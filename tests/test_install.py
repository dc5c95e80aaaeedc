"""What is checked before anything is downloaded, and the images for Docker."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
STAGES = "\n".join(LINES).split("\nFROM ")[1:]


def test_make_refuses_an_old_python_before_it_downloads(tmp_path: Path) -> None:
    command = ["make", "install", "PYTHON=false", f"VENV={tmp_path / 'venv'}"]

    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert refused.returncode != 0
    assert "false is not Python 3.11 or newer" in refused.stdout + refused.stderr
    assert "PYTHON=python3.12" in refused.stdout + refused.stderr
    assert not (tmp_path / "venv").exists()


def test_each_image_has_a_fixed_base_and_runs_as_a_user() -> None:
    assert [stage.splitlines()[0].split()[-1] for stage in STAGES] == ["cuda", "cpu"]
    for stage in STAGES:
        assert re.match(r"python:3\.\d+-[a-z-]+ AS", stage), "a base without a fixed tag"
        assert re.findall(r"^USER (.*)$", stage, re.M)[-1] == "1000:1000"
        assert not re.search(r"^(ARG|ENV) .*(KEY|TOKEN|SECRET|PASSWORD)", stage, re.M)
    # What both install is the same but for the build of torch.
    steps = [
        re.findall(r"^(?:COPY|ENV|USER|WORKDIR|RUN pip.*\[).*$", each, re.M) for each in STAGES
    ]
    assert steps[0] == steps[1]


def test_the_images_install_what_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = re.search(r"^torch==([\d.]+)", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    for stage in STAGES:
        [extras] = re.findall(r'"glmtune\[(.*?)\] @', stage)
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
        assert pinned is not None
        assert f"torch=={pinned[1]}" in stage
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = {name for line in LINES if line.startswith("COPY") for name in line.split()[1:-1]}
    assert ignored[1] == "*"
    assert {f"!{name}" for name in copied} == {line for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
