r"""The tokenizer of ChatGLM2 and ChatGLM3: SentencePiece, nine special ids, and the chat format.

    text    "你好"       -> 36474 54591              one leading space belongs to every string
            "\n你好"     -> 30910 13 39701           so where a string is split changes its ids
    prompt  [gMASK] sop <|user|> "\n" "你好" <|assistant|>
            64790 64792 64795 30910 13 36474 54591 64796

The rule that is easy to get wrong: text never becomes a special token. `<|user|>` typed by a
user is five ordinary pieces, on every path into ids, or a user could write the system message.
Only `encode_special_tokens=True` reads the nine strings as ids. They come after the pieces of
the SentencePiece model, so their ids depend on its size.

The chat format joins ids, never text (`chat_format`), so it cannot be a Jinja template: one in the
folder is not used.

Source: THUDM/chatglm3-6b, tokenization_chatglm.py; the reference is spec sections 7 and 8.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.chat_template_utils import get_json_schema
from transformers.utils.generic import PaddingStrategy

from glmtune.conversation import ROLES, Message, checked_messages, read_messages
from glmtune.machine import num_cores
from glmtune.model.chatglm.chat_format import (
    PREFIX_TOKENS,
    SPECIAL_TOKENS,
    ChatIds,
    chat_parts,
    chat_text,
    message_strings,
)
from glmtune.model.chatglm.piece_tokenizer import CLASS_KEY
from glmtune.model.chatglm.tokenizer_inputs import (
    Ids,
    Row,
    check_chat_arguments,
    check_text,
    fit_masks,
    is_batch_of_conversations,
    is_batch_of_texts,
    load_pieces,
    rows_with_ids,
    split_rows,
    texts_of_rows,
)

TEXTS_PER_THREAD = 32  # for fewer, starting a thread costs more than it saves

# options of `tokenizer(...)` that ask for something per row beyond its ids
_NEED_EVERY_ROW = (
    "return_token_type_ids",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_length",
)
# special tokens in text are never read, so there are none to split or to sanitize
_HAVE_NO_EFFECT = ("split_special_tokens", "sanitize_control_tokens")
_CUT_A_SINGLE_TEXT = (TruncationStrategy.LONGEST_FIRST, TruncationStrategy.ONLY_FIRST)


def _as_token(token: Any) -> Any:
    """Make a token of an object of special_tokens_map.json, which transformers leaves a dict."""
    if not isinstance(token, dict):
        return token
    return AddedToken(**{**token, "special": True})


# Not derived from transformers' SentencePieceBackend, of which only a method of one line would fit:
# it matches special tokens in text, joins bytes without decoding them, copies the vocabulary from a
# path instead of memory, and adds keys to tokenizer_config.json.
class ChatGLMTokenizer(PreTrainedTokenizer):
    """SentencePiece pieces, then the nine special tokens, then what `add_tokens` adds.

    Args:
        vocab_file: the SentencePiece model, `tokenizer.model`.
        encode_special_tokens: read the special tokens in text as ids. Leave it off for
            untrusted text.
        kwargs: as for every transformers tokenizer. Chat templates and references to code
            in the folder are dropped.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask", "position_ids"]  # noqa: RUF012
    padding_side = "left"

    def __init__(
        self, vocab_file: str | Path, *, encode_special_tokens: bool = False, **kwargs: Any
    ) -> None:
        self.sp_model = load_pieces(Path(vocab_file))
        self.encode_special_tokens = encode_special_tokens
        first = self.sp_model.get_piece_size()
        self._special_ids = {token: first + i for i, token in enumerate(SPECIAL_TOKENS)}
        self._prefix_ids = [self._special_ids[token] for token in PREFIX_TOKENS]
        self._added_tokens_decoder = {
            index: AddedToken(token, special=True, normalized=False)
            for token, index in self._special_ids.items()
        }
        kwargs["added_tokens_decoder"] = self._check_added(kwargs.get("added_tokens_decoder", {}))
        for name in ("chat_template", "auto_map"):
            kwargs.pop(name, None)
        for name in ("additional_special_tokens", "extra_special_tokens"):
            if isinstance(tokens := kwargs.get(name), list):
                kwargs[name] = [_as_token(token) for token in tokens]
        if kwargs.pop(CLASS_KEY, None):  # the folder is for stock tools, too, with other inputs
            kwargs.pop("model_input_names", None)
        kwargs.setdefault("eos_token", self.sp_model.id_to_piece(self.sp_model.eos_id()))
        kwargs.setdefault("unk_token", self.sp_model.id_to_piece(self.sp_model.unk_id()))
        kwargs.setdefault("pad_token", kwargs["unk_token"])
        super().__init__(encode_special_tokens=encode_special_tokens, **kwargs)  # type: ignore[no-untyped-call]
        self._chat_ids = ChatIds.of(self)

    def _check_added(self, added: Mapping[int, AddedToken]) -> dict[int, AddedToken]:
        """Keep the tokens of a folder that come after ours, and check that the others agree."""
        own = {index: token.content for index, token in self._added_tokens_decoder.items()}
        for index, token in added.items():
            expected = own.get(index) or self._piece(index)
            if index < self.vocab_size and token.content != expected:
                raise ValueError(
                    f"id {index} is {token.content!r} in added_tokens_decoder, but {expected!r} in "
                    "this tokenizer.model. The two files are of different models; copy both from "
                    "the same checkpoint."
                )
        return {index: token for index, token in added.items() if index >= self.vocab_size}

    # ---- the vocabulary --------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """The number of pieces and special tokens, without what `add_tokens` added."""
        return self.sp_model.get_piece_size() + len(SPECIAL_TOKENS)

    def __len__(self) -> int:
        return max(self.vocab_size, max(self._added_tokens_decoder, default=0) + 1)

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""
        vocab = {self._piece(index): index for index in range(self.sp_model.get_piece_size())}
        return vocab | self.added_tokens_encoder

    def get_command(self, token: str) -> int:
        """Return the id of a special token, or of `<bos>`, `<eos>`, `<unk>` or `<pad>`.

        Raises:
            ValueError: the token does not exist.
        """
        named = {
            "<bos>": self.sp_model.bos_id(),
            "<eos>": self.sp_model.eos_id(),
            "<unk>": self.sp_model.unk_id(),
            "<pad>": self.pad_token_id,
        }
        known: dict[str, int] = {**named, **self._added_tokens_encoder}
        if token not in known:
            raise ValueError(
                f"{token!r} is not a special token; expected one of {', '.join(known)}."
            )
        return known[token]

    @property
    def all_special_tokens(self) -> list[str]:
        """The named tokens, the nine special tokens, and special tokens that were added."""
        return list(dict.fromkeys((*super().all_special_tokens, *SPECIAL_TOKENS)))

    def _add_tokens(
        self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Assign new tokens the ids after the special tokens; existing tokens keep theirs.

        An ordinary new token is matched anywhere in text. A special one never is: only
        `convert_tokens_to_ids` and `get_command` reach it.
        """
        num_added = 0
        for new in new_tokens:
            token = (
                new
                if isinstance(new, AddedToken)
                else AddedToken(new, special=special_tokens, normalized=False)
            )
            if token.lstrip or token.rstrip or token.single_word:
                raise ValueError(
                    f"the token {token.content!r} requests lstrip, rstrip or single_word, "
                    "which this tokenizer does not support. Add it without them."
                )
            known = token.content in self._added_tokens_encoder or self._is_piece(token.content)
            if not token.content or known:
                continue
            token.special = token.special or special_tokens
            if token.special and token.content not in self.all_special_tokens:
                self._extra_special_tokens.append(token)
            index = len(self)
            self._added_tokens_decoder[index] = token
            self._added_tokens_encoder[token.content] = index
            num_added += 1
        return num_added

    def _is_piece(self, token: str) -> bool:
        return self._piece(self.sp_model.piece_to_id(token)) == token

    def _piece(self, index: int) -> str:
        is_piece = 0 <= index < self.sp_model.get_piece_size()
        return self.sp_model.id_to_piece(index) if is_piece else ""

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp_model.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        """Return the piece, or "" for `<unk>`, `<s>`, `</s>` and ids outside the vocabulary."""
        model = self.sp_model
        is_text = index not in (model.unk_id(), model.bos_id(), model.eos_id())
        return self._piece(index) if is_text else ""

    def __setattr__(self, key: str, value: Any) -> None:
        # transformers calls `convert_ids_to_tokens` for the token, which is "" for 0, 1 and 2
        is_named = key.removesuffix("_id") in self.SPECIAL_TOKENS_ATTRIBUTES
        if key.endswith("_id") and is_named and isinstance(value, int):
            key, index = key.removesuffix("_id"), value
            value = self._piece(index) or self.convert_ids_to_tokens(index)
            if not value:
                raise ValueError(f"{key}_id cannot be {index}: no token has that id.")
        super().__setattr__(key, value)  # type: ignore[no-untyped-call]

    # ---- text -> ids -----------------------------------------------------------------

    def encode_texts(self, texts: Sequence[str]) -> list[Ids]:
        """Encode many texts at once on all cores, as plain text and without special tokens.

        All encoding of text goes through here, and it never yields a special id.

        Raises:
            ValueError: a text has half a surrogate pair, which is not valid Unicode.
        """
        pattern = self._token_pattern(with_special=False)
        if pattern is not None:
            return [self._encode_around(text, pattern) for text in texts]
        return self._encode_pieces(texts)

    def _encode_pieces(self, texts: Sequence[str]) -> list[Ids]:
        num_threads = min(len(texts) // TEXTS_PER_THREAD, num_cores())
        try:
            if num_threads < 2:
                return [self.sp_model.encode(text) for text in texts]
            ids: list[Ids] = self.sp_model.encode(list(texts), num_threads=num_threads)
        except (TypeError, RuntimeError):
            for text in texts:
                check_text(text)
            raise
        return ids

    def _encode_around(self, text: str, pattern: re.Pattern[str]) -> Ids:
        """Split at the tokens of `pattern`; each stretch between them is encoded alone."""
        ids: Ids = []
        for index, stretch in enumerate(pattern.split(text)):
            if index % 2:
                ids.append(self._added_tokens_encoder[stretch])
            elif stretch:
                ids += self._encode_pieces([stretch])[0]
        return ids

    def _token_pattern(self, *, with_special: bool) -> re.Pattern[str] | None:
        """Return the pattern of the tokens that are matched in text, or None if there are none."""
        tokens = [
            token.content
            for token in self._added_tokens_decoder.values()
            if with_special or not token.special
        ]
        tokens.sort(key=len, reverse=True)  # the longest match wins
        return re.compile(f"({'|'.join(map(re.escape, tokens))})") if tokens else None

    def _encode_strings(
        self, texts: Sequence[str], encode_special_tokens: bool | None
    ) -> list[Ids]:
        """Encode texts, reading special tokens in them only if that was requested."""
        if encode_special_tokens is None:
            encode_special_tokens = self.encode_special_tokens
        if not encode_special_tokens:
            return self.encode_texts(texts)
        pattern = self._token_pattern(with_special=True)
        assert pattern is not None  # it has at least the nine special tokens
        return [self._encode_around(text, pattern) for text in texts]

    def tokenize(
        self,
        text: str,
        pair: str | None = None,
        add_special_tokens: bool = False,
        *,
        encode_special_tokens: bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Return the tokens of a text, and of a second one, as strings."""
        texts = [text] if pair is None else [text, pair]
        ids, *pair_ids = self._encode_strings(texts, encode_special_tokens)
        if add_special_tokens:
            ids = self.build_inputs_with_special_tokens(ids, *pair_ids)
        else:
            ids = [*ids, *chain.from_iterable(pair_ids)]
        return self.convert_ids_to_tokens(ids)

    def _encode_plus(  # type: ignore[override]  # always called by name
        self,
        text: Any,
        text_pair: Any = None,
        *,
        is_split_into_words: bool = False,
        encode_special_tokens: bool | None = None,
        return_offsets_mapping: bool = False,
        **options: Any,
    ) -> BatchEncoding:
        """Encode the arguments of `tokenizer(...)`, with all texts in one threaded call."""
        if return_offsets_mapping:
            raise NotImplementedError("ChatGLMTokenizer has no offsets of tokens in the text.")
        options = {name: value for name, value in options.items() if name not in _HAVE_NO_EFFECT}
        is_batch = is_batch_of_texts(text, is_split_into_words)
        rows = [(text, text_pair)]
        if is_batch:
            rows = split_rows(text, text_pair, is_split_into_words)
        encoded = self._encode_rows(rows, is_split_into_words, encode_special_tokens)
        if self._is_plain(encoded, options):
            return self._finish_plain(encoded, is_batch, options)
        if is_batch:
            return self._finish_batch(encoded, options)
        return self._finish_one(encoded[0], options)

    def _encode_rows(
        self,
        rows: Sequence[tuple[Any, Any]],
        is_split_into_words: bool,
        encode_special_tokens: bool | None,
    ) -> list[Row]:
        """Convert the text, words or ids of each row, and of its pair, to ids."""
        texts = texts_of_rows(rows, is_split_into_words)
        ids_of_texts = self._encode_strings(texts, encode_special_tokens)
        return rows_with_ids(rows, ids_of_texts, is_split_into_words)

    def _finish_one(self, row: Row, options: dict[str, Any]) -> BatchEncoding:
        """Add special tokens to one row, truncate it and pad it."""
        padding, truncation = options.pop("padding_strategy"), options.pop("truncation_strategy")
        return self.prepare_for_model(
            *row,
            padding=padding.value,
            truncation=truncation.value,
            prepend_batch_axis=True,
            **options,
        )

    def _finish_batch(self, rows: Sequence[Row], options: dict[str, Any]) -> BatchEncoding:
        """Add special tokens to many rows, truncate them, and pad them together."""
        return_tensors = options.pop("return_tensors", None)
        padding = {
            "padding": options.pop("padding_strategy").value,
            "max_length": options.get("max_length"),
            "pad_to_multiple_of": options.pop("pad_to_multiple_of", None),
            "padding_side": options.pop("padding_side", None),
            "return_attention_mask": options.pop("return_attention_mask", None),
            "return_tensors": return_tensors,
        }
        options["truncation"] = options.pop("truncation_strategy").value
        columns: dict[str, list[Any]] = {"input_ids": []}
        for ids, pair_ids in rows:
            row = self.prepare_for_model(ids, pair_ids, return_attention_mask=False, **options)
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
        if return_tensors:  # ragged, so no tensor can hold them
            columns.pop("overflowing_tokens", None)
            columns.pop("num_truncated_tokens", None)
        return self.pad(columns, **padding)

    def _is_plain(self, rows: Sequence[Row], options: Mapping[str, Any]) -> bool:
        """Whether only the ids of texts are requested, complete or truncated at the end."""
        return (
            options["padding_strategy"] is PaddingStrategy.DO_NOT_PAD
            and self.truncation_side == "right"
            and options.get("return_attention_mask") is not False
            and not any(options.get(name) for name in _NEED_EVERY_ROW)
            and all(pair_ids is None for _, pair_ids in rows)
        )

    def _finish_plain(
        self, rows: Sequence[Row], is_batch: bool, options: Mapping[str, Any]
    ) -> BatchEncoding:
        """Do what `_finish_one` and `_finish_batch` do, without their overhead per row."""
        prefix = self._prefix_ids if options["add_special_tokens"] else []
        length = None
        if options["truncation_strategy"] in _CUT_A_SINGLE_TEXT and options["max_length"]:
            length = max(0, options["max_length"] - len(prefix))
        input_ids = [[*prefix, *ids[:length]] for ids, _ in rows]
        longest = max(input_ids, key=len, default=[])
        self._eventual_warn_about_too_long_sequence(
            longest, options["max_length"], options.get("verbose", True)
        )
        columns: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": [[1] * len(ids) for ids in input_ids],
            "position_ids": [list(range(len(ids))) for ids in input_ids],
        }
        return_tensors = options.get("return_tensors")
        if not is_batch and not return_tensors:
            columns = {name: row for name, [row] in columns.items()}
        return BatchEncoding(columns, tensor_type=return_tensors)

    def build_inputs_with_special_tokens(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None
    ) -> Ids:
        """Prepend `[gMASK] sop`; a pair is followed by `</s>`, a single text by nothing."""
        if token_ids_1 is None:
            return [*self._prefix_ids, *token_ids_0]
        return [*self._prefix_ids, *token_ids_0, *token_ids_1, self.eos_token_id]

    def get_special_tokens_mask(
        self,
        token_ids_0: Ids,
        token_ids_1: Ids | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for the tokens that `build_inputs_with_special_tokens` adds, else 0."""
        if already_has_special_tokens:
            mask: list[int] = super().get_special_tokens_mask(token_ids_0, token_ids_1, True)
            return mask
        front = [1] * len(self._prefix_ids)
        if token_ids_1 is None:
            return front + [0] * len(token_ids_0)
        return front + [0] * (len(token_ids_0) + len(token_ids_1)) + [1]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None
    ) -> list[int]:
        """Return zeros: ChatGLM has no token types."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def _pad(
        self,
        encoded_inputs: dict[str, Any] | BatchEncoding,
        max_length: int | None = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
    ) -> dict[str, Any]:
        """Pad as every tokenizer does, with positions 0..n-1 for tokens and 0 for padding."""
        length = len(encoded_inputs["input_ids"])
        positions = encoded_inputs.get("position_ids")
        padded: dict[str, Any] = super()._pad(
            encoded_inputs,
            max_length=max_length,
            padding_strategy=padding_strategy,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_attention_mask=return_attention_mask,
        )
        positions = list(range(length)) if positions is None else list(positions)
        pads = [0] * (len(padded["input_ids"]) - length)
        is_left = (padding_side or self.padding_side) == "left"
        padded["position_ids"] = pads + positions if is_left else positions + pads
        return padded

    # ---- ids -> text -----------------------------------------------------------------

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens, decoding bytes to characters and dropping one leading space."""
        return self.sp_model.decode_pieces(tokens) if tokens else ""

    # ---- chat ------------------------------------------------------------------------

    def build_single_message(self, role: str, metadata: str, message: str) -> Ids:
        r"""Encode one message: its role, the metadata and a newline, the content.

        Raises:
            ValueError: the role is none of system, user, assistant and observation.
        """
        if role not in ROLES:
            raise ValueError(f"got the role {role!r}, expected one of {', '.join(ROLES)}.")
        line, content = self.encode_texts(message_strings(metadata, message))
        return [self._special_ids[f"<|{role}|>"], *line, *content]

    def build_chat_input(
        self,
        query: str,
        history: Sequence[Mapping[str, Any]] | None = None,
        role: str = "user",
    ) -> BatchEncoding:
        """Encode a history and a new message, up to and including `<|assistant|>`.

        Args:
            query: the new message.
            history: the messages before it, as `{"role", "content"}` with optional
                `"metadata"`, and `"tools"` on a system message. It is not changed.
            role: who speaks the new message.

        Returns:
            A batch of one: `input_ids`, `attention_mask` and `position_ids`, (1, seq).

        Raises:
            TemplateError: a message cannot be read.
        """
        before = checked_messages(history or (), "messages of the history")
        messages = read_messages([*before, {"role": role, "content": query}])
        ids, _ = self._encode_chat(messages, add_generation_prompt=True)
        return self.pad({"input_ids": [ids]}, return_tensors="pt")

    def _encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool
    ) -> tuple[Ids, list[int]]:
        """Encode messages; the second list is 1 where the assistant writes, with what ends it."""
        closing = self._chat_ids.roles["assistant"] if add_generation_prompt else []
        parts = chat_parts(messages, self._chat_ids, closing, lambda m: m.role == "assistant")
        texts = [piece for piece, _ in parts if isinstance(piece, str)]
        ids_of_texts = iter(self.encode_texts(texts))
        ids: Ids = []
        is_written: list[int] = []
        for piece, written in parts:
            added = next(ids_of_texts) if isinstance(piece, str) else piece
            ids += added
            is_written += [int(written)] * len(added)
        return ids, is_written

    def apply_chat_template(  # type: ignore[override]  # leaves out what the format does not support
        self,
        conversation: Any,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: bool | str | PaddingStrategy = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode a conversation, or a batch of them, as `build_chat_input` does.

        Messages may be ChatGLM3's (`metadata`, role `observation`, `tools` on a system
        message) or OpenAI's (`tool_calls`, role `tool`). No token closes a message, so
        `continue_final_message` changes nothing. The other arguments are those of
        transformers.

        Returns:
            A BatchEncoding; with `return_dict=False` ids; with `tokenize=False` text, which
            `encode_special_tokens=True` reads back into the same ids as long as no message
            spells a special token.

        Raises:
            ValueError: the format does not support an argument.
            TemplateError: a message cannot be read.
        """
        check_chat_arguments(
            chat_template, documents, add_generation_prompt, continue_final_message
        )
        is_batch = is_batch_of_conversations(conversation)
        if isinstance(tools, list | tuple):  # anything else is refused with the messages
            tools = [get_json_schema(tool) if callable(tool) else tool for tool in tools]
        chats = [
            read_messages(getattr(chat, "messages", chat), tools)
            for chat in (conversation if is_batch else [conversation])
        ]
        if not tokenize:
            texts = [chat_text(chat, add_generation_prompt) for chat in chats]
            return texts if is_batch else texts[0]
        encoded = [self._encode_chat(chat, add_generation_prompt) for chat in chats]
        ids = [row for row, _ in encoded]
        options: dict[str, Any] = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            **(tokenizer_kwargs or {}),
        }
        output = self(ids if is_batch else ids[0], add_special_tokens=False, **options)
        if return_assistant_tokens_mask:
            rows = output["input_ids"] if is_batch else [output["input_ids"]]
            sides = (self.truncation_side, options.get("padding_side") or self.padding_side)
            masks = fit_masks([mask for _, mask in encoded], [len(row) for row in rows], *sides)
            output["assistant_masks"] = masks if is_batch else masks[0]
        if return_tensors:
            output.convert_to_tensors(return_tensors, prepend_batch_axis=not is_batch)
        return output if return_dict else output["input_ids"]

    # ---- files -----------------------------------------------------------------------

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str]:
        """Write `tokenizer.model`, from memory, and return its path."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory) / f"{prefix}{self.vocab_files_names['vocab_file']}"
        path.write_bytes(self.sp_model.serialized_model_proto())
        return (str(path),)
