"""A tokenizer and a model of the smallest size that behaves like the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

SENTENCES = """
今天的天气很好，我们去公园散步吧。
请用一句话介绍一下北京的历史。
北京是中国的首都，有三千多年的历史。
请把下面的句子翻译成英文：我喜欢读书。
I like reading books, and you?
水在一百度的时候会沸腾，在零度的时候会结冰。
写一首关于春天的诗。
春天来了，花儿开了，小鸟在树上唱歌。
什么是机器学习？
机器学习是让计算机从数据中学习规律的方法。
如何保持健康？
多吃蔬菜和水果，每天运动半小时，早睡早起。
计算 12 加 30 等于多少？
12 + 30 = 42。
你叫什么名字？
我是一个小助手，可以回答你的问题。
The quick brown fox jumps over the lazy dog.
tool_call(city='北京', days=2)
```python
print("你好，世界")
```
""".strip().split("\n")


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(folder: Path) -> ChatGLMTokenizer:
    """Train a tokenizer of 480 pieces and 489 ids into an existing folder."""
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
    from glmtune.model.chatglm.train_tokenizer import train_tokenizer

    train_tokenizer(SENTENCES, 480, folder)
    tokenizer: ChatGLMTokenizer = ChatGLMTokenizer.from_pretrained(folder)
    return tokenizer


def make_model(folder: Path, tokenizer: ChatGLMTokenizer) -> Path:
    """Write a checkpoint of 2 layers, 64 wide, float32, with reproducible random weights."""
    import torch

    from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
    from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration

    config = ChatGLMConfig(
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=96,
        num_attention_heads=4,
        kv_channels=16,
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
        padded_vocab_size=512,
        seq_length=512,
        initializer_range=0.2,  # the usual 0.02 makes all tokens nearly equally likely
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ChatGLMForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_llama(folder: Path) -> Path:
    """Write a Llama of 2 layers with a chat template and reproducible random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", chat_template=CHATML
    )
    config = LlamaConfig(
        vocab_size=448,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
