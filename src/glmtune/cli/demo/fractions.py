"""Make the rows of the demo: fractions to reduce, in `train.json` and `held_out.json`.

Each reducible fraction of small numbers is asked once, in one of a few wordings. The answer
divides by the smallest common prime factor until there is none.

    48/36 -> 48/36，除以2得24/18，除以2得12/9，除以3得4/3

Which fractions are held out depends only on their two numbers, in either order. A row whose steps
contain a held-out fraction is not learned, and the rows that nano was tuned on contain no common
divisors of these pairs.

The rows are files, so that people can read them and see the format;
`python -m glmtune.cli.demo.fractions` writes them again.
"""

import json
import random
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from zlib import crc32

TRAIN = Path(__file__).with_name("train.json")
HELD_OUT = Path(__file__).with_name("held_out.json")
# Rows that nano knows, from recipes/nano/demo_rows.py: to repeat, and to measure forgetting.
GENERAL = Path(__file__).with_name("general.json")
GAUGE = Path(__file__).with_name("gauge.json")

LARGEST = 99  # numerator and denominator
LARGEST_RESULT = 20  # numerator and denominator of the result
LARGEST_DIVISOR = 10  # greatest common divisor
WORDINGS = ("把 {} 约成最简分数。", "约分：{}", "{} 化简后是多少？", "将 {} 化为最简分数。")

Fraction = tuple[int, int]


def is_kept_from_nano(a: int, b: int) -> bool:
    """Whether nano's own rows have no common divisor of the two numbers."""
    return (min(a, b) * 31 + max(a, b) * 17) % 101 < 15


def is_held_out(a: int, b: int) -> bool:
    """Whether a pair is held out: every second of those kept from nano."""
    # A checksum has no order, so neighbors and multiples of a pair are in both sets.
    return is_kept_from_nano(a, b) and crc32(f"{min(a, b)}/{max(a, b)}".encode()) % 2 == 0


def fractions() -> Iterator[Fraction]:
    """Yield every fraction to ask; its result is not an integer."""
    for p in range(1, LARGEST_RESULT + 1):
        for q in range(2, LARGEST_RESULT + 1):
            if gcd(p, q) == 1:
                most = min(LARGEST_DIVISOR, LARGEST // max(p, q))
                yield from ((p * divisor, q * divisor) for divisor in range(2, most + 1))


def steps(a: int, b: int) -> Iterator[tuple[int, Fraction]]:
    """Divide by the smallest common prime factor until there is none."""
    divisor = 2
    while divisor <= min(a, b):
        if a % divisor or b % divisor:
            divisor += 1
        else:
            a, b = a // divisor, b // divisor
            yield divisor, (a, b)


def answer(a: int, b: int) -> str:
    """Write every step to the reduced fraction."""
    return f"{a}/{b}" + "".join(f"，除以{divisor}得{p}/{q}" for divisor, (p, q) in steps(a, b))


def rows(*, held_out: bool) -> list[dict[str, str]]:
    """Make the rows to learn, or the held-out ones."""
    draw = random.Random(0)
    made = []
    for a, b in fractions():
        wording = draw.choice(WORDINGS)
        passed = [(a, b), *(fraction for _, fraction in steps(a, b))][:-1]  # the last is reduced
        if is_held_out(a, b) if held_out else not any(is_held_out(*each) for each in passed):
            made.append(
                {"instruction": wording.format(f"{a}/{b}"), "input": "", "output": answer(a, b)}
            )
    draw.shuffle(made)
    return made


def to_json(made: list[dict[str, str]]) -> str:
    """Format rows as in the files."""
    return json.dumps(made, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    TRAIN.write_text(to_json(rows(held_out=False)), encoding="utf-8")
    HELD_OUT.write_text(to_json(rows(held_out=True)), encoding="utf-8")
