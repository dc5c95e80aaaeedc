"""`glmtune chat`: talk to a model in the terminal, or ask it a single question."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmtune.cli.options import (
    AdapterOption,
    AnyTemplate,
    DtypeOption,
    MaxNewTokens,
    ModelArgument,
    PromptLayout,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopP,
)
from glmtune.cli.printing import echo
from glmtune.errors import DataError, TemplateError
from glmtune.gc_pause import loading
from glmtune.messages import translate

if TYPE_CHECKING:
    from glmtune.conversation import Role
    from glmtune.use.chat import ChatSession, Reply

HELP = """\
/system TEXT       set the system message and start a new conversation
/observation TEXT  give the result of the tool that the model called
/undo              remove your last message and its answer
/reset             start a new conversation
/exit              quit (also /quit, Ctrl-D)
Ctrl-C stops an answer. \"\"\" begins and ends a message of several lines."""
FENCE = '"""'


def chat(
    model: ModelArgument,
    adapter: AdapterOption = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="Answer only this and exit; - for stdin."),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="Text of the system message.")
    ] = None,
    tools: Annotated[
        Path | None, typer.Option("--tools", help="JSON file of tools that the model may call.")
    ] = None,
    layout: PromptLayout = None,
    dtype: DtypeOption = "auto",
    int8: Annotated[
        bool, typer.Option("--int8", help="Compute in int8, with half the memory.")
    ] = False,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.8,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Same as --temperature 0.")] = False,
    seed: Seed = None,
    any_template: AnyTemplate = False,
) -> None:
    """Talk to a model.

    Example: glmtune chat ./chatglm3-6b --adapter out/chatglm3-lora -p 你好
    """
    question = None if prompt is None else read_prompt(prompt)
    definitions = None if tools is None else read_tools(tools)

    with loading():
        from glmtune.use.chat import system_messages
        from glmtune.use.generate import Sampling
        from glmtune.use.open import open_session

    session = open_session(
        model,
        adapter,
        layout=layout,
        dtype=dtype,
        compute="int8" if int8 else None,
        system=system_messages(system, definitions),
        sampling=Sampling(
            max_new_tokens=max_new_tokens,
            temperature=0.0 if greedy else temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
        ),
        any_template=any_template,
    )
    if question is not None:
        answer(session, question)
    else:
        converse(session, definitions)


def read_prompt(prompt: str) -> str:
    """Return the prompt of the command line, or standard input for `-`.

    Raises:
        DataError: it is empty.
    """
    text = check_text(sys.stdin.read()) if prompt == "-" else check_text(prompt)
    if not text.strip():
        raise DataError("the prompt is empty. Give a text after -p, or one on stdin with -p -.")
    return text.strip("\r\n")


def check_text(text: str) -> str:
    """Refuse bytes that were not UTF-8, which Python decodes as lone surrogates.

    Raises:
        DataError: names the position.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"character {error.start + 1} of the message is not UTF-8. Set the terminal to UTF-8, "
            "or convert the file: iconv -f gb18030 -t utf-8."
        ) from None
    return text


def read_tools(path: Path) -> list[Any]:
    """Read tool definitions in the format of ChatGLM3 or OpenAI.

    Raises:
        DataError: the file is not a JSON list of objects.
    """
    import json

    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{path}: cannot be read as JSON: {why}. Give a file with a JSON list of tools."
        ) from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(
            f"{path}: expected a JSON list of tools, such as "
            '[{"name": "get_weather", "description": "...", "parameters": {...}}].'
        )
    return tools


def answer(session: "ChatSession", text: str, role: "Role" = "user") -> None:
    """Print an answer as it is generated, and notes about it on stderr."""
    pieces = session.stream(text, role)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        pieces.close()
        print(flush=True)
    if session.last_reply is not None:
        report(session.last_reply)


def report(reply: "Reply") -> None:
    """Note on stderr whether an answer was cut, calls a tool or lost old messages."""
    from glmtune.inspect.visible import visible
    from glmtune.tool_calls import parse_tool_call, render_arguments

    if reply.num_left_out:
        note(f"the {reply.num_left_out} oldest messages no longer fit and were dropped")
    if reply.ended_by == "length":
        note(f"the answer was cut after {reply.num_tokens} tokens; see --max-new-tokens")
    for message in reply.messages:
        if not message.metadata.strip():
            continue
        name = visible(message.metadata.strip())
        try:
            arguments = parse_tool_call(message.content)
        except ValueError as error:
            note(f"calls {name}, but not in the format of a tool call: {error}")
        else:
            note(f"calls {name}({render_arguments(arguments)}); give its result with /observation")


def note(text: str) -> None:
    """Print a note that is not part of the conversation."""
    echo(f"[{translate(text)}]", dim=True, err=True)


def converse(session: "ChatSession", tools: list[Any] | None) -> None:
    """Read messages and commands until the user quits."""
    import contextlib

    with contextlib.suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  # gives input() a history and an editor

    if sys.stdin.isatty():
        note("/help lists the commands, /exit quits")
    while True:
        try:
            if (line := read_message()) is None:
                return
            if line.startswith("/") and not run_command(session, line, tools):
                return
            if line.strip() and not line.startswith("/"):
                answer(session, line.strip())
        except KeyboardInterrupt:
            note("stopped")
        except (DataError, TemplateError) as error:  # of this message; the conversation goes on
            note(str(error))


def read_message() -> str | None:
    """Read a line, or several between fences; None when the user quits."""
    prompt = "> " if sys.stdin.isatty() else ""
    try:
        line = check_text(input(prompt))
        if not line.startswith(FENCE):
            return line
        lines = [line.removeprefix(FENCE)]
        while not lines[-1].rstrip().endswith(FENCE):
            lines.append(check_text(input(". " if prompt else "")))
        return "\n".join(lines).rstrip().removesuffix(FENCE)
    except (EOFError, KeyboardInterrupt):
        if prompt:
            print()
        return None


def run_command(session: "ChatSession", line: str, tools: list[Any] | None) -> bool:
    """Run a line that begins with a slash; False when the user quits."""
    from glmtune.use.chat import system_messages

    command, _, text = line.strip().partition(" ")
    match command:
        case "/exit" | "/quit":
            return False
        case "/help":
            echo(HELP, dim=True, err=True)
        case "/reset":
            session.reset()
            note("new conversation")
        case "/system":
            session.reset(system_messages(text.strip() or None, tools))
            if text.strip():
                note("system message set; new conversation")
            else:
                note("system message removed; new conversation")
        case "/undo":
            note("removed" if session.undo() else "there is nothing to remove")
        case "/observation":
            answer(session, text.strip(), role="observation")
        case _:
            note(f"{command} is not a command, see /help. To send it, put a space before it")
    return True
