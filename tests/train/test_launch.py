"""Several processes: the same run as one, with one log, one folder and one error."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from glmtune.errors import RecipeError
from glmtune.recipe.reading import build_recipe
from glmtune.train.engines.deepspeed import read_file
from glmtune.train.run import fine_tune

PLACES = [("广州", "广东"), ("杭州", "浙江"), ("成都", "四川"), ("西安", "陕西"), ("昆明", "云南")]
ROWS = [
    {"instruction": f"{city}在哪里", "input": "", "output": f"{city}在{region}。" * (1 + index % 3)}
    for index, (city, region) in enumerate(PLACES + PLACES[:4])
]  # 9 rows: the second step of 8 has one, so that of two processes one has none


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    tree = {
        "model": {"name_or_path": str(tiny_model_dir), "dtype": "float32"},
        "data": {"train": str(rows), "eval": f"{rows}#3", "max_length": 90},
        "adapter": {"r": 4},
        "training": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
            "num_train_epochs": 2,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": None,
            "load_best_model_at_end": False,
            "use_cpu": True,
        },
        "checks": {"stop_prompts": 0, "max_new_tokens": 2},
        "output": {"dir": str(tmp_path / "two"), "report_to": "none"},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glmtune", "train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def measured(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "eval_loss", "learning_rate", "grad_norm")
    return [{key: line[key] for key in kept if key in line} for line in lines]


def test_two_processes_learn_what_one_learns(recipe: Path, tmp_path: Path) -> None:
    one = train(
        str(recipe), f"output.dir={tmp_path / 'one'}", "training.gradient_accumulation_steps=8"
    )
    two = train(str(recipe), "--nproc", "2")

    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    alone, together = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert [line["step"] for line in together] == [line["step"] for line in alone]
    for mine, theirs in zip(alone, together, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    weights = load_file(tmp_path / "one" / "adapter_model.safetensors")
    others = load_file(tmp_path / "two" / "adapter_model.safetensors")
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=2e-4)
    assert two.stdout.count("Adapter after 4 steps") == 1
    assert two.stderr.count("step 4/4") == one.stderr.count("step 4/4")


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["null", "fsdp2"])
def test_a_process_that_never_gets_a_row_keeps_the_others_company(
    recipe: Path, tmp_path: Path, sharding: str
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(ROWS[:1], ensure_ascii=False), encoding="utf-8")  # held out too

    one = train(str(recipe), f"output.dir={tmp_path / 'one'}")
    two = train(str(recipe), "--nproc", "2", f"training.sharding={sharding}")

    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    for mine, theirs in zip(measured(tmp_path / "one"), measured(tmp_path / "two"), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)


@pytest.mark.slow
def test_two_processes_resume_where_they_stopped(recipe: Path, tmp_path: Path) -> None:
    general = tmp_path / "general.jsonl"
    general.write_text('{"prompt": "一加一", "response": "二。"}\n' * 3, encoding="utf-8")
    replay = f"data.replay={{path: {general}, ratio: 0.1}}"
    options = [str(recipe), "--nproc", "2", "adapter.lora_dropout=0.3", replay]
    whole = train(*options, f"output.dir={tmp_path / 'whole'}")
    begun = train(*options)
    assert whole.returncode == begun.returncode == 0, whole.stderr + begun.stderr
    for name in ("checkpoint-4", "checkpoint-3"):
        shutil.rmtree(tmp_path / "two" / name)

    resumed = train(*options, "--resume")

    assert resumed.returncode == 0, resumed.stderr
    assert "at step 2 of 4" in resumed.stderr
    assert measured(tmp_path / "two") == measured(tmp_path / "whole")
    name = "adapter_model.safetensors"
    assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    refused = train(str(recipe), "adapter.lora_dropout=0.3", replay, "--resume")

    assert refused.returncode == 1
    assert "processes (was 2, now 1)" in refused.stderr


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_of_all_processes(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "glmtune", "train", str(recipe), "--nproc", "2"]
    process = subprocess.Popen(
        [*command, "training.num_train_epochs=500", "training.save_strategy=no"],
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "two" / "metrics.jsonl"
    for _ in range(2400):
        if process.poll() is not None or (metrics.is_file() and metrics.read_text()):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=200)

    assert process.returncode == 130, errors
    [folder] = (tmp_path / "two").glob("checkpoint-*")
    states = torch.load(folder / "rng_state.pth", weights_only=True)
    assert len(states) == 2


@pytest.mark.slow
def test_the_process_that_fails_first_is_the_one_heard(recipe: Path) -> None:
    failed = train(str(recipe), "--nproc", "2", "adapter.target_modules=nothing")

    assert failed.returncode == 1
    assert failed.stderr.count("error: adapter.target_modules names nothing") == 1
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_a_bug_in_one_process_is_told_with_its_traceback(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import glmtune.data.packing as packing\n"
        "    def pack(examples): raise ZeroDivisionError('planted')\n"
        "    packing.pack = pack\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(broken), prepend=os.pathsep)

    failed = train(str(recipe), "--nproc", "2")

    assert failed.returncode == 1
    assert "rank 1 failed first" in failed.stderr
    assert "ZeroDivisionError: planted" in failed.stderr


@pytest.mark.slow
def test_two_processes_that_train_nothing_measure_what_one_measures(
    recipe: Path, tmp_path: Path
) -> None:
    options = ["training.max_steps=1", "training.save_strategy=no"]
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    recipe.write_text(yaml.safe_dump({**tree, "adapter": {"method": "none"}}), encoding="utf-8")
    one = train(str(recipe), *options, f"output.dir={tmp_path / 'one'}")
    two = train(str(recipe), *options, "--nproc", "2")

    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    [alone], [together] = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert together["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_dealt_out_weights_learn_what_one_process_learns(
    recipe: Path, tmp_path: Path, method: str
) -> None:
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    tree["adapter"] = {"lora": tree["adapter"], "full": {"method": "full"}}[method]
    tree["training"]["learning_rate"] = {"lora": 5e-3, "full": 1e-4}[method]
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    one = train(
        str(recipe), f"output.dir={tmp_path / 'one'}", "training.gradient_accumulation_steps=8"
    )
    two = train(str(recipe), "--nproc", "2", "training.sharding=fsdp2")

    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    for mine, theirs in zip(measured(tmp_path / "one"), measured(tmp_path / "two"), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    weights, others = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
    assert others.keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(others[key], weight, rtol=0, atol=2e-4)
    assert "proof: all that is trained has learned: passed" in two.stderr
    assert "proof: reloaded from disk it is the same: passed" in two.stderr


@pytest.mark.slow
def test_dealt_out_weights_resume_where_they_stopped(recipe: Path, tmp_path: Path) -> None:
    options = [str(recipe), "--nproc", "2", "training.sharding=fsdp2"]
    options += ["adapter.lora_dropout=0.3", "model.dtype=bfloat16"]
    whole = train(*options, f"output.dir={tmp_path / 'whole'}")
    begun = train(*options)
    assert whole.returncode == begun.returncode == 0, whole.stderr + begun.stderr
    for name in ("checkpoint-4", "checkpoint-3"):
        shutil.rmtree(tmp_path / "two" / name)

    resumed = train(*options, "--resume")

    assert resumed.returncode == 0, resumed.stderr
    assert "at step 2 of 4" in resumed.stderr
    assert measured(tmp_path / "two") == measured(tmp_path / "whole")
    name = "adapter_model.safetensors"
    assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_dealing_out_is_refused_where_it_cannot_work(recipe: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    tree["training"]["sharding"] = "fsdp2"
    with pytest.raises(RecipeError, match=r"and this is one\. Start more, by"):
        fine_tune(build_recipe(tree))
    for change, message in (
        (
            "adapter.method=qlora",
            "works with adapter.method=lora, full, freeze, and not with qlora",
        ),
        ("model.compute=int8", "model.compute=int8 packs them"),
        ("checks.sample_steps=5", "no process has the complete model"),
        ("training.optim=adamw_bnb_8bit", "cannot be combined"),
    ):
        with pytest.raises(RecipeError, match=message):
            build_recipe(tree, [change])


@pytest.fixture
def zero(tmp_path: Path) -> Path:
    """The configuration that LLaMA-Factory's users have, but for its stage."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    return tmp_path / "zero.json"


