"""Noise on the vectors of tokens while training, so that answers are not learned word for word.

Uniform in [-1, 1], times alpha / sqrt(length * width of the model). The length is that of each
example, not of the pack that it lies in. It is drawn from torch's own generator, so a run that was
resumed sees the noise that it would have seen.

Source: NEFTune, https://arxiv.org/abs/2310.05914.
"""

from typing import Any

import torch
from torch import Tensor, nn


def add_noise(model: nn.Module, alpha: float) -> None:
    """Let a model see its tokens with noise, in training mode only.

    Args:
        model: a causal language model of transformers, with an adapter over it or not; it is
            given packs.
        alpha: how much; 5 is usual.
    """
    giver: Any = model
    embeddings = giver.get_input_embeddings()

    def with_noise(
        _: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not model.training:
            return args, given
        vectors = embeddings(given["input_ids"])  # (1, seq, hidden)
        lengths = given["cu_seq_lens_q"].diff()
        largest = noise_of(lengths, vectors.shape[-1], alpha).to(vectors.dtype)  # (seq,)
        noise = torch.empty_like(vectors).uniform_(-1, 1) * largest[:, None]
        rest = {name: value for name, value in given.items() if name != "input_ids"}
        return args, rest | {"inputs_embeds": vectors + noise}

    model.register_forward_pre_hook(with_noise, with_kwargs=True)


def noise_of(lengths: Tensor, hidden: int, alpha: float) -> Tensor:
    """Give the largest noise of every token of a pack: float32, (seq,)."""
    return torch.repeat_interleave(alpha / (lengths * hidden).float().sqrt(), lengths)
