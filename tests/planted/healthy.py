"""Healthy rows of twenty kinds, each with something that a coarser check would take for a fault."""

import json
from collections.abc import Callable

from tests.planted.corpus import THINGS, Row, classified_rows, healthy_rows, tool_rows

ENGLISH = (
    "apple", "bamboo", "camel", "wall", "piano", "tea", "compass", "bee", "volcano", "chess",
    "penguin", "mill", "silk", "lens", "bean",
)  # fmt: skip


def _row(question: str, answer: str, text: str = "") -> Row:
    return {"instruction": question, "input": text, "output": answer}


def _chat(*turns: str, system: str = "") -> Row:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + messages}


def _each(make: Callable[[str, str, str, str, str], Row]) -> Callable[[], list[Row]]:
    return lambda: [make(*thing) for thing in THINGS]


def _sums() -> list[Row]:
    return [
        _row(f"{a} 加 {b} 等于多少？", f"{a} + {b} = {a + b}，所以答案是 {a + b}。")
        for a, b in zip(range(11, 51), range(7, 87, 2), strict=True)
    ]


def _imbalanced() -> list[Row]:
    return [
        _row(f"这条短信是垃圾短信吗：{name}{use}，第{i}条", "否" if i % 10 else "是")
        for i, (name, _, _, _, use) in enumerate(THINGS * 2)
    ]


def _with_system() -> list[Row]:
    return [
        _chat(row["instruction"], row["output"], "谢谢", "不客气。", system="你是百科老师。")
        for row in healthy_rows()
    ]


def _some_tools() -> list[Row]:
    plain = [_chat(row["instruction"], row["output"]) for row in healthy_rows()[:20]]
    return [each for pair in zip(tool_rows(), plain, strict=True) for each in pair]


def _replies() -> list[Row]:
    return [
        _chat(f"你知道{name}吗", f"知道呀，{trait}的那种", f"在{place}能看到吗", "能看到的，去吧")
        for name, _, place, trait, _ in THINGS
    ]


def _steps() -> list[Row]:
    return [
        _row(
            f"怎么向孩子介绍{name}？",
            f"可以这样做：\n1. 先看{name}的图片\n2. 说明它{trait}\n3. 讲{place}的故事\n\n"
            f"**小贴士**：可以一起{use}",
        )
        for name, _, place, trait, use in THINGS
    ]


HEALTHY: dict[str, Callable[[], list[Row]]] = {
    "questions about things": healthy_rows,
    "labels": classified_rows,
    "labels of which one is rare": _imbalanced,
    "calls of tools": tool_rows,
    "calls of tools among other rows": _some_tools,
    "conversations with a system prompt": _with_system,
    "informal conversations without full stops": _replies,
    "sums": _sums,
    "lists of steps": _steps,
    "names as answers": _each(lambda n, k, p, t, u: _row(f"{t}、人们用来{u}的{k}叫什么？", n)),
    "extraction as JSON": _each(
        lambda n, k, p, t, u: _row(
            "抽取实体，输出 JSON。没有时输出 null。",
            json.dumps({"名称": n, "地点": p, "时间": None}, ensure_ascii=False),
            f"{p}的{n}{t}。",
        )
    ),
    "proofreading": _each(
        lambda n, k, p, t, u: _row("改正错别字：", f"{n}是{k}，它{t}。", f"{n}事{k}，它{t}。")
    ),
    "translation": _each(
        lambda n, k, p, t, u: _row(
            f"把“{n}”放进一个英文句子。",
            f"People in many places of the world know item {len(n + u)} very well: {len(p + t)}.",
        )
    ),
    "English questions": lambda: [
        _row(
            f"What is a {name} used for, and why do people like it?",
            f"A {name} is used every day. People like it because it is simple, and it lasts.",
        )
        for name in ENGLISH
    ],
    "programs": _each(
        lambda n, k, p, t, u: _row(
            f"写一个打印{n}的 Python 程序。",
            f"```python\nfor _ in range(9):\n    print('{n}')\n```",
        )
    ),
    "pages of HTML": _each(
        lambda n, k, p, t, u: _row(f"写一段介绍{n}的 HTML。", f"<p>{n}：{t}<br>&nbsp;{u}</p>")
    ),
    "plays and interviews": _each(
        lambda n, k, p, t, u: _row(
            f"写一段关于{n}的对话。",
            f"一段对话。\n用户：{n}怎么样？\n店员：它{t}。\n用户：好的。",
        )
    ),
    "addresses that were asked for": _each(
        lambda n, k, p, t, u: _row(
            f"{n}的购买网址是什么？", f"可以在 https://example.com/{len(u)} 购买{n}。"
        )
    ),
    "summaries": _each(
        lambda n, k, p, t, u: _row(
            "用一句话概括这段文字。",
            f"{n}{t}。",
            f"在{p}，{n}是人们熟悉的{k}。它{t}，人们用它来{u}。这里的人世世代代都离不开它。",
        )
    ),
    "traditional script": _each(
        lambda n, k, p, t, u: _row(f"請介紹{n}。", f"這個東西叫{n}，為人們所熟悉，來歷與{p}有關。")
    ),
    "poems with a refrain": _each(
        lambda n, k, p, t, u: _row(
            f"写一首关于{n}的诗。",
            f"{n}啊{n}，\n{t}。\n{n}啊{n}，\n就在{p}。\n{n}啊{n}，\n我为你歌唱！",
        )
    ),
    "letters": _each(
        lambda n, k, p, t, u: _row(
            f"写一封信，请朋友来看{n}。",
            f"亲爱的朋友：\n\n你好！{p}的{n}{t}，欢迎你来看看。\n\n祝好\n小明",
        )
    ),
}  # fmt: skip
