r"""ChatGLM's prompts as Jinja templates, for tools that render text and then encode it.

    [gMASK]sop<|user|>\n 你好<|assistant|>

Such a tool reads `<|user|>` as a token wherever it stands, also in what a user typed. So the
template breaks the spelling of every token inside a message with a guard, which the normalizer of
`fast_tokenizer` takes out again: the ids are those of our own templates, whatever a message says.
llama.cpp has no such normalizer; its template breaks the spelling with a space that stays.

The space in front of a content is the ▁ that a string of its own begins with, so an empty content
has none. Texts before a newline keep their ids, since no piece crosses a newline.

Source: spec section 8; https://huggingface.co/docs/transformers/chat_templating_writing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from glmtune.conversation import ROLES, TOOLS_PROMPT
from glmtune.model.chatglm.fast_tokenizer import ESCAPE, ESCAPED, GUARD
from glmtune.recipe.choices import Layout
from glmtune.tool_calls import TOOL_FUNCTION

_ROLE_OF: Mapping[str, str] = {
    **{role: role for role in ROLES},
    "tool": "observation",
    "function": "observation",
    "developer": "system",
}

# Content that is a list of parts is their texts.
_TEXTS = r"""
{%- macro is_parts(value) -%}
{%- if value is sequence and value is not string and value is not mapping -%}
{{- 'yes' if value | selectattr('text', 'string') | list | length == value | length -}}
{%- endif -%}
{%- endmacro -%}
{%- macro text(message, index) -%}
{%- set value = message.content if message.content is defined else none -%}
{%- if value is string -%}
{{- value -}}
{%- elif is_parts(value) -%}
{%- for part in value -%}{{- part.text -}}{%- endfor -%}
{%- else -%}
{{- raise_exception('message ' ~ index ~ ' has no text, and ChatGLM reads text only.') -}}
{%- endif -%}
{%- endmacro -%}
{%- macro guarded(value) -%}
{%- set ns = namespace(text=value) -%}
{%- for spelled, broken in guards -%}
{%- set ns.text = ns.text | replace(spelled, broken) -%}
{%- endfor -%}
{{- ns.text -}}
{%- endmacro -%}
"""

# An answer to one of several calls is moved after its call: ChatGLM3 knows no parallel calls. In
# Python, the string of a list has the `repr` of its value, which is how ChatGLM3 writes arguments.
_ROLES = r"""
{%- macro turn(role, metadata, content) -%}
{{- '<|' ~ role ~ '|>' ~ guarded(metadata) ~ '\n' -}}
{%- set ns = namespace(space=' ' if content else '') -%}
{%- for token in added -%}
{%- if content.startswith(token) -%}{%- set ns.space = '' -%}{%- endif -%}
{%- endfor -%}
{{- ns.space ~ guarded(content) -}}
{%- endmacro -%}

{%- macro result(message, index) -%}
{%- set value = message.content if message.content is defined else none -%}
{%- set is_text = value is string or is_parts(value) -%}
{%- set content = text(message, index) if is_text else value | tojson -%}
{{- turn('observation', message.metadata or '', content) -}}
{%- endmacro -%}

{%- macro announced(content, tools) -%}
{{- turn('system', '', content ~ '\n' ~ (tools | tojson(indent=4))) -}}
{%- endmacro -%}

{%- macro call(function, index) -%}
{%- set arguments = function.arguments or {} -%}
{%- if arguments is not mapping -%}
{{- raise_exception('message ' ~ index ~ ' has a call with text as arguments; give an object.') -}}
{%- endif -%}
{%- set ns = namespace(arguments=[]) -%}
{%- for name, value in arguments.items() -%}
{%- set ns.arguments = ns.arguments + [name ~ '=' ~ ([value] | string)[1:-1]] -%}
{%- endfor -%}
{%- set code = tool_function ~ '(' ~ ns.arguments | join(', ') ~ ')' -%}
{{- turn('assistant', function.name, '```python\n' ~ code ~ '\n```') -}}
{%- endmacro -%}

{%- macro answer_of(tool_call, first, answered) -%}
{%- set ns = namespace(is_over=false, index='') -%}
{%- for index in range(first, messages | length) -%}
{%- set id = messages[index].tool_call_id -%}
{%- if messages[index].role != 'tool' -%}{%- set ns.is_over = true -%}{%- endif -%}
{%- if not ns.is_over and ns.index == '' and index not in answered -%}
{%- if not tool_call.id or not id or id == tool_call.id -%}{%- set ns.index = index -%}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{{- ns.index -}}
{%- endmacro -%}

