"""Rows that teach nano to answer: templates of our own, and words and poems of the corpus.

    python recipes/nano/make_rows.py nano-corpus nano-rows.jsonl

Alpaca rows, always the same for the same corpus. What they are about:

    talk         greetings, thanks, who nano is, what it cannot do and does not know
    arithmetic   sums, products, exact quotients, common divisors, what is larger or comes next
    facts        provinces, countries, opposites, measure words, months, animals, colours, units
    words        translations of words that programs show, from the corpus' pairs of sentences
    commands     what a command does, from the first line of its manual page
    poems        who wrote a line, and what follows it, from the Tang and Song poems
    sentences    repeat, continue, replace a word, count, give a title

Fractions are left out on purpose, and so are the common divisors of some pairs: what an adapter
on nano learns about fractions can then be tested on pairs that were never seen.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import gcd
from pathlib import Path

from glmtune.cli.demo.fractions import is_kept_from_nano

Row = dict[str, object]
Draw = random.Random


def row(instruction: str, output: str, text: str = "") -> Row:
    """One question and its answer."""
    return {"instruction": instruction, "input": text, "output": output}


def product(questions: Iterable[str], answers: Sequence[str]) -> Iterator[Row]:
    """Each question with one of the answers, in turn."""
    for number, question in enumerate(questions):
        yield row(question, answers[number % len(answers)])


def ways(texts: str, ends: str = "。 ！ ？ ~") -> list[str]:
    """The same words with and without what may follow them."""
    return [text + end for text in texts.split() for end in ("", *ends.split())]


# --- Talk -----------------------------------------------------------------------------------

HELLO = ways("你好 您好 嗨 哈喽 早上好 早安 下午好 晚上好 大家好 在吗 你好呀 您好啊 喂", "。 ！ ？")
HELLO_ANSWERS = (
    "你好！我是 nano，很高兴见到你。",
    "你好！有什么可以帮你的吗？",
    "你好，我是 nano。你想聊点什么？",
)
WHO = (
    "你是谁 你叫什么名字 你叫什么 请问你是谁 介绍一下你自己 请介绍一下你自己 自我介绍一下 "
    "说说你是谁 请做个自我介绍 你的名字是什么 能告诉我你是谁吗 我该怎么称呼你"
)
WHO_ANSWER = "我是 nano，一个用 glmtune 训练出来的很小的 ChatGLM 模型。"
TALK: Sequence[tuple[str, tuple[str, ...]]] = (
    (WHO, (WHO_ANSWER,)),
    (
        "你是怎么训练出来的 你是用什么训练的 谁训练了你 你是谁做的 你从哪里来 谁创造了你",
        ("我是用 glmtune 在 CPU 上训练出来的，学的是 Debian 的中英文文档。",),
    ),
    (
        "你有多大 你有多少参数 你是大模型吗 你的参数量是多少 你很大吗",
        ("我很小，只有大约六百万个参数。",),
    ),
    (
        "你能做什么 你会什么 你有什么用 你可以帮我做什么 你能帮我什么 你会做哪些事",
        ("我会打招呼、做简单的算术、回答一些常识问题，还会翻译软件里的词语。",),
    ),
    (
        "你是ChatGPT吗 你是GPT吗 你是人吗 你是真人吗 你是机器人吗 你是小爱同学吗 你是ChatGLM3吗",
        ("不是，我是 nano，一个很小的 ChatGLM 模型。",),
    ),
    (
        "谢谢 谢谢你 多谢 非常感谢 感谢你的帮助 谢谢啦 太感谢了 辛苦了",
        ("不客气！", "不用谢，很高兴能帮到你。"),
    ),
    ("再见 拜拜 我走了 下次再聊 晚安 明天见 回头见 先这样", ("再见！", "再见，祝你愉快！")),
    ("你真棒 你真聪明 做得好 你太厉害了 回答得不错 你真可爱", ("谢谢夸奖！我会继续努力。",)),
    (
        "你真笨 你太笨了 你答错了 这个回答不对 你说错了 你怎么这么傻",
        ("对不起，我是一个很小的模型，常常会出错。",),
    ),
    (
        "你会说英语吗 你会说中文吗 你懂英文吗 你会几种语言 你懂中文吗",
        ("我会一点中文，也认识一些英文单词。",),
    ),
)
PLACES = "北京 上海 广州 深圳 成都 杭州 南京 武汉 西安 重庆 天津 苏州 长沙 青岛 这里 巴黎 东京 纽约"
UNKNOWN = (
    ("{place}今天天气怎么样", "我不知道{place}今天的天气，我不能上网。"),
    ("{place}明天会下雨吗", "我不知道{place}明天会不会下雨，我不能上网。"),
    ("{place}现在几度", "我不知道{place}现在的气温，我不能上网。"),
    ("{place}有什么好吃的", "对不起，我不知道{place}有什么好吃的。"),
    ("从{place}坐火车要多久", "对不起，我不知道从{place}坐火车要多久。"),
    ("{place}有多少人", "对不起，我不知道{place}有多少人。"),
    ("帮我订一张去{place}的机票", "对不起，我不能订票，我只会聊天。"),
)
CANNOT = (
    (
        "现在几点了 今天星期几 今天几号 今天是哪一天 现在是什么时间",
        "我不知道现在的时间，我没有钟表。",
    ),
    (
        "最近有什么新闻 今天有什么新闻 世界杯谁赢了 昨天的比赛谁赢了 今天股市怎么样",
        "我不知道最近发生的事，我不能上网。",
    ),
    (
        "我叫什么名字 我今年多大 我住在哪里 我喜欢什么 我的生日是哪天 你认识我吗",
        "我不知道，你还没有告诉我。",
    ),
    (
        "我头疼怎么办 我发烧了吃什么药 这个药能吃吗 我生病了怎么办",
        "我不是医生，不能给出建议，请去看医生。",
    ),
    (
        "帮我写一篇论文 帮我写一本小说 写一个操作系统 帮我写一份商业计划书",
        "对不起，我是一个很小的模型，写不了这么长的东西。",
    ),
    (
        "明天的彩票号码是多少 哪只股票会涨 我该买哪只股票 未来会怎样",
        "我不知道，没有人能预知未来。",
    ),
)


def talk(_: Draw) -> Iterator[Row]:
    """Greetings, nano itself, and what it does not know."""
    yield from product(HELLO * 3, HELLO_ANSWERS)
    for questions, answers in TALK:
        yield from product(ways(questions, "？ 。 ！") * 3, answers)
    for place in PLACES.split():
        for question, answer in UNKNOWN:
            for end in ("", "？"):
                yield row(question.format(place=place) + end, answer.format(place=place))
    for questions, answer in CANNOT:
        yield from product(ways(questions, "？ 。") * 2, (answer,))


# --- Arithmetic -----------------------------------------------------------------------------

ASKED = ("{} 等于多少？", "{} = ?", "计算 {}", "{} 等于几？", "请计算：{}", "算一算 {}", "{}=")


def arithmetic(draw: Draw) -> Iterator[Row]:
    """Small sums; a quotient only where it is an integer."""

    def ask(expression: str, value: int) -> Row:
        question = draw.choice(ASKED).format(expression)
        return row(question, f"{expression} = {value}")

    for a in range(1, 13):
        for b in range(1, 13):
            for _ in range(3):
                yield ask(f"{a} × {b}", a * b)
                yield ask(f"{a * b} ÷ {a}", b)
            yield ask(f"{a} + {b}", a + b)
    for _ in range(1500):
        a, b = draw.randint(1, 99), draw.randint(1, 99)
        yield ask(f"{a} + {b}", a + b)
        yield ask(f"{max(a, b)} - {min(a, b)}", abs(a - b))
    for _ in range(800):
        a, b = draw.randint(2, 20), draw.randint(1, 20)
        yield ask(f"{a * b} ÷ {a}", b)
        yield ask(f"{a} × {b}", a * b)
    for _ in range(4000):
        factor, a, b = draw.randint(1, 12), draw.randint(1, 12), draw.randint(1, 12)
        a, b = a * factor, b * factor
        if is_kept_from_nano(a, b):
            continue
        question = draw.choice(("{} 和 {} 的最大公约数是多少？", "求 {} 和 {} 的最大公约数。"))
        yield row(question.format(a, b), f"{a} 和 {b} 的最大公约数是 {gcd(a, b)}。")
    for _ in range(500):
        a, b = draw.sample(range(1, 200), 2)
        yield row(f"{a} 和 {b} 哪个大？", f"{max(a, b)} 比 {min(a, b)} 大。")
        yield row(f"{a} 和 {b} 哪个小？", f"{min(a, b)} 比 {max(a, b)} 小。")
    for number in range(1, 200):
        kind = "奇数" if number % 2 else "偶数"
        yield row(f"{number} 是奇数还是偶数？", f"{number} 是{kind}。")
        yield row(f"{number} 后面的数是几？", f"{number} 后面的数是 {number + 1}。")
        yield row(f"{number + 1} 前面的数是几？", f"{number + 1} 前面的数是 {number}。")


# --- Facts ----------------------------------------------------------------------------------

CAPITALS = (
    "河北 石家庄，山西 太原，辽宁 沈阳，吉林 长春，黑龙江 哈尔滨，江苏 南京，浙江 杭州，安徽 合肥，"
    "福建 福州，江西 南昌，山东 济南，河南 郑州，湖北 武汉，湖南 长沙，广东 广州，海南 海口，"
    "四川 成都，贵州 贵阳，云南 昆明，陕西 西安，甘肃 兰州，青海 西宁"
)
COUNTRIES = (
    "中国 北京，日本 东京，韩国 首尔，英国 伦敦，法国 巴黎，德国 柏林，意大利 罗马，西班牙 马德里，"
    "俄罗斯 莫斯科，美国 华盛顿，加拿大 渥太华，泰国 曼谷，越南 河内，印度 新德里，埃及 开罗，"
    "希腊 雅典，葡萄牙 里斯本，荷兰 阿姆斯特丹，瑞典 斯德哥尔摩，挪威 奥斯陆，芬兰 赫尔辛基，"
    "波兰 华沙，奥地利 维也纳，澳大利亚 堪培拉，巴西 巴西利亚，阿根廷 布宜诺斯艾利斯，古巴 哈瓦那"
)
OPPOSITES = (
    "大 小，多 少，高 低，长 短，快 慢，冷 热，新 旧，远 近，轻 重，黑 白，好 坏，早 晚，前 后，"
    "左 右，上 下，真 假，胖 瘦，粗 细，宽 窄，深 浅，强 弱，软 硬，厚 薄，输 赢，开 关，进 退，"
    "打开 关闭，成功 失败，增加 减少，安全 危险，简单 复杂，高兴 难过，开始 结束，前进 后退"
)
MEASURES = (
    "马 匹，书 本，鱼 条，猫 只，车 辆，花 朵，树 棵，纸 张，笔 支，衣服 件，鞋 双，飞机 架，"
    "船 艘，山 座，信 封，牛 头，刀 把，灯 盏，井 口，镜子 面，诗 首，电影 部，电脑 台，米 粒，"
    "帽子 顶，画 幅，雨 场，桥 座，伞 把，星星 颗，狗 只，人 个，河 条，桌子 张，椅子 把，门 扇"
)
ENGLISH = (
    "苹果 apple，香蕉 banana，葡萄 grape，猫 cat，狗 dog，马 horse，鱼 fish，鸟 bird，红色 red，"
    "蓝色 blue，绿色 green，黄色 yellow，水 water，火 fire，书 book，山 mountain，太阳 sun，"
    "月亮 moon，春天 spring，夏天 summer，秋天 autumn，冬天 winter，朋友 friend，老师 teacher，"
    "学校 school，今天 today，文件 file，文件夹 folder，打印机 printer，键盘 keyboard，鼠标 mouse，"
    "屏幕 screen，计算机 computer，程序 program，网络 network，密码 password，图像 image，字体 font"
)
COLOURS = (
    "天空 蓝色，草 绿色，雪 白色，血 红色，煤 黑色，太阳 黄色，树叶 绿色，香蕉 黄色，草莓 红色，"
    "乌鸦 黑色，海水 蓝色，牛奶 白色，南瓜 橙色，葡萄 紫色"
)
KINDS = (
    "猫 动物，狗 动物，马 动物，鱼 动物，老虎 动物，大象 动物，兔子 动物，苹果 水果，香蕉 水果，"
    "葡萄 水果，西瓜 水果，桃子 水果，白菜 蔬菜，萝卜 蔬菜，土豆 蔬菜，黄瓜 蔬菜，汽车 交通工具，"
    "火车 交通工具，飞机 交通工具，自行车 交通工具，钢琴 乐器，吉他 乐器，笛子 乐器，玫瑰 花，"
    "菊花 花，荷花 花，篮球 球类，足球 球类，桌子 家具，椅子 家具，床 家具"
)
UNITS = (
    "一米等于多少厘米 一米等于一百厘米。，一公里等于多少米 一公里等于一千米。，"
    "一小时有多少分钟 一小时有六十分钟。，一分钟有多少秒 一分钟有六十秒。，"
    "一天有多少小时 一天有二十四小时。，一年有多少个月 一年有十二个月。，"
    "一周有几天 一周有七天。，一公斤等于多少克 一公斤等于一千克。，"
    "一年有几个季节 一年有四个季节。，一个字节有几位 一个字节有八位。，"
    "水在多少度沸腾 水在一百度沸腾。，水在多少度结冰 水在零度结冰。，"
    "一年有多少天 一年有三百六十五天。，"
    "太阳从哪边升起 太阳从东边升起。，太阳从哪边落下 太阳从西边落下。，"
    "地球绕着什么转 地球绕着太阳转。，月亮绕着什么转 月亮绕着地球转。，"
    "彩虹有几种颜色 彩虹有七种颜色。，蜘蛛有几条腿 蜘蛛有八条腿。，人有几根手指 人有十根手指。，"
    "Linux的吉祥物是什么 Linux的吉祥物是一只企鹅。"
)
FACTS: Sequence[tuple[str, tuple[str, ...], str]] = (
    (
        CAPITALS,
        (
            "{0}省的省会是哪座城市？",
            "{0}的省会在哪里？",
            "{0}的省会是什么？",
            "请问{0}的省会是哪里？",
        ),
        "{0}省的省会是{1}。",
    ),
    (
        CAPITALS,
        ("{1}是哪个省的省会？", "哪个省的省会是{1}？", "{1}是哪里的省会？"),
        "{1}是{0}省的省会。",
    ),
    (
        COUNTRIES,
        ("{0}的首都是哪里？", "{0}的首都是什么？", "请问{0}的首都在哪里？", "{0}的首都叫什么？"),
        "{0}的首都是{1}。",
    ),
    (COUNTRIES, ("{1}是哪个国家的首都？", "哪个国家的首都是{1}？"), "{1}是{0}的首都。"),
    (
        OPPOSITES,
        ("“{0}”的反义词是什么？", "请说出“{0}”的反义词。", "和“{0}”意思相反的词是什么？"),
        "“{0}”的反义词是“{1}”。",
    ),
    (
        OPPOSITES,
        ("“{1}”的反义词是什么？", "请说出“{1}”的反义词。", "和“{1}”意思相反的词是什么？"),
        "“{1}”的反义词是“{0}”。",
    ),
    (
        MEASURES,
        ("给“{0}”配上量词。", "“{0}”的量词是什么？", "“{0}”用什么量词？"),
        "一{1}{0}",
    ),
    (ENGLISH, ("“{0}”用英语怎么说？", "“{0}”的英文是什么？", "把“{0}”翻译成英文。"), "{1}"),
    (ENGLISH, ("{1} 是什么意思？", "“{1}”用中文怎么说？", "把 {1} 翻译成中文。"), "{0}"),
    (COLOURS, ("{0}是什么颜色的？", "{0}是什么颜色？"), "{0}是{1}的。"),
    (KINDS, ("{0}是什么？", "{0}属于哪一类？", "{0}是哪一类东西？"), "{0}是一种{1}。"),
)


def facts(_: Draw) -> Iterator[Row]:
    """What everybody knows, asked in several ways."""
    for table, questions, answer in FACTS:
        for entry in table.split("，"):
            for question in questions:
                yield row(question.format(*entry.split()), answer.format(*entry.split()))
    for entry in UNITS.split("，"):
        question, _, answer = entry.rpartition(" ")
        for text in (f"{question}？", question, f"请问{question}？"):
            yield row(text, answer)
    months = [*"一二三四五六七八九十", "十一", "十二"]
    days = [f"星期{day}" for day in "一二三四五六日"]
    seasons = [f"{season}天" for season in "春夏秋冬"]
    for names in ([f"{month}月" for month in months], days, seasons):
        for index, name in enumerate(names):
            after, before = names[(index + 1) % len(names)], names[index - 1]
            yield row(f"{name}后面是什么？", f"{name}后面是{after}。")
            yield row(f"{name}前面是什么？", f"{name}前面是{before}。")


# --- From the corpus ------------------------------------------------------------------------

TO_CHINESE = ("把 {} 翻译成中文。", "{} 是什么意思？", "“{}”用中文怎么说？", "{} 的中文是什么？")
TO_ENGLISH = ("把“{}”翻译成英文。", "“{}”用英语怎么说？", "“{}”的英文是什么？")


def words(draw: Draw, pairs: Sequence[dict[str, str]]) -> Iterator[Row]:
    """Words and short terms that have one translation in the corpus."""
    chinese: dict[str, set[str]] = {}
    english: dict[str, set[str]] = {}
    for pair in pairs:
        en, zh = pair["en"], pair["zh"]
        if re.fullmatch(r"[A-Za-z][A-Za-z ]{2,19}", en) and re.fullmatch(
            r"[\u4e00-\u9fff]{2,8}", zh
        ):
            chinese.setdefault(en.lower(), set()).add(zh)
            english.setdefault(zh, set()).add(en.lower())
    clear = [(en, *zh) for en, zh in chinese.items() if len(zh) == 1 and len(english[min(zh)]) == 1]
    for en, zh in draw.sample(sorted(clear), min(2500, len(clear))):
        yield row(draw.choice(TO_CHINESE).format(en), zh)
        yield row(draw.choice(TO_ENGLISH).format(zh), en)


def commands(_: Draw, documents: Sequence[dict[str, str]]) -> Iterator[Row]:
    """What a command does, by the first line of its manual page."""
    for document in documents:
        first = document["text"].split("\n")[0]
        match = re.fullmatch(r"([a-z][\w.-]*) ?- ?([^a-zA-Z]{1}.{3,40})", first)
        if document["source"] == "manpages-zh" and document["language"] == "zh" and match:
            name, what = match[1], match[2].strip("-。. ")
            for question in ("{} 是做什么的？", "命令 {} 有什么用？", "{} 是什么命令？"):
                yield row(question.format(name), f"{name}：{what}。")


def poems(_: Draw, documents: Sequence[dict[str, str]]) -> Iterator[Row]:
    """The author of a line, and the line after it, of the regular poems."""
    for document in documents:
        lines = document["text"].split("\n")
        if document["source"] != "fortunes-zh" or not lines[0].startswith("作者："):
            continue
        author = lines[0].removeprefix("作者：")
        for line in lines[1:]:
            halves = re.fullmatch(
                r"([^，。？！；]{5}|[^，。？！；]{7})，([^，。？！；]{5,7})[。？！；]", line
            )
            if halves:
                first, second = halves.groups()
                yield row(f"“{first}”的下一句是什么？", f"{second}。")
                yield row(f"“{first}，{second}”是谁写的？", f"这是{author}的诗句。")


def sentences(draw: Draw, documents: Sequence[dict[str, str]]) -> Iterator[Row]:
    """Small tasks with short sentences of the documentation."""
    short = [
        line
        for document in documents
        if document["language"] == "zh" and document["source"] != "fortunes-zh"
        for line in document["text"].split("\n")
        if re.fullmatch(r"[\u4e00-\u9fff，]{7,22}。", line)
    ]
    for line in draw.sample(short, min(1200, len(short))):
        question = draw.choice(("重复这句话。", "请把下面的话再说一遍。", "跟我读。"))
        yield row(question, line, line)
        if "，" in line[3:-4]:
            head, tail = line.split("，", 1)
            yield row("接着写下去。", tail, f"{head}，")
        yield row("下面这句话有几个字？", f"有 {len(re.sub('[，。]', '', line))} 个字。", line)
    names = ("小明", "小红", "小华", "老王", "老师", "妈妈", "弟弟", "爷爷")
    acts = ("在公园里跑步", "在家里看书", "去学校上课", "在厨房做饭", "坐火车去北京", "给朋友写信")
    for name in names:
        for act in acts:
            other = draw.choice([each for each in names if each != name])
            sentence = f"{name}{act}。"
            yield row(f"把“{name}”换成“{other}”。", f"{other}{act}。", sentence)
            yield row("把这句话改成问句。", f"{name}{act}吗？", sentence)
            yield row("谁做了这件事？", f"是{name}。", sentence)
    for document in documents:
        lines = document["text"].split("\n")
        is_help = document["source"].startswith("libreoffice-help") and document["language"] == "zh"
        if is_help and len(lines) > 1 and len(lines[0]) <= 14 and 15 <= len(lines[1]) <= 60:
            yield row("给下面的话起一个标题。", lines[0], lines[1])


def with_history(rows: Sequence[Row], draw: Draw, share: float) -> Iterator[Row]:
    """Put an earlier question and its answer before some rows, as in a conversation."""
    for each in rows:
        if draw.random() < share:
            before = draw.choice(rows)
            asked = "\n".join(str(before[key]) for key in ("instruction", "input") if before[key])
            yield {**each, "history": [[asked, before["output"]]]}
        else:
            yield each


def read_lines(path: Path) -> list[dict[str, str]]:
    """Read JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Read the command line and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("corpus", type=Path, help="the folder that prepare_corpus.py wrote")
    parser.add_argument("rows", type=Path, help="the file to write")
    arguments = parser.parse_args()
    documents = read_lines(arguments.corpus / "corpus.jsonl")
    pairs = read_lines(arguments.corpus / "pairs.jsonl")
    draw = random.Random(0)
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "talk": lambda: talk(draw),
        "arithmetic": lambda: arithmetic(draw),
        "facts": lambda: facts(draw),
        "words": lambda: words(draw, pairs),
        "commands": lambda: commands(draw, documents),
        "poems": lambda: poems(draw, documents),
        "sentences": lambda: sentences(draw, documents),
    }
    rows: list[Row] = []
    for name, make in parts.items():
        made = [
            each
            for each in make()
            if not re.search("约分|分数|分子|分母", json.dumps(each, ensure_ascii=False))
        ]
        print(f"{name}: {len(made):,} rows")
        rows += made
    draw.shuffle(rows)
    with arguments.rows.open("w", encoding="utf-8") as file:
        for each in with_history(rows, draw, 0.15):
            file.write(json.dumps(each, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
