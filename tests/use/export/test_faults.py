"""Every write of an export fails once: the target is whole or absent, and nothing else changes."""

import gc
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from peft import LoraConfig
from tests.faults import ERRORS, Left, check_sentence, fail_everywhere, limited_to
from tests.use.export.odd_model import ALL_LINEAR, MakeAdapter

from glmtune.errors import OutputError
from glmtune.use.export import push as hub
from glmtune.use.export.folder import REPORT
from glmtune.use.export.run import export

pytestmark = pytest.mark.slow
FORMATS = ("chatglm", "gguf", "vllm")


@pytest.fixture
def adapter(odd_model_dir: Path, make_adapter: MakeAdapter) -> Iterator[Path]:
    yield make_adapter(odd_model_dir, LoraConfig(r=2, target_modules=ALL_LINEAR))
    gc.unfreeze()


def contents(folder: Path) -> dict[str, str]:
    """The bytes of all files but the report, which names the time that proofs took."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != REPORT)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_is_whole_or_absent(
    to: str, odd_model_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    root = tmp_path / "work"
    root.mkdir()
    target = root / "out"

    def write() -> None:
        export(adapter, target, to, base=str(odd_model_dir), prove=False)

    write()  # imports what there is to import
    whole = contents(target)
    shutil.rmtree(target)
    gc.freeze()
    lefts = fail_everywhere(root, tmp_path / "kept", write, ERRORS)

    assert contents(target) == whole
    assert len(lefts) > 8
    for left in lefts:
        _check(left, whole)


def _check(left: Left, whole: dict[str, str]) -> None:
    check_sentence(left, OutputError)
    assert "--resume" not in left.message
    if left.raised:
        assert not list(left.folder.iterdir()), left.point
    else:
        assert contents(left.folder / "out") == whole, left.point


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("num_bytes", [0, 600, 3_000])
def test_an_export_that_does_not_fit_on_the_disk_is_one_sentence(
    num_bytes: int, to: str, odd_model_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    with limited_to(num_bytes), pytest.raises(OutputError) as caught:
        export(adapter, tmp_path / "out", to, base=str(odd_model_dir), prove=False)

    assert "\n" not in str(caught.value)
    assert "with -o" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_to_push_that_cannot_be_collected_uploads_nothing(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "work"
    root.mkdir()
    sent: list[str] = []
    monkeypatch.setattr("tempfile.tempdir", str(root))

    def send(folder: Path, repo: str, private: bool) -> str:
        sent.append(repo)
        return repo

    monkeypatch.setattr(hub, "_push_to_hf", send)
    uploads = (
        hub.Upload("README.md", adapter / "README.md", "card"),
        hub.Upload("adapter_model.safetensors", adapter / "adapter_model.safetensors"),
    )

    lefts = fail_everywhere(
        root, tmp_path / "kept", lambda: hub.push(hub.Package(uploads, ()), "me/it"), ERRORS
    )

    assert sent == ["me/it"]
    refused = [left for left in lefts if left.raised]
    assert len(refused) >= 1
    for left in refused:
        check_sentence(left, OutputError)
        assert "Nothing was uploaded" in left.message
