"""The predicted memory of a step is that of a real one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from glmtune.data.batches import MicroBatch, micro_batch_of
from glmtune.data.packing import pack
from glmtune.kernels.chunked_loss import cross_entropy_sum
from glmtune.methods import method
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.template.base import IGNORE, Example
from glmtune.train.load_model import load_base
from glmtune.train.optimizer import make_optimizer
from glmtune.train.plan.shapes import MemoryTracker
from glmtune.train.plan.simulation import Simulation, hidden_bytes, simulate
from glmtune.train.run import choose_task

CPU = torch.device("cpu")
CHECKPOINTING = "training.gradient_checkpointing=true"


def recipe_for(model: Path | str, *overrides: str) -> Recipe:
    tree = {"model": {"name_or_path": str(model)}, "data": {"train": "rows.json"}}
    return build_recipe(tree | {"output": {"dir": "out"}}, overrides)


def packed(*lengths: int) -> MicroBatch:
    """Rows of which the second half is learned."""
    return micro_batch_of(
        pack([Example([5] * n, [IGNORE] * (n - n // 2) + [5] * (n // 2)) for n in lengths])
    )


def measure(recipe: Recipe, batch: MicroBatch, *, is_first: bool = False) -> int:
    """The peak in addition to weights, gradients and optimizer state, with real tensors."""
    model = load_base(recipe, CPU)
    if recipe.training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model = method.attach(model, recipe.adapter).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizer(model, recipe.training)
    objective = choose_task(recipe, cross_entropy_sum).objective
    if recipe.has_labels:
        batch = replace(batch, is_good=torch.tensor([True, False]))
    optimizer.step()
    means = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    tracker = MemoryTracker()
    gradients = [p.grad for p in trained if p.grad is not None]
    held = tracker.track([*model.parameters(), *model.buffers(), *gradients, *means])
    del gradients
    if is_first:
        optimizer.zero_grad()
    with tracker:
        objective.loss(model, batch).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return tracker.peak - held


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (CHECKPOINTING,),
        ("model.dtype=bfloat16",),
        ("model.dtype=bfloat16", "model.compute=int8"),
        ("adapter.target_modules=[dense,dense_4h_to_h]", "adapter.lora_dropout=0.1"),
        ("adapter.method=freeze", "adapter.trainable_layers=1"),
        ("stage=dpo", CHECKPOINTING),
        ("stage=kto", "model.dtype=bfloat16"),
    ],
    ids=" ".join,
)
def test_a_simulated_step_takes_the_memory_of_a_real_one(
    tiny_model_dir: Path, overrides: tuple[str, ...]
) -> None:
    recipe, batch = recipe_for(tiny_model_dir, *overrides), packed(100, 60)

    predicted = simulate(recipe, batch, batch, packed(20), CPU)

    assert predicted.activations == pytest.approx(measure(recipe, batch), rel=0.02)


def test_the_first_pack_of_a_step_has_no_gradients_yet(tiny_model_dir: Path) -> None:
    recipe = recipe_for(tiny_model_dir, "adapter.method=full")
    heavy, light, proof = packed(200, 100), packed(10), packed(20)

    alone = simulate(recipe, heavy, None, proof, CPU)
    before_a_light_one = simulate(recipe, heavy, light, proof, CPU)
    after_another = simulate(recipe, heavy, heavy, proof, CPU)

    assert before_a_light_one.activations == pytest.approx(alone.activations, rel=0.001)
    assert alone.activations == pytest.approx(measure(recipe, heavy, is_first=True), rel=0.02)
    assert after_another.activations == pytest.approx(measure(recipe, heavy), rel=0.02)
    assert after_another.activations - alone.activations > 0.9 * alone.gradients


def write_config(folder: Path, num_layers: int, **fields: int) -> None:
    ChatGLMConfig(
        num_layers=num_layers,
        seq_length=8192,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=2,
        **fields,
    ).save_pretrained(folder)


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_deep_model_is_extrapolated_from_two_shallow_ones(
    tmp_path: Path, checkpointing: str
) -> None:
    deep = 7
    write_config(tmp_path, deep, hidden_size=64, ffn_hidden_size=96, kv_channels=16)
    overrides = [f"training.gradient_checkpointing={checkpointing}", "adapter.r=4"]
    extrapolated = simulate(
        recipe_for(tmp_path, *overrides), packed(90), packed(60), packed(20), CPU
    )

    # With a rank for one layer, all layers are simulated.
    pattern = 'adapter.rank_pattern={"layers.0.self_attention.query_key_value": 4}'
    deep_recipe = recipe_for(tmp_path, *overrides, pattern)
    full = simulate(deep_recipe, packed(90), packed(60), packed(20), CPU)

    assert extrapolated == full


def of_6b(tmp_path: Path, device: str, *overrides: str) -> Simulation:
    write_config(tmp_path, 28)
    recipe = recipe_for(tmp_path, "model.dtype=bfloat16", *overrides)
    return simulate(recipe, packed(16), None, packed(16), torch.device(device))


def test_the_weights_of_6b_are_counted_from_its_config_alone(tmp_path: Path) -> None:
    predicted = of_6b(tmp_path, "cuda")

    assert predicted.frozen == 2 * 6_243_584_000 + 512  # inv_freq, as the allocator rounds it
    assert predicted.trained == predicted.gradients == 4 * 1_949_696
    assert predicted.optimizer == 2 * predicted.trained


def test_packed_weights_are_counted_by_their_bits(tmp_path: Path) -> None:
    matrices = 28 * (4096 * 4608 + 4096 * 4096 + 4096 * 27392 + 13696 * 4096)

    predicted = of_6b(tmp_path, "cuda", "adapter.method=qlora")

    rest = 6_243_584_000 - matrices  # embedding, output layer, norms and biases, in 16 bits
    assert predicted.frozen == pytest.approx(matrices * (1 / 2 + 1 / 64) + 2 * rest, rel=1e-4)
    assert predicted.activations > 2 * 4096 * 27392, "the widest one is unpacked for its product"

    predicted = of_6b(tmp_path, "cuda", "model.compute=int8")

    assert predicted.frozen == pytest.approx(matrices + 2 * rest, rel=1e-3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_reference_of_a_pair_saves_nothing(tmp_path: Path, device: str) -> None:
    write_config(tmp_path, 4, hidden_size=64, ffn_hidden_size=512, kv_channels=16)
    batch, proof = packed(200, 200), packed(20)

    taken = [
        simulate(
            recipe_for(tmp_path, CHECKPOINTING, "model.dtype=bfloat16", "stage=dpo", loss),
            *(batch, None, proof, torch.device(device)),
        ).activations
        for loss in ("preference.loss=sigmoid", "preference.loss=orpo")  # which has no reference
    ]

    assert taken[0] == pytest.approx(taken[1], rel=0.05)


def test_a_gpu_counts_what_flash_attention_takes_within(tmp_path: Path) -> None:
    tokens, examples, heads, kv_heads, head_dim = 100, 2, 32, 2, 128
    query = torch.empty(tokens, heads, head_dim, dtype=torch.bfloat16, device="meta")
    key = torch.empty(tokens, kv_heads, head_dim, dtype=torch.bfloat16, device="meta")
    ends = torch.zeros(examples + 1, dtype=torch.int32, device="meta")

    hidden = hidden_bytes(
        "torch_attn._varlen_attn_backward.default", (query, query, key, key, ends)
    )

    width = heads * head_dim
    assert hidden == 2 * tokens * width * 2 + 4 * (tokens + 128 * examples) * width
    assert hidden_bytes("aten.mm.default", (query, query)) == 0
