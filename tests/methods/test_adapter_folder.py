"""An adapter folder that is incomplete, damaged or of another template is refused."""

from pathlib import Path

import pytest

from glmtune.errors import CheckpointError, TemplateError
from glmtune.methods import adapter_folder, lora, method
from glmtune.model.load import load_model, load_tokenizer
from glmtune.recipe.methods import LoraSection
from glmtune.template.base import Template
from glmtune.template.select import template_for


@pytest.fixture
def template(tiny_model_dir: Path) -> Template:
    return template_for(load_tokenizer(tiny_model_dir))


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path, template: Template) -> Path:
    """A folder with a new adapter."""
    lora.save(lora.attach(load_model(tiny_model_dir), LoraSection(r=2)), tmp_path, template)
    return tmp_path


def test_a_half_written_adapter_is_refused(tiny_model_dir: Path, folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match="damaged or half written"):
        lora.load(load_model(tiny_model_dir), folder)


def test_what_is_no_adapter_is_refused_with_what_it_is(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no such adapter folder"):
        adapter_folder.check_folder(tmp_path / "none")
    for use in (adapter_folder.check_folder, method.is_adapter, method.check_folder):
        with pytest.raises(CheckpointError, match="cannot be the name of a file or folder"):
            use(tmp_path / ("x" * 300))
    with pytest.raises(CheckpointError, match="holds a complete model"):
        adapter_folder.check_folder(tiny_model_dir)
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(CheckpointError, match=r"did not finish; try .*checkpoint-7"):
        adapter_folder.check_folder(tmp_path)


def test_an_adapter_is_refused_with_prompts_it_was_not_trained_on(
    tiny_model_dir: Path, folder: Path, template: Template
) -> None:
    other = template_for(load_tokenizer(tiny_model_dir), "tutorial")

    adapter_folder.check_template(folder, template)
    with pytest.raises(TemplateError, match=r"layout official.*layout tutorial"):
        adapter_folder.check_template(folder, other)
