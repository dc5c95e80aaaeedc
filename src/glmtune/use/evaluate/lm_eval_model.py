"""A model for lm-evaluation-harness, so that any of its tasks runs on ours, adapters included.

    python -m glmtune.use.evaluate.lm_eval_model run --model glmtune \
        --model_args pretrained=out/chatglm3-lora --tasks ceval-valid_logic --apply_chat_template

    lm_eval.simple_evaluate(model=GlmtuneLM("out/chatglm3-lora"), tasks=["ceval-valid_logic"])

The harness passes prompts as texts. With its chat template a prompt is the messages as JSON after a
mark, of which our template makes the ids that chat would have; without it a prompt is bare text,
after what the tokenizer puts before one.

Source: https://github.com/EleutherAI/lm-evaluation-harness, docs/model_guide.md.
"""

import json
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from glmtune.conversation import Conversation, Message, read_messages
from glmtune.errors import DataError
from glmtune.model.load import load_tokenizer
from glmtune.template.base import IGNORE, Example, decode
from glmtune.use.evaluate.likelihood import greedy_log_likelihoods
from glmtune.use.evaluate.run import open_model
from glmtune.use.evaluate.task import ModelChoice
from glmtune.use.generate import BATCH_SIZE, Request, Sampling, generate
from glmtune.use.open import load_tuned

CHAT_MARK = "\x02messages\x03"
MAX_NEW_TOKENS = 256  # where a task names no length
WINDOW = 2048  # of perplexity, where the model names no length


@register_model("glmtune")
class GlmtuneLM(LM):  # type: ignore[misc]  # the harness has no types
    """A model, with or without an adapter, as lm-evaluation-harness calls it.

    Args:
        pretrained: a folder or hub id of a model; or an adapter folder, which names its base.
        adapter: the folder of an adapter.
        layout, dtype: as for `glmtune chat`.
        batch_size: rows at once.

    Raises:
        CheckpointError: a folder is missing or damaged.
        TemplateError: the adapter was trained on other prompts.
    """

    def __init__(
        self,
        pretrained: str,
        adapter: str | None = None,
        layout: Any = None,
        dtype: Any = "auto",
        batch_size: int | str = BATCH_SIZE,
        **_: Any,  # what the harness adds for every model, such as device
    ) -> None:
        super().__init__()
        size = int(batch_size) if str(batch_size).isdigit() else BATCH_SIZE  # "auto"
        opened = open_model(ModelChoice(pretrained, adapter, layout, dtype, batch_size=size))
        self.template = opened.template
        self.context_length = opened.context_length
        self.batch_size = size
        self.tokenizer = load_tokenizer(opened.base)
        self.model = load_tuned(opened.base, opened.adapter, dtype=dtype)

    @property
    def tokenizer_name(self) -> str:
        """Name the tokenizer for the harness's cache of requests."""
        return f"glmtune-{self.template.fingerprint[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Name the template for the harness's results."""
        return self.tokenizer_name

    def apply_chat_template(
        self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """Return messages as a text, of which `_prompt_ids` makes ids.

        Raises:
            DataError: the task begins the answer itself.
        """
        if not add_generation_prompt:
            raise DataError(
                "the task begins the answer of the model (gen_prefix), which a chat prompt of "
                "glmtune cannot have. Run it without --apply_chat_template."
            )
        return CHAT_MARK + json.dumps(chat_history, ensure_ascii=False)

    def _conversation(self, context: str) -> Conversation | None:
        """Read the messages of a chat prompt; None for a bare text."""
        _, mark, messages = context.partition(CHAT_MARK)
        return Conversation(read_messages(json.loads(messages))) if mark else None

    def _prompt_ids(self, context: str) -> list[int]:
        conversation = self._conversation(context)
        if conversation is not None:
            return self.template.prompt_ids(conversation)
        return list(self.tokenizer(context)["input_ids"])

    def _example(self, context: str, continuation: str) -> Example:
        """Encode a prompt and its continuation, which alone is measured."""
        conversation = self._conversation(context)
        before = self._prompt_ids(context)
        if conversation is not None:
            answer = Message("assistant", continuation.strip())
            ids = self.template.encode(Conversation((*conversation.messages, answer))).input_ids
            ids = ids[:-1] if ids[-1] in self.template.stop_ids else ids
        else:
            ids = list(self.tokenizer(context + continuation)["input_ids"])
        room = len(ids) if self.context_length is None else self.context_length
        labels = [IGNORE] * len(before) + ids[len(before) :]
        return Example(ids[-room:], labels[-room:])

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether greedy decoding gives it."""
        return self._scored([self._example(*request.args) for request in requests])

    def _scored(self, examples: Sequence[Example]) -> list[tuple[float, bool]]:
        found = {
            index: (logp, is_greedy)
            for index, logp, is_greedy in greedy_log_likelihoods(
                self.model, examples, self.batch_size
            )
        }
        return [found[index] for index in range(len(examples))]

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        """Return the log-likelihood of each text, in windows as `--task perplexity` has them."""
        before = list(self.tokenizer("")["input_ids"])
        room = (self.context_length or WINDOW) - len(before)
        examples, owners = [], []
        for owner, request in enumerate(requests):
            ids = self.tokenizer(request.args[0], add_special_tokens=False)["input_ids"]
            for start in range(0, len(ids), room):
                part = list(ids[start : start + room])
                examples.append(Example([*before, *part], [IGNORE] * len(before) + part))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (logp, _is_greedy) in zip(owners, self._scored(examples), strict=True):
            totals[owner] += logp
        return totals

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        """Generate answers, each up to the first of its stop texts."""
        found = [""] * len(requests)
        groups: dict[float, list[int]] = {}
        for index, request in enumerate(requests):
            settings = request.args[1]
            is_sampled = settings.get("do_sample", False)
            temperature = float(settings.get("temperature") or 0) if is_sampled else 0.0
            groups.setdefault(temperature, []).append(index)
        for temperature, indices in groups.items():
            sampling = Sampling(temperature=temperature, top_p=1.0, seed=0)
            asked = [self._request(requests[index].args, sampling, index) for index in indices]
            for completion in generate(
                self.model,
                asked,
                stop_ids=self.template.stop_ids,
                sampling=sampling,
                batch_size=self.batch_size,
            ):
                index = indices[completion.index]
                found[index] = self._text(completion.ids, *requests[index].args)
        return found

    def _request(
        self, arguments: tuple[str, dict[str, Any]], sampling: Sampling, number: int
    ) -> Request:
        context, settings = arguments
        length = int(
            settings.get("max_gen_toks") or settings.get("max_new_tokens") or MAX_NEW_TOKENS
        )
        ids = self._prompt_ids(context)
        if self.context_length is not None:
            length = min(length, max(1, self.context_length // 2))
            ids = ids[-(self.context_length - length) :]
        return Request(ids, length, sampling.generator(self.model.device, number))

    def _text(self, ids: list[int], context: str, settings: dict[str, Any]) -> str:
        if self._conversation(context) is not None:
            text = "\n".join(message.content for message in self.template.parse(ids))
        else:
            kept = [token for token in ids if token not in self.template.stop_ids]
            text = decode(self.tokenizer, kept)
        until = settings.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop)[0] if stop else text
        return text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
