"""A seed -> a small ChatGLM3 checkpoint with random weights, in the layout of the published one.

    config.json              the original field names
    model.safetensors        the original tensor names
    tokenizer.model          SentencePiece pieces learned on the spot, by ChatGLM's settings
    tokenizer_config.json

It knows nothing: whatever the tuned model can do, it has learned from the rows through LoRA.
For that the frozen weights must be of a good size. The usual 0.02 is made for models fifteen
times as wide; here activations would fade, and the scores of all tokens be nearly equal.
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from glmtune.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.chatglm.train_tokenizer import train_tokenizer
from glmtune.files import written_folder

NUM_PIECES = 1200
HIDDEN_SIZE = 256


def make_checkpoint(folder: Path, texts: Iterable[str], seed: int) -> None:
    """Write a checkpoint, whole or not at all; the same seed and texts give the same files.

    Args:
        folder: replaced if it exists.
        texts: what the tokenizer's pieces are learned from.
        seed: decides the weights.

    Raises:
        OutputError: it could not be written.
    """
    with written_folder(folder) as partial:
        tokenizer = train_tokenizer(texts, NUM_PIECES, partial)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = ChatGLMForConditionalGeneration(small_config(len(tokenizer)))
        model.save_pretrained(partial)


def small_config(vocab_size: int) -> ChatGLMConfig:
    """Give a small network of the proportions of ChatGLM3-6B."""
    return ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=-(-vocab_size // 64) * 64,  # a multiple of 64, as the published one
        hidden_size=HIDDEN_SIZE,
        ffn_hidden_size=2 * HIDDEN_SIZE,
        kv_channels=64,
        num_attention_heads=4,
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
        seq_length=512,
        initializer_range=HIDDEN_SIZE**-0.5,  # a layer's output is as large as its input
    )
