"""How fast a file of rows becomes encoded examples, beside the usual `datasets.map`.

    python -m benchmarks.data TOKENIZER_FOLDER ROWS.json [--rows 26858] [--rows 100000] ...

The rows of the file are repeated, each with its number in front, so that no text comes twice.
Each measurement is a fresh process, and its clock starts after the imports; peak memory is that
of the process, imports included. On a busy machine compare the CPU seconds, which add up what
all threads have used. The peer makes the ids and labels as the well-known tutorial
does: `build_chat_input` and the tokenizer, row by row.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure

MAX_LENGTH = 256
TUTORIAL_ROWS, MANY_ROWS = 26_858, 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path, help="folder of a ChatGLM tokenizer")
    parser.add_argument("source", type=Path, help="JSON array of alpaca rows")
    parser.add_argument("--rows", type=int, action="append", help="how many; may be repeated")
    parser.add_argument("--no-peer", action="store_true", help="leave the slow peer out")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what the fresh process does
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(take(arguments.measure, arguments.tokenizer, arguments.source)))
        return
    print(f"{'rows':>9}  {'':<14}{'seconds':>8}  {'CPU s':>8}  {'rows/s':>8}  {'peak MiB':>8}")
    for num_rows in arguments.rows or [TUTORIAL_ROWS]:
        kinds = ["imports", "encode", "encode again", *["datasets.map"] * (not arguments.no_peer)]
        for kind, result in take_turn(
            kinds, arguments.tokenizer, arguments.source, num_rows
        ).items():
            rate = "" if kind == "imports" else f"{num_rows / result['seconds']:,.0f}"
            print(
                f"{num_rows:>9,}  {kind:<14}{result['seconds']:>8.2f}  "
                f"{result['cpu_seconds']:>8.2f}  {rate:>8}  {result['peak_mib']:>8,.0f}"
            )


def measure(quick: bool, tokenizer: Path, source: Path) -> list[Figure]:
    """Encode as many rows as the tutorials have, and again, and a million."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    kinds = ["encode", "encode again"]
    turns = [
        take_turn([*kinds, "datasets.map"], tokenizer, source, TUTORIAL_ROWS)
        for _ in range(1 if quick else 3)
    ]
    for kind in turns[0]:  # the run of the middle
        ordered = sorted((turn[kind] for turn in turns), key=lambda run: run["seconds"])
        found[TUTORIAL_ROWS, kind] = ordered[len(ordered) // 2]
    if not quick:
        for kind, run in take_turn(kinds, tokenizer, source, MANY_ROWS).items():
            found[MANY_ROWS, kind] = run
    first, again = (found[TUTORIAL_ROWS, kind]["seconds"] for kind in ("encode", "encode again"))
    peer = found[TUTORIAL_ROWS, "datasets.map"]["seconds"]
    what = f"{TUTORIAL_ROWS:,} rows"
    figures = [
        Figure(
            "preparation", what, "s", first, peer, "datasets.map", limit=2.0, less_is_better=True
        ),
        Figure("preparation", f"{what}, again", "s", again, limit=0.5, less_is_better=True),
    ]
    if (MANY_ROWS, "encode") in found:
        many = found[MANY_ROWS, "encode"]
        figures += [
            Figure(
                "preparation", f"{MANY_ROWS:,} rows", "rows/s", MANY_ROWS / many["seconds"],
                TUTORIAL_ROWS / first, f"ours, {what}",
            ),
            Figure(
                "preparation", f"{MANY_ROWS:,} rows, peak memory", "MiB", many["peak_mib"],
                found[TUTORIAL_ROWS, "encode"]["peak_mib"], f"ours, {what}", less_is_better=True,
            ),
        ]  # fmt: skip
    return figures


def take_turn(
    kinds: Sequence[str], tokenizer: Path, source: Path, num_rows: int
) -> dict[str, dict[str, Any]]:
    """Measure each kind once, on a file and a cache of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        write_rows(source, num_rows, path)
        return {kind: run_fresh(kind, tokenizer, path) for kind in kinds}


def write_rows(source: Path, num_rows: int, path: Path) -> None:
    """Repeat the rows as often as needed, one at a time so that memory stays out of it."""
    rows = json.loads(source.read_text(encoding="utf-8"))
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            row = dict(rows[number % len(rows)])
            row["instruction"] = f"{number}. {row['instruction']}"
            file.write("[\n" if number == 0 else ",\n")
            file.write(json.dumps(row, ensure_ascii=False, indent=2))
        file.write("\n]\n")


def run_fresh(kind: str, tokenizer: Path, path: Path) -> dict[str, Any]:
    module = [sys.executable, "-m", "benchmarks.data"]
    command = [*module, str(tokenizer), str(path), "--measure", kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def take(kind: str, tokenizer_folder: Path, path: Path) -> dict[str, float]:
    start, cpu_start = time.perf_counter(), time.process_time()
    import datasets  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from glmtune.data.encode import EncodeOptions, encode_data
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
    from glmtune.template.chatglm import ChatGLMTemplate

    if kind != "imports":
        start, cpu_start = time.perf_counter(), time.process_time()
        tokenizer = ChatGLMTokenizer.from_pretrained(tokenizer_folder)
        cache = path.parent / "cache"
        if kind == "datasets.map":
            map_as_the_tutorial(tokenizer, path, cache)
        else:
            options = EncodeOptions(max_length=MAX_LENGTH, overlong="tutorial")
            template = ChatGLMTemplate(tokenizer, "tutorial")
            data = encode_data(path, template, options, cache_dir=cache)
            assert sum(len(example.labels) for example in islice(data, 10)) > 0
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak}


def map_as_the_tutorial(tokenizer: Any, path: Path, cache: Path) -> None:
    from datasets import load_dataset

    def process(row: dict[str, str]) -> dict[str, list[int]]:
        question = "\n".join([row["instruction"], row["input"]]).strip()
        prompt = tokenizer.build_chat_input(question, history=[], role="user")
        prompt_ids = prompt["input_ids"][0].tolist()
        answer = tokenizer("\n" + row["output"], add_special_tokens=False)["input_ids"]
        input_ids = [*prompt_ids, *answer, tokenizer.eos_token_id]
        labels = [-100] * len(prompt_ids) + input_ids[len(prompt_ids) :]
        return {
            "input_ids": input_ids[:MAX_LENGTH],
            "attention_mask": ([1] * len(input_ids))[:MAX_LENGTH],
            "labels": labels[:MAX_LENGTH],
        }

    data = load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))
    data.map(process, remove_columns=data.column_names)


if __name__ == "__main__":
    main()
