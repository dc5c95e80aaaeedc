r"""The tokenizer of ChatGLM2 and ChatGLM3: SentencePiece, nine special ids, and the chat format.

    text    "你好"       -> 36474 54591              one leading space belongs to every string
            "\n你好"     -> 30910 13 39701           so where a string is cut changes its ids
    prompt  [gMASK] sop <|user|> "\n" "你好" <|assistant|>
            64790 64792 64795 30910 13 36474 54591 64796

The rule that is easy to get wrong: text never becomes a special token. `<|user|>` typed by a
user is five ordinary pieces, on every path into ids, or a user could write the system message.
Only `encode_special_tokens=True` reads the nine strings as ids. They lie behind the pieces of
the SentencePiece model, so their ids follow its size.

The chat format joins ids, never text, hence it cannot be a Jinja template: one that a folder
brings along is not used.

Source: THUDM/chatglm3-6b, tokenization_chatglm.py; the reference is spec sections 7 and 8.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.chat_template_utils import get_json_schema
from transformers.utils.generic import PaddingStrategy

from glmtune.conversation import ROLES, Message, read_messages
from glmtune.machine import num_cores

PREFIX_TOKENS = ("[gMASK]", "sop")  # in front of every sequence
SPECIAL_TOKENS = (
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "sop",
    "eop",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
TEXTS_PER_THREAD = 32  # below this, starting a thread costs more than it saves

Ids = list[int]
Row = tuple[Ids, Ids | None]  # a text and its pair

# options of `tokenizer(...)` that ask for something per row beyond its ids
_NEED_EVERY_ROW = (
    "return_token_type_ids",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_length",
)
# special tokens in text are never read, so there is nothing to split or to clean
_HAVE_NO_EFFECT = ("split_special_tokens", "sanitize_control_tokens")
_CUT_A_SINGLE_TEXT = (TruncationStrategy.LONGEST_FIRST, TruncationStrategy.ONLY_FIRST)


class ChatGLMTokenizer(PreTrainedTokenizer):
    """SentencePiece pieces, then the nine special tokens, then what `add_tokens` adds.

    Args:
        vocab_file: the SentencePiece model, `tokenizer.model`.
        encode_special_tokens: read the special tokens in text as ids. Leave it off wherever
            the text comes from somebody else.
        kwargs: as for every transformers tokenizer. Chat templates and references to code
            in the folder are dropped.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask", "position_ids"]  # noqa: RUF012
    padding_side = "left"

    def __init__(
        self, vocab_file: str | Path, *, encode_special_tokens: bool = False, **kwargs: Any
    ) -> None:
        self.sp_model = _load_pieces(Path(vocab_file))
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
        kwargs.setdefault("eos_token", self.sp_model.id_to_piece(self.sp_model.eos_id()))
        kwargs.setdefault("unk_token", self.sp_model.id_to_piece(self.sp_model.unk_id()))
        kwargs.setdefault("pad_token", kwargs["unk_token"])
        super().__init__(encode_special_tokens=encode_special_tokens, **kwargs)  # type: ignore[no-untyped-call]

    def _check_added(self, added: Mapping[int, AddedToken]) -> dict[int, AddedToken]:
        """Keep the tokens behind ours of those a folder lists, and see that the others agree."""
        own = {index: token.content for index, token in self._added_tokens_decoder.items()}
        for index, token in added.items():
            expected = own.get(index) or self._piece(index)
            if index < self.vocab_size and token.content != expected:
                raise ValueError(
                    f"added_tokens_decoder says that id {index} is {token.content!r}, but with "
                    f"this tokenizer.model it is {expected!r}. The two files are of different "
                    "models; copy both from the same checkpoint."
                )
        return {index: token for index, token in added.items() if index >= self.vocab_size}

    # ---- the vocabulary --------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """The pieces and the nine special tokens, without what `add_tokens` added."""
        return self.sp_model.get_piece_size() + len(SPECIAL_TOKENS)

    def __len__(self) -> int:
        return max(self.vocab_size, max(self._added_tokens_decoder, default=0) + 1)

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        vocab = {self._piece(index): index for index in range(self.sp_model.get_piece_size())}
        return vocab | self.added_tokens_encoder

    def get_command(self, token: str) -> int:
        """Give the id of a special token, or of `<bos>`, `<eos>`, `<unk>` or `<pad>`.

        Raises:
            ValueError: there is no such token.
        """
        named = {
            "<bos>": self.sp_model.bos_id(),
            "<eos>": self.sp_model.eos_id(),
            "<unk>": self.sp_model.unk_id(),
            "<pad>": self.pad_token_id,
        }
        known: dict[str, int] = {**named, **self._added_tokens_encoder}
        if token not in known:
            raise ValueError(f"{token!r} is no special token; there are {', '.join(known)}.")
        return known[token]

    @property
    def all_special_tokens(self) -> list[str]:
        """The named tokens, the nine, and special ones that were added."""
        return list(dict.fromkeys((*super().all_special_tokens, *SPECIAL_TOKENS)))

    def _add_tokens(
        self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Give new tokens the ids behind the nine; tokens that exist keep theirs.

        An ordinary new token is cut out of text wherever it stands. A special one never is:
        only `convert_tokens_to_ids` and `get_command` reach it.
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
                    f"the token {token.content!r} asks for lstrip, rstrip or single_word, "
                    "which this tokenizer has not. Add it without."
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
        """Give the piece; nothing for `<unk>`, `<s>`, `</s>` and ids outside the vocabulary."""
        model = self.sp_model
        is_text = index not in (model.unk_id(), model.bos_id(), model.eos_id())
        return self._piece(index) if is_text else ""

    def __setattr__(self, key: str, value: Any) -> None:
        # transformers asks `convert_ids_to_tokens` for the token, which is empty for 0, 1 and 2
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

        This is the one way from text to ids; whatever a text spells, no special id comes out.

        Raises:
            ValueError: a text has half a surrogate pair and so is not Unicode.
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
                _check_text(text)
            raise
        return ids

    def _encode_around(self, text: str, pattern: re.Pattern[str]) -> Ids:
        """Cut the tokens of `pattern` out; each stretch between them is a string of its own."""
        ids: Ids = []
        for index, stretch in enumerate(pattern.split(text)):
            if index % 2:
                ids.append(self._added_tokens_encoder[stretch])
            elif stretch:
                ids += self._encode_pieces([stretch])[0]
        return ids

    def _token_pattern(self, *, with_special: bool) -> re.Pattern[str] | None:
        """Give the pattern of the tokens to be cut out of text, None when there are none."""
        tokens = [
            token.content
            for token in self._added_tokens_decoder.values()
            if with_special or not token.special
        ]
        tokens.sort(key=len, reverse=True)  # of two that start alike, the longer is meant
        return re.compile(f"({'|'.join(map(re.escape, tokens))})") if tokens else None

    def _encode_strings(
        self, texts: Sequence[str], encode_special_tokens: bool | None
    ) -> list[Ids]:
        """Encode texts, reading special tokens in them only when that was asked for."""
        if encode_special_tokens is None:
            encode_special_tokens = self.encode_special_tokens
        if not encode_special_tokens:
            return self.encode_texts(texts)
        pattern = self._token_pattern(with_special=True)
        assert pattern is not None  # it holds at least the nine
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
        """Give the tokens of a text, and of a second one, as strings."""
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
        """Encode what `tokenizer(...)` was given: all its texts in one threaded call."""
        if return_offsets_mapping:
            raise NotImplementedError("ChatGLMTokenizer gives no offsets of tokens in the text.")
        options = {name: value for name, value in options.items() if name not in _HAVE_NO_EFFECT}
        is_batch = _is_batch(text, is_split_into_words)
        rows = [(text, text_pair)]
        if is_batch:
            rows = _split_rows(text, text_pair, is_split_into_words)
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
        """Turn each row's text, words or ids, and those of its pair, into ids."""
        texts: list[str] = []
        for entry in chain.from_iterable(rows):
            if isinstance(entry, str):
                texts.append(entry)
            elif is_split_into_words and isinstance(entry, (list, tuple)):
                texts.extend(word for word in entry if isinstance(word, str))
        ids_of_texts = iter(self._encode_strings(texts, encode_special_tokens))

        def ids_of(entry: Any) -> Ids:
            if isinstance(entry, str):
                return next(ids_of_texts)
            if isinstance(entry, (list, tuple)):
                if all(isinstance(item, int) for item in entry):
                    return list(entry)
                if is_split_into_words and all(isinstance(item, str) for item in entry):
                    return list(chain.from_iterable(next(ids_of_texts) for _ in entry))
            raise ValueError(
                f"got {type(entry).__name__} {str(entry)[:80]!r}, expected a text or a list of "
                "ids (or of words, with is_split_into_words=True)."
            )

        return [
            (ids_of(first), None if second is None else ids_of(second)) for first, second in rows
        ]

    def _finish_one(self, row: Row, options: dict[str, Any]) -> BatchEncoding:
        """Add special tokens to one row, cut and pad it."""
        padding, truncation = options.pop("padding_strategy"), options.pop("truncation_strategy")
        return self.prepare_for_model(
            *row,
            padding=padding.value,
            truncation=truncation.value,
            prepend_batch_axis=True,
            **options,
        )

    def _finish_batch(self, rows: Sequence[Row], options: dict[str, Any]) -> BatchEncoding:
        """Add special tokens to many rows, cut them, and pad them together."""
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
        """Tell whether nothing is asked for but texts as ids, whole or cut at the end."""
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
        """Do what `_finish_one` and `_finish_batch` do, without their cost per row."""
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
        """Put `[gMASK] sop` in front; a pair is followed by `</s>`, a single text by nothing."""
        if token_ids_1 is None:
            return [*self._prefix_ids, *token_ids_0]
        return [*self._prefix_ids, *token_ids_0, *token_ids_1, self.eos_token_id]

    def get_special_tokens_mask(
        self,
        token_ids_0: Ids,
        token_ids_1: Ids | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Give 1 for the tokens that `build_inputs_with_special_tokens` adds, else 0."""
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
        """Give zeros: ChatGLM has no token types."""
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
        """Pad as every tokenizer does, with positions 0..n-1 on the tokens and 0 on the pads."""
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
        """Join tokens: bytes become characters, and one leading space is dropped."""
        return self.sp_model.decode_pieces(tokens) if tokens else ""

    # ---- chat ------------------------------------------------------------------------

    def build_single_message(self, role: str, metadata: str, message: str) -> Ids:
        r"""Encode one message: its role, the metadata and a newline, the content.

        Raises:
            ValueError: the role is none of system, user, assistant and observation.
        """
        if role not in ROLES:
            raise ValueError(f"got the role {role!r}, expected one of {', '.join(ROLES)}.")
        head, content = self.encode_texts([f"{metadata}\n", message])
        return [self._special_ids[f"<|{role}|>"], *head, *content]

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
        """
        messages = read_messages([*(history or ()), {"role": role, "content": query}])
        ids, _ = self._encode_chat(messages, add_generation_prompt=True)
        return self.pad({"input_ids": [ids]}, return_tensors="pt")

    def _encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool
    ) -> tuple[Ids, list[int]]:
        """Encode messages; the second list is 1 where the assistant writes, with what ends it."""
        ids: Ids = [*self._prefix_ids]
        is_written = [0] * len(ids)
        was_assistant = False
        for message in messages:
            added = self.build_single_message(message.role, message.metadata, message.text)
            is_assistant = message.role == "assistant"
            ids += added
            is_written += [int(was_assistant), *[int(is_assistant)] * (len(added) - 1)]
            was_assistant = is_assistant
        if add_generation_prompt:
            ids.append(self._special_ids["<|assistant|>"])
            is_written.append(int(was_assistant))
        return ids, is_written

    def apply_chat_template(  # type: ignore[override]  # what cannot be asked for is left out
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
        message) or OpenAI's (`tool_calls`, role `tool`). No message is closed by a token of
        its own, so `continue_final_message` needs nothing done. The other arguments are as
        transformers documents them.

        Returns:
            A BatchEncoding; with `return_dict=False` ids; with `tokenize=False` text, which
            `encode_special_tokens=True` reads back into the same ids as long as no message
            spells a special token.

        Raises:
            ValueError: an argument asks for what the format has not.
            TemplateError: a message cannot be read.
        """
        for name, value in (("chat_template", chat_template), ("documents", documents)):
            if value is not None:
                raise ValueError(
                    f"{name} cannot be used: ChatGLM's chat format joins ids, not text, and "
                    "is fixed. Leave the argument out."
                )
        if continue_final_message and add_generation_prompt:
            raise ValueError("either continue the final message or begin a new one, not both.")
        is_batch = _is_batch_of_conversations(conversation)
        described = [get_json_schema(tool) if callable(tool) else tool for tool in tools or ()]
        chats = [
            read_messages(getattr(chat, "messages", chat), described)
            for chat in (conversation if is_batch else [conversation])
        ]
        if not tokenize:
            texts = [_chat_text(chat, add_generation_prompt) for chat in chats]
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
            side = options.get("padding_side") or self.padding_side
            rows = output["input_ids"] if is_batch else [output["input_ids"]]
            masks = [
                self._fit_mask(mask, len(row), side)
                for (_, mask), row in zip(encoded, rows, strict=True)
            ]
            output["assistant_masks"] = masks if is_batch else masks[0]
        if return_tensors:
            output.convert_to_tensors(return_tensors, prepend_batch_axis=not is_batch)
        return output if return_dict else output["input_ids"]

    def _fit_mask(self, is_written: list[int], length: int, padding_side: str) -> list[int]:
        """Cut or pad a mask as its ids were."""
        kept = (
            is_written[:length]
            if self.truncation_side == "right"
            else is_written[max(0, len(is_written) - length) :]
        )
        pads = [0] * (length - len(kept))
        return pads + kept if padding_side == "left" else kept + pads

    # ---- files -----------------------------------------------------------------------

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str]:
        """Write `tokenizer.model`, from memory, and give its path."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory) / f"{prefix}{self.vocab_files_names['vocab_file']}"
        path.write_bytes(self.sp_model.serialized_model_proto())
        return (str(path),)


def _load_pieces(path: Path) -> SentencePieceProcessor:
    """Read a SentencePiece model.

    Raises:
        ValueError: the file holds something else.
    """
    content = path.read_bytes()
    model = SentencePieceProcessor()
    try:
        if not model.load_from_serialized_proto(content):
            raise RuntimeError("it cannot be parsed")
    except RuntimeError as error:
        hint = (
            "It is a Git LFS pointer: run `git lfs pull` in its folder."
            if content.startswith(b"version https://git-lfs")
            else "Download it again; ChatGLM3's has 1,018,370 bytes."
        )
        raise ValueError(
            f"{path} ({len(content):,} bytes) is no SentencePiece model: {error}. {hint}"
        ) from error
    return model


def _check_text(text: Any) -> None:
    """Say what is wrong with a text that SentencePiece refused."""
    if not isinstance(text, str):
        raise ValueError(f"expected text, got {type(text).__name__}: {str(text)[:80]}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has half a surrogate pair, {text[error.start]!r}, as its character "
            f"{error.start + 1}: {text[max(0, error.start - 20) : error.end + 20]!r}. It is not "
            "valid Unicode; mend the program that wrote it, or drop the text."
        ) from error


def _is_batch(text: Any, is_split_into_words: bool) -> bool:
    """Tell many texts from one, by transformers' rule: a list of ids or of words is one."""
    if not isinstance(text, (list, tuple)):
        return False
    if not text:
        return not is_split_into_words
    return isinstance(text[0], (list, tuple) if is_split_into_words else (str, list, tuple))


def _split_rows(
    texts: Sequence[Any], pairs: Sequence[Any] | None, is_split_into_words: bool
) -> list[tuple[Any, Any]]:
    """Give each text of a batch with its pair; a pair may also be two texts in one entry."""
    if pairs is not None:
        if not isinstance(pairs, (list, tuple)) or len(pairs) != len(texts):
            raise ValueError("a batch of texts needs as many text pairs.")
        return list(zip(texts, pairs, strict=True))
    return [_split_row(text, is_split_into_words) for text in texts]


def _split_row(text: Any, is_split_into_words: bool) -> tuple[Any, Any]:
    if isinstance(text, str) or not text or isinstance(text[0], int):
        return text, None
    if len(text) == 2 and (not is_split_into_words or isinstance(text, tuple)):
        return text[0], text[1]
    if is_split_into_words:
        return text, None
    if len(text) == 1:
        return text[0], None
    raise ValueError(f"expected a text or a pair of texts in a batch, got {len(text)} texts.")


def _is_batch_of_conversations(conversation: Any) -> bool:
    if not isinstance(conversation, (list, tuple)):
        return False
    if not conversation:
        raise ValueError("the conversation is empty; it needs at least one message.")
    return isinstance(conversation[0], (list, tuple)) or hasattr(conversation[0], "messages")


def _chat_text(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """Write the chat format as text, for people; a space stands where a content begins."""
    parts = [*PREFIX_TOKENS]
    for message in messages:
        content = f" {message.text}" if message.text else ""
        parts.append(f"<|{message.role}|>{message.metadata}\n{content}")
    if add_generation_prompt:
        parts.append("<|assistant|>")
    return "".join(parts)
