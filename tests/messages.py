"""The texts of the program that people read, and their Chinese twins in messages_zh.po.

    python -m tests.messages         list the texts without a twin; exit code 1 if there are any
    python -m tests.messages write   add them to messages_zh.po, with an empty twin to fill in, and
                                     remove the entries whose text is gone from the code

A text is a constant or an f-string in src/ that reads like prose, the help of a command, or a piece
of a page of a report. What is filled in becomes `{0}`, `{1}`, or `{n0}` if it is formatted as a
number: `f"{n:,} rows of {name}"` gives the template `{n0} rows of {1}`.

An entry with the comment `#. by hand` is put together from pieces, or is a single word (msgctxt
"word"); it stays whatever the code says. One with `#, internal` is for a program or a model, and
has no twin. Those with `#. typer` are words of typer, compiled for gettext.
"""

import ast
import itertools
import json
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, nodes

from glmtune.messages import CATALOGUE, Entry, parts_of, read_catalogue

SOURCE = Path(__file__).parents[1] / "src" / "glmtune"
BY_HAND, TYPER = "#. by hand", "#. typer"
COMPILED = SOURCE / "locale" / "zh" / "LC_MESSAGES" / "messages.mo"
PROSE = re.compile(r"[A-Za-z]{2,}['`\"]?[,:;.]? ['`\"(]?[A-Za-z]{1,}")
SENTENCE = re.compile(r"(?:\b[A-Za-z]{2,} ){3,}[A-Za-z]{2,}")
PERCENT = re.compile(r"%(?:\(\w+\))?[-+#0, ]*[\d*]*(?:\.\d+)?[sdgfrxie]")
# A gap that `str.format` fills, where a text is kept as a constant: {key!r}, {:g}.
NAMED = re.compile(r"\{\{([a-z_.]*)(![rs])?(:[^ {}]*)?\}\}")
FORMATTED = (
    "recipe/rules.py", "recipe/streaming_rules.py", "recipe/methods.py",
    "inspect/doctor/symptoms.py", "prove/report/summary.py",
)  # fmt: skip
# Prompts, programs and data rather than messages.
NOT_MESSAGES = (
    "kernels/", "model/chatglm/modeling_chatglm.py", "model/nano/", "cli/demo/fractions.py",
    "messages.py", "prove/stock_reader.py", "model/chatglm/fast_tokenizer.py", "__init__.py",
)  # fmt: skip
OUR_ERRORS = ("Recipe", "Data", "Template", "Checkpoint", "Training", "Output")
COMMAND_LINES = ("glmtune ", "pip ", "import ", "from ", "{%", "{{", "<", "http", "python ")
HEADER = """\
# The texts of glmtune in Chinese. How to add one: CONTRIBUTING.md, "Messages".
#
# One English word, one Chinese word:
#   adapter 适配器      answer 回答         base 基座（模型）   bad row 坏行      cache 缓存
#   checkpoint 检查点   epoch 轮           example 样本        fingerprint 指纹   folder 文件夹
#   gradient 梯度       held-out 留出      hub id hub 上的名字  label 标签        layer 层
#   layout 布局         learn 学习         learning rate 学习率 loss 损失          merge 合并
#   pack 包             prompt 提示        proof 证明           rank 秩           recipe 配置
#   row 行              run 训练           split 划分、部分      step 步           template 模板
#   token token         tokenizer 分词器   tune 微调            turn 轮次         weights 权重
# Names of keys, files, commands and libraries stay as they are. Address the reader as 您.
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\nLanguage: zh_CN\\n"
"""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of the program.

    Attributes:
        template: with `{0}` for what is filled in.
        values: the expressions that are filled in; "" where they are not known.
        place: file and line.
    """

    template: str
    values: tuple[str, ...]
    place: str


@cache
def texts() -> dict[str, Text]:
    """Return the texts of the program by their template."""
    found: dict[str, Text] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith(NOT_MESSAGES):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for text in [*_in_code(tree, name), *_help(tree, name)]:
            found.setdefault(text.template, text)
    for path in sorted((SOURCE / "prove" / "report" / "pages").glob("*.html")):
        for text in _in_page(path):
            found.setdefault(text.template, text)
    return found


def _in_code(tree: ast.Module, name: str) -> Iterator[Text]:
    """Yield the constants and f-strings that read like prose."""
    skipped, with_percent = _skipped(tree)
    shown = _shown(tree)
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, ast.Constant | ast.JoinedStr):
            continue
        template, values = _template(node, is_percent=id(node) in with_percent)
        if name in FORMATTED:
            template, values = _with_named_gaps(template, values)
        bare = " ".join(re.sub(r"\{n?\d+\}", " ", template).split())
        is_text = re.search(r"[A-Za-z]{2}", bare) if id(node) in shown else PROSE.search(bare)
        if is_text and not template.lstrip().startswith(COMMAND_LINES):
            yield Text(template.strip(), values, f"{name}:{node.lineno}")


def _shown(tree: ast.Module) -> set[int]:
    """Return the texts that are printed, logged or raised, which even one word is enough for."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            called = _dotted(node.func)
            if (
                called.startswith("logger.")
                or called in ("echo", "note", "console.print")
                or (called.endswith("Error") and called[:-5] in OUR_ERRORS)
            ):
                found.add(id(node.args[0]))
    return found


