"""A pre-training recipe -> a model in a folder: the run of `run.py`, on texts instead of rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from glmtune.data.sources import AnySource
from glmtune.data.store import EncodedData
from glmtune.data.texts import TextOptions, encode_texts, split_documents
from glmtune.errors import RecipeError
from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import ChatGLMForConditionalGeneration
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.model.load import load_tokenizer
from glmtune.objective.mixture import each_objective, mixture
from glmtune.objective.next_token import NextToken
from glmtune.recipe.recipe import PretrainRecipe
from glmtune.template.select import template_for
from glmtune.train.before import Before
from glmtune.train.load_model import load_base
from glmtune.train.load_rows import RunData, split_held_out
from glmtune.train.output import sole_run
from glmtune.train.prepare import prepare_run
from glmtune.train.run import Result, train_and_prove, training_loss
from glmtune.train.training import EvalView, Task


def pretrain(recipe: PretrainRecipe, *, resume: bool = False) -> Result:
    """Train a model on texts, from scratch or from an existing one.

    Args:
        recipe: the whole run.
        resume: continue from the newest intact checkpoint in `output.dir`.

    Raises:
        GlmtuneError: one of its children, for everything that the user can fix. Earlier
            checkpoints stay as they were.
    """
    processes = prepare_run(recipe, resume=resume)
    tokenizer = load_chatglm_tokenizer(recipe)
    with sole_run(recipe, is_main=processes.is_main, resume=resume):
        data = load_texts(recipe, tokenizer, Path(recipe.output.dir))
        if recipe.model.config:
            model = make_model(recipe, tokenizer).to(processes.device)
        else:
            model = load_base(recipe, processes.device)
        task = choose_task(recipe, tokenizer)
        return train_and_prove(recipe, processes, model, data, task, Before(), resume=resume)


def load_chatglm_tokenizer(recipe: PretrainRecipe) -> ChatGLMTokenizer:
    """Load the tokenizer, whose special tokens mark blanks and their contexts.

    Raises:
        RecipeError: the model is of another family.
    """
    tokenizer = load_tokenizer(recipe.model.name_or_path)
    if isinstance(tokenizer, ChatGLMTokenizer):
        return tokenizer
    raise RecipeError(
        f"{recipe.model.name_or_path}: pre-training needs the special tokens of ChatGLM "
        f"([gMASK], sop), and this is a {type(tokenizer).__name__}. Use a ChatGLM2 or "
        "ChatGLM3 checkpoint, or make a tokenizer with `glmtune tokenizer train`."
    )


def choose_task(recipe: PretrainRecipe, tokenizer: ChatGLMTokenizer) -> Task:
    """Mix the objectives by their shares in training, and evaluate each alone."""
    section, seed = recipe.objective, recipe.training.seed
    alone = each_objective(section, tokenizer, seed)
    return Task(
        NextToken(training_loss(recipe.training)),
        NextToken(),
        mixture(section, tokenizer, seed),
        {name: EvalView(make, share) for name, (make, share) in alone.items()},
    )


def make_model(recipe: PretrainRecipe, tokenizer: ChatGLMTokenizer) -> Any:
    """Initialize a new model of the shape that the recipe gives.

    Raises:
        RecipeError: a field is not one of ChatGLM's, or does not fit the others.
    """
    fields: dict[str, Any] = dict(recipe.model.config)
    rows = fields.setdefault("padded_vocab_size", -(-len(tokenizer) // 64) * 64)
    if isinstance(rows, int) and rows < len(tokenizer):
        raise RecipeError(
            f"model.config.padded_vocab_size is {rows}, and the tokenizer has {len(tokenizer)} "
            "ids. Leave it out to get as many rows as it needs."
        )
    known = ChatGLMConfig().to_dict()
    if unknown := sorted(set(fields) - set(known) - set(ChatGLMConfig.attribute_map)):
        raise RecipeError(
            f"model.config has {', '.join(unknown)}, which ChatGLM's config.json does not have. "
            f"Its fields are {', '.join(sorted(known))}."
        )
    try:
        config = ChatGLMConfig(**fields, dtype=torch.float32)
        config._attn_implementation = recipe.model.attn_implementation
        return ChatGLMForConditionalGeneration(config)
    except (StrictDataclassError, TypeError) as error:
        raise RecipeError(f"model.config: {error.__cause__ or error}") from error


def load_texts(recipe: PretrainRecipe, tokenizer: ChatGLMTokenizer, output: Path) -> RunData:
    """Encode the texts to learn and those held out; whole documents are split off."""
    section = recipe.data
    options = TextOptions(
        max_length=section.max_length,
        column=section.columns.get("text", "text"),
        bad_rows=section.bad_rows,
        split=section.split,
    )

    def encode(sources: Sequence[AnySource], quarantine: Path) -> EncodedData:
        return encode_texts(sources, tokenizer, options, quarantine=quarantine)

    template = template_for(tokenizer, section.layout)
    return split_held_out(recipe, tokenizer, template, encode, split_documents, output)
