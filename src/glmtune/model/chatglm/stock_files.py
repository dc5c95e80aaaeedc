"""Write the files by which stock tools read a folder of ours without glmtune, to the same ids.

    tokenizer.json           the pieces for the `tokenizers` library (`fast_tokenizer`)
    chat_template.jinja      the prompts (`chat_jinja`)
    tokenizer_config.json    the class that reads them, PreTrainedTokenizerFast
    generation_config.json   the ids that end an answer

glmtune itself reads `tokenizer.model`, which lies beside them, and is two to three times as fast.
`glmtune_class` in tokenizer_config.json says so; stock tools ignore the key.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import CheckpointError
from glmtune.files import read_json_object, write_atomically
from glmtune.model.chatglm.chat_format import SPECIAL_TOKENS, ChatIds
from glmtune.model.chatglm.chat_jinja import stock_template
from glmtune.model.chatglm.fast_tokenizer import cut_out_tokens, fast_tokenizer_json
from glmtune.model.chatglm.piece_tokenizer import CLASS_KEY, CLASS_NAME
from glmtune.recipe.choices import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

logger = logging.getLogger(__name__)

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"
# For our own class alone, or of the machine that wrote the folder.
_NOT_STOCK = ("backend", "encode_special_tokens", "is_local", "local_files_only", "auto_map")
_LISTS = ("extra_special_tokens", "additional_special_tokens")


def write_stock_files(
    folder: Path,
    tokenizer: Any,
    config: PreTrainedConfig | None = None,
    *,
    layout: Layout = "official",
) -> None:
    """Write the tokenizer into a folder so that stock tools and glmtune give the same ids.

    A tokenizer of another family is saved as it is, since stock tools know it.

    Args:
        folder: exists; of a model or an adapter.
        tokenizer: of the prompts.
        config: of the model, for the padding id; None leaves that to the tokenizer.
        layout: of the prompts.
    """
    from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer

    tokenizer.save_pretrained(str(folder))
    if not isinstance(tokenizer, ChatGLMTokenizer):
        return
    _write_generation_config(folder, tokenizer, config, layout)
    try:
        tokens = cut_out_tokens(tokenizer)
        content = fast_tokenizer_json(tokenizer)
    except CheckpointError as error:
        logger.warning("%s: only glmtune reads this tokenizer rightly: %s", folder, error)
        return
    write_atomically(folder / TOKENIZER_JSON, content)
    special = [token.content for token in tokens.values() if token.special]
    added = [token.content for token in tokens.values() if not token.special]
    template = stock_template(layout, special, added)
    write_atomically(folder / CHAT_TEMPLATE, template)
    _adapt_tokenizer_config(folder / TOKENIZER_CONFIG, tokenizer, tokens, template)


def _adapt_tokenizer_config(
    path: Path, tokenizer: ChatGLMTokenizer, tokens: dict[int, Any], template: str
) -> None:
    """Name the stock class, and only the tokens that `tokenizer.json` cuts out of text."""
    settings = {k: v for k, v in read_json_object(path).items() if k not in _NOT_STOCK}
    for key in _LISTS:
        if key in settings:  # a plain string would lose `single_word`
            settings[key] = [token for token in settings[key] if token not in SPECIAL_TOKENS]
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        CLASS_KEY: CLASS_NAME,
        "added_tokens_decoder": {
            str(index): token.__getstate__() for index, token in tokens.items()
        },
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": template,  # transformers before 4.50 does not read the file
        "clean_up_tokenization_spaces": False,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
    }
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
    write_atomically(path, f"{text}\n")


def _write_generation_config(
    folder: Path, tokenizer: ChatGLMTokenizer, config: PreTrainedConfig | None, layout: Layout
) -> None:
    """Name every id that ends an answer, and keep what else a model's own file says."""
    path = folder / GENERATION_CONFIG
    settings = read_json_object(path) if path.is_file() else {}
    settings.pop("_from_model_config", None)  # else transformers would read config.json again
    ids = ChatIds.of(tokenizer)
    pad_id = getattr(config, "pad_token_id", None)
    settings |= {
        "eos_token_id": ids.stop if layout in ("official", "tutorial") else ids.end,
        "pad_token_id": tokenizer.pad_token_id if pad_id is None else pad_id,
    }
    write_atomically(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
