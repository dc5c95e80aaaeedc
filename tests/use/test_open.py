"""A folder or hub id becomes a session: an adapter finds its base, and brings its template."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune.errors import CheckpointError, TemplateError
from glmtune.methods import lora
from glmtune.methods.layers import adapted_layers
from glmtune.model.load import load_tokenizer
from glmtune.recipe.methods import LoraSection
from glmtune.template.select import template_for
from glmtune.use.generate import Sampling
from glmtune.use.open import base_of, open_session

QUESTION = "你叫什么名字？"
GREEDY = Sampling(temperature=0, max_new_tokens=60)


@pytest.fixture(scope="module")
def adapter_dir(taught_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter in the tutorial layout that changes what the taught model says."""
    session = open_session(str(taught_model_dir))
    model = lora.attach(session.model, LoraSection(target_modules=("query_key_value",)))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for _, layer in adapted_layers(model):
            layer.lora_B["default"].weight.normal_()
    folder = tmp_path_factory.mktemp("adapter")
    lora.save(model, folder, template_for(load_tokenizer(taught_model_dir), "tutorial"))
    return folder


def test_an_adapter_sets_the_layout_and_changes_the_answer(
    taught_model_dir: Path, adapter_dir: Path
) -> None:
    plain = open_session(str(taught_model_dir), sampling=GREEDY)

    tuned = open_session(str(taught_model_dir), adapter_dir, sampling=GREEDY)

    assert tuned.template.description["layout"] == "tutorial"
    assert tuned.reply(QUESTION).text != plain.reply(QUESTION).text


def test_an_adapter_folder_alone_finds_its_base(taught_model_dir: Path, adapter_dir: Path) -> None:
    assert base_of(adapter_dir) == str(taught_model_dir)

    alone = open_session(str(adapter_dir), sampling=GREEDY)
    named = open_session(str(taught_model_dir), adapter_dir, sampling=GREEDY)

    assert alone.reply(QUESTION) == named.reply(QUESTION)


def test_an_adapter_of_another_template_is_refused_unless_meant(
    taught_model_dir: Path, adapter_dir: Path
) -> None:
    with pytest.raises(TemplateError, match=r"layout tutorial.*layout official.*--any-template"):
        open_session(str(taught_model_dir), adapter_dir, layout="official")

    meant = open_session(str(taught_model_dir), adapter_dir, layout="official", any_template=True)
    assert meant.template.description["layout"] == "official"


def test_an_adapter_of_another_model_is_refused(
    taught_model_dir: Path, adapter_dir: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(adapter_dir, other)
    (other / "glmtune.json").unlink()  # as if it came from another tool
    file = other / "adapter_model.safetensors"
    narrower = {name: tensor[:, :-1].clone() for name, tensor in load_file(file).items()}
    save_file(narrower, file)

    with pytest.raises(CheckpointError, match="does not fit this model"):
        open_session(str(taught_model_dir), other)


def test_the_error_for_an_adapter_without_its_base_names_the_option_to_give(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "/gone/away/chatglm3-6b"}', encoding="utf-8"
    )

    with pytest.raises(CheckpointError, match=r"/gone/away/chatglm3-6b.*--adapter"):
        base_of(tmp_path)
