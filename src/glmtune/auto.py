"""Importing this makes `chatglm` checkpoints known to transformers' Auto classes.

    import glmtune.auto
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("chatglm3-6b")
    model = AutoModel.from_pretrained("chatglm3-6b")

Code in a checkpoint's folder is then never run, whatever `trust_remote_code` says.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from glmtune.model.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.model.chatglm.modeling_chatglm import (
    ChatGLMForConditionalGeneration,
    ChatGLMForSequenceClassification,
)
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer


class _TokenizerByName(ChatGLMConfig):  # type: ignore[no-untyped-call]
    """A key in AutoTokenizer's map that no checkpoint has.

    AutoTokenizer lets the folder's own code win, under `trust_remote_code`, over a tokenizer
    that is registered for the checkpoint's config class, but not over one that is found by the
    name in tokenizer_config.json or in `ChatGLMConfig.tokenizer_class`. So the class is
    registered under this key, which makes its name known and nothing more.
    """


AutoConfig.register("chatglm", ChatGLMConfig)
AutoTokenizer.register(_TokenizerByName, ChatGLMTokenizer)  # type: ignore[no-untyped-call]
# AutoModel gives the model that can `chat`, as the published `auto_map` does.
AutoModel.register(ChatGLMConfig, ChatGLMForConditionalGeneration)
AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForConditionalGeneration)
AutoModelForSeq2SeqLM.register(ChatGLMConfig, ChatGLMForConditionalGeneration)
AutoModelForSequenceClassification.register(ChatGLMConfig, ChatGLMForSequenceClassification)
