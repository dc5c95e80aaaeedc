"""Register ChatGLM with the Auto classes of transformers; importing this module is enough.

    import glmtune.auto
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("chatglm3-6b")
    model = AutoModel.from_pretrained("chatglm3-6b")

Code in a checkpoint's folder is then never run, whatever the value of `trust_remote_code`.
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

    With `trust_remote_code`, AutoTokenizer prefers the folder's own code to a tokenizer that is
    registered for the checkpoint's config class, but not to one that is found by the name in
    tokenizer_config.json or in `ChatGLMConfig.tokenizer_class`. Registering the class under this
    key makes only its name known.
    """


AutoConfig.register("chatglm", ChatGLMConfig)
AutoTokenizer.register(_TokenizerByName, ChatGLMTokenizer)  # type: ignore[no-untyped-call]
# AutoModel returns the model with `chat`, as the published `auto_map` does.
AutoModel.register(ChatGLMConfig, ChatGLMForConditionalGeneration)
AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForConditionalGeneration)
AutoModelForSeq2SeqLM.register(ChatGLMConfig, ChatGLMForConditionalGeneration)
AutoModelForSequenceClassification.register(ChatGLMConfig, ChatGLMForSequenceClassification)
