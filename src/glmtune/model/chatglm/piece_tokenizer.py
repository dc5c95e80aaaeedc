"""A tokenizer folder of ChatGLM -> just enough of a tokenizer to describe it and its template.

`ChatGLMTokenizer` derives from transformers, which takes seconds to import. This one has the same
ids for plain text and special tokens, and nothing else. Only a folder that means exactly the
published tokenizer is opened: whatever would add or rename a token is left to `ChatGLMTokenizer`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glmtune.errors import CheckpointError
from glmtune.files import read_json_object
from glmtune.model.chatglm.chat_format import SPECIAL_TOKENS
from glmtune.model.chatglm.tokenizer_inputs import Ids, load_pieces

CLASS_NAME = "ChatGLMTokenizer"
CLASS_KEY = "glmtune_class"  # in tokenizer_config.json, where `tokenizer_class` is for stock tools
# They may add tokens, or hold another tokenizer.
_OTHER_FILES = ("tokenizer.json", "added_tokens.json")
_WITHOUT_EFFECT = {  # on ids
    "auto_map",
    "backend",
    CLASS_KEY,
    "chat_template",
    "clean_up_tokenization_spaces",
    "do_lower_case",
    "encode_special_tokens",
    "is_local",
    "local_files_only",
    "model_input_names",
    "model_max_length",
    "name_or_path",
    "remove_space",
}
_SIDES = ("padding_side", "truncation_side")


class PieceTokenizer:
    """The ids of SentencePiece pieces and of the nine special tokens.

    Attributes:
        name_or_path: its folder.
        sp_model: the pieces.
        added_tokens_encoder: ids of the nine special tokens.
        special_ids: of these, and of the named pieces `</s>` and `<unk>`.
    """

    def __init__(self, folder: Path) -> None:
        self.name_or_path = str(folder)
        self.sp_model = load_pieces(folder / "tokenizer.model")
        first = self.sp_model.get_piece_size()
        self.added_tokens_encoder = {token: first + i for i, token in enumerate(SPECIAL_TOKENS)}
        eos, unk = self.sp_model.eos_id(), self.sp_model.unk_id()
        named = {self.sp_model.id_to_piece(index): index for index in (eos, unk)}
        self.special_ids: dict[str, int] = {**named, **self.added_tokens_encoder}
        eos_token, unk_token = named
        self._named = {"eos_token": eos_token, "unk_token": unk_token, "pad_token": unk_token}

    def __len__(self) -> int:
        return self.sp_model.get_piece_size() + len(SPECIAL_TOKENS)

    def get_command(self, token: str) -> int:
        """Return the id of a special token, or of `<eos>`."""
        eos: int = self.sp_model.eos_id()
        return eos if token == "<eos>" else self.added_tokens_encoder[token]

    def encode_texts(self, texts: Sequence[str]) -> list[Ids]:
        """Encode texts as plain text, without special tokens."""
        return [self.sp_model.encode(text) for text in texts]

    def agrees_with(self, settings: Mapping[str, Any]) -> bool:
        """Whether the settings in a folder leave these ids as they are."""
        kind = settings.get(CLASS_KEY, settings.get("tokenizer_class", CLASS_NAME))
        others = {key: value for key, value in settings.items() if key != "tokenizer_class"}
        return bool(kind == CLASS_NAME) and all(map(self._is_expected, others, others.values()))

    def _is_expected(self, key: str, value: Any) -> bool:
        if key in _WITHOUT_EFFECT:
            return True
        if key in _SIDES:
            return value in ("left", "right")
        if key in self._named:
            return bool(value == self._named[key])
        if key in ("additional_special_tokens", "extra_special_tokens"):
            return isinstance(value, list) and all(token in SPECIAL_TOKENS for token in value)
        if key == "added_tokens_decoder" and isinstance(value, dict):
            known = {str(index): token for token, index in self.special_ids.items()}
            return all(i in known and _is_plain(token, known[i]) for i, token in value.items())
        return False


def open_pieces(folder: Path) -> PieceTokenizer | None:
    """Open the tokenizer in a folder; None where only `ChatGLMTokenizer` can tell what it is."""
    try:
        settings = _read_if_there(folder / "tokenizer_config.json")
        if not is_ours(settings) and any((folder / name).exists() for name in _OTHER_FILES):
            return None
        tokenizer = PieceTokenizer(folder)
        if "added_tokens_decoder" not in settings:  # which replaces the older file
            settings |= _read_if_there(folder / "special_tokens_map.json")
    except (OSError, ValueError, IndexError, CheckpointError):
        return None
    return tokenizer if tokenizer.agrees_with(settings) else None


def is_ours(settings: Mapping[str, Any]) -> bool:
    """Whether a tokenizer_config.json is of a folder that glmtune wrote for stock tools, too."""
    return settings.get(CLASS_KEY) == CLASS_NAME


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _is_plain(token: Any, content: str) -> bool:
    """Whether a token with flags is this string, without the spaces around it."""
    flags = ("lstrip", "rstrip")  # stock tokenizers cut `sop` out as a single word
    return (
        isinstance(token, Mapping)
        and token.get("content") == content
        and not any(token.get(flag) for flag in flags)
    )
