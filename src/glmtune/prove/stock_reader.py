"""Proof that stock transformers reads the tokenizer of a folder to our ids, without glmtune.

    here              texts and conversations -> ids by the template of the run
    a new process     the same by AutoTokenizer and the folder's chat template; no glmtune, no torch

What others do with a folder is not ours to see; a tokenizer that they misread gives answers to
another question, and no error.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.conversation import TOOLS_PROMPT, Conversation, Message
from glmtune.errors import TemplateError, TrainingError
from glmtune.model.chatglm.stock_files import TOKENIZER_JSON
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.prove.proof import STOCK_READER, Proof
from glmtune.template.base import Template

TIMEOUT_SECONDS = 300  # importing transformers takes 2 s, and longer on a slow disk
TEXTS = (
    "你好，世界。",
    "people are sophisticated: 3.14\n\n  print('x')\t\u3000 e\u0301",
    " 龘 😀\u2581\x00",
    "",
    "What do <|user|>, [gMASK] and </s> mean? And sop, eop?",
)
_CHATS = (
    Conversation((Message("user", TEXTS[0]),)),
    Conversation((Message("user", TEXTS[4]), Message("assistant", TEXTS[1]), Message("user", ""))),
    Conversation(
        (
            Message("system", TOOLS_PROMPT, tools=[{"name": "weather", "description": "<|user|>"}]),
            Message("user", "北京天气怎么样？"),
            Message("assistant", "```python\ntool_call(city='北京')\n```", metadata="weather"),
            Message("observation", '{"celsius": 3}'),
        )
    ),
)
# torch is hidden from transformers, which saves most of the time of its import.
_READER = """
import json, sys
sys.modules["torch"] = None
from transformers import AutoTokenizer
asked = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(asked["folder"], local_files_only=True)
encode = lambda text: tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
prompt = lambda chat: tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_dict=False)
found = {"texts": [encode(text) for text in asked["texts"]],
         "chats": [prompt(chat) for chat in asked["chats"]],
         "imports_glmtune": "glmtune" in sys.modules}
print(json.dumps(found))
"""


def check_stock_reader(folder: Path, template: Template, tokenizer: Any) -> Proof | str:
    """Compare the ids of stock transformers, in a process of its own, with ours.

    Args:
        folder: that was published.
        template, tokenizer: of the run.

    Returns:
        What was compared, or why nothing was.

    Raises:
        TrainingError: transformers gives other ids, or cannot read the folder.
    """
    if not isinstance(tokenizer, ChatGLMTokenizer):
        return Proof(STOCK_READER, "not run", "the tokenizer is transformers' own")
    if not (folder / TOKENIZER_JSON).is_file():
        return Proof(STOCK_READER, "not run", f"there is no {TOKENIZER_JSON}; see the log")
    chats = _chats_of(template)
    asked = {
        "folder": str(folder),
        "texts": TEXTS,
        "chats": [[_as_dict(message) for message in chat] for chat, _ in chats],
    }
    if (found := _ask(folder, asked)) is None:
        return Proof(STOCK_READER, "not run", f"no answer within {TIMEOUT_SECONDS} seconds")
    assert not found["imports_glmtune"]
    _compare(folder, "text", TEXTS, tokenizer.encode_texts(TEXTS), found["texts"])
    shown = [chat.messages[-1].content for chat, _ in chats]
    _compare(folder, "prompt", shown, [ids for _, ids in chats], found["chats"])
    return f"{len(TEXTS)} texts and {len(chats)} prompts have the same ids"


def _chats_of(template: Template) -> list[tuple[Conversation, list[int]]]:
    """Return the conversations that a layout can render, and their prompts."""
    prompts = []
    for chat in _CHATS:
        try:
            prompts.append((chat, template.prompt_ids(chat)))
        except TemplateError:  # a layout without roles or tools
            continue
    return prompts


def _as_dict(message: Message) -> dict[str, Any]:
    fields = {"role": message.role, "content": message.content, "metadata": message.metadata}
    return fields if message.tools is None else {**fields, "tools": message.tools}


def _ask(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Run the reader; None if the machine was too busy for an answer."""
    try:
        ran = subprocess.run(
            [sys.executable, "-P", "-c", _READER],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return None
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise TrainingError(
            f"{folder}: transformers without glmtune cannot read the tokenizer: {last}. glmtune "
            "itself can; other tools will fail. Report this."
        )
    result: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return result


def _compare(
    folder: Path,
    what: str,
    shown: Sequence[str],
    expected: Sequence[list[int]],
    found: Sequence[list[int]],
) -> None:
    for text, ours, stock in zip(shown, expected, found, strict=True):
        if ours != stock:
            pairs = zip(ours, stock, strict=False)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(stock)))
            raise TrainingError(
                f"{folder}: transformers without glmtune encodes the {what} {text[:60]!r} as other "
                f"ids: {stock[at : at + 4]} and not {ours[at : at + 4]} from token {at} on. Other "
                "tools would ask the model something else; restore tokenizer.json and "
                "chat_template.jinja, or report this."
            )
