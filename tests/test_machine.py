"""The machine is described on every system, without secrets."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from glmtune import machine
from glmtune.units import MIB


def test_secrets_are_not_shown() -> None:
    shown = machine.environment_variables(
        {
            "HF_TOKEN": "hf_verysecret",
            "HTTPS_PROXY": "http://me:verysecret@proxy:8080",
            "HF_ENDPOINT": "https://hf-mirror.com",
            "HOME": "/root",
        }
    )

    assert shown == {
        "HF_ENDPOINT": "https://hf-mirror.com",
        "HF_TOKEN": "set, not shown",
        "HTTPS_PROXY": "http://***@proxy:8080",
    }


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{512 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{200 * MIB}\n")

    limited = machine.host_memory(tmp_path)

    assert limited == machine.HostMemory(512 * MIB, 312 * MIB)


@pytest.mark.parametrize("limit", ["max", str(2**60)])
def test_without_a_lower_limit_the_memory_is_that_of_the_host(tmp_path: Path, limit: str) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("0\n")

    host = machine.host_memory(tmp_path)

    assert host.total_bytes == psutil.virtual_memory().total
    assert 0 < host.available_bytes <= host.total_bytes


def test_the_peak_stays_when_memory_is_freed() -> None:
    script = """
from glmtune.machine import peak_resident_bytes, resident_bytes
before = resident_bytes()
held = bytearray(200 * 2**20)
held[::4096] = b"x" * len(held[::4096])
during = resident_bytes()
del held
print(before, during, resident_bytes(), peak_resident_bytes())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, during, after, peak = map(int, ran.stdout.split())

    assert during - before > 190 * MIB
    assert after < during - 150 * MIB
    assert peak > during - 10 * MIB


def test_the_peak_on_windows_is_that_of_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    info = SimpleNamespace(peak_wset=7 * MIB)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: info))

    assert machine.peak_resident_bytes() == 7 * MIB


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="it restricts the cores on Linux")
def test_only_the_cores_that_the_process_may_use_count() -> None:
    script = """
import os
from glmtune.machine import num_cores
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
counts = [num_cores()]
import psutil
del os.sched_getaffinity
print(*counts, num_cores())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert ran.stdout.split() == ["1", "1"]


def test_every_module_imports_without_what_windows_lacks() -> None:
    """Other libraries are imported first: their Windows builds are other ones."""
    script = """
import importlib, os, pkgutil, sys
import accelerate, peft, psutil, pyarrow, torch, transformers
import torch.distributed.elastic.multiprocessing, torch.distributed.launcher.api
import glmtune
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
del os.sysconf, os.sched_getaffinity, os.killpg, os.fork
names = [each.name for each in pkgutil.walk_packages(glmtune.__path__, "glmtune.")]
names.remove("glmtune.__main__")  # runs the command line
for optional in ("kernels.triton_swiglu", "use.evaluate.lm_eval_model"):  # of other packages
    names.remove(f"glmtune.{optional}")
for name in names:
    importlib.import_module(name)
from glmtune import machine
memory = machine.host_memory()
assert 0 < memory.available_bytes <= memory.total_bytes
assert machine.num_cores() > 0 and machine.resident_bytes() > 0 and machine.cpu_name()
print(len(names))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 100


def test_importing_the_machine_imports_nothing_heavy() -> None:
    script = """
import sys, glmtune.machine
print([name for name in ("torch", "psutil", "packaging") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "[]"


def test_a_source_tree_that_is_not_installed_is_described(tmp_path: Path) -> None:
    """Without site-packages; all packages but glmtune are linked into another folder."""
    site = Path(psutil.__file__).parents[1]
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in site.iterdir():
        if not path.name.startswith(("glmtune", "_glmtune", "__editable__")):
            (packages / path.name).symlink_to(path)
    source = Path(machine.__file__).parents[1]
    script = """
from importlib import metadata
import glmtune
from glmtune.inspect.doctor.advice import advise
from glmtune.inspect.doctor.machine import describe_machine
from glmtune.prove.report.facts import library_versions, machine_facts
try:
    raise SystemExit(f"glmtune is installed: {metadata.version('glmtune')}")
except metadata.PackageNotFoundError:
    pass
described = describe_machine()
assert not described.is_installed
assert all(version.fits for version in described.versions)
assert not any(version.wanted for version in described.versions)
assert any("not installed" in advice.problem for advice in advise(described))
assert library_versions()["glmtune"] == f"{glmtune.__version__} (source tree, not installed)"
assert machine_facts()["system"] == described.system
"""
    environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{packages}"}
    command = [sys.executable, "-S", "-c", script]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr


def test_a_machine_is_busy_where_more_processes_want_a_core_than_it_has() -> None:
    assert machine.describe_load(2.9, cores=2) == ""
    assert "12 processes wanted its 2 cores" in machine.describe_load(12.2, cores=2)
    assert machine.describe_load(cores=100_000) == ""
