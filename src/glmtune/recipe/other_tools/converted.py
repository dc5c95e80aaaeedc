"""A recipe that was converted, and what all tools share: transformers' own arguments.

Defaults of the other tool that differ from ours are written out. A value that is invalid in our
recipe is dropped and listed; it is never replaced by a similar one.

Source: the defaults of transformers.TrainingArguments.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from glmtune.recipe.explain import keys_of, known_keys
from glmtune.recipe.names import RENAMED
from glmtune.recipe.numbers import number_of
from glmtune.recipe.other_tools.given import NOT_NEEDED, Given, said
from glmtune.recipe.recipe import Recipe

TRAINER_DEFAULTS: Mapping[str, Any] = {  # of transformers, where they differ from ours
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "learning_rate": 5e-5,
    "logging_steps": 500,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": None,
    "load_best_model_at_end": False,
}
EIGHT_BIT = ("adamw_8bit", "adamw_bnb_8bit")  # two names of one optimizer in transformers
# What these tools measure of generated answers, and their keys of generation.
ANSWER_METRICS = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")
OPTIONS = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")
GENERATION = (*OPTIONS, "do_sample", "num_beams", "length_penalty", "generation_config")
OUTPUT_IF_UNUSABLE = "out/converted"


@dataclass(slots=True)
class Converted:
    """A recipe that was converted from another tool's.

    Attributes:
        tool: the name of the tool.
        sections: our recipe, with what was given or differs from our defaults.
        not_converted: what was dropped, with the reason or what to do.
        not_needed: keys that are not needed here.
    """

    tool: str
    sections: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {n: {} for n in ("model", "data", "adapter", "training", "output")}
    )
    not_converted: list[str] = field(default_factory=list)
    not_needed: list[str] = field(default_factory=list)

    def to_yaml(self, source: str) -> str:
        """Write the recipe as YAML, after a comment that lists what was not converted."""
        lines = [f"From {source}, a recipe of {self.tool}."]
        if self.not_converted:
            lines += ["Not converted:", *(f"- {item}" for item in self.not_converted)]
        comment = "".join(f"# {_on_one_line(line)}\n" for line in lines)
        given = {name: values for name, values in self.sections.items() if values}
        return comment + yaml.safe_dump(given, allow_unicode=True, sort_keys=False)

    def list_remaining(self, given: Given) -> None:
        """List the keys that were not converted."""
        for name, value in given.remaining():
            if name.rpartition(".")[2] in NOT_NEEDED:
                self.not_needed.append(name)
            else:
                self.not_converted.append(f"{name}: {said(value)}, which has no counterpart here")

    def settle(self) -> None:
        """Drop what our recipe refuses, value by value, and list it with the reason."""
        for _ in range(100):  # each time at least one value leaves
            try:
                Recipe.model_validate(self.sections)
                return
            except ValidationError as error:
                dropped = [self._drop(problem) for problem in error.errors()]
                if not any(dropped):
                    return  # explained by who builds the recipe

    def _drop(self, problem: Any) -> bool:
        section, *path = map(str, problem["loc"] or ("",))
        if not problem["loc"]:
            return self._drop_one_of(str(problem["msg"]).removeprefix("Value error, "))
        if section == "adapter":
            path = path[1:]  # the method
        values = self.sections.get(section, {})
        if not path or path[0] not in values:
            return False
        value = values.pop(path[0])
        self.not_converted.append(
            f"{path[0]}: {said(value)}. {section}.{path[0]} takes: {_clause(problem['msg'])}"
        )
        return True

    def _drop_one_of(self, conflict: str) -> bool:
        """Drop a value that does not go together with others, by the message of the rule."""
        known = known_keys(Recipe)
        named = [key for key in re.findall(r"\b[a-z]+\.\w+", conflict) if key in known]
        for key in sorted(named, key=_decides_little, reverse=True):
            section, _, name = key.partition(".")
            value = self.sections.get(section, {}).get(name)
            if value is None or key in ("model.name_or_path", "data.train", "adapter.method"):
                continue
            self.not_converted.append(f"{name}: {said(value)}. {conflict}")
            del self.sections[section][name]
            if key == "output.dir":
                self.sections[section][name] = OUTPUT_IF_UNUSABLE
            return True
        return False


def _decides_little(key: str) -> int:
    """Order keys by how much a run stays the same without them."""
    order = ("adapter", "model", "data", "output", "preference", "training", "checks")
    return order.index(key.partition(".")[0])


def _clause(message: str) -> str:
    return message[:1].lower() + message[1:]


def _on_one_line(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def convert_training(
    result: Converted, given: Given, defaults: Mapping[str, Any] = TRAINER_DEFAULTS
) -> None:
    """Convert transformers' own arguments.

    Args:
        result: gets them.
        given: loses them.
        defaults: of the tool, by our names, where they differ from ours.
    """
    training, output = result.sections["training"], result.sections["output"]
    for old, (section, new) in RENAMED.items():
        if section == "training":
            given.rename(old, new)
    training |= defaults
    if (steps := given.take("max_steps")) not in (-1, "-1", None):
        training["max_steps"] = steps
    _convert_optimizer(result, given)
    _convert_off(training, given)
    if checkpoint := given.take("resume_from_checkpoint"):
        result.not_converted.append(
            f"resume_from_checkpoint: {said(checkpoint)}. A run of glmtune is continued by "
            "`glmtune train RECIPE --resume`; one of another tool cannot be"
        )
    for key in given.names_left():
        if key in keys_of("training") and key not in ("bf16", "fp16"):
            value = given.take(key)
            number = number_of(value)
            if value is not None:
                training[key] = value if number is None else number
    if "eval_steps" not in training:
        training["eval_steps"] = training["logging_steps"]
    patience = given.number("early_stopping_steps")
    if patience is not None:
        training["early_stopping_patience"] = patience
    output["dir"] = given.text("output_dir", "out")
    if (trackers := given.take("report_to")) is not None:
        output["report_to"] = trackers
    if given.flag("use_swanlab"):
        output["report_to"] = "swanlab"
        given.rename("swanlab_run_name", "run_name")
    if (name := given.text("run_name")) is not None:
        output["run_name"] = name
    if given.flag("overwrite_output_dir"):
        output["overwrite"] = True


def convert_streaming(result: Converted, given: Given, buffer: str) -> None:
    """Convert rows that are read while training.

    Args:
        result, given: as for `convert_training`.
        buffer: the key for how many rows are shuffled together.
    """
    if not given.flag("streaming"):
        if given.take(buffer) is not None:
            result.not_needed.append(buffer)
        return
    result.sections["data"]["streaming"] = True
    given.move(result.sections["data"], **{buffer: "shuffle_buffer"})


def convert_answers(result: Converted, given: Given, num_rows: int | None = None) -> None:
    """Convert what other tools do with generated answers: scores of held-out rows, or a file.

    Args:
        result: gets the metrics that those tools compute at each evaluation.
        given: loses the keys of generation.
        num_rows: of the held-out rows that the tool answers; None for all.
    """
    by_answers, predicts = given.flag("predict_with_generate"), given.flag("do_predict")
    options = {
        key: value for key in GENERATION if (value := given.take(key)) not in (None, "", [], {})
    }
    if by_answers and "eval" in result.sections["data"]:
        result.sections["training"]["eval_metrics"] = list(ANSWER_METRICS)
        if num_rows is not None:
            result.sections["training"]["eval_metric_rows"] = num_rows
    elif by_answers:
        result.not_converted.append(
            "predict_with_generate: there are no held-out rows to answer. `glmtune evaluate MODEL "
            "DATA` scores answers afterwards"
        )
    if predicts:
        numbers = {key: n for key in OPTIONS if (n := number_of(options.get(key))) is not None}
        known = [f"--{key.replace('_', '-')} {number:g}" for key, number in numbers.items()]
        command = " ".join(["glmtune predict DATA", *known])
        result.not_converted.append(f"do_predict: rows are answered by `{command}` afterwards")
    elif options:
        result.not_needed += options


def _convert_optimizer(result: Converted, given: Given) -> None:
    name = given.text("optim", "")
    if name in EIGHT_BIT:
        result.sections["training"]["optim"] = "adamw_bnb_8bit"
    elif name in ("paged_adamw_8bit", "paged_adamw_32bit"):
        ours = "adamw_bnb_8bit" if "8bit" in name else "adamw_torch"
        result.not_converted.append(f"optim: {name}. Its pages; training.optim={ours} is the same")
        result.sections["training"]["optim"] = ours
    elif name and not name.startswith("adamw_torch"):
        result.sections["training"]["optim"] = name  # dropped, with what is possible


def _convert_off(training: dict[str, Any], given: Given) -> None:
    """Convert the 0 that switches something off in transformers to null."""
    for key in ("max_grad_norm", "save_total_limit", "neftune_noise_alpha"):
        value = given.take(key)
        number = number_of(value)
        if number is not None and number <= 0:
            training[key] = None
        elif value is not None:
            training[key] = value if number is None else number
