"""Small tokenizers with chat templates in the shape of the published ones of GLM-4 and later."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
)  # fmt: skip
MARKS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
)  # fmt: skip

# Tools and metadata are fields of a message, and a turn without a text is left out.
GLM_4_9B = (
    "[gMASK]<sop>{% for item in messages %}"
    "{% if item['tools'] is defined %}<|system|>\ntools:"
    "{% for tool in item['tools'] %}{% if tool['type'] == 'function' %}"
    "\n## {{ tool['function']['name'] }}\n{{ tool['function'] | tojson(indent=4) }}"
    "{% endif %}{% endfor %}{% endif %}"
    "{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}\n{{ item['content'] }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Tools are an argument, and system messages come first.
_0414 = (
    "[gMASK]<sop>"
    "{% if tools %}<|system|>\ntools:{% for tool in tools %}"
    "{% set function = tool.function if tool.get('function') else tool %}"
    "\n## {{ function.name }}\n{{ function | tojson(indent=4, ensure_ascii=False) }}"
    "{% endfor %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}<|system|>\n{{ m.content }}{% endif %}"
    "{% endfor %}"
    "{% for m in messages if m.role != 'system' %}"
    "{% set shown = SHOWN %}{% set meta = m.get('metadata', '') %}"
    "{% if m.role == 'assistant' and meta %}<|assistant|>{{ meta }}\n{{ shown }}"
    "{% elif m.role in ['user', 'assistant', 'observation'] %}<|{{ m.role }}|>\n{{ shown }}"
    "{% endif %}{% endfor %}"
)
GLM_4_0414 = _0414.replace("SHOWN", "m.content") + (
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GLM_Z1 = _0414.replace("SHOWN", "m.content.split('</think>')[-1].strip()") + (
    "{% if add_generation_prompt %}<|assistant|>\n<think>{% endif %}"
)
# Calls are OpenAI's, delimited by control tokens; thoughts before the last question are dropped.
GLM_4_5 = (
    "[gMASK]<sop>"
    "{% if tools %}<|system|>\n# Tools\n"
    "{% for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}\n{% endfor %}"
    "<tool_call>{name}\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"
    "{% endif %}"
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role in ['system', 'user'] %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|assistant|>"
    "{% set thought = '' %}{% set content = m.content %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1] %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{% if loop.index0 > ns.last and thought %}{{ '\n<think>' + thought.strip() + '</think>' }}"
    "{% else %}{{ '\n<think></think>' }}{% endif %}"
    "{% if content.strip() %}{{ '\n' + content.strip() }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '\n<tool_call>' + call.function.name + '\n' }}"
    "{% for k, v in call.function.arguments.items() %}"
    "<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>\n"
    "{% endfor %}</tool_call>{% endfor %}"
    "{% elif m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|observation|>{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEMPLATES = {
    "glm-4-9b": GLM_4_9B,
    "glm-4-0414": GLM_4_0414,
    "glm-z1": GLM_Z1,
    "glm-4.5": GLM_4_5,
}


def glm_tokenizer(
    chat_template: str, texts: Iterable[str] = ("用户 助手 hello hello",), vocab_size: int = 340
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the control tokens of GLM-4.5, which has those of GLM-4."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=chat_template,
    )
