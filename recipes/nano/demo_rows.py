"""General rows for `glmtune demo`, of those that taught nano to answer.

    python recipes/nano/demo_rows.py src/glmtune/cli/demo

    general.json    learned beside the fractions, so that nano still greets
    gauge.json      asked before and after, and not learned

No answer is in both files, so what is asked is not what was just repeated. Only rows that need no
corpus are taken. Always the same files.
"""

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from zlib import crc32

from make_rows import Row, arithmetic, facts, talk

# kind of rows -> how many for general.json, how many for gauge.json
NUM_ROWS = {talk: (80, 16), arithmetic: (60, 16), facts: (140, 28)}
WORDINGS = 2  # of a question with the same answer, at most


def is_asked(row: Row) -> bool:
    """Whether a row is for the gauge, by its answer."""
    return crc32(str(row["output"]).encode()) % 4 == 0


def choose() -> tuple[list[Row], list[Row]]:
    """Draw the rows to learn and those to ask."""
    draw = random.Random(0)
    learned: list[Row] = []
    asked: list[Row] = []
    for make, (num_learned, num_asked) in NUM_ROWS.items():
        by_answer: defaultdict[object, list[Row]] = defaultdict(list)
        for question, row in {row["instruction"]: row for row in make(draw)}.items():
            if not str(question).endswith(("~", "！")):
                by_answer[row["output"]].append(row)
        rows = [
            row
            for same in by_answer.values()
            for row in draw.sample(same, min(WORDINGS, len(same)))
        ]
        draw.shuffle(rows)
        learned += [row for row in rows if not is_asked(row)][:num_learned]
        asked += [row for row in rows if is_asked(row)][:num_asked]
    draw.shuffle(learned)
    return learned, asked


def to_json(rows: list[Row]) -> str:
    """Format rows as in the files."""
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    """Read the command line and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where general.json and gauge.json go")
    folder = parser.parse_args().folder
    for name, rows in zip(("general.json", "gauge.json"), choose(), strict=True):
        (folder / name).write_text(to_json(rows), encoding="utf-8")
        print(f"{name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
