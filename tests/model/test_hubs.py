"""A hub out of reach is said at once, with the ways out; downloads take weights and no code."""

import shutil
import socket
import sys
import types
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest

from glmtune.errors import CheckpointError
from glmtune.model import hubs
from glmtune.model.files import checked_name
from glmtune.model.load import load_config


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that refuses connections, for as long as it is held."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(autouse=True)
def fresh() -> None:
    hubs._why_unreachable.cache_clear()


@pytest.fixture
def cache(closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache on a machine that reaches no hub, and no attempt to ask one."""
    from huggingface_hub import constants
    from transformers import AutoConfig

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hubs, "getproxies", dict)
    return tmp_path


def test_without_network_the_ways_out_are_said_at_once(cache: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        load_config("zai-org/chatglm3-6b")

    said = str(refused.value)
    assert f"the model is not in the cache ({cache}), and http://127.0.0.1:" in said
    assert "cannot be reached: Connection refused. Take it from ModelScope" in said
    assert "modelscope://ZhipuAI/chatglm3-6b" in said
    assert "HF_ENDPOINT" in said
    assert "`glmtune download zai-org/chatglm3-6b -o FOLDER`" in said


def test_without_network_the_cache_is_read(tiny_model_dir: Path, cache: Path) -> None:
    repository = cache / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_model_dir, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)

    assert checked_name("someone/tiny") == str(snapshot)


def test_a_hub_in_reach_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"

        assert hubs._why_unreachable(endpoint) is None


def test_behind_a_proxy_the_proxy_is_what_must_be_reached(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "proxy_bypass", lambda _: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for proxy in (f"http://{address}", address):
            hubs._why_unreachable.cache_clear()
            monkeypatch.setattr(hubs, "getproxies", lambda proxy=proxy: {"http": proxy})
            assert hubs._why_unreachable(f"http://127.0.0.1:{closed_port}") is None


class Repository:
    """ModelScope's library over a folder: it copies what a pattern names."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source, self.cache, self.fetched = source, cache, list[str]()

    def download_repo(
        self,
        repo_id: str,
        repo_type: str,
        *,
        allow_patterns: Sequence[str] = (),
        local_dir: Path | None = None,
        local_files_only: bool = False,
    ) -> Path:
        folder = local_dir or self.cache / repo_id
        if local_files_only and not folder.is_dir():
            raise RuntimeError("not in the cache")
        folder.mkdir(parents=True, exist_ok=True)
        for path in () if local_files_only else sorted(self.source.iterdir()):
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                self.fetched.append(path.name)
                shutil.copy(path, folder)
        return folder


@pytest.fixture
def repository(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A repository with both kinds of weights and code, as that of ChatGLM3-6B."""
    source = tmp_path / "source"
    shutil.copytree(tiny_model_dir, source)
    (source / "pytorch_model.bin").write_bytes(b"the same again")
    (source / "modeling_chatglm.py").write_text("print('never run')")
    found = Repository(source, tmp_path / "cache")
    library = types.ModuleType("modelscope_hub")
    vars(library)["HubApi"] = lambda: found
    monkeypatch.setitem(sys.modules, "modelscope_hub", library)
    return found


def test_a_model_of_modelscope_loads_by_its_id_and_is_fetched_once(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glmtune.model.load import load_model

    model = load_model("modelscope://ZhipuAI/tiny")

    assert type(model).__name__ == "ChatGLMForConditionalGeneration"
    assert "model.safetensors" in repository.fetched
    assert "pytorch_model.bin" not in repository.fetched
    assert "modeling_chatglm.py" not in repository.fetched
    number = len(repository.fetched)
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert checked_name("ZhipuAI/tiny") == str(repository.cache / "ZhipuAI" / "tiny")
    assert len(repository.fetched) == number


def test_a_download_into_a_folder_is_a_model(repository: Repository, tmp_path: Path) -> None:
    target = tmp_path / "mine"

    assert hubs.download("modelscope://ZhipuAI/tiny", target) == target

    assert checked_name(target) == str(target)


def test_a_repository_that_is_no_model_is_named(repository: Repository, tmp_path: Path) -> None:
    (repository.source / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"ZhipuAI/none: ModelScope has no config\.json"):
        hubs.download("modelscope://ZhipuAI/none", tmp_path / "a")

    (repository.source / "config.json").write_text("{}")
    for name in ("model.safetensors", "pytorch_model.bin"):
        (repository.source / name).unlink()
    with pytest.raises(CheckpointError, match="ModelScope has no weights"):
        hubs.download("modelscope://ZhipuAI/none", tmp_path / "b")
