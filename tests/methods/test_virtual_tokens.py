"""Virtual tokens by peft: in packs and rows of ours they are what they are in peft's batches."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import glmtune.kernels.packed_attention  # noqa: F401
from glmtune.data.batches import pack_examples
from glmtune.errors import CheckpointError, RecipeError, TrainingError
from glmtune.methods import lora, method, virtual_tokens
from glmtune.model.load import load_model, load_tokenizer
from glmtune.objective.next_token import next_token_loss
from glmtune.prove.saved import check_saved, logits_of
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.template.base import IGNORE, Example
from glmtune.template.select import template_for
from glmtune.train.run import fine_tune
from glmtune.use.generate import Request, Sampling, generate

METHODS: dict[str, dict[str, Any]] = {
    "prompt_tuning": {},
    "p_tuning": {"encoder_hidden_size": 16},
    "prefix_tuning": {},
    "prefix_tuning by an MLP": {"prefix_projection": True, "encoder_hidden_size": 16},
}
LENGTHS = (9, 1, 4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["chatglm", "llama"])
def folder(request: pytest.FixtureRequest, tiny_model_dir: Path, tiny_llama_dir: Path) -> Path:
    return tiny_model_dir if request.param == "chatglm" else tiny_llama_dir


@pytest.fixture(params=METHODS)
def section(request: pytest.FixtureRequest) -> Any:
    return section_of(request.param)


def section_of(name: str, **keys: Any) -> Any:
    tree: dict[str, Any] = {
        "model": {"name_or_path": "m"},
        "data": {"train": "x"},
        "output": {"dir": "out"},
        "adapter": {
            "method": name.split(maxsplit=1)[0],
            "num_virtual_tokens": 5,
            **METHODS[name],
            **keys,
        },
    }
    return build_recipe(tree).adapter


def base(folder: Path, attention: str = "packed") -> Any:
    return load_model(folder, dtype=torch.float32, attn_implementation=attention)


def some_ids() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 400, (n,), generator=generator).tolist() for n in LENGTHS]


def tuned(folder: Path, section: Any, saved: Path) -> Any:
    """A model whose virtual tokens are as large as the weights, saved."""
    torch.manual_seed(0)
    model = method.attach(base(folder), section)
    method.save(model, saved, template_for(load_tokenizer(folder)))
    return model.eval()


def test_peft_alone_gives_our_logits(folder: Path, section: Any, tmp_path: Path) -> None:
    model = tuned(folder, section, tmp_path)
    pack = pack_examples([Example(ids, ids) for ids in some_ids()], range(3))

    with torch.no_grad():
        ours = logits_of(model, pack)[0].split(LENGTHS)
        without = logits_of(base(folder).eval(), pack)[0].split(LENGTHS)

    theirs = PeftModel.from_pretrained(base(folder, "sdpa"), tmp_path).eval()
    for ids, expected, plain in zip(some_ids(), ours, without, strict=True):
        with torch.no_grad():
            logits = theirs(torch.tensor([ids])).logits[0, -len(ids) :]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        assert (expected - plain).abs().max() > 0.1  # or nothing would have been shown


def test_what_is_written_is_what_peft_writes(folder: Path, section: Any, tmp_path: Path) -> None:
    tuned(folder, section, tmp_path)
    model = method.load(base(folder, "sdpa"), tmp_path)
    requests = [Request(ids, 12) for ids in some_ids()]

    written = list(
        generate(model, requests, stop_ids=(), sampling=Sampling(temperature=0), batch_size=2)
    )

    theirs = PeftModel.from_pretrained(base(folder, "sdpa"), tmp_path).eval()
    theirs.generation_config.eos_token_id = None
    for each in written:
        ids = torch.tensor([requests[each.index].ids])
        whole = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
        assert whole[0, -12:].tolist() == each.ids


def test_learning_from_a_pack_is_learning_from_each_example(folder: Path, section: Any) -> None:
    torch.manual_seed(0)
    model = method.attach(base(folder), section).train()
    examples = [Example(ids, [IGNORE, *ids[1:]]) for ids in some_ids()]

    def gradient(*packs: list[int]) -> Tensor:
        model.zero_grad()
        for pack in packs:
            next_token_loss(model, pack_examples(examples, pack)).backward()
        found: Tensor = virtual_tokens._encoder(model).embedding.weight.grad
        return found.clone()

    together = gradient([0, 1, 2])
    assert together.abs().max() > 1e-3
    torch.testing.assert_close(together, gradient([0], [1], [2]), atol=1e-5, rtol=1e-3)
    model.activation_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(together, gradient([0, 1, 2]), atol=1e-5, rtol=1e-3)


def recipe_for(model: Path, output: Path, method: str, *overrides: str) -> Recipe:
    rows = output.parent / "rows.json"
    lines = [{"instruction": f"第 {n} 个问题？", "output": f"答案是 {n}。"} for n in range(6)]
    rows.write_text(json.dumps(lines, ensure_ascii=False), encoding="utf-8")
    tree = {
        "model": {"name_or_path": str(model)},
        "data": {"train": str(rows), "max_length": 160, "eval_fraction": 0.3},
        "adapter": {"method": method, "num_virtual_tokens": 4},
        "training": {
            "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 4,
            "learning_rate": 0.02, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1,
            "load_best_model_at_end": False,
        },
        "checks": {"stock_reader": False, "max_new_tokens": 4, "stop_prompts": 2},
        "output": {"dir": str(output), "report_to": []},
    }  # fmt: skip
    return build_recipe(tree, overrides)


@pytest.mark.parametrize(
    ("folder", "method"),
    [
        ("chatglm", "p_tuning"),
        pytest.param("chatglm", "prompt_tuning", marks=pytest.mark.slow),
        pytest.param("chatglm", "prefix_tuning", marks=pytest.mark.slow),
        pytest.param("llama", "prefix_tuning", marks=pytest.mark.slow),
    ],
    indirect=["folder"],
)
def test_a_run_is_proved_resumes_to_the_same_bytes_and_is_talked_to(
    folder: Path, tmp_path: Path, method: str
) -> None:
    import shutil

    from glmtune.use.open import open_session

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fine_tune(recipe_for(folder, whole, method, "training.gradient_checkpointing=true"))
    cut.mkdir()
    shutil.copytree(whole / "checkpoint-3", cut / "checkpoint-3")

    fine_tune(recipe_for(folder, cut, method, "training.gradient_checkpointing=true"), resume=True)

    name = "adapter_model.safetensors"
    assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert (cut / virtual_tokens.ENCODER).is_file() == (method == "p_tuning")
    report = json.loads((whole / "report.json").read_text(encoding="utf-8"))
    proofs = {p["name"]: p["verdict"] for p in report["facts"]["proofs"]}
    assert proofs["all that is trained has learned"] == "passed"
    assert proofs["reloaded from disk it is the same"] == "passed"
    session = open_session(str(whole), sampling=Sampling(max_new_tokens=4, temperature=0))
    assert session.reply("第 1 个问题？").num_tokens <= 4


def test_virtual_tokens_begin_as_those_of_a_text(tiny_llama_dir: Path) -> None:
    section = section_of(
        "prompt_tuning", prompt_tuning_init="TEXT", prompt_tuning_init_text="你叫什么名字？"
    )
    model = method.attach(base(tiny_llama_dir), section)

    ids = load_tokenizer(tiny_llama_dir)("你叫什么名字？")["input_ids"][:5]
    vectors = model.get_base_model().get_input_embeddings().weight[ids]
    assert torch.equal(virtual_tokens._encoder(model).embedding.weight, vectors)


def test_a_text_without_its_key_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"TEXT and adapter\.prompt_tuning_init_text belong"):
        section_of("prompt_tuning", prompt_tuning_init="TEXT")


def test_a_model_without_a_place_for_them_is_refused_before_any_weight_is_read(
    tiny_model_dir: Path, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    from transformers import Qwen2Config

    sliding = Qwen2Config(
        num_hidden_layers=2, use_sliding_window=True, sliding_window=8, max_window_layers=1
    )
    sliding.save_pretrained(tmp_path / "sliding")
    with pytest.raises(RecipeError, match="type 'qwen2' would not see them"):
        fine_tune(recipe_for(tmp_path / "sliding", tmp_path / "out", "prompt_tuning"))

    prefixed = base(tiny_model_dir).config
    prefixed.pre_seq_len = 3
    prefixed.save_pretrained(tmp_path / "prefixed")
    with pytest.raises(RecipeError, match="has a P-Tuning v2 prefix already"):
        fine_tune(recipe_for(tmp_path / "prefixed", tmp_path / "out", "prefix_tuning"))

    with pytest.raises(RecipeError, match="does not support the virtual tokens"):
        recipe_for(
            tiny_llama_dir, tmp_path / "out", "p_tuning", "attn_implementation=flash_attention_2"
        )


def test_a_file_that_does_not_fit_is_refused(
    tiny_model_dir: Path, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    tuned(tiny_model_dir, section_of("prefix_tuning"), tmp_path)
    (tmp_path / "glmtune.json").unlink()  # as if it came from another tool
    file = tmp_path / "adapter_model.safetensors"
    tensor = load_file(file)["prompt_embeddings"]

    with pytest.raises(CheckpointError, match=r"loaded by `glmtune.methods.method.load`"):
        lora.load(base(tiny_model_dir), tmp_path)
    save_file({"prompt_embeddings": tensor[:, 1:].contiguous()}, file)
    with pytest.raises(CheckpointError, match=r"num_layers is 2, but prompt_embeddings has the"):
        method.load(base(tiny_model_dir), tmp_path)
    save_file({"other": tensor}, file)
    with pytest.raises(CheckpointError, match="expected the virtual tokens as prompt_emb"):
        method.load(base(tiny_model_dir), tmp_path)


def test_keys_and_values_of_other_heads_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    tuned(tiny_model_dir, section_of("prefix_tuning"), tmp_path)
    (tmp_path / "glmtune.json").unlink()  # or its checksums would tell
    path = tmp_path / "adapter_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"num_attention_heads": 1}))

    with pytest.raises(CheckpointError, match="num_attention_heads is 1, and this base needs 2"):
        method.load(base(tiny_model_dir), tmp_path)
    for without in ({"num_virtual_tokens": None}, {"token_dim": None}, {"num_layers": None}):
        path.write_text(json.dumps(content | without))
        with pytest.raises(CheckpointError, match=f"{next(iter(without))} is (None|not set)"):
            method.load(base(tiny_model_dir), tmp_path)


def test_a_saved_number_that_differs_is_caught(tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = tuned(tiny_llama_dir, section_of("p_tuning"), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensor = load_file(file)["prompt_embeddings"]
    tensor[0, 0] += 0.5
    (tmp_path / "glmtune.json").unlink()  # as if it came from another tool
    save_file({"prompt_embeddings": tensor}, file)

    with pytest.raises(TrainingError, match="logits of the saved virtual tokens differ"):
        check_saved(model, tmp_path, pack_examples([Example([5, 6], [IGNORE, 6])], [0]))
