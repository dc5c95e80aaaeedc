"""P-Tuning v2 in the original's layout, from the original's files to training and back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import glmtune.kernels.packed_attention  # noqa: F401
from glmtune.data.batches import pack_examples
from glmtune.errors import CheckpointError, RecipeError, TrainingError
from glmtune.methods import method
from glmtune.methods.ptuning_v2 import PTUNING_V2
from glmtune.model.load import load_model, load_tokenizer
from glmtune.objective.next_token import next_token_loss
from glmtune.prove.saved import check_saved
from glmtune.recipe.methods import PtuningV2Section
from glmtune.recipe.reading import build_recipe
from glmtune.template.base import IGNORE, Example
from glmtune.template.select import template_for
from glmtune.train.run import fine_tune
from glmtune.use.generate import Request, Sampling, generate
from glmtune.use.open import base_of

KINDS = ["ptuning", "ptuning_projection"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def official(golden: Path, tmp_path: Path, kind: str) -> Path:
    """A folder as the original's training script writes it."""
    folder = tmp_path / "checkpoint-3000"
    folder.mkdir()
    stored = load_file(golden / "tiny-model" / "prefix_encoders.safetensors")
    state = {k.removeprefix(f"{kind}/"): v for k, v in stored.items() if k.startswith(f"{kind}/")}
    torch.save(state, folder / "pytorch_model.bin")
    config = json.loads((golden / "tiny-model" / "config.json").read_text(encoding="utf-8"))
    config |= {"pre_seq_len": 5, "prefix_projection": kind == "ptuning_projection"}
    config["_name_or_path"] = str(golden / "tiny-model")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_prefix_of_the_original_gives_the_originals_logits_in_a_pack(
    golden: Path, official: Path, kind: str
) -> None:
    vectors = load_file(golden / "tiny-model" / "golden.safetensors")
    ids, mask, expected = (
        vectors[f"{kind}.left_pad.{name}"] for name in ("input_ids", "attention_mask", "logits")
    )
    real = [row[row_mask.bool()].tolist() for row, row_mask in zip(ids, mask, strict=True)]
    assert len({len(row) for row in real}) > 1  # or padding would prove nothing
    model = load_model(golden / "tiny-model", attn_implementation="packed")
    model = method.load(model, official).eval()

    pack = pack_examples([Example(row, row) for row in real], range(len(real)))
    with torch.no_grad():
        logits = model(**pack.inputs(), use_cache=False).logits[0]

    torch.testing.assert_close(logits, expected[mask.bool()], atol=2e-5, rtol=1e-4)


def test_a_prefix_of_the_original_writes_what_the_original_writes(
    golden: Path, official: Path, kind: str
) -> None:
    cases = json.loads((golden / "tiny-model" / "golden.json").read_text("utf-8"))["generate"]
    [case] = [case for case in cases if case["name"] == f"{kind}.greedy"]
    model = method.load(load_model(golden / "tiny-model"), official)
    [prompt] = case["input_ids"]
    number = len(case["sequences"][0]) - len(prompt)

    [written] = generate(
        model, [Request(prompt, number)], stop_ids=(), sampling=Sampling(temperature=0)
    )

    assert prompt + written.ids == case["sequences"][0]


def test_what_we_save_is_what_the_original_loads(
    tiny_model_dir: Path, tmp_path: Path, kind: str
) -> None:
    section = PtuningV2Section(pre_seq_len=5, prefix_projection=kind == "ptuning_projection")
    model = method.attach(load_model(tiny_model_dir), section)
    method.save(model, tmp_path, template_for(load_tokenizer(tiny_model_dir)))

    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    names: dict[str, tuple[int, ...]] = {"embedding.weight": (5, 2 * 2 * 2 * 16)}
    if section.prefix_projection:
        names |= {"trans.0.weight": (64, 128), "trans.0.bias": (64,)}
        names |= {"trans.2.weight": (128, 64), "trans.2.bias": (128,)}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        f"transformer.prefix_encoder.{name}": shape for name, shape in names.items()
    }
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config["pre_seq_len"], config["prefix_projection"]) == (5, section.prefix_projection)
    assert base_of(tmp_path) == str(tiny_model_dir)


def test_training_a_prefix_over_a_pack_is_training_it_over_each_example(
    tiny_model_dir: Path,
) -> None:
    torch.manual_seed(0)
    model = load_model(tiny_model_dir, attn_implementation="packed")
    model = method.attach(model, PtuningV2Section(pre_seq_len=3)).eval()  # without dropout
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 400, (n,), generator=generator).tolist() for n in (9, 1, 4)]
    examples = [Example(ids, [IGNORE, *ids[1:]]) for ids in rows]

    def gradient(*packs: list[int]) -> Tensor:
        model.zero_grad()
        for pack in packs:
            next_token_loss(model, pack_examples(examples, pack)).backward()
        found: Tensor = model.transformer.prefix_encoder.embedding.weight.grad
        return found.clone()

    together = gradient([0, 1, 2])
    assert together.abs().max() > 0.01
    torch.testing.assert_close(together, gradient([0], [1], [2]), atol=1e-5, rtol=1e-4)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    model.transformer.prefix_encoder.eval()
    torch.testing.assert_close(together, gradient([0, 1, 2]), atol=1e-5, rtol=1e-4)