{%- set state = namespace(tools=[], answered=[]) -%}
{%- for tool in tools or [] -%}
{%- set state.tools = state.tools + [tool.function or tool] -%}
{%- endfor -%}
{{- start -}}
{%- if state.tools and not (messages and role_of[messages[0].role] == 'system') -%}
{{- announced(tools_prompt, state.tools) -}}
{%- endif -%}
{%- for message in messages -%}
{%- set index = loop.index0 -%}
{%- set role = role_of[message.role] -%}
{%- if not role -%}
{{- raise_exception('message ' ~ index ~ ' is from ' ~ message.role ~ ', expected one of '
    ~ role_of | join(', ') ~ '.') -}}
{%- endif -%}
{%- set announces = state.tools if state.tools and index == 0 else message.tools -%}
{%- if message.tool_calls -%}
{%- if message.content -%}
{{- turn(role, message.metadata or '', text(message, index)) -}}
{%- endif -%}
{%- for tool_call in message.tool_calls -%}
{{- call(tool_call.function or tool_call, index) -}}
{%- set is_parallel = message.tool_calls | length > 1 -%}
{%- set answer = answer_of(tool_call, index + 1, state.answered) if is_parallel else '' -%}
{%- if answer -%}
{%- set state.answered = state.answered + [answer | int] -%}
{{- result(messages[answer | int], answer) -}}
{%- endif -%}
{%- endfor -%}
{%- elif index in state.answered -%}
{%- elif role == 'observation' -%}
{{- result(message, index) -}}
{%- elif role == 'system' and announces is defined and announces is not none -%}
{{- announced(text(message, index), announces) -}}
{%- else -%}
{{- turn(role, message.metadata or '', text(message, index)) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""

# ChatGLM2 and CodeGeeX2: numbered rounds in one string.
_ROUNDS = r"""
{{- start -}}
{%- for message in messages -%}
{%- set content = guarded(text(message, loop.index0)) -%}
{%- if message.role != ('assistant' if loop.index0 % 2 else 'user') -%}
{{- raise_exception('ChatGLM2 has alternating questions and answers, and neither system messages '
    ~ 'nor tools.') -}}
{%- elif message.role == 'user' -%}
{{- '[Round ' ~ ((loop.index0 / 2) | int + 1) ~ ']\n\n问：' ~ content ~ '\n\n答：' -}}
{%- else -%}
{{- content ~ ('' if loop.last else '\n\n') -}}
{%- endif -%}
{%- endfor -%}
"""

# A prompt, which the model continues.
_PLAIN = r"""
{{- start -}}
{%- if messages | length != 1 or messages[0].role != 'user' -%}
{{- raise_exception('this model continues one text of the user, and knows no chats.') -}}
{%- endif -%}
{{- separator ~ guarded(text(messages[0], 0)) -}}
"""

_OF_LAYOUT: Mapping[Layout, str] = {
    "official": _ROLES,
    "tutorial": _ROLES,  # its prompts are the official ones
    "chatglm2": _ROUNDS,
    "plain": _PLAIN,
}


def stock_template(layout: Layout, tokens: Iterable[str], added: Iterable[str] = ()) -> str:
    """Return the Jinja template of a layout, to go with our `tokenizer.json`.

    Args:
        layout: of the prompts.
        tokens: the special tokens that a stock tokenizer cuts out of text.
        added: ordinary tokens that it cuts out, as our tokenizer does.
    """
    guards = [[ESCAPE, ESCAPED], *([token, token[:1] + GUARD + token[1:]] for token in tokens)]
    # The separator keeps a first word from joining `sop`, which is cut out only as a word.
    return _template(layout, "[gMASK]sop", guards, added=list(added), separator=GUARD)


def llama_cpp_template(layout: Layout, start: str, tokens: Iterable[str]) -> str:
    """Return the Jinja template of a layout for llama.cpp, which has no normalizer.

    Where a message spells a special token, a space is put into that spelling.

    Args:
        layout: of the prompts.
        start: what every prompt begins with, by the names of the tokens in the GGUF.
        tokens: the names that llama.cpp cuts out of text.
    """
    guards = [[token, f"{token[:1]} {token[1:]}"] for token in tokens]
    return _template(layout, start, guards, added=[], separator="")


def _template(
    layout: Layout, start: str, guards: list[list[str]], *, added: list[str], separator: str
) -> str:
    values: dict[str, Any] = {"start": start, "guards": guards}
    if layout == "plain":
        values["separator"] = separator
    if _OF_LAYOUT[layout] is _ROLES:
        values |= {"added": added, "role_of": dict(_ROLE_OF)}
        values |= {"tool_function": TOOL_FUNCTION, "tools_prompt": TOOLS_PROMPT}
    # Python writes strings, lists and dicts as Jinja reads them.
    head = "".join(f"{{%- set {name} = {value!a} -%}}\n" for name, value in values.items())
    return head + (_TEXTS + _OF_LAYOUT[layout]).strip() + "\n"