def write_zero(path: Path, stage: int, **more: object) -> str:
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    tree = dict.fromkeys((*auto, "gradient_clipping"), "auto") | {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False, "loss_scale": 0},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": "auto", "overlap_comm": False},
        **more,
    }
    path.write_text(json.dumps(tree), encoding="utf-8")
    return f"training.deepspeed={path}"


@pytest.mark.slow
@pytest.mark.parametrize(("method", "stage"), [("lora", 1), ("lora", 2), ("full", 2)])
def test_deepspeed_learns_what_one_process_learns(
    recipe: Path, tmp_path: Path, zero: Path, method: str, stage: int
) -> None:
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    tree["adapter"] = {"lora": tree["adapter"], "full": {"method": "full"}}[method]
    tree["training"]["learning_rate"] = {"lora": 5e-3, "full": 1e-4}[method]
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    one = train(
        str(recipe), f"output.dir={tmp_path / 'one'}", "training.gradient_accumulation_steps=8"
    )
    two = train(str(recipe), "--nproc", "2", write_zero(zero, stage))

    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    for mine, theirs in zip(measured(tmp_path / "one"), measured(tmp_path / "two"), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    weights, others = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
    assert others.keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(others[key], weight, rtol=0, atol=2e-4)
    assert "proof: all that is trained has learned: passed" in two.stderr
    assert "proof: reloaded from disk it is the same: passed" in two.stderr


@pytest.mark.slow
def test_deepspeed_resumes_where_it_stopped(recipe: Path, tmp_path: Path, zero: Path) -> None:
    options = [str(recipe), "--nproc", "2", write_zero(zero, 2)]
    options += ["adapter.lora_dropout=0.3", "model.dtype=bfloat16"]
    whole = train(*options, f"output.dir={tmp_path / 'whole'}")
    begun = train(*options)
    assert whole.returncode == begun.returncode == 0, whole.stderr + begun.stderr
    for name in ("checkpoint-4", "checkpoint-3"):
        shutil.rmtree(tmp_path / "two" / name)

    resumed = train(*options, "--resume")

    assert resumed.returncode == 0, resumed.stderr
    assert "at step 2 of 4" in resumed.stderr
    assert measured(tmp_path / "two") == measured(tmp_path / "whole")
    name = "adapter_model.safetensors"
    assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "two").glob(".*"))  # nothing half written


