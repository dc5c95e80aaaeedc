"""The prediction is compared with a machine, and changes that make the run fit are listed."""

from pathlib import Path

import pytest
import torch

from glmtune.errors import DataError, RecipeError
from glmtune.model.load import load_model
from glmtune.recipe.reading import build_recipe
from glmtune.recipe.recipe import Recipe
from glmtune.train.plan.estimate import Memory, MemoryEstimator, converted_bytes
from glmtune.train.plan.forecast import make_plan, make_target, memory_saving_changes
from glmtune.train.plan.simulation import Simulation
from glmtune.train.plan.workload import RowLengths, describe_workload

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def recipe_for(model: Path | str, *overrides: str) -> Recipe:
    tree = {"model": {"name_or_path": str(model)}, "data": {"train": "rows.json"}}
    return build_recipe(tree | {"output": {"dir": "out"}}, overrides)


ROWS = RowLengths(
    lengths=[10, 40, 30, 20, 90],
    learned=[9, 5, 5, 5, 5],
    chosen=[0, 1, 2, 3],
)


def test_the_heaviest_pack_is_that_of_the_dry_run() -> None:
    recipe = recipe_for(
        "x",
        *("data.max_length=50", "training.per_device_train_batch_size=1"),
        *("training.gradient_accumulation_steps=4", "training.num_train_epochs=3"),
    )

    workload = describe_workload(recipe, ROWS)

    # Packs of 50: 40 + 10, and 30 + 20. Both are full; the first has more to learn.
    assert (workload.lengths, workload.learned, workload.rows) == ((40, 10), (5, 9), (1, 0))
    assert (workload.num_rows, workload.num_steps, workload.num_tokens) == (4, 3, 300)
    assert (workload.later_lengths, workload.later_learned) == ((30, 20), (5, 5))
    batch = workload.micro_batch()
    assert batch.cu_seq_lens is not None
    assert batch.cu_seq_lens.tolist() == [0, 40, 50]
    assert int((batch.labels >= 0).sum()) == 14
    assert workload.micro_batch(45).input_ids.shape == (1, 45)


def test_without_data_packs_are_full_and_nothing_else_is_known() -> None:
    workload = describe_workload(recipe_for("x", "data.max_length=50"), None)

    assert (workload.lengths, workload.learned) == ((50, 50), (49, 49))
    assert workload.later_lengths == (50, 50)
    assert (workload.num_rows, workload.num_steps, workload.num_tokens) == (None, None, None)


def test_a_step_of_one_pack_has_no_later_one() -> None:
    recipe = recipe_for(
        "x",
        *("data.max_length=50", "training.per_device_train_batch_size=2"),
        "training.gradient_accumulation_steps=1",
    )

    assert describe_workload(recipe, ROWS).later_micro_batch() is None
    assert describe_workload(recipe, None).later_micro_batch() is None


def test_a_max_length_that_no_row_meets_is_an_error() -> None:
    with pytest.raises(DataError, match=r"data.max_length=9; the shortest has 10 tokens"):
        describe_workload(recipe_for("x", "data.max_length=9"), ROWS)


def test_converted_weights_are_in_memory_in_addition_to_their_files(tiny_model_dir: Path) -> None:
    file = (tiny_model_dir / "model.safetensors").stat().st_size
    parts = Simulation(*(0,) * 6, dtype=torch.float32)

    assert converted_bytes(recipe_for(tiny_model_dir), parts) is None
    assert converted_bytes(recipe_for(tiny_model_dir, "model.compute=int8"), parts) == file
    memory = Memory(100, 400, 10, 10, 20, activations=50, proof=40, loading=600)
    assert (memory.required, memory.peak) == (590, 700)
    assert Memory(100, 400, 10, 10, 20, activations=50, proof=80, loading=0).peak == 610