def _skipped(tree: ast.Module) -> tuple[set[int], set[int]]:
    """Return the nodes that are no texts of their own, and those with gaps such as %s."""
    skipped: set[int] = set()
    with_percent: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))  # a docstring
        elif isinstance(node, ast.JoinedStr):
            for part in node.values:
                inner = part.format_spec if isinstance(part, ast.FormattedValue) else part
                skipped |= {id(each) for each in ast.walk(inner)} if inner else set()
        elif isinstance(node, ast.AnnAssign) and _dotted(node.target) == "_OURS":
            skipped |= {id(each) for each in ast.walk(node)}  # names of keys elsewhere
        elif isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
            if not any(_dotted(each) == "Annotated" for each in ast.walk(node.annotation)):
                skipped |= {id(each) for each in ast.walk(node.annotation)}
        elif isinstance(node, ast.Call):
            called = _dotted(node.func)
            if called.startswith(("re.", "regex.", "cast")):
                skipped |= {id(each) for each in ast.walk(node)}
            elif called == "Symptom":  # its name, and what is searched for in a log
                skipped |= {id(each) for part in node.args[:2] for each in ast.walk(part)}
            elif called.startswith("logger.") and node.args:
                with_percent.add(id(node.args[0]))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            with_percent.add(id(node.left))
        elif isinstance(node, ast.Assert):
            skipped |= {id(each) for each in ast.walk(node)}
    return skipped, with_percent


def _dotted(node: ast.AST) -> str:
    """Return a name such as `typer.echo`; "" for what is none."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _template(
    node: ast.Constant | ast.JoinedStr, *, is_percent: bool
) -> tuple[str, tuple[str, ...]]:
    if isinstance(node, ast.Constant):
        if not isinstance(node.value, str):
            return "", ()
        escaped = _escaped(node.value)
        return _with_percent_gaps(escaped) if is_percent else (escaped, ())
    text, values = "", list[str]()
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += _escaped(str(part.value))
        elif isinstance(part, ast.FormattedValue):
            text += f"{{{_mark(part)}{len(values)}}}"
            values.append(ast.unparse(part.value))
    return text, tuple(values)


def _mark(part: ast.FormattedValue) -> str:
    """Return "n" for what is formatted as a number, which no other text may stand for."""
    spec = part.format_spec.values if isinstance(part.format_spec, ast.JoinedStr) else []
    last = spec[-1].value if spec and isinstance(spec[-1], ast.Constant) else ""
    return "n" if str(last)[-1:] in (*",dfge%",) else ""


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _with_percent_gaps(escaped: str) -> tuple[str, tuple[str, ...]]:
    count = itertools.count()

    def number(gap: re.Match[str]) -> str:
        return f"{{{'n' if gap[0][-1] in 'dfge' else ''}{next(count)}}}"

    return PERCENT.sub(number, escaped).replace("%%", "%"), ("",) * next(count)


def _with_named_gaps(template: str, values: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Number all gaps of a text that `str.format` fills later, and those that are filled now."""
    given, all_values = iter(values), list[str]()

    def number(gap: re.Match[str]) -> str:
        all_values.append("" if gap[0].startswith("{{") else next(given))
        return f"{{{len(all_values) - 1}}}"

    return re.sub(rf"{NAMED.pattern}|\{{n?\d+\}}", number, template), tuple(all_values)


def _help(tree: ast.Module, name: str) -> Iterator[Text]:
    """Yield the help of commands: the paragraphs of their docstrings."""
    if not name.startswith("cli/"):
        return
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        is_command = "typer" in ast.unparse(node.args) or node.name == Path(name).stem
        for paragraph in (ast.get_docstring(node) or "").split("\n\n") if is_command else ():
            if not paragraph.startswith(("Args:", "Returns:", "Raises:", "Yields:")):
                yield Text(" ".join(paragraph.split()), (), f"{name}:{node.lineno}")


