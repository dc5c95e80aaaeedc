"""The configuration of ChatGLM2 and ChatGLM3, under the names of the published files.

`config.json` keeps the original names (`num_layers`, `padded_vocab_size`, ...), because vLLM,
llama.cpp and chatglm.cpp read those. The names that transformers uses everywhere else
(`num_hidden_layers`, `vocab_size`, ...) are aliases: they can be read, set and passed, and are
never written.

Three other kinds of checkpoint also have the model type `chatglm` and are refused: ChatGLM-6B
(v1, another network), GLM-4 (another tokenizer) and the `-int4` files (packed weights).

Source: spec section 1.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

GLM4_PADDED_VOCAB_SIZE = 151552  # every GLM-4 9B has it, and no ChatGLM
GLM4_CONTEXT = 131072  # tokens; glm-4-9b-chat-1m has eight times as many
MAX_LAYERS = 1000
MAX_SIZE = 2**24  # of a dimension or the vocabulary; larger ones are damage, and exhaust memory
MAX_CONTEXT = 2**31


@strict
class ChatGLMConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Configuration of ChatGLM2 and ChatGLM3.

    The defaults are those of the original class, which differ from the published 6B files in
    `seq_length`, `add_qkv_bias`, `multi_query_attention` and `multi_query_group_num`.

    Attributes:
        num_layers: number of decoder blocks.
        padded_vocab_size: rows of the input and of the output embedding; more than the
            tokenizer has.
        hidden_size: width of the residual stream.
        ffn_hidden_size: width of the MLP; the up projection is twice as wide.
        kv_channels: width of one head, which need not be `hidden_size / num_attention_heads`.
        num_attention_heads: number of query heads.
        seq_length: nominal context length. Longer inputs work, since no table has this length.
        hidden_dropout: applied after attention and after the MLP.
        classifier_dropout: applied before the head of sequence classification.
        attention_dropout: applied to the attention weights.
        layernorm_epsilon: of every RMSNorm.
        rmsnorm, post_layer_norm, apply_residual_connection_post_layernorm,
        fp32_residual_connection: must have their published values.
        add_bias_linear: bias on every dense layer of a block.
        add_qkv_bias: bias on the fused projection of queries, keys and values.
        multi_query_attention: whether groups of query heads share a key and a value head.
        multi_query_group_num: number of key and of value heads when they are shared.
        rope_ratio: multiplies the rotary base of 10000.
        rope_interpolation: whether `rope_ratio` divides the positions instead. chatglm2-6b-32k is
            distinguished only by its name; None looks for that name in config.json.
        bias_dropout_fusion, apply_query_key_layer_scaling, attention_softmax_in_fp32,
        original_rope: other ways to compute the same numbers; kept, and not used.
        quantization_bit: must be 0.
        pre_seq_len: length of the P-Tuning v2 prefix, or None.
        prefix_projection: whether an MLP computes the prefix.
        initializer_range: standard deviation of newly initialized weights.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    # AutoTokenizer reads this when a folder has no tokenizer_config.json.
    tokenizer_class: ClassVar[str] = "ChatGLMTokenizer"
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "vocab_size": "padded_vocab_size",
        "intermediate_size": "ffn_hidden_size",
        "head_dim": "kv_channels",
        "max_position_embeddings": "seq_length",
        "rms_norm_eps": "layernorm_epsilon",
    }
    # A shard of the fused query_key_value crosses the boundaries of queries, keys and values, so
    # its output is gathered and every rank attends with all heads. dense_h_to_4h holds gate and up
    # in equal halves, which "packed_colwise" shards separately.
    base_model_tp_plan: ClassVar[dict[str, Any]] = {
        "encoder.layers.*.self_attention.query_key_value": "colwise_gather_output",
        "encoder.layers.*.self_attention.dense": "rowwise_split_input",
        "encoder.layers.*.mlp.dense_h_to_4h": "packed_colwise",
        "encoder.layers.*.mlp.dense_4h_to_h": "rowwise",
        "output_layer": "colwise_gather_output",
    }
    base_model_pp_plan: ClassVar[dict[str, Any]] = {
        "embedding": (["input_ids"], ["inputs_embeds"]),
        "encoder.layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "encoder.final_layernorm": (["hidden_states"], ["hidden_states"]),
        "output_layer": (["hidden_states"], ["logits"]),
    }
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {
        "embedding": "free_full_weight",
        "encoder.layers.*": "free_full_weight",
        "encoder.final_layernorm": "keep_full_weight",
        "output_layer": "keep_full_weight",
    }

    num_layers: int = 28
    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int = 128
    num_attention_heads: int = 32
    seq_length: int = 2048
    hidden_dropout: float | int = 0.0
    classifier_dropout: float | int | None = None
    attention_dropout: float | int = 0.0
    layernorm_epsilon: float | int = 1e-5
    rmsnorm: bool = True
    apply_residual_connection_post_layernorm: bool = False
    post_layer_norm: bool = True
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    bias_dropout_fusion: bool = True
    multi_query_attention: bool = False
    multi_query_group_num: int = 1
    rope_ratio: float | int = 1
    rope_interpolation: bool | None = None
    apply_query_key_layer_scaling: bool = True
    attention_softmax_in_fp32: bool = True
    fp32_residual_connection: bool = False
    original_rope: bool = True
    quantization_bit: int = 0
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        """Handle fields that are not attributes, refusing the files of other networks."""
        if "position_encoding_2d" in kwargs or "inner_hidden_size" in kwargs:
            raise ValueError(
                "this is a ChatGLM-6B (v1) checkpoint: its config has position_encoding_2d or "
                "inner_hidden_size. Expected ChatGLM2 or ChatGLM3, which is another network. "
                "Use a chatglm2-6b or chatglm3-6b checkpoint."
            )
        if self.rope_interpolation is None:
            published_as = str(kwargs.get("_name_or_path", ""))
            self.rope_interpolation = "chatglm2-6b-32k" in published_as or None
        # `auto_map` names code in the folder, which these classes replace and do not save.
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def validate_architecture(self) -> None:
        """Raise an error for what this implementation would compute wrongly.

        Raises:
            ValueError: names the field, what it holds and what was expected.
        """
        if self.padded_vocab_size == GLM4_PADDED_VOCAB_SIZE:
            raise ValueError(
                f"padded_vocab_size {GLM4_PADDED_VOCAB_SIZE} is that of GLM-4 in its original "
                "layout, which needs code and a tokenizer that are in the checkpoint and are never "
                "run here; expected ChatGLM2 or ChatGLM3 (65024). Use the same model in "
                f"transformers' own layout: {self._glm4_in_own_layout()}."
            )
        if self.quantization_bit:
            raise ValueError(
                f"quantization_bit is {self.quantization_bit}: the weights are packed integers "
                "(an -int4 checkpoint), which cannot be loaded or trained. "
                "Use the checkpoint in half precision, such as chatglm3-6b."
            )
        self._check_bounds()
        for name, published in _PUBLISHED_VALUES.items():
            if (found := getattr(self, name)) != published:
                raise ValueError(
                    f"{name} is {found}, which no published ChatGLM2 or ChatGLM3 has and which is "
                    f"not implemented; expected {published}. Check that config.json belongs to "
                    "these weights."
                )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, which is not a multiple of "
                f"multi_query_group_num {self.num_key_value_heads}: every key and value head "
                "must serve as many query heads."
            )

    def _glm4_in_own_layout(self) -> str:
        """Name the published checkpoint with the same weights."""
        if self.seq_length > GLM4_CONTEXT:
            return "zai-org/glm-4-9b-chat-1m-hf"
        return "zai-org/glm-4-9b-chat-hf (or glm-4-9b-hf, if this is the base model)"

    def _check_bounds(self) -> None:
        """Refuse numbers of which no network can be made, before anything is allocated."""
        sizes = dict.fromkeys(_SIZES, (1, MAX_SIZE))
        sizes |= {"num_layers": (1, MAX_LAYERS), "seq_length": (1, MAX_CONTEXT)}
        if self.pre_seq_len is not None:
            sizes["pre_seq_len"] = (0, MAX_SIZE)
        for name, (least, most) in sizes.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected {least} to {most:,}. Check that "
                    "config.json belongs to these weights."
                )
        for name, limit in (("layernorm_epsilon", 1), ("rope_ratio", MAX_ROPE_RATIO)):
            if not 0 < getattr(self, name) <= limit:  # also false for NaN
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected a number above 0 and up to "
                    f"{limit:,}. Published are layernorm_epsilon 1e-5 and rope_ratio 1 to 500."
                )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected a share of 0 or more and below 1."
                )
        if self.kv_channels % 4:
            raise ValueError(
                f"kv_channels is {self.kv_channels}, expected a multiple of 4: half of a head is "
                "rotated, in pairs."
            )

    @property
    def num_key_value_heads(self) -> int:
        """Number of key and value heads."""
        if self.multi_query_attention:
            return self.multi_query_group_num
        return self.num_attention_heads

    @num_key_value_heads.setter
    def num_key_value_heads(self, value: int) -> None:
        if value != self.num_key_value_heads:
            self.multi_query_attention, self.multi_query_group_num = True, value


MAX_ROPE_RATIO = 1_000_000
_SIZES = (
    *("padded_vocab_size", "hidden_size", "ffn_hidden_size", "kv_channels"),
    *("num_attention_heads", "multi_query_group_num"),
)
_PUBLISHED_VALUES = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "tie_word_embeddings": False,
}

__all__ = ["ChatGLMConfig"]