def test_int8_and_nf4_hold_one_file_at_a_time_and_8_bits_all(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    load_model(tiny_model_dir).save_pretrained(tmp_path, max_shard_size="300KB")
    sizes = [file.stat().st_size for file in tmp_path.glob("*.safetensors")]
    parts = Simulation(*(0,) * 6, dtype=torch.float32)
    qlora = "adapter.method=qlora"

    assert len(sizes) > 1
    assert converted_bytes(recipe_for(tmp_path, "model.compute=int8"), parts) == max(sizes)
    assert converted_bytes(recipe_for(tmp_path, qlora), parts) == max(sizes)
    eight = recipe_for(tmp_path, qlora, "adapter.quantization_bit=8")
    assert converted_bytes(eight, parts) == sum(sizes)


def test_the_changes_that_make_it_fit_are_listed_with_their_bytes(tiny_model_dir: Path) -> None:
    recipe = recipe_for(tiny_model_dir, "data.max_length=256", "model.dtype=bfloat16")
    estimator = MemoryEstimator(None, GPU, base=0)
    full = estimator.estimate(recipe).memory.required

    assert make_target("here", full, estimator, recipe).fits
    recomputed = make_target("here", full - 1, estimator, recipe)
    assert recomputed.fits
    assert recomputed.recomputes, "a run on a GPU does so where not even the least packs fit"
    changes = ["training.gradient_checkpointing=true"]
    least = estimator.estimate(build_recipe(recipe.model_dump(mode="json"), changes))
    target = make_target("here", least.memory.required - 1, estimator, recipe)
    assert not target.fits
    assert target.would_fit
    [change] = target.changes
    assert change.overrides == (
        "training.per_device_train_batch_size=1",
        "training.gradient_accumulation_steps=32",  # 2 x 16 rows a step, as before
    )
    smaller = build_recipe(recipe.model_dump(mode="json"), change.overrides)
    capacity = least.memory.required - 1
    assert change.required == estimator.estimate(smaller, capacity).memory.required
    hopeless = make_target("here", 1000, estimator, recipe)
    assert not hopeless.would_fit
    needed = [hopeless.memory.required, *(change.required for change in hopeless.changes)]
    assert needed == sorted(needed, reverse=True)
    assert len(needed) > 2


def test_a_gpu_gets_the_packs_that_a_run_on_it_would_choose(tiny_model_dir: Path) -> None:
    recipe = recipe_for(tiny_model_dir, "data.max_length=64", "model.dtype=bfloat16")
    estimator = MemoryEstimator(None, GPU, base=0)
    least = estimator.estimate(recipe)
    in_step = 64 * 32

    ample = estimator.estimate(recipe, 10**12)
    assert (least.workload.max_tokens, ample.workload.max_tokens) == (128, in_step)
    assert ample.memory.activations > 10 * least.memory.activations
    assert not ample.recomputes
    capacity = (least.memory.required + ample.memory.required) // 2
    some = estimator.estimate(recipe, capacity)
    assert 128 < some.workload.max_tokens < in_step
    assert least.memory.required < some.memory.required <= capacity
    in_order = build_recipe(
        recipe.model_dump(mode="json"), ["training.average=micro_batches"]
    )  # whose packs are given
    assert estimator.estimate(in_order, 10**12).workload.max_tokens == 128


def test_changes_that_affect_the_result_come_last() -> None:
    recipe = recipe_for("x", "data.max_length=512")

    assert [overrides[-1] for overrides in memory_saving_changes(recipe, CPU)] == [
        "training.gradient_accumulation_steps=32",
        "training.gradient_checkpointing=true",
        "model.dtype=bfloat16",
        "model.compute=int8",
        "data.max_length=256",
        "data.max_length=128",
    ]
    full = recipe_for("x", "adapter.method=full", "training.per_device_train_batch_size=1")
    assert [overrides[-1] for overrides in memory_saving_changes(full, GPU)][:2] == [
        "training.gradient_checkpointing=true",
        "adapter.method=lora",
    ]


def test_sharded_weights_are_not_supported(tiny_model_dir: Path) -> None:
    tree = {"model": {"name_or_path": str(tiny_model_dir)}, "data": {"train": "rows.json"}}
    recipe = build_recipe(tree | {"output": {"dir": "out"}}, ["training.sharding=fsdp2"])

    with pytest.raises(RecipeError, match=r"does not support training\.sharding and training\."):
        make_plan(recipe)


def test_a_pair_is_two_examples() -> None:
    recipe = recipe_for("x", "stage=dpo", "data.max_length=50")

    workload = describe_workload(recipe, None)

    assert workload.lengths == (50,) * 4  # a batch of 2
    assert workload.max_tokens == 200
    assert workload.step_tokens == 32 * 100


@pytest.mark.parametrize("length", ["max_steps=1000000000", "num_train_epochs=100000"])
def test_the_plan_of_an_endless_run_is_made_in_seconds(length: str) -> None:
    recipe = recipe_for(
        "x",
        *("data.max_length=50", "training.per_device_train_batch_size=1"),
        *("training.gradient_accumulation_steps=4", f"training.{length}"),
    )

    workload = describe_workload(recipe, ROWS)

    assert workload.num_steps is not None
    assert workload.num_steps >= 100_000
    assert workload.num_tokens == 100 * workload.num_steps
    assert workload.lengths == (40, 10)


def test_a_full_pack_that_would_fill_the_memory_with_its_length_is_refused() -> None:
    recipe = recipe_for("x", "max_length=2000000", "per_device_train_batch_size=65536")

    with pytest.raises(RecipeError, match=r"a full pack has 131,072,000,000 tokens: .* Lower one"):
        describe_workload(recipe, None)
    assert describe_workload(recipe, ROWS).num_rows == 4


def test_a_card_without_fp8_is_refused_as_the_run_on_it_would_be(tiny_model_dir: Path) -> None:
    recipe = recipe_for(tiny_model_dir, "model.compute=fp8")

    with pytest.raises(RecipeError, match=r"3090 has no fp8.*Use model\.compute=int8"):
        make_plan(recipe, ["4090", "3090"])
