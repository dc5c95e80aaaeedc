"""The model card of a run: README.md for people, with the metadata that hubs read.

    recipe.yaml, metrics.jsonl, report.json  ->  README.md
                                                   ---
                                                   base_model: zai-org/chatglm3-6b
                                                   license: other
                                                   ---
                                                   # ..., in English and in Chinese

A card names things by their hub ids. A path of this machine is of no use to a reader, and hubs
refuse one as `base_model`, so a path is shortened to its last part and never published.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import glmtune
from glmtune.files import sha256_of_text
from glmtune.messages import in_chinese
from glmtune.model.files import NANO
from glmtune.model.hubs import HUB_ID
from glmtune.prove.proof import Proof
from glmtune.prove.scores import score_lines
from glmtune.recipe.recipe import RunRecipe
from glmtune.use.evaluate.results import Evaluation

HUB = "https://huggingface.co"
MODELSCOPE = "modelscope://"

# Both hubs' owners of the checkpoints that come under ChatGLM's license.
_MODEL_TYPE = re.compile(r"[a-z][\w-]{0,60}")
_CHATGLM = re.compile(r"(zai-org|THUDM|ZhipuAI)/(chatglm[23]?-6b|codegeex2-6b)[\w.-]*", re.I)
# A folder of the caches of huggingface_hub.
_IN_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
# Absolute paths of POSIX and Windows, and those below a home folder; not the path of a URL.
_PATHS = re.compile(
    r"""(?<![\w./:~<\\-])(?:~?/[^\s/"'`<>|,;:()\[\]{}]+/[^\s"'`<>|,;:()\[\]{}]*"""
    r"""|~/[^\s"'`<>|,;:()\[\]{}]+|[A-Za-z]:[\\/][^\s"'`<>|,;()\[\]{}]+)"""
)


@dataclass(frozen=True, slots=True)
class License:
    """A license as hubs write it: an identifier, or `other` with a name and a link."""

    id: str
    name: str | None = None
    link: str | None = None


def license_of(base: str | None) -> License | None:
    """Return the license of a base model; None if it is not known here.

    Args:
        base: its hub id.
    """
    if base == NANO:
        return License("apache-2.0")
    if base is None or not _CHATGLM.fullmatch(base):
        return None
    owner, _, name = base.partition("/")
    owner = "zai-org" if owner in ("THUDM", "ZhipuAI") else owner
    return License("other", name, f"{HUB}/{owner}/{name}/blob/main/MODEL_LICENSE")


def model_type_of(base: str | None, config: Mapping[str, Any]) -> str:
    """Return the model type of a base, as hubs tag it; "" if it is not known.

    Args:
        base: its hub id, if it is known.
        config: its config.json, if there is one.
    """
    named = config.get("model_type")
    if isinstance(named, str) and _MODEL_TYPE.fullmatch(named):
        return named
    is_chatglm = base is not None and (base == NANO or _CHATGLM.fullmatch(base) is not None)
    return "chatglm" if is_chatglm else ""


def hub_id(name: str, config: Mapping[str, Any] | None = None) -> str | None:
    """Find the hub id of a base model.

    It is the name itself, or part of a path in a hub's cache, or what the checkpoint's own
    config.json says it was published as.

    Args:
        name: a hub id, a folder or `nano`.
        config: of the folder, if there is one.
    """
    if name == NANO:
        return NANO
    folder = Path(os.path.expanduser(name))
    if is_hub_id(name) and not folder.exists() and not folder.parent.exists():
        return name
    if cached := _IN_CACHE.search(folder.as_posix()):
        return f"{cached[1]}/{cached[2]}"
    published = str((config or {}).get("_name_or_path", ""))
    if _CHATGLM.fullmatch(published):
        return published
    return None


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return "/" in name and HUB_ID.fullmatch(name) is not None


def find_paths(text: str) -> list[str]:
    """List the absolute paths in a text."""
    return list(dict.fromkeys(_PATHS.findall(text)))


def without_paths(value: Any) -> Any:
    """Shorten every absolute path in a value of JSON or YAML to its last part."""
    if isinstance(value, Mapping):
        return {without_paths(key): without_paths(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(child) for child in value]
    return _PATHS.sub(lambda path: _last_part(path[0]), value) if isinstance(value, str) else value


def _last_part(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a card says of a run.

    Attributes:
        base: the hub id of the base model; None if it is not known.
        base_name: what to call the base where the id is not known; no path.
        is_adapter: whether the folder holds an adapter, and not a complete model.
        license: None if it is not known.
        recipe: None for a folder that another tool has made.
        lines: of metrics.jsonl.
        proofs: as `report.json` or `export.json` records them.
        format: of an export, such as "gguf"; "" for what a run has written.
        scores: evaluations of the folder.
        model_type: of the base; "" if it is not known.
    """

    base: str | None
    base_name: str
    is_adapter: bool
    license: License | None = None
    recipe: RunRecipe | None = None
    lines: Sequence[Mapping[str, Any]] = ()
    proofs: Sequence[Proof] = ()
    format: str = ""
    scores: Sequence[Evaluation] = ()
    model_type: str = ""

    @property
    def method(self) -> str:
        """The method of tuning; "" if it is not known."""
        return self.recipe.adapter.method if self.recipe is not None else ""


def render_card(facts: RunFacts, name: str = "") -> str:
    """Write the card.

    Args:
        facts: of the run.
        name: the hub id of the repository that it is for; "" for a folder.

    Returns:
        Markdown, with YAML before it.
    """
    front = yaml.safe_dump(metadata(facts), allow_unicode=True, sort_keys=False)
    title = name.rpartition("/")[2] or f"{facts.base_name}, tuned"
    sections = [f"# {title}", *_english(facts, name), *_chinese(facts, name)]
    return _signed(without_paths(f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"))


def _signed(text: str) -> str:
    return f"{text}\n<!-- written by glmtune: {sha256_of_text(text)[:16]} -->\n"


def is_edited(card: str) -> bool:
    """Whether a person has written or changed a card, so that it is not to be replaced."""
    text, _, _ = card.rpartition("\n<!-- written by glmtune: ")
    return card != _signed(text)


def metadata(facts: RunFacts) -> dict[str, Any]:
    """Return what hubs read from the head of a card."""
    fields: dict[str, Any] = {}
    if facts.base is not None and facts.base != NANO:
        fields["base_model"] = facts.base
        fields["base_model_relation"] = "adapter" if facts.is_adapter else "finetune"
    by_peft = facts.is_adapter and facts.method != "ptuning_v2"
    if facts.format not in _WITHOUT_TRANSFORMERS:
        fields["library_name"] = "peft" if by_peft else "transformers"
    if facts.license is not None:
        fields["license"] = facts.license.id
        if facts.license.name:
            fields["license_name"] = facts.license.name
            fields["license_link"] = facts.license.link
    fields |= {"language": ["zh", "en"], "pipeline_tag": "text-generation"}
    if facts.recipe is not None and (ids := hub_data(facts.recipe)):
        fields["datasets"] = ids
    tags = (facts.method, facts.format, facts.model_type, "glmtune")
    return {**fields, "tags": [each for each in tags if each]}


def hub_data(recipe: RunRecipe) -> list[str]:
    """List the hub ids among the training data."""
    names = [str(name).partition("#")[0].removeprefix(MODELSCOPE) for name in recipe.data.train]
    return [each for each in names if is_hub_id(each) and not Path(each).parent.exists()]


def _losses(facts: RunFacts) -> tuple[list[float], list[float]]:
    learned = [line["loss"] for line in facts.lines if line.get("loss") is not None]
    held_out = [line["eval_loss"] for line in facts.lines if line.get("eval_loss") is not None]
    return learned, held_out


def _table(rows: Sequence[tuple[str, str]], head: tuple[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows)])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _link(facts: RunFacts) -> str:
    if facts.base == NANO:
        return f"`{NANO}`"
    return f"[{facts.base}]({HUB}/{facts.base})" if facts.base else f"`{facts.base_name}`"


def _values(recipe: RunRecipe) -> Iterator[tuple[str, str, str]]:
    """Yield what a reader asks of a run: English, Chinese, value."""
    training = recipe.training
    names = ", ".join(without_paths(_last_part(str(path))) for path in recipe.data.train)
    yield "data", "数据", names
    yield "method", "方法", recipe.adapter.method
    for key, chinese in (("r", "秩"), ("lora_alpha", "缩放"), ("target_modules", "目标层")):
        if value := getattr(recipe.adapter, key, None):
            shown = value if isinstance(value, str | int | float) else ", ".join(value)
            yield f"`{key}`", f"{chinese} `{key}`", str(shown)
    if recipe.model.add_tokens:
        yield "added tokens", "新增词元", " ".join(f"`{each}`" for each in recipe.model.add_tokens)
    yield "learning rate", "学习率", f"{training.learning_rate:g}"
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    yield "rows per step and device", "每步每卡样本数", str(rows)
    epochs = f"{training.num_train_epochs:g} epochs"
    yield "length", "训练长度", f"{training.max_steps} steps" if training.max_steps else epochs


def _results(facts: RunFacts) -> Iterator[tuple[str, str, str]]:
    learned, held_out = _losses(facts)
    if learned:
        yield "loss, first", "初始损失", f"{learned[0]:.4f}"
        yield "loss, last", "最终损失", f"{learned[-1]:.4f}"
    if held_out:
        yield "held-out loss, last", "验证损失（最后）", f"{held_out[-1]:.4f}"
        yield "held-out loss, best", "验证损失（最佳）", f"{min(held_out):.4f}"
    for name, value in score_lines(facts.scores):
        yield name, name, value


def _unit(facts: RunFacts) -> tuple[str, str]:
    if facts.recipe is not None and getattr(facts.recipe, "is_preference", False):
        return "per pair", "每对"
    if facts.recipe is not None and getattr(facts.recipe, "has_labels", False):
        return "per row", "每行"
    return "nats per token", "奈特/词元"


_VERDICTS = {"passed": "通过", "failed": "未通过", "not run": "未运行"}


def _english(facts: RunFacts, name: str) -> Iterator[str]:
    what = "Adapter" if facts.is_adapter else "Tuned model"
    by = f"trained by {facts.method} " if facts.method else ""
    yield f"{what} for {_link(facts)}, {by}with glmtune {glmtune.__version__}."
    if facts.recipe is not None:
        values = [(english, value) for english, _, value in _values(facts.recipe)]
        yield "## Training\n\n" + _table(values, ("", ""))
        yield "Every value of the run is in `recipe.yaml`; running that file repeats it."
    if results := [(english, value) for english, _, value in _results(facts)]:
        yield "## Results\n\n" + _table(results, (_unit(facts)[0], ""))
    if facts.proofs:
        rows = [(p.name, ": ".join(filter(None, (p.verdict, p.detail)))) for p in facts.proofs]
        yield "## Proofs\n\n" + _table(rows, ("statement", "result"))
    yield "## Use\n\n" + _use(facts, name)
    if facts.license is not None:
        yield f"## License\n\n{_license(facts.license)}"


def _chinese(facts: RunFacts, name: str) -> Iterator[str]:
    what = "适配器" if facts.is_adapter else "微调后的完整模型"
    by = f"方法为 {facts.method}，" if facts.method else ""
    made = f"{by}由 glmtune {glmtune.__version__} 训练"
    yield f"# 中文说明\n\n基座为 {_link(facts)} 的{what}，{made}。"
    if facts.recipe is not None:
        values = [(chinese, value) for _, chinese, value in _values(facts.recipe)]
        yield "## 训练\n\n" + _table(values, ("", ""))
        yield "全部参数都在 `recipe.yaml` 中，用它可以重复这次训练。"
    if results := [(chinese, value) for _, chinese, value in _results(facts)]:
        yield "## 结果\n\n" + _table(results, (_unit(facts)[1], ""))
    if facts.proofs:
        rows = [(in_chinese(p.name), _VERDICTS[p.verdict]) for p in facts.proofs]
        yield "## 检验\n\n" + _table(rows, ("命题", "结果"))
    yield "## 使用\n\n" + _use(facts, name)
    if facts.license is not None:
        yield f"## 许可\n\n{_license(facts.license)}"


def _license(license: License) -> str:
    return f"[{license.name}]({license.link})" if license.link else f"`{license.id}`"


def _use(facts: RunFacts, name: str) -> str:
    base = facts.base or "BASE_MODEL"
    folder, download = "THIS_FOLDER", ""
    if name:
        folder = name.rpartition("/")[2]
        download = f"hf download {name} --local-dir {folder}\n"
    chat = (
        f"glmtune chat {base} --adapter {folder}" if facts.is_adapter else f"glmtune chat {folder}"
    )
    if facts.format in _START:
        lines = _START[facts.format].format(base=base, folder=folder)
        return f"```bash\n{download}{lines}\n```"
    code = _MODEL
    if facts.is_adapter:
        code = _PREFIX if facts.method == "ptuning_v2" else _ADAPTER
    code = code.format(base=base, folder=folder)
    return f"```bash\npip install glmtune\n{download}{chat}\n```\n\n```python\n{code}\n```"


_WITHOUT_TRANSFORMERS = ("gguf", "lora-gguf", "ollama")
# By format of an export: the command lines that use it, which need no glmtune.
_START = {
    "glm": (
        'python -c "from transformers import pipeline; '
        "print(pipeline('text-generation', '{folder}')("
        "[{{'role': 'user', 'content': '你好'}}])[0]['generated_text'][-1]['content'])\""
    ),
    "lora-glm": (
        "# over the base in the layout of transformers' glm\n"
        "glmtune export {base} --to glm -o base-glm\n"
        'python -c "from peft import PeftModel; from transformers import AutoModelForCausalLM; '
        "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('base-glm'), '{folder}')\""
    ),
    "gguf": "llama-server -m {folder}/model.gguf --port 8080",
    "lora-gguf": (
        "glmtune export {base} --to gguf -o base-gguf\n"
        "llama-server -m base-gguf/model.gguf --lora {folder}/lora.gguf --port 8080"
    ),
    "ollama": "ollama create {folder} -f {folder}/Modelfile && ollama run {folder}",
}

_MODEL = """\
from glmtune.model.load import load_model

model = load_model("{folder}")"""
_ADAPTER = """\
from peft import PeftModel

from glmtune.model.load import load_model

model = PeftModel.from_pretrained(load_model("{base}"), "{folder}")"""
_PREFIX = """\
from pathlib import Path

from glmtune.methods import method
from glmtune.model.load import load_model

model = method.load(load_model("{base}"), Path("{folder}"))"""
