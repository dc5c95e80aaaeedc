"""GPUs by name: their memory, and how fast they train, with where each figure comes from.

    measured     here, by benchmarks/gpu.py
    published    by others, for models of 7 and 8 billion weights
    expected     from the peak that NVIDIA states; nobody has run it

A rate counts the operations of all matrix products of a step, recomputed ones included, so that it
holds for other models and methods. The table in docs/scaling.md is this one:

    python -m glmtune.train.plan.cards
"""

import re
from dataclasses import dataclass
from typing import Literal

from glmtune.errors import RecipeError
from glmtune.units import GIB

Basis = Literal["measured", "published", "expected"]

EXPECTED_SHARE = 0.45  # of the peak; the H200 reached 0.58
LAUNCH_SECONDS = 0.0037  # the least for a layer and pack, both ways, by the host of an H200
# Times bfloat16, measured on an H200 in packs of 8,192; torchtune published 0.78 for NF4 on a 4090.
NF4_SPEED, INT8_SPEED, FP8_SPEED = 0.95, 1.25, 1.46


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU.

    Attributes:
        name: as `--device` takes it.
        memory_gib: what CUDA reports as its whole memory, about.
        peak_tflops: of 16-bit products with sums in float32, dense, as NVIDIA states it.
        trained_tflops: reached in training; None where only the peak is known.
        basis: where `trained_tflops` comes from.
        source: of it.
        has_bfloat16: whether it computes in bfloat16 at that speed.
        has_fp8: whether `model.compute=fp8` runs on it: compute capability 8.9 and later.
    """

    name: str
    memory_gib: float
    peak_tflops: float
    trained_tflops: float | None = None
    basis: Basis = "expected"
    source: str = ""
    has_bfloat16: bool = True
    has_fp8: bool = False

    @property
    def memory_bytes(self) -> int:
        """Its whole memory."""
        return round(self.memory_gib * GIB)

    @property
    def rate(self) -> float:
        """Operations of products in a second of training."""
        reached = self.trained_tflops or EXPECTED_SHARE * self.peak_tflops
        return reached * 1e12


TORCHTUNE = "torchtune, Llama-3.1-8B, LoRA, packs of 2,048: 3,083 tokens/s with recomputation"
LLAMA_FACTORY = "LLaMA-Factory with Unsloth, LLaMA-2-7B, LoRA r 8: 4,007 tokens/s"
AUTOMODEL = "NeMo Automodel, Llama-3-8B, LoRA r 16: 12,473 tokens/s"
OURS = "28 November 2026, LoRA r 8 on query_key_value, packs of 8,192: 23,200 tokens/s"

CARDS = (
    Card("2080Ti", 10.8, 53.8, has_bfloat16=False),
    Card("3060-12", 11.8, 25.6),
    Card("3080-10", 9.8, 59.5),
    Card("3090", 23.7, 71.0),
    Card("4060Ti-16", 15.6, 44.1, has_fp8=True),
    Card("4080", 15.6, 97.5, has_fp8=True),
    Card("4090", 23.6, 165.2, 148.0, "published", TORCHTUNE, has_fp8=True),
    Card("5090", 31.4, 209.5, has_fp8=True),
    Card("T4", 14.6, 65.0, has_bfloat16=False),
    Card("V100", 15.8, 125.0, has_bfloat16=False),
    Card("V100-32", 31.7, 125.0, has_bfloat16=False),
    Card("A10", 22.1, 125.0),
    Card("A40", 44.4, 149.7),
    Card("A6000", 47.5, 154.8),
    Card("L4", 22.0, 121.0, has_fp8=True),
    Card("L40S", 44.4, 362.0, has_fp8=True),
    Card("A100", 39.4, 312.0, 108.0, "published", LLAMA_FACTORY),
    Card("A100-80", 79.1, 312.0, 108.0, "published", LLAMA_FACTORY),
    Card("H100", 79.1, 989.0, 402.0, "published", AUTOMODEL, has_fp8=True),
    Card("H200", 139.8, 989.0, 578.0, "measured", OURS, has_fp8=True),
)

_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(GB|GiB)", re.IGNORECASE)
_BARE_SIZE = re.compile(r"\d{1,3}(?:\.\d{1,9})?")  # GB; the name of a card has four digits
_BRANDS = re.compile(r"nvidia|geforce|tesla|rtx|quadro|sxm\d?|pcie|hbm\d?e?|[\s_-]|gb")


def find_card(text: str) -> Card | None:
    """Return the card of a name, as people and drivers spell it; None for a size such as 24GB.

    Raises:
        RecipeError: it is neither a known card nor a size.
    """
    if _SIZE.fullmatch(text) or _BARE_SIZE.fullmatch(text):
        return None
    cards = {_plain(card.name): card for card in CARDS}
    plain = _plain(text)
    if plain in cards:
        return cards[plain]
    for card in CARDS:  # "A100 40GB", "H100-80": the memory that it has anyway
        rest = plain.removeprefix(_plain(card.name))
        if rest != plain and rest.isdecimal() and 0 <= int(rest) - card.memory_gib < 2:
            return card
    raise RecipeError(
        f"--device {text!r}: expected a size of memory, such as 24GB, or one of "
        f"{', '.join(card.name for card in CARDS)}."
    )


def _plain(name: str) -> str:
    return _BRANDS.sub("", name.lower())


def parse_size(text: str) -> int:
    """Convert a size such as "24GB" to bytes.

    Raises:
        RecipeError: the text is not a size.
    """
    match = _SIZE.fullmatch(text) or _SIZE.fullmatch(f"{text}GB")
    if match is None:
        raise RecipeError(f"--device {text!r}: expected a size of memory, such as 24GB.")
    unit = GIB if match[2].lower() == "gib" else 10**9
    return int(float(match[1]) * unit)


def table() -> str:
    """Write the cards as a table for docs/scaling.md."""
    lines = [
        "| `--device` | GiB | peak, TFLOP/s | trains at | | source |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    lines += [
        f"| {card.name} | {card.memory_gib:g} | {card.peak_tflops:g} | {card.rate / 1e12:.0f} "
        f"| {card.basis} | {card.source}{'' if card.has_bfloat16 else 'no bfloat16'} |"
        for card in CARDS
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
