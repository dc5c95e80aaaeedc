"""A pre-training recipe -> a model in a folder: the run of `run.py` on texts instead of rows."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from glmtune.data.store import EncodedData
from glmtune.data.texts import TextOptions, encode_texts, split_documents
from glmtune.errors import DataError, RecipeError
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.load import load_tokenizer
from glmtune.objective.mixture import each_objective, mixture
from glmtune.recipe.recipe import PretrainRecipe
from glmtune.template.select import template_for
from glmtune.train.loop import Judge
from glmtune.train.run import Ingredients, Result, begin, carry_out, load_base

logger = logging.getLogger(__name__)


def pretrain(recipe: PretrainRecipe, *, resume: bool = False) -> Result:
    """Train a model on texts, from scratch or from where another run left it.

    Args:
        recipe: the whole run.
        resume: go on from the newest whole checkpoint in `output.dir`.

    Raises:
        GlmtuneError: one of its children, for whatever the user can mend. Earlier checkpoints
            stay as they were.
    """
    accelerator, output = begin(recipe, resume=resume)
    tokenizer = load_tokenizer(recipe.model.name_or_path)
    if not isinstance(tokenizer, ChatGLMTokenizer):
        raise RecipeError(
            f"{recipe.model.name_or_path}: pre-training needs the special tokens of ChatGLM "
            f"([gMASK], sop), and this is a {type(tokenizer).__name__}. Use a ChatGLM2 or "
            "ChatGLM3 checkpoint, or make a tokenizer with `glmtune tokenizer train`."
        )
    examples, eval_examples, rows, eval_rows = load_texts(recipe, tokenizer, output)
    if recipe.model.config:
        model = make_model(recipe, tokenizer).to(accelerator.device)
    else:
        model = load_base(recipe, accelerator.device)
    drawn = (recipe.objective, tokenizer, recipe.training.seed)
    return carry_out(
        recipe,
        Ingredients(
            tokenizer,
            template_for(tokenizer, recipe.data.layout),
            examples,
            eval_examples,
            rows,
            eval_rows,
            model,
            make=mixture(*drawn),
            judges={name: Judge(*judged) for name, judged in each_objective(*drawn).items()},
        ),
        accelerator,
        resume=resume,
    )


def make_model(recipe: PretrainRecipe, tokenizer: ChatGLMTokenizer) -> Any:
    """Draw a new model of the shape that the recipe gives.

    Raises:
        RecipeError: a field is not one of ChatGLM's, or does not fit the others.
    """
    fields: dict[str, Any] = dict(recipe.model.config)
    rows = fields.setdefault("padded_vocab_size", -(-len(tokenizer) // 64) * 64)
    if isinstance(rows, int) and rows < len(tokenizer):
        raise RecipeError(
            f"model.config.padded_vocab_size is {rows}, and the tokenizer has {len(tokenizer)} "
            "ids. Leave it out, to have as many rows as it takes."
        )
    known = ChatGLMConfig().to_dict()
    if unknown := sorted(set(fields) - set(known) - set(ChatGLMConfig.attribute_map)):
        raise RecipeError(
            f"model.config has {', '.join(unknown)}, which is no field of ChatGLM's config.json. "
            f"It has {', '.join(sorted(known))}."
        )
    try:
        config = ChatGLMConfig(**fields, dtype=torch.float32)
        config._attn_implementation = recipe.model.attn_implementation
        return ChatGLMForConditionalGeneration(config)
    except (StrictDataclassError, TypeError) as error:
        raise RecipeError(f"model.config: {error.__cause__ or error}") from error


def load_texts(
    recipe: PretrainRecipe, tokenizer: ChatGLMTokenizer, output: Path
) -> tuple[EncodedData, EncodedData, Sequence[int], Sequence[int]]:
    """Encode the texts to learn and those held out, as `run.load_data` does with rows."""
    section = recipe.data
    options = TextOptions(
        max_length=section.max_length,
        column=section.columns.get("text", "text"),
        bad_rows=section.bad_rows,
        split=section.split,
    )
    examples = encode_texts(section.train, tokenizer, options, quarantine=output / "bad_rows.jsonl")
    logger.info("texts: %s", examples.report)
    if section.eval:
        held_out = encode_texts(
            section.eval, tokenizer, options, quarantine=output / "bad_eval_rows.jsonl"
        )
        logger.info("held-out texts: %s", held_out.report)
        return examples, held_out, range(len(examples)), range(len(held_out))
    if not section.eval_fraction:
        return examples, examples, range(len(examples)), ()
    rows, eval_rows = split_documents(examples, section.eval_fraction, recipe.training.seed)
    if not len(rows):
        raise DataError(
            f"data.eval_fraction={section.eval_fraction} of {examples.report.num_rows} documents "
            "leaves none to learn. Lower it, or give more."
        )
    return examples, examples, rows.tolist(), eval_rows.tolist()
