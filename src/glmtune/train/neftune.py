"""Noise on token embeddings while training (NEFTune), so that answers are not learned verbatim.

The noise is uniform in [-1, 1], times alpha / sqrt(length * hidden size). The length is that of
each example, not of its pack. It is drawn from torch's default generator, so a resumed run sees the
same noise as one that was not interrupted.

Source: NEFTune, https://arxiv.org/abs/2310.05914.
"""

from typing import Any

import torch
from torch import Tensor, nn


def add_noise(model: nn.Module, alpha: float) -> None:
    """Add noise to the token embeddings of a model, in training mode only.

    Args:
        model: a causal language model of transformers, with or without an adapter; its inputs
            are packs.
        alpha: the scale; 5 is usual.
    """
    with_embeddings: Any = model
    embeddings = with_embeddings.get_input_embeddings()

    def with_noise(
        _: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not model.training:
            return args, given
        vectors = embeddings(given["input_ids"])  # (1, seq, hidden)
        lengths = given["cu_seq_lens_q"].diff()
        seq, hidden = vectors.shape[1:]
        largest = noise_of(lengths, seq, hidden, alpha).to(vectors.dtype)  # (seq,)
        noise = torch.empty_like(vectors).uniform_(-1, 1) * largest[:, None]
        rest = {name: value for name, value in given.items() if name != "input_ids"}
        return args, rest | {"inputs_embeds": vectors + noise}

    model.register_forward_pre_hook(with_noise, with_kwargs=True)


def noise_of(lengths: Tensor, seq: int, hidden: int, alpha: float) -> Tensor:
    """Return the largest noise of each token of a pack: float32, (seq,)."""
    of_example = alpha / (lengths * hidden).float().sqrt()
    return torch.repeat_interleave(of_example, lengths, output_size=seq)
