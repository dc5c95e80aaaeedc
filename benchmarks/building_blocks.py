"""Our blocks of the decoder beside transformers' GLM blocks and torch's own, at the 6B width.

    python -m benchmarks.building_blocks --dtype float32 --seq 512 --rounds 15

One line per block: median milliseconds of forward and backward, interleaved so that a busy
machine slows all alike; the ratio to ours; and the largest difference of the output in
bfloat16, where the order of rounding shows.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import GlmConfig
from transformers.models.glm.modeling_glm import GlmMLP, GlmRMSNorm, apply_rotary_pos_emb

from glmtune.kernels.rotary import rotate_pairs
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import (
    ChatGLMMLP,
    ChatGLMRMSNorm,
    ChatGLMRotaryEmbedding,
)

HIDDEN, HEADS, HEAD_DIM, EPSILON = 4096, 32, 128, 1e-5
Block = Callable[[Tensor], Tensor]


class NormInSteps(ChatGLMRMSNorm):
    """The same norm spelled out, as the original has it."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise (..., hidden)."""
        x = hidden_states.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight * x).to(hidden_states.dtype)


def norms() -> dict[str, Block]:
    ours, theirs = ChatGLMRMSNorm(HIDDEN, eps=EPSILON), GlmRMSNorm(HIDDEN, eps=EPSILON)
    in_steps = NormInSteps(HIDDEN, eps=EPSILON)
    nn.init.normal_(ours.weight, mean=1, std=0.1)
    theirs.load_state_dict(ours.state_dict())
    in_steps.load_state_dict(ours.state_dict())
    return {"ours": ours, "transformers": theirs, "in steps": in_steps}


def rotations(seq: int) -> dict[str, Block]:
    rotary = ChatGLMRotaryEmbedding(ChatGLMConfig())

    def ours(x: Tensor) -> Tensor:
        cos, sin = rotary(torch.arange(seq)[None], x.dtype)
        return rotate_pairs(x, cos, sin)

    def theirs(x: Tensor) -> Tensor:
        cos, sin = rotary(torch.arange(seq)[None], x.dtype)
        doubled = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
        return apply_rotary_pos_emb(x, x[:, :1], *doubled)[0]

    return {"ours": ours, "transformers": theirs}


def mlps() -> dict[str, Block]:
    ours = ChatGLMMLP(ChatGLMConfig())
    theirs = GlmMLP(GlmConfig(hidden_size=HIDDEN, intermediate_size=13696))
    theirs.gate_up_proj, theirs.down_proj = ours.dense_h_to_4h, ours.dense_4h_to_h
    return {"ours": ours, "transformers": theirs}


def milliseconds(block: Block, x: Tensor) -> float:
    start = time.perf_counter()
    block(x).sum().backward()
    return 1e3 * (time.perf_counter() - start)


def difference(block: Block, reference: Block, x: Tensor) -> float:
    """Give the largest difference of two blocks in bfloat16."""
    blocks = [copy.deepcopy(block), copy.deepcopy(reference)]
    for module in blocks:
        if isinstance(module, nn.Module):
            module.bfloat16()
    with torch.no_grad():
        one, other = (block(x.bfloat16()).float() for block in blocks)
    return (one - other).abs().max().item()


def compare(name: str, blocks: dict[str, Block], x: Tensor, rounds: int) -> None:
    times: dict[str, list[float]] = {label: [] for label in blocks}
    for turn in range(rounds + 2):  # the first two warm up
        for label, block in blocks.items():
            taken = milliseconds(block, x.clone().requires_grad_())
            if turn >= 2:
                times[label].append(taken)
    medians = {label: statistics.median(values) for label, values in times.items()}
    for label, median in medians.items():
        apart = difference(blocks[label], blocks["ours"], x)
        ratio = median / medians["ours"]
        print(f"{name:10} {label:13} {median:9.2f} ms  x{ratio:5.2f}  bf16 differs by {apart:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    torch.set_default_dtype(dtype)
    hidden = torch.randn(1, options.seq, HIDDEN)
    heads = torch.randn(1, HEADS, options.seq, HEAD_DIM)
    print(f"{options.dtype}, {options.seq} tokens, {torch.get_num_threads()} threads")
    compare("RMSNorm", norms(), hidden, options.rounds)
    compare("rotation", rotations(options.seq), heads, options.rounds)
    compare("MLP", mlps(), hidden, max(2, options.rounds // 5))


if __name__ == "__main__":
    main()