def recipe_for(model: Path, output: Path, *overrides: str) -> Any:
    rows = output.parent / "rows.json"
    lines = [{"instruction": f"第 {n} 个问题？", "output": f"答案是 {n}。"} for n in range(6)]
    rows.write_text(json.dumps(lines, ensure_ascii=False), encoding="utf-8")
    tree = {
        "model": {"name_or_path": str(model)},
        "data": {"train": str(rows), "max_length": 96, "eval_fraction": 0.3},
        "adapter": {"method": "ptuning_v2", "pre_seq_len": 4},
        "training": {
            "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 4,
            "learning_rate": 0.02, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1,
            "gradient_checkpointing": True,
        },
        "checks": {"stock_reader": False, "max_new_tokens": 4, "stop_prompts": 2},
        "output": {"dir": str(output), "report_to": []},
    }  # fmt: skip
    return build_recipe(tree, overrides)


def test_a_run_leaves_a_prefix_that_chat_uses_and_resumes_to_the_same_bytes(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    import shutil

    from glmtune.inspect.adapter import describe_adapter
    from glmtune.use.open import open_session

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fine_tune(recipe_for(tiny_model_dir, whole, "load_best_model_at_end=false"))
    fine_tune(recipe_for(tiny_model_dir, cut, "load_best_model_at_end=false"))
    for name in ("checkpoint-4", "checkpoint-3"):
        shutil.rmtree(cut / name, ignore_errors=True)
    shutil.copytree(whole / "checkpoint-3", cut / "checkpoint-3")
    (cut / "pytorch_model.bin").unlink()

    fine_tune(recipe_for(tiny_model_dir, cut, "load_best_model_at_end=false"), resume=True)

    assert (cut / "pytorch_model.bin").read_bytes() == (whole / "pytorch_model.bin").read_bytes()
    report = json.loads((whole / "report.json").read_text(encoding="utf-8"))
    proofs = {p["name"]: p["verdict"] for p in report["facts"]["proofs"]}
    assert proofs["all that is trained has learned"] == "passed"
    assert proofs["reloaded from disk it is the same"] == "passed"
    session = open_session(str(whole), sampling=Sampling(max_new_tokens=4, temperature=0))
    assert session.reply("第 1 个问题？").num_tokens <= 4
    facts = describe_adapter(whole)
    assert (facts.method, facts.base) == ("P-Tuning v2", str(tiny_model_dir))
    assert facts.numel == 4 * 128


def test_a_prefix_for_another_kind_of_model_is_refused_before_any_weight_is_read(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("glmtune.train.load_model.load_frozen_model", fail)

    with pytest.raises(RecipeError, match=r"layout of ChatGLM2 and ChatGLM3.*type 'llama'"):
        fine_tune(recipe_for(tiny_llama_dir, tmp_path / "out"))


def test_another_attention_is_refused_by_the_recipe(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"does not support .* adapter\.method=ptuning_v2"):
        recipe_for(tiny_model_dir, tmp_path / "x", "model.attn_implementation=flash_attention_2")


def test_training_continues_from_the_prefix_that_a_model_has(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir)
    model = method.attach(model, PtuningV2Section(pre_seq_len=3))
    weight = model.transformer.prefix_encoder.embedding.weight

    assert method.attach(model, PtuningV2Section(pre_seq_len=3)) is model
    assert model.transformer.prefix_encoder.embedding.weight is weight
    with pytest.raises(RecipeError, match=r"set adapter\.pre_seq_len=3 adapter\.prefix_proj"):
        method.attach(model, PtuningV2Section(pre_seq_len=4))


def test_a_prefix_file_that_differs_in_one_number_is_caught(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = load_model(tiny_model_dir, attn_implementation="packed")
    model = method.attach(model, PtuningV2Section(pre_seq_len=3))
    method.save(model, tmp_path, template_for(load_tokenizer(tiny_model_dir)))
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    state["transformer.prefix_encoder.embedding.weight"][0, 0] += 0.5
    torch.save(state, tmp_path / "pytorch_model.bin")
    probe = pack_examples([Example([5, 6, 7], [IGNORE, 6, 7])], [0])

    with pytest.raises(TrainingError, match="logits of the saved prefix differ"):
        check_saved(model, tmp_path, probe)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda state: {**state, "transformer.prefix_encoder.more": torch.ones(1)}, "does not fit"),
        (
            lambda state: {name: tensor[:, 1:] for name, tensor in state.items()},
            "does not fit this model.*size mismatch",
        ),
        (
            lambda state: {**state, "lm_head.weight": torch.ones(1)},
            "nothing but transformer",
        ),
    ],
)
def test_a_prefix_that_does_not_fit_is_refused(
    tiny_model_dir: Path, tmp_path: Path, damage: Any, complaint: str
) -> None:
    model = method.attach(load_model(tiny_model_dir), PtuningV2Section(pre_seq_len=3))
    method.save(model, tmp_path, template_for(load_tokenizer(tiny_model_dir)))
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    torch.save(damage(state), tmp_path / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match=complaint):
        PTUNING_V2.load(load_model(tiny_model_dir), tmp_path)


def test_a_half_written_prefix_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = method.attach(load_model(tiny_model_dir), PtuningV2Section(pre_seq_len=3))
    method.save(model, tmp_path, template_for(load_tokenizer(tiny_model_dir)))
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:200])

    with pytest.raises(CheckpointError, match="cannot be read"):
        method.restore(tmp_path, model)
