"""What another tool's recipe gives, taken key by key; what is left was not understood.

A value of another type than its key has is listed as not converted, and treated as not given.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from glmtune.recipe.explain import MAX_SHOWN, shown
from glmtune.recipe.numbers import number_of

# Keys that do not affect what is learned here.
NOT_NEEDED = {
    "cache_dir", "data_shared_file_system", "dataloader_num_workers", "ddp_find_unused_parameters",
    "ddp_timeout", "disable_tqdm", "do_eval", "do_train", "group_by_length",
    "ignore_pad_token_for_loss", "include_num_input_tokens_seen", "inference_mode", "log_level",
    "logging_dir", "logging_first_step", "logging_strategy", "low_cpu_mem_usage", "model_revision",
    "neat_packing", "num_proc", "overwrite_cache", "packing", "per_device_eval_batch_size",
    "plot_loss", "preprocessing_batch_size", "preprocessing_num_workers", "remove_unused_columns",
    "save_only_model", "save_safetensors", "task_type", "trust_remote_code", "upcast_layernorm",
    "upcast_lmhead_output", "use_cache", "use_fast_tokenizer", "template", "enable_liger_kernel",
    "use_unsloth", "flash_attn", "dataset_dir", "overwrite_output_dir",
    "resize_vocab",
}  # fmt: skip


def said(value: Any) -> str:
    """Write a value that cannot be converted; a short text without quotes."""
    is_plain = isinstance(value, str) and value.isprintable() and len(value) <= MAX_SHOWN
    return value if is_plain and value else shown(value)


class Given:
    """Keys and values of another tool.

    Args:
        values: plain values by key.
        problems: where values of a wrong type are listed.
        prefix: the mapping that the keys are in, such as `training_args.`.
    """

    def __init__(self, values: Mapping[str, Any], problems: list[str], prefix: str = "") -> None:
        self._left, self._problems, self.prefix = dict(values), problems, prefix

    def __contains__(self, key: str) -> bool:
        return self._left.get(key) is not None

    def names_left(self) -> list[str]:
        """List the keys that are left."""
        return list(self._left)

    def rename(self, old: str, new: str) -> None:
        """Call a key by its new name, unless that is given too."""
        if old in self._left:
            value = self._left.pop(old)
            self._left.setdefault(new, value)

    def take(self, key: str, default: Any = None) -> Any:
        """Return a value of any type."""
        value = self._left.pop(key, None)
        return default if value is None else value

    def text(self, key: str, default: str | None = None) -> str | None:
        """Return a text; an empty one is not given."""
        value = self.take(key)
        if value is None or value == "":
            return default
        return value if isinstance(value, str) else self._refuse(key, value, "text", default)

    def number(self, key: str, default: float | None = None) -> Any:
        """Return a number, also one that YAML reads as text."""
        value = self.take(key)
        if value is None or value == "":
            return default
        number = number_of(value)
        return self._refuse(key, value, "a number", default) if number is None else number

    def flag(self, key: str, default: bool = False) -> bool:
        """Return a truth value; `auto` is true."""
        value = self.take(key)
        words = {"true": True, "auto": True, "yes": True, "false": False, "no": False, "": default}
        if value is None:
            return default
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        return bool(self._refuse(key, value, "true or false", default))

    def names(self, key: str) -> list[str]:
        """Return a list of texts; `a,b` is two of them."""
        value = self.take(key, [])
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            return list(self._refuse(key, value, "names", []))
        return [part.strip() for part in parts if part.strip()]

    def section(self, key: str, prefix: str | None = None) -> "Given | None":
        """Return the mapping below a key; None if it is not given.

        Args:
            key: of the mapping.
            prefix: of the keys in it, where they are listed; None for the key.
        """
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._refuse(key, value, "keys and values", None)
            value = {}
        return Given(value, self._problems, f"{self.prefix}{key}." if prefix is None else prefix)

    def move(self, values: dict[str, Any], **names: str) -> None:
        """Move values to `values` under our names; wrong ones are dropped when all is checked."""
        for theirs, ours in names.items():
            value = self.take(theirs)
            if value is not None and value != "":
                number = number_of(value)
                values[ours] = value if number is None else number

    def remaining(self) -> Iterator[tuple[str, Any]]:
        """Yield what was not taken and is not empty, each key with the mapping it is in."""
        for key, value in self._left.items():
            if not (value is None or value is False or value in ("", [], {})):
                yield f"{self.prefix}{key}", value

    def _refuse(self, key: str, value: Any, expected: str, default: Any) -> Any:
        self._problems.append(f"{self.prefix}{key}: {shown(value)}, where {expected} was expected")
        return default
