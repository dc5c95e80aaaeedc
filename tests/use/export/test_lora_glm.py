"""An adapter of ChatGLM, read by stock peft over the same model in glm's layout."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM, IA3Config, LoraConfig, PeftModel
from tests.use.export.odd_model import ALL_LINEAR, MakeAdapter, MakeModel, logits_of
from transformers import AutoModelForCausalLM

from glmtune.errors import CheckpointError
from glmtune.methods import lora
from glmtune.model.load import load_model
from glmtune.use.export.glm import write_glm
from glmtune.use.export.job import open_job
from glmtune.use.export.lora_glm import start_lora_glm, write_lora_glm


def config(**changes: Any) -> LoraConfig:
    return LoraConfig(
        **({"r": 4, "target_modules": ALL_LINEAR, "task_type": "CAUSAL_LM"} | changes)
    )


CONFIGS: dict[str, LoraConfig] = {
    "all linear layers": config(),
    "the fused projection alone": config(target_modules=["query_key_value"]),
    "one layer of two": config(layers_to_transform=[1]),
    "rsLoRA with ranks and scales that differ": config(
        use_rslora=True,
        rank_pattern={"dense": 2, "layers.1.self_attention.query_key_value": 6},
        alpha_pattern={"query_key_value": 3},
    ),
    "DoRA": config(use_dora=True),
    "biases": config(bias="lora_only", lora_bias=False),
    "biases of B": config(lora_bias=True, target_modules=["query_key_value"]),
    "modules in full": config(modules_to_save=["output_layer", "word_embeddings"]),
    "norms in full": config(
        modules_to_save=["final_layernorm", "post_attention_layernorm"], target_modules=["dense"]
    ),
    "embeddings": config(target_modules=["word_embeddings", "query_key_value"]),
    "a regular expression": config(target_modules=r".*layers\.0\.(mlp|self_attention)\.dense.*"),
}


@pytest.fixture(scope="module")
def glm_base(odd_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm")
    write_glm(open_job(odd_model_dir), folder)
    return folder


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_stock_peft_gives_the_logits_of_the_adapter_on_its_base(
    name: str, odd_model_dir: Path, glm_base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(odd_model_dir, CONFIGS[name])
    tuned = lora.load(load_model(odd_model_dir), adapter)

    write_lora_glm(open_job(adapter), tmp_path)

    base: Any = AutoModelForCausalLM.from_pretrained(glm_base)
    plain = logits_of(base)
    expected = logits_of(tuned)
    found = logits_of(PeftModel.from_pretrained(base, str(tmp_path)))
    scale = max(1.0, expected.abs().max().item())
    assert (found - expected).abs().max() < 1e-5 * scale
    assert (plain - expected).abs().max() > 0.01, "the adapter changes nothing"


def test_heads_that_share_no_keys_are_split_head_by_head(
    make_model: MakeModel, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base = make_model(multi_query_attention=False)
    adapter = make_adapter(base, config())
    write_glm(open_job(base), tmp_path)
    write_lora_glm(open_job(adapter), tmp_path / "..")
    folder = (tmp_path / "..").resolve()

    expected = logits_of(lora.load(load_model(base), adapter))
    stock: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    found = logits_of(PeftModel.from_pretrained(stock, str(folder)))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_folder_names_the_base_that_the_printed_line_makes(
    odd_model_dir: Path,
    odd_adapter_dir: Path,
    glm_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = open_job(odd_adapter_dir)
    write_lora_glm(job, tmp_path)
    name = f"{odd_model_dir.name}-glm"
    (tmp_path / name).symlink_to(glm_base)
    monkeypatch.chdir(tmp_path)

    assert f"glmtune export {odd_model_dir} --to glm -o {name} && python" in start_lora_glm(
        job, tmp_path
    )
    tuned: Any = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path))
    expected = logits_of(lora.load(load_model(odd_model_dir), odd_adapter_dir))
    assert (logits_of(tuned) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_target_names_stay_short_where_every_layer_has_them(
    odd_model_dir: Path, odd_adapter_dir: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    write_lora_glm(open_job(odd_adapter_dir), tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))

    assert sorted(stored["target_modules"]) == [
        "down_proj", "gate_up_proj", "k_proj", "o_proj", "q_proj", "v_proj",
    ]  # fmt: skip
    assert (stored["r"], stored["lora_alpha"]) == (4, 8)


def test_what_is_no_lora_is_refused_with_the_format_to_use(
    odd_model_dir: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    ia3 = IA3Config(
        target_modules=["query_key_value"], feedforward_modules=[], task_type="CAUSAL_LM"
    )

    with pytest.raises(CheckpointError, match=r"by IA3.*--to glm"):
        write_lora_glm(open_job(make_adapter(odd_model_dir, ia3)), tmp_path)
    with pytest.raises(CheckpointError, match=r"complete model.*--to glm"):
        write_lora_glm(open_job(odd_model_dir), tmp_path)
