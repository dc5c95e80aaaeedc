"""Who a turn is from: the roles of each format, and what to do about one that it does not have.

A role of the user's own is mapped by `data.roles`. The advice that names such a mapping goes by
what the word means, since a wrong one does harm: a call of a tool that is mapped to `assistant`
is learned as an answer.
"""

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from glmtune.conversation import ROLES
from glmtune.data.formats.values import bad, kind
from glmtune.data.rows import Row
from glmtune.errors import DataError

Roles = Mapping[str, str]
"""Their role -> ours, as in `data.roles`."""

_AGENT_ROLES = {
    "function_call": "function_call",
    "tool_call": "function_call",
    "tool_response": "tool",
}
SHAREGPT_ROLES: dict[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    **_AGENT_ROLES,
}
OPENAI_ROLES: dict[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    **_AGENT_ROLES,
}
CHATGLM3_ROLES: dict[str, str] = {
    **{role: role for role in ROLES},
    "tool": "tool",
    **_AGENT_ROLES,
    "tool_response": "observation",
}
_ANY_ROLES = {**OPENAI_ROLES, **SHAREGPT_ROLES}
TARGETS = (*ROLES, "function_call")
"""What a role may be mapped to."""

_MEANINGS = {
    "user": (
        "用户 人类 人 问 提问 提问者 问题 客户 顾客 患者 病人 学生 我 "
        "human user usr prompter question questioner query prompt q customer client patient "
        "student inquirer instruction"
    ),
    "assistant": (
        "助手 助理 智能助手 机器人 客服 答 回答 回答者 答案 模型 医生 老师 人工智能 "
        "assistant gpt chatgpt bot chatbot robot model ai agent answer response output a "
        "chatglm chatglm3 glm bing bard claude gemini llm doctor teacher"
    ),
    "system": "系统 系统提示 系统消息 设定 system sys system_prompt system_message developer",
    "function_call": (
        "工具调用 函数调用 调用 function_call functioncall function_calls tool_call tool_calls "
        "toolcall tool_use tool_using call action"
    ),
    "observation": (
        "工具 工具结果 工具返回 工具响应 函数结果 观察 观测 tool tool_response tool_result "
        "tool_results tool_output tool_return function function_response function_result "
        "function_output function_return observation observe ipython environment result"
    ),
}
_MEANING_OF = {word: ours for ours, words in _MEANINGS.items() for word in words.split()}


def check_roles(roles: Roles) -> None:
    """Refuse a mapping to roles that do not exist.

    Raises:
        DataError: names the role and those that exist.
    """
    for theirs, ours in roles.items():
        if ours not in _ANY_ROLES and ours not in ROLES:
            raise DataError(
                f"data.roles maps {theirs!r} to {ours!r}, expected one of {', '.join(TARGETS)}."
            )


def role_of(role: Any, mine: Roles, known: Mapping[str, str]) -> str | None:
    """Return our role for one of a message; None if it is not known."""
    if not isinstance(role, str):
        return None
    if not mine or role not in mine:
        return known.get(role)
    target = mine[role]
    return known.get(target) or _ANY_ROLES.get(target)


def read_role(row: Row, where: str, role: Any, mine: Roles, known: Mapping[str, str]) -> str:
    """Return our role for one of a message.

    Args:
        row: with the message.
        where: the place of the role, as in `messages[3].role`.
        role: as the message has it.
        mine: the user's own mapping.
        known: the roles of the format.

    Raises:
        RowError: the role is missing or not known; the reason says how to map it.
    """
    ours = role_of(role, mine, known)
    if ours is not None:
        return ours
    if role is None:
        raise bad(row, where, _why_missing(where))
    if not isinstance(role, str):
        raise bad(row, where, f"got {kind(role)}, expected one of {', '.join(known)}.")
    reason = (
        f"the turn is from {role!r}, expected one of {', '.join(known)}. Rename the role in the "
        f"file, or map it in the recipe: {advise(role)}"
    )
    raise bad(row, where, reason, "role-order")


def _why_missing(where: str) -> str:
    field, key = where.split("[", maxsplit=1)[0], where.rsplit(".", maxsplit=1)[-1]
    other = {"from": "role", "role": "from"}[key]
    hint = f"Messages with {other!r} are of format " + (
        f"sharegpt: set data.format: sharegpt, data.columns: {{conversations: {field}}}"
        if other == "from"
        else f"{'chatglm3' if field == 'conversations' else 'openai'}: set data.format"
    )
    return (
        f"the message has no {key!r}. {hint}, if all rows of the file have such messages; else "
        "put these rows into a file of their own."
    )


def advise(role: str) -> str:
    """Return how to map a role: by what it means, or else with the choices."""
    key = role if re.fullmatch(r"\w+", role) else json.dumps(role, ensure_ascii=False)
    word = re.sub(r"[\s-]+", "_", role.strip().strip(":：<>|[]").casefold())
    ours = _MEANING_OF.get(word) or _MEANING_OF.get(word.rstrip("0123456789_"))
    if ours is None and (near := difflib.get_close_matches(word, _MEANING_OF, n=1, cutoff=0.8)):
        ours = _MEANING_OF[near[0]]
    if ours is None:
        return f"data.roles: {{{key}: ...}} with one of {', '.join(TARGETS)}."
    return f"data.roles: {{{key}: {ours}}}."
