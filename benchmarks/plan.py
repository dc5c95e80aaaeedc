"""The error of `glmtune plan` against the memory and time of `glmtune train`.

    python -m benchmarks.plan TOKENIZER_FOLDER ROWS.json [--only WORDS] [--folder FOLDER]

For each configuration a model with random weights is written, planned for and trained for two
steps, each in a process of its own. Memory is the peak resident size of the whole training
process, from its start to its report. Time is that of a token, from `plan` and from the steps of
`plan --probe`. The 6B slices take up to 10 GB of memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MIB = 2**20
NANO = {"hidden_size": 512, "ffn_hidden_size": 1376, "num_attention_heads": 8, "kv_channels": 64}
CHECKPOINTING = "training.gradient_checkpointing=true"
ONE_ROW = "training.per_device_train_batch_size=1"
ALL = "adapter.target_modules=[query_key_value,dense,dense_h_to_4h,dense_4h_to_h]"
CONFIGURATIONS: dict[str, tuple[str, list[str]]] = {  # model, and what of the recipe differs
    "nano, float32": ("nano", []),
    "nano, float32, checkpointing": ("nano", [CHECKPOINTING]),
    "nano, float32, packs of one row": ("nano", [ONE_ROW]),
    "nano, bfloat16": ("nano", ["model.dtype=bfloat16"]),
    "nano, full": ("nano", ["adapter.method=full"]),
    "nano, freeze 2": ("nano", ["adapter.method=freeze", "adapter.trainable_layers=2"]),
    "2 layers of 6B, bfloat16": ("2", []),
    "2 layers, bfloat16, all matrices": ("2", [ALL, "adapter.r=64"]),
    "2 layers, bfloat16, checkpointing": ("2", [CHECKPOINTING]),
    "2 layers, bfloat16, packs of one row": ("2", [ONE_ROW]),
    "2 layers, int8": ("2", ["model.compute=int8"]),
    "2 layers, NF4": ("2", ["adapter.method=qlora"]),
    "2 layers, float32": ("2", ["model.dtype=float32"]),
    "4 layers of 6B, bfloat16": ("4", []),
    "4 layers, bfloat16, checkpointing": ("4", [CHECKPOINTING]),
    "4 layers, bfloat16, max_length 1024": ("4", ["data.max_length=1024"]),
    "4 layers, float32, checkpointing": ("4", ["model.dtype=float32", CHECKPOINTING]),
}
HEADER = (
    "| configuration | tokens | predicted MiB | measured MiB | off "
    "| predicted ms/token | measured ms/token | off |\n| --- |" + " ---: |" * 7
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path, help="folder of ChatGLM3's tokenizer")
    parser.add_argument("rows", type=Path, help="alpaca rows; the first 60 are used")
    parser.add_argument("--only", default="", help="configurations with this in their name")
    parser.add_argument("--folder", type=Path, help="where models are written, and are kept")
    arguments = parser.parse_args()
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        for name in CONFIGURATIONS:
            if arguments.only in name:
                print(compare(name, arguments, arguments.folder or Path(folder)), flush=True)


def compare(name: str, arguments: argparse.Namespace, folder: Path) -> str:
    """Plan for a configuration and train it; give a line of the table."""
    which, changes = CONFIGURATIONS[name]
    model = folder / f"model-{which}"
    if not model.is_dir():
        write_model(which, model, arguments.tokenizer)
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_of(model, arguments.rows.resolve(), folder)))
    planned = run(["plan", str(recipe), "--json", "--probe", *changes], folder)
    plan = json.loads(planned[0])
    predicted = plan["targets"][0]["memory"]["peak"] / MIB
    measured = run(["train", str(recipe), *changes], folder)[1] / MIB
    tokens = sum(plan["workload"]["lengths"])
    planned_ms = 1000 * plan["pack_seconds"] / tokens
    took = 1000 / plan["probe"]["tokens_per_second"]
    return (
        f"| {name} | {tokens} | {predicted:,.0f} | {measured:,.0f} "
        f"| {off(predicted, measured)} | {planned_ms:.2f} | {took:.2f} | {off(planned_ms, took)} |"
    )


def off(predicted: float, measured: float) -> str:
    return f"{100 * (predicted / measured - 1):+.0f} %"


def run(arguments: list[str], folder: Path) -> tuple[str, int]:
    """Run glmtune to its end; give what it printed, and its peak resident size in bytes."""
    environment = {**os.environ, "GLMTUNE_CACHE": str(folder / "cache")}
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        command = [sys.executable, "-m", "glmtune", "-q", *arguments]
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(arguments)}\n{(folder / 'stderr').read_text()}")
    return (folder / "stdout").read_text(), usage.ru_maxrss * 1024  # Linux counts in KiB


def recipe_of(model: Path, rows: Path, folder: Path) -> dict[str, Any]:
    return {
        "model": {"name_or_path": str(model)},
        "data": {"train": f"{rows}#60", "max_length": 256},
        "training": {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 2,
            "use_cpu": True,
        },
        "checks": {"max_new_tokens": 4},
        "output": {"dir": str(folder / "out"), "overwrite": True},
    }


def write_model(which: str, folder: Path, tokenizer: Path) -> None:
    """Write random weights, in a process of its own so that they do not count."""
    program = [sys.executable, "-c", WRITE_NANO, str(folder), str(tokenizer), json.dumps(NANO)]
    if which != "nano":
        program = [sys.executable, "-m", "benchmarks.checkpoint", str(folder), str(tokenizer)]
        program += ["--layers", which]
    subprocess.run(program, check=True)


WRITE_NANO = """
import json, sys
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.model.load import load_tokenizer
folder, tokenizer, shape = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
heads = {"multi_query_attention": True, "multi_query_group_num": 2, "add_qkv_bias": True}
model = ChatGLMForConditionalGeneration(ChatGLMConfig(num_layers=8, **heads, **shape))
model.save_pretrained(folder)
load_tokenizer(tokenizer).save_pretrained(folder)
"""


if __name__ == "__main__":
    main()
