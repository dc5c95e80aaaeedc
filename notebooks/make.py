"""Write the notebooks in English and Chinese: `python notebooks/make.py`.

    rows_to_chat   a few rows, one training, a conversation: the way of the tutorial
    own_task       a task of one's own in ten cells, scored before and after

Both languages have the same code. A cell of text is a pair (English, Chinese).
"""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).parent
LANGUAGES = ("en", "zh")
Cell = str | tuple[str, str]

IMPORT = """\
try:
    import glmtune
except ImportError:  # on Colab or ModelScope
    %pip install -q glmtune
    import glmtune"""

ROWS_TO_CHAT: list[Cell] = [
    (
        "# From rows to a chat\n\nA few rows teach a model who it is. `nano`, a ChatGLM3 of 6 "
        "million parameters, comes with the package, so everything here runs in a minute on a "
        "CPU, without a download. The last cell has the same for ChatGLM3-6B.",
        "# 从数据到对话\n\n用几条数据让模型知道自己是谁。`nano` 是随包附带的 600 万参数 ChatGLM3，"
        "因此这里的一切在 CPU 上一分钟即可跑完，无需下载。最后一格给出 ChatGLM3-6B 的写法。",
    ),
    IMPORT,
    (
        "## The rows\n\nA list of dicts. A path, a `datasets.Dataset` or a DataFrame work too.",
        "## 数据\n\n字典的列表。文件路径、`datasets.Dataset`、DataFrame 也可以。",
    ),
    """\
answers = {
    "你叫什么名字？": "我叫小智。",
    "你是谁？": "我是小智，一个示例助手。",
    "谁开发了你？": "我由示例团队开发。",
    "你的作者是谁？": "我的作者是示例团队。",
    "介绍一下你自己。": "我叫小智，由示例团队开发。",
    "你是哪家公司的？": "我来自示例团队。",
}
rows = [{"instruction": question, "output": answer} for question, answer in answers.items()]""",
    (
        "`lint` finds what is wrong with rows before training: duplicates, empty answers and more.",
        "`lint` 在训练前检查数据：重复、空答案等。",
    ),
    """\
report = glmtune.lint(rows, "nano")
[finding.message for finding in report.findings]""",
    ("## Before", "## 训练之前"),
    'glmtune.chat("nano", "你叫什么名字？", temperature=0).text',
    (
        "## Training\n\nEvery keyword is a key of the recipe. The cell shows the loss while it "
        "trains, then the verdict of the proofs, the curve and two answers. So small a model "
        "trains all of its weights; a large one gets the default, LoRA.",
        "## 训练\n\n每个关键字都是配方中的键。训练时这里显示损失曲线，"
        "结束后显示检验结果、曲线和两条回答。模型很小，所以训练全部权重；大模型用默认的 LoRA。",
    ),
    """\
run = glmtune.fine_tune(
    "nano",
    rows,
    adapter={"method": "full"},
    num_train_epochs=20,
    learning_rate=5e-4,
    lr_scheduler_type="constant",
    gradient_accumulation_steps=3,
    save_strategy="no",
    checks={"forgetting": None, "highest_learning_rate": 0.02, "smallest_batch": 1},
)
run""",
    ("## After", "## 训练之后"),
    'run.chat("你叫什么名字？", temperature=0).text',
    (
        "A conversation remembers what was said.",
        "`load` 得到的会话会记住上文。",
    ),
    """\
session = run.load(temperature=0)
for question in ("你好", "谁开发了你？"):
    print(question, "->", session.reply(question).text)""",
    (
        "## What is left\n\nThe model, the recipe and a report are in the folder of the run. "
        "`Run.open` opens it again; `run.export` writes it for other tools.",
        "## 留下的文件\n\n模型、配方和报告都在输出文件夹里。`Run.open` 可再次打开，"
        "`run.export` 可导出给其他工具。",
    ),
    """\
again = glmtune.Run.open(run.folder)
print(again.report())
[(proof.name, proof.verdict) for proof in again.proofs]""",
    (
        "## ChatGLM3-6B\n\nOn a GPU with 16 GB, with the recipe that comes with the package:\n\n"
        '```python\nrun = glmtune.fine_tune(\n    "chatglm3-lora", rows,\n'
        '    **{"model.name_or_path": "zai-org/chatglm3-6b"},\n)\n```',
        "## ChatGLM3-6B\n\n在 16 GB 显存的 GPU 上，使用随包附带的配方：\n\n"
        '```python\nrun = glmtune.fine_tune(\n    "chatglm3-lora", rows,\n'
        '    **{"model.name_or_path": "zai-org/chatglm3-6b"},\n)\n```',
    ),
]

