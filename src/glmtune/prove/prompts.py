"""Proof that chat builds the prompts that training saw.

For every learned answer of a conversation, the ids before its first learned token must be those
that `Template.prompt_ids` gives for the turns before it.
"""

from collections.abc import Iterable, Sequence

from glmtune.conversation import Conversation
from glmtune.errors import TemplateError
from glmtune.template.base import IGNORE, Example, Template, is_learned


def check_template_agrees(template: Template, conversations: Iterable[Conversation]) -> int:
    """Prove that the ids before each learned answer are those of the prompt that chat builds.

    Args:
        template: of the run.
        conversations: rows of the run that the template can encode.

    Returns:
        How many learned answers were compared.

    Raises:
        TemplateError: names the conversation and the turn where the ids differ.
    """
    num_answers = 0
    for number, conversation in enumerate(conversations, start=1):
        example = template.encode(conversation)
        starts = _learned_starts(example)
        prompts = _prompt_lengths(template, conversation, example.input_ids, number)
        if unmatched := sorted(starts - prompts):
            raise TemplateError(
                f"conversation {number}: training begins to learn at token {unmatched[0]}, but chat"
                f" would begin an answer at {', '.join(map(str, sorted(prompts))) or 'none'}. "
                "Report this with the row: the template contradicts itself."
            )
        num_answers += sum(example.labels[length] != IGNORE for length in prompts)
    return num_answers


def _prompt_lengths(
    template: Template, conversation: Conversation, trained: Sequence[int], number: int
) -> set[int]:
    """Find where chat would start each answer, and compare the ids before it."""
    lengths = set()
    messages = conversation.messages
    for turn, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = template.prompt_ids(Conversation(messages[:turn]))
        if list(trained[: len(prompt)]) == prompt:
            lengths.add(len(prompt))
        # A tool call may belong to the remark before it: then no prompt is between the two.
        elif is_learned(message) and (turn == 0 or messages[turn - 1].role != "assistant"):
            raise _first_difference(prompt, trained, f"conversation {number}, turn {turn}")
    return lengths


def _learned_starts(example: Example) -> set[int]:
    before = [IGNORE, *example.labels]
    return {
        index
        for index, label in enumerate(example.labels)
        if label != IGNORE and before[index] == IGNORE
    }


def _first_difference(prompt: Sequence[int], trained: Sequence[int], where: str) -> TemplateError:
    pairs = zip(prompt, trained, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(trained)))
    return TemplateError(
        f"{where}: at token {at} chat has {list(prompt[at : at + 4])}, but training has "
        f"{list(trained[at : at + 4])}. The adapter would be prompted with other tokens "
        "than it was trained on. Report this with the row: the template contradicts itself."
    )
