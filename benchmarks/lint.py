"""How long it takes to look through a data set before training.

    python benchmarks/lint.py TOKENIZER_FOLDER ROWS.json [--rows 100000]

Most rows are new ones: their sentences are drawn from all rows of the file, as many as a real row
has. One in ten repeats an earlier row, half of these with one word changed. The measurement is a
fresh process whose clock starts after the imports; on a busy machine compare the CPU seconds,
which add up what all threads have used.
"""

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MAX_LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path, help="folder of a tokenizer")
    parser.add_argument("source", type=Path, help="JSON array of alpaca rows")
    parser.add_argument("--rows", type=int, action="append", help="how many; may be repeated")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what the fresh process does
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.tokenizer, arguments.source)))
        return
    print(f"{'rows':>9}  {'':<16}{'seconds':>8}  {'CPU s':>7}  {'peak MiB':>8}  found")
    for num_rows in arguments.rows or [100_000]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            write_rows(arguments.source, num_rows, path)
            for kind in ("without a model", "with tokens"):
                command = [sys.executable, __file__, str(arguments.tokenizer), str(path)]
                done = subprocess.run(
                    [*command, "--measure", kind], check=True, capture_output=True, text=True
                )
                result = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"{num_rows:>9,}  {kind:<16}{result['seconds']:>8.1f}  "
                    f"{result['cpu_seconds']:>7.1f}  {result['peak_mib']:>8,.0f}  "
                    f"{result['found']}"
                )


def write_rows(source: Path, num_rows: int, path: Path) -> None:
    rows = json.loads(source.read_text(encoding="utf-8"))
    sentences = [s for row in rows for s in re.findall(r"[^。\n]+[。\n]?", row["output"])]
    chance = random.Random(0)
    written: list[dict[str, str]] = []
    for number in range(num_rows):
        if number % 10 == 9:
            row = dict(chance.choice(written))
            if number % 20 == 9:
                row["output"] += "好"
        else:
            like = rows[number % len(rows)]
            row = {
                "instruction": f"{like['instruction']} {chance.choice(sentences)}",
                "input": like["input"],
                "output": "".join(chance.sample(sentences, like["output"].count("。") + 1)),
            }
        written.append(row)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in written)
    path.write_text("".join(lines), encoding="utf-8")


def measure(kind: str, tokenizer: Path, path: Path) -> dict[str, Any]:
    from glmtune.data.lint.run import lint_data
    from glmtune.model.load import load_tokenizer
    from glmtune.recipe.sections import DataSection
    from glmtune.template.select import template_for

    start, cpu_start = time.perf_counter(), time.process_time()
    data = DataSection(train=(str(path),), max_length=MAX_LENGTH)
    template = template_for(load_tokenizer(str(tokenizer))) if kind == "with tokens" else None
    report = lint_data(data, template)
    report.to_json()
    found = {check: sum(counts.values()) for check, counts in report.counts().items()}
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "found": {check: count for check, count in found.items() if count},
    }


if __name__ == "__main__":
    main()
