"""Recognize that memory has run out, and say which key of the recipe helps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from glmtune.data.batches import MicroBatch
from glmtune.recipe.recipe import RunRecipe


class OutOfMemory(Exception):  # noqa: N818  # the step may be taken again
    """A pack did not fit into memory.

    Attributes:
        part: the pack; on the CPU.
    """

    def __init__(self, part: MicroBatch, reason: str) -> None:
        super().__init__(reason)
        self.part = part


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory has run out, of a GPU or of the machine."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


@contextmanager
def recognized(part: MicroBatch) -> Iterator[None]:
    """Turn what torch raises where memory runs out into `OutOfMemory`.

    Args:
        part: that is being computed.
    """
    reason = None
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = f"there is not enough memory ({str(error).splitlines()[0].rstrip('.')})"
    if reason is not None:  # out of the handler, whose traceback keeps tensors
        raise OutOfMemory(part, reason)


def _can_offload(recipe: RunRecipe) -> bool:
    section = recipe.training
    return torch.cuda.is_available() and not section.use_cpu and section.sharded_by is None


def memory_advice(recipe: RunRecipe, num_rows: int) -> str:
    """Say which keys lower the memory of a pack.

    Args:
        recipe: of the run.
        num_rows: of the pack.
    """
    section = recipe.training
    advice = []
    if not section.gradient_checkpointing:
        advice.append("set training.gradient_checkpointing=true")
    elif section.gradient_checkpointing != "offload" and _can_offload(recipe):
        advice.append("set training.gradient_checkpointing=offload")
    if num_rows > 1 and section.per_device_train_batch_size > 1:
        half = section.per_device_train_batch_size // 2
        steps = section.per_device_train_batch_size * section.gradient_accumulation_steps // half
        advice.append(
            f"set training.per_device_train_batch_size={half} and "
            f"gradient_accumulation_steps={steps}"
        )
    advice.append(f"lower data.max_length ({recipe.data.max_length:,})")
    text = ", or ".join(advice)
    return f"{text[0].upper()}{text[1:]}."