def _in_page(path: Path) -> Iterator[Text]:
    """Yield the texts of a page: between its tags, in labels, and in its expressions."""
    place = f"prove/report/pages/{path.name}"
    source = re.sub(r"(?s)<(style|script)>.*?</\1>", "", path.read_text(encoding="utf-8"))
    tree = Environment().parse(source)
    for output in tree.find_all(nodes.Output):
        text = ""
        count = iter(range(99))
        for part in output.nodes:
            text += (
                _escaped(part.data)
                if isinstance(part, nodes.TemplateData)
                else f"{{{next(count)}}}"
            )
        labels = re.findall(r'(?:aria-label|data-title)="([^"]*)"', text)
        for piece in [*re.split(r"<[^>]*>", re.sub(r'="[^"]*"', "", text)), *labels]:
            yield from _renumbered(piece, place)
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            template = _with_percent_gaps(_escaped(constant.value))[0]
            template = re.sub(r"\{\{:[^{}]*\}\}", "{0}", template)
            yield from _renumbered(template, place)


def _renumbered(piece: str, place: str) -> Iterator[Text]:
    count = iter(range(99))
    template = re.sub(r"(?<!\{)\{n?\d+\}", lambda _: f"{{{next(count)}}}", " ".join(piece.split()))
    is_text = not template.startswith(COMMAND_LINES) and "{{" not in template
    if is_text and PROSE.search(re.sub(r"\{n?\d+\}", " ", template)):
        yield Text(template, ("",) * next(count), place)


def english_in(text: str) -> list[str]:
    """Return the sentences of English in a text: four words, and not a command or a name."""
    bare = re.sub(r"`[^`]*`|'[^'\n]*'|\"[^\"\n]*\"|\bglmtune [\w-].*|\S*[/=_]\S*", " · ", text)
    return SENTENCE.findall(bare)


def without_twin() -> list[Text]:
    """Return the texts that the catalogue has no twin for."""
    known = {each.source for each in read_catalogue() if each.twin or each.is_internal}
    return [text for template, text in texts().items() if template not in known]


def without_text() -> list[Entry]:
    """Return the entries of the catalogue whose text is gone from the code."""
    found = texts()
    return [
        each
        for each in read_catalogue()
        if BY_HAND not in each.comments and each.source not in found
    ]


def write() -> int:
    """Add what has no entry, remove what is gone, and return how many twins are missing."""
    found = texts()
    old = {each.source: each for each in read_catalogue() if BY_HAND not in each.comments}
    by_hand = [each for each in read_catalogue() if BY_HAND in each.comments]
    known_by_hand = {each.source for each in by_hand if not each.context}
    entries = []
    for template, text in found.items():
        if template in known_by_hand:
            continue
        kept = old.get(template)
        flags = ("#, internal",) if kept is not None and kept.is_internal else ()
        place = f"#: {text.place.partition(':')[0]}"  # without the line, which moves with each edit
        entries.append(Entry(template, kept.twin if kept else "", "", (place, *flags)))
    write_catalogue([*entries, *by_hand])
    COMPILED.parent.mkdir(parents=True, exist_ok=True)
    COMPILED.write_bytes(compiled())
    return len(without_twin())


def write_catalogue(entries: Sequence[Entry], path: Path = CATALOGUE) -> None:
    """Write a .po file."""
    blocks = [HEADER]
    for each in entries:
        lines = [*each.comments]
        if each.context:
            lines.append(f"msgctxt {_quoted(each.context)}")
        lines += [f"msgid {_quoted(each.source)}", f"msgstr {_quoted(each.twin)}"]
        blocks.append("\n".join(lines) + "\n")
    path.write_text("\n".join(blocks), encoding="utf-8")


def compiled() -> bytes:
    """Return the words of typer as a .mo file, which gettext reads.

    Source: https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html
    """
    pairs = [(b"", b"Content-Type: text/plain; charset=UTF-8\n")]
    pairs += [
        (each.source.encode(), each.twin.encode())
        for each in read_catalogue()
        if TYPER in each.comments
    ]
    pairs.sort()
    tables_at, size = 28, 8 * len(pairs)
    text = b""
    places: tuple[list[tuple[int, int]], ...] = ([], [])
    for side in (0, 1):
        for pair in pairs:
            places[side].append((len(pair[side]), tables_at + 2 * size + len(text)))
            text += pair[side] + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), tables_at, tables_at + size, 0, 0)
    numbers = [number for side in places for place in side for number in place]
    return head + struct.pack(f"<{len(numbers)}I", *numbers) + text


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def gaps(template: str) -> set[str]:
    """Return the names of what a template fills in."""
    return set(parts_of(template)[1])


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        print(f"{write()} texts in {CATALOGUE} wait for a twin")
    for missing in without_twin():
        print(f"{missing.place}: {missing.template}")
    sys.exit(1 if without_twin() else 0)
