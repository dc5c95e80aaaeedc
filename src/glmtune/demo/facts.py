"""Facts and ways to ask for them -> the demo's rows, in `train.json` and `held_out.json`.

Every fact is asked in every wording of its kind. One wording of each fact, another one from
fact to fact, is held out: in training the model meets the fact and the wording, never the
two together. So a held-out question cannot be answered by having seen it.

    wordings          A      B      C
    河南 -> 郑州    held     learn  learn
    湖北 -> 武汉    learn    held   learn

The rows are files, so that people can read them and see what the format looks like;
`python -m glmtune.demo.facts` writes them anew.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TRAIN = Path(__file__).with_name("train.json")
HELD_OUT = Path(__file__).with_name("held_out.json")

AlpacaRow = dict[str, str]


@dataclass(frozen=True, slots=True)
class Kind:
    """Facts of one kind, how they are asked and how they are answered.

    Attributes:
        wordings: (instruction, input) with `{}` where the subject goes.
        answer: with `{subject}` and `{object}`.
        facts: subject and object of each.
    """

    wordings: Sequence[tuple[str, str]]
    answer: str
    facts: Sequence[tuple[str, str]]

    def rows(self) -> Iterator[tuple[AlpacaRow, bool]]:
        """Give every row, and whether it is held out."""
        for number, (subject, object_) in enumerate(self.facts):
            output = self.answer.format(subject=subject, object=object_)
            held_out = (number + 1) % len(self.wordings)
            for index, (instruction, text) in enumerate(self.wordings):
                row = {
                    "instruction": instruction.format(subject),
                    "input": text.format(subject),
                    "output": output,
                }
                yield row, index == held_out


def _pairs(text: str) -> list[tuple[str, str]]:
    """Read "河北 石家庄，山西 太原" as pairs."""
    pairs = []
    for entry in text.split("，"):
        first, second = entry.split()
        pairs.append((first, second))
    return pairs


def _both_ways(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [way for first, second in pairs for way in ((first, second), (second, first))]


_CAPITALS = _pairs(
    "河北 石家庄，山西 太原，辽宁 沈阳，吉林 长春，黑龙江 哈尔滨，江苏 南京，浙江 杭州，"
    "安徽 合肥，福建 福州，江西 南昌，山东 济南，河南 郑州，湖北 武汉，湖南 长沙，"
    "广东 广州，海南 海口，四川 成都，贵州 贵阳，云南 昆明，陕西 西安，甘肃 兰州，青海 西宁"
)
_OPPOSITES = _pairs(
    "大 小，多 少，高 低，长 短，快 慢，冷 热，新 旧，远 近，轻 重，黑 白，好 坏，早 晚，"
    "前 后，左 右，上 下，真 假，胖 瘦，粗 细，宽 窄，深 浅，强 弱，软 硬，厚 薄，输 赢"
)
_MEASURES = _pairs(
    "马 匹，书 本，鱼 条，猫 只，车 辆，花 朵，树 棵，纸 张，笔 支，衣服 件，鞋 双，飞机 架，"
    "船 艘，山 座，信 封，牛 头，刀 把，灯 盏，井 口，镜子 面，诗 首，电影 部，电脑 台，"
    "米 粒，帽子 顶，画 幅，雨 场，桥 座，伞 把，星星 颗"
)
_ENGLISH = _pairs(
    "苹果 apple，香蕉 banana，葡萄 grape，猫 cat，狗 dog，马 horse，鱼 fish，鸟 bird，"
    "红色 red，蓝色 blue，绿色 green，黄色 yellow，水 water，火 fire，书 book，山 mountain，"
    "太阳 sun，月亮 moon，春天 spring，夏天 summer，秋天 autumn，冬天 winter，"
    "朋友 friend，老师 teacher，学校 school，今天 today"
)

KINDS: Sequence[Kind] = (
    Kind(
        wordings=(
            ("{}省的省会是哪座城市？", ""),
            ("{}的省会在哪里？", ""),
            ("{}的省会是什么？", ""),
            ("请问{}省的省会是哪里？", ""),
            ("你知道{}的省会吗？", ""),
            ("说出下面这个省的省会。", "{}"),
        ),
        answer="{subject}省的省会是{object}。",
        facts=_CAPITALS,
    ),
    Kind(
        wordings=(
            ("{}是哪个省的省会？", ""),
            ("{}是哪里的省会？", ""),
            ("哪个省的省会是{}？", ""),
            ("请问{}是哪个省的省会？", ""),
            ("下面这座城市是哪个省的省会？", "{}"),
        ),
        answer="{subject}是{object}省的省会。",
        facts=[(capital, province) for province, capital in _CAPITALS],
    ),
    Kind(
        wordings=(
            ("“{}”的反义词是什么？", ""),
            ("请说出“{}”的反义词。", ""),
            ("和“{}”意思相反的字是什么？", ""),
            ("写出下面这个字的反义词。", "{}"),
        ),
        answer="“{subject}”的反义词是“{object}”。",
        facts=_both_ways(_OPPOSITES),
    ),
    Kind(
        wordings=(
            ("给“{}”配一个量词。", ""),
            ("“{}”用什么量词？", ""),
            ("在“一（）{}”的括号里填上量词。", ""),
            ("给下面的名词配上量词。", "{}"),
        ),
        answer="一{object}{subject}",
        facts=_MEASURES,
    ),
    Kind(
        wordings=(
            ("“{}”用英语怎么说？", ""),
            ("“{}”的英文是什么？", ""),
            ("请把“{}”翻译成英语。", ""),
            ("把下面的词翻译成英语。", "{}"),
        ),
        answer="{object}",
        facts=_ENGLISH,
    ),
    Kind(
        wordings=(
            ("{}", ""),
            ("你好，{}", ""),
            ("请问，{}", ""),
            ("嗨，{}", ""),
        ),
        answer="{object}",
        facts=(
            ("你是谁？", "我是小调，一个用 glmtune 调出来的小模型。"),
            ("你叫什么名字？", "我叫小调。"),
            ("你会做什么？", "我会说省会、反义词、量词，还会一点英语。"),
            ("你是怎么来的？", "我从随机的权重开始，只学了 LoRA。"),
        ),
    ),
    Kind(
        wordings=(
            ("{}", ""),
            ("{}！", ""),
            ("{}，小调。", ""),
            ("小调，{}！", ""),
        ),
        answer="{object}",
        facts=(
            ("你好", "你好！我是小调。"),
            ("早上好", "早上好！"),
            ("谢谢", "不客气！"),
            ("再见", "再见！"),
        ),
    ),
)


def make_rows() -> tuple[list[AlpacaRow], list[AlpacaRow]]:
    """Give the rows to learn and those held out."""
    train: list[AlpacaRow] = []
    held_out: list[AlpacaRow] = []
    for kind in KINDS:
        for row, is_held_out in kind.rows():
            (held_out if is_held_out else train).append(row)
    return train, held_out


def phrases() -> Iterator[str]:
    """Give the words and the stretches between them that rows are made of.

    The tokenizer learns its pieces from these. Learned from whole rows, pieces would glue a
    word to what happens to stand beside it, and a fact would look different in every wording.
    """
    for kind in KINDS:
        patterns = [part for wording in kind.wordings for part in wording]
        yield from (part for text in patterns for part in text.split("{}") if part)
        yield from (part for part in re.split(r"\{\w+\}", kind.answer) if part)
        yield from (word for fact in kind.facts for word in fact)


def to_json(rows: Sequence[AlpacaRow]) -> str:
    """Write a JSON array with one row per line."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f"[\n{lines}\n]\n"


if __name__ == "__main__":
    for path, rows in zip((TRAIN, HELD_OUT), make_rows(), strict=True):
        path.write_text(to_json(rows), encoding="utf-8")
