"""Choose the template of a tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from glmtune.errors import TemplateError
from glmtune.recipe.choices import Layout
from glmtune.template.base import Template
from glmtune.template.chat_template import ChatTemplate
from glmtune.template.chatglm import ChatGLMTemplate
from glmtune.template.glm import GlmTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer


def template_for(tokenizer: PreTrainedTokenizerBase, layout: Layout = "official") -> Template:
    """Return the template of a tokenizer's family.

    Args:
        tokenizer: ChatGLM's, or any that has a chat template.
        layout: a layout of ChatGLM; the chat template of another family is `official`.

    Raises:
        TemplateError: the family has no such layout, or no template fit for training.
    """
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

    if isinstance(tokenizer, ChatGLMTokenizer):
        return chatglm_template(tokenizer, layout)
    if layout != "official":
        raise TemplateError(
            f"the layout {layout!r} is ChatGLM's, but the tokenizer is a "
            f"{type(tokenizer).__name__}, which has its own chat template. Use layout: official."
        )
    return GlmTemplate(tokenizer) if GlmTemplate.fits(tokenizer) else ChatTemplate(tokenizer)


def chatglm_template(tokenizer: ChatGLMTokenizer, layout: Layout = "official") -> ChatGLMTemplate:
    """Return a template of ChatGLM.

    Raises:
        TemplateError: it is ChatGLM2, which does not have this layout.
    """
    if layout in ("official", "tutorial") and (name := _chatglm2_name(tokenizer)):
        raise TemplateError(
            f"this is {name}, which has no roles: the {layout} layout is ChatGLM3's. Use "
            "layout: chatglm2 for dialogues, or plain for text and code."
        )
    return ChatGLMTemplate(tokenizer, layout)


def _chatglm2_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the published name of ChatGLM2 or CodeGeeX2, or "" for any other model.

    Their tokenizer files are byte-identical to ChatGLM3's, so only the names differ.
    """
    folder = Path(tokenizer.name_or_path)
    names = [folder.name]
    for file, key in (("config.json", "_name_or_path"), ("tokenizer_config.json", "name_or_path")):
        try:
            content = json.loads((folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # a hub id, or no such file
            continue
        names.append(str(content.get(key, "")) if isinstance(content, dict) else "")
    return next((n for n in names if re.search(r"(chatglm|codegeex)2-", n.lower())), "")
