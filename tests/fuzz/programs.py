"""What programs and models give: messages, replies, logs, a file of answers that broke off."""

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.mutations import mutate_bytes, mutate_value, nasty
from tests.fuzz.rows import GOOD
from tests.fuzz.surface import Attempt, Healthy, Surface

from glmtune.conversation import Conversation, read_messages
from glmtune.inspect.doctor.log import diagnose, read_log
from glmtune.inspect.doctor.symptoms import SYMPTOMS
from glmtune.model.chatglm.reply import process_response
from glmtune.tool_calls import parse_tool_call, render_tool_call
from glmtune.use.predict import AnswerFile

TALKS = [row for row in GOOD if "messages" in row]


def of_messages(healthy: Healthy) -> Attempt:
    """As `chat` and programs give them."""

    def attempt(random: Random, folder: Path) -> None:
        row = mutate_value(json.loads(json.dumps(random.choice(TALKS))), random)
        messages: Any = row.get("messages") if isinstance(row, dict) else row
        tools = row.get("tools") if isinstance(row, dict) else nasty(random)
        if isinstance(tools, str) and random.random() < 0.7:
            tools = None
        healthy.template.prompt_ids(Conversation(read_messages(messages, tools)))

    return attempt


def of_replies(healthy: Healthy) -> Attempt:
    """Whatever ids a model generates, and whatever text is read back as a reply."""
    pieces = ["get_weather\n", "```python\n", "tool_call(", "city='北京'", ")", "\n```", "<|user|>"]
    pieces += [
        "**{'a': 1}",
        "(" * 300,
        "1" * 5000,
        "\ud800",
        "\0",
        "lambda: 1",
        "x=x",
        "[[训练时间]]",
    ]
    pieces += ["<|assistant|>", "-1", "1e999", "{1: 2}", "f'{x}'", "__import__('os')", "\n", " "]

    def attempt(random: Random, folder: Path) -> None:
        ids = [random.randrange(-1, 520) for _ in range(random.randint(0, 30))]
        healthy.template.parse([token for token in ids if 0 <= token < 489])
        text = "".join(random.choices(pieces, k=random.randint(0, 8)))
        try:
            call = parse_tool_call(text)
        except ValueError:
            call = None
        if call is not None:  # what is read is written, and read as the same
            assert parse_tool_call(render_tool_call(call)) == call, text
        row = mutate_value(json.loads(json.dumps(random.choice(TALKS))), random)
        history: Any = row.get("messages") if isinstance(row, dict) else row
        process_response(text, history)

    return attempt


def of_calls(healthy: Healthy) -> Attempt:
    """Arguments that a program renders as a call: read back unchanged, or refused."""

    def attempt(random: Random, folder: Path) -> None:
        arguments: dict[str, Any] = {"city": "北京", "days": [1, {"from": 2.5}], "**": None}
        changed = mutate_value(arguments, random)
        if isinstance(changed, dict):
            assert parse_tool_call(render_tool_call(changed)) == changed

    return attempt


def of_logs(healthy: Healthy) -> Attempt:
    """`doctor` of a log."""
    known = [part for symptom in SYMPTOMS for part in symptom.pattern.split("|")]
    lines = [*known, "", "Traceback (most recent call last):", '  File "x.py", line 1', " " * 400]
    lines += ["step 1/3  loss 0.1234  lr 1e-4", "ValueError: x", "\x1b[31merror\x1b[0m", "蓝\r50%"]

    def attempt(random: Random, folder: Path) -> None:
        path = folder / "log.txt"
        chosen = random.choices(lines, k=random.choice((0, 3, 30, 3000)))
        encoding = random.choice(("utf-8", "utf-16", "gb18030"))
        path.write_bytes("\n".join(chosen).encode(encoding, "replace"))
        if random.random() < 0.5:
            mutate_bytes(path, random)
        diagnose(read_log(str(path)))

    return attempt


def of_answers(healthy: Healthy) -> Attempt:
    """The answers of a `predict` that was interrupted."""
    identity = {"model": "nano", "prompts": "abc", "sampling": {"temperature": 0}}
    lines = [identity, *({"row": n, "answer": "好", "ended": True, "tokens": 1} for n in (2, 1, 3))]

    def attempt(random: Random, folder: Path) -> None:
        shown = [json.loads(json.dumps(line)) for line in lines]
        at = random.randrange(len(shown))
        shown[at] = mutate_value(shown[at], random)
        answers = AnswerFile(folder / "answers.jsonl", identity)
        answers.partial.write_text("".join(json.dumps(line) + "\n" for line in shown))
        if random.random() < 0.4:
            mutate_bytes(answers.partial, random)
        answers.resume()
        new = [{"row": 4, "answer": "", "ended": True, "tokens": 0}]
        answers.write(iter(new))
        written = [json.loads(line) for line in answers.path.read_text().splitlines()]
        assert [line["row"] for line in written] == sorted(answers.lines)

    return attempt


SURFACES = (
    Surface("messages of programs", of_messages, 10),
    Surface("replies of models", of_replies, 10),
    Surface("calls of tools", of_calls, 6, refused=0.03),
    Surface("logs", of_logs, 3, refused=0),
    Surface("answers that broke off", of_answers, 6),
)