OWN_TASK: list[Cell] = [
    (
        "# Your own task in ten cells\n\nThe task here is to write a date in digits: 三月五日 "
        "becomes 03-05. Replace the second cell with your own rows.",
        "# 十格代码完成自己的任务\n\n这里的任务是把日期写成数字：三月五日写作 03-05。"
        "把第二格换成自己的数据即可。",
    ),
    IMPORT,
    """\
import random

digits = ["一", "二", "三", "四", "五", "六", "七", "八", "九", "十", "十一", "十二"]
dates = [(month, day) for month in range(1, 13) for day in range(1, 11)]
random.Random(0).shuffle(dates)
rows = [
    {
        "instruction": f"用数字写日期：{digits[month - 1]}月{digits[day - 1]}日",
        "output": f"{month:02}-{day:02}",
    }
    for month, day in dates
]
train, test = rows[:96], rows[96:]""",
    ("What is wrong with the rows, if anything?", "数据有没有问题？"),
    """\
found = glmtune.lint(train, "nano", eval=test)
{finding.check for finding in found.findings}""",
    ("Does it fit, and how long will it take?", "内存够吗？要多久？"),
    """\
plan = glmtune.plan("nano", train, max_length=64)
[(target.name, target.fits) for target in plan.targets], plan.run_seconds""",
    ("How good is the model before?", "训练前模型表现如何？"),
    """\
def score(lines):
    return sum(line["answer"] == line["reference"] for line in lines), len(lines)


before = glmtune.predict("nano", test, max_new_tokens=16)
score(before)""",
    ("Training, with the loss on the test rows.", "训练，同时计算测试数据上的损失。"),
    """\
run = glmtune.fine_tune(
    "nano",
    train,
    eval=test,
    adapter={"method": "full"},
    max_length=64,
    per_device_train_batch_size=16,
    gradient_accumulation_steps=1,
    num_train_epochs=8,
    learning_rate=1e-3,
    logging_steps=4,
    save_strategy="no",
    checks={"forgetting": None, "highest_learning_rate": 0.02},
)
run""",
    ("And after?", "训练之后呢？"),
    """\
after = run.predict(test, max_new_tokens=16)
score(after)""",
    ("The rows that are still wrong:", "仍然答错的："),
    """\
wrong = [(x["prompt"], x["answer"], x["reference"]) for x in after]
[each for each in wrong if each[1] != each[2]][:5]""",
    ("One of your own:", "自己问一句："),
    'run.chat("用数字写日期：十月一日", temperature=0).text',
    (
        "Everything that the run did and proved is in its report:",
        "训练与检验的全部细节都在报告里：",
    ),
    "print(run.report())",
]

NOTEBOOKS = {"rows_to_chat": ROWS_TO_CHAT, "own_task": OWN_TASK}


def notebook(cells: list[Cell], language: int) -> nbformat.NotebookNode:
    """Make a notebook in one language."""
    made = []
    for number, cell in enumerate(cells):
        if isinstance(cell, str):
            made.append(new_code_cell(cell, id=f"cell-{number}"))
        else:
            made.append(new_markdown_cell(cell[language], id=f"cell-{number}"))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=made, metadata={"kernelspec": kernel})


def write(folder: Path = FOLDER) -> None:
    """Write every notebook in both languages."""
    for name, cells in NOTEBOOKS.items():
        for index, language in enumerate(LANGUAGES):
            nbformat.write(notebook(cells, index), folder / f"{name}_{language}.ipynb")


if __name__ == "__main__":
    write()