@pytest.mark.parametrize(
    ("stage", "more", "said"),
    [
        (0, {}, "zero_optimization.stage 0, expected 1 or 2. Without ZeRO leave"),
        (3, {}, "waits for ever where processes score answers of different length. Use "),
        (2, {"gradient_clipping": 0.5}, "sets gradient_clipping, and the recipe says that by "),
        (2, {"bf16": {"enabled": True}}, "sets bf16, and the recipe says that by training.bf16"),
        (1, {"optimizer": {"type": "AdamW"}}, "sets optimizer, and the recipe says that by"),
    ],
)
def test_a_deepspeed_file_that_contradicts_the_recipe_is_refused(
    tmp_path: Path, stage: int, more: dict[str, object], said: str
) -> None:
    write_zero(tmp_path / "zero.json", stage, **more)

    with pytest.raises(RecipeError) as caught:
        read_file(tmp_path / "zero.json")

    assert said in str(caught.value)


def test_what_is_left_of_a_deepspeed_file_goes_to_deepspeed(tmp_path: Path) -> None:
    write_zero(tmp_path / "zero.json", 2, steps_per_print=100)

    assert read_file(tmp_path / "zero.json") == {
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 2, "overlap_comm": False},
        "steps_per_print": 100,
    }


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"zero_optimization": 2}'])
def test_a_deepspeed_file_that_is_none_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "zero.json").write_text(text, encoding="utf-8")

    with pytest.raises(RecipeError, match=r"training\.deepspeed: .*zero\.json"):
        read_file(tmp_path / "zero.json")


def test_deepspeed_is_asked_for_before_anything_is_loaded(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    tree["training"]["deepspeed"] = write_zero(tmp_path / "zero.json", 2).partition("=")[2]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(RecipeError, match=r"not installed. `pip install deepspeed`, or use"):
        fine_tune(build_recipe(tree))
    with pytest.raises(RecipeError, match=r"nor with training\.fp16"):
        build_recipe(tree, ["training.fp16=true"])
