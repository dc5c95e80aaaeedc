"""Mutated inputs on every surface: used or refused in sentences, never a traceback.

CI tries 2,000 by a fixed seed; `make fuzz` tries 100,000.
"""

import os
from pathlib import Path

import pytest
from tests.fuzz.surface import Healthy, Surface, try_surface
from tests.fuzz.surfaces import shares

COUNT = int(os.environ.get("GLMTUNE_FUZZ", "2000"))


@pytest.fixture(scope="module")
def healthy(
    tiny_model_dir: Path, tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Healthy:
    return Healthy(tmp_path_factory.mktemp("fuzz"), tiny_model_dir, tiny_llama_dir)


@pytest.mark.parametrize(
    ("surface", "count"), list(shares(COUNT)), ids=lambda value: getattr(value, "name", "")
)
def test_whatever_comes_is_used_or_refused_in_sentences(
    surface: Surface,
    count: int,
    healthy: Healthy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    attempt = surface.prepare(healthy)

    outcome = try_surface(surface, attempt, tmp_path / "input", "0", range(count))

    assert not outcome.faults, "\n".join(outcome.faults.values())
    assert outcome.num_refused >= int(count * surface.refused), "the mutations were harmless"
