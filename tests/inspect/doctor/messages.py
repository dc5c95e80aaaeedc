"""Real messages, shortened where they are long, each with its symptom; docs/faq.md shows them."""

OLD_TOKENIZER = """\
  File "/home/a/.cache/huggingface/modules/transformers_modules/chatglm3-6b/tokenization_chatglm.py"
TypeError: ChatGLMTokenizer._pad() got an unexpected keyword argument 'padding_side'
"""
OLD_CACHE = """\
  File "/home/a/.cache/huggingface/modules/transformers_modules/chatglm3-6b/modeling_chatglm.py"
    past_length = past_key_values[0][0].shape[0]
AttributeError: 'NoneType' object has no attribute 'shape'
"""
RESIZED = """\
  File "transformers/modeling_utils.py", line 2031, in resize_token_embeddings
    model_embeds = self._resize_token_embeddings(new_num_tokens, pad_to_multiple_of)
  File "transformers/modeling_utils.py", line 1840, in get_output_embeddings
NotImplementedError
"""
NO_LINE_BREAK = """\
  File "modeling_chatglm.py", line 1005, in process_response
    metadata, content = response.split("\\n", maxsplit=1)
ValueError: not enough values to unpack (expected 2, got 1)
"""
EVALUATED = """\
    parameters = eval(content)
  File "<string>", line 1
SyntaxError: invalid syntax
"""
ELASTIC = """\
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
"""

MESSAGES = [
    (OLD_TOKENIZER, "old tokenizer, padding_side"),
    (
        "AttributeError: ChatGLMTokenizer has no attribute batch_encode_plus",
        "old tokenizer, batch_encode_plus",
    ),
    (
        "AttributeError: 'ChatGLMTokenizer' object has no attribute 'sp_tokenizer'",
        "old tokenizer, vocabulary",
    ),
    (
        "AttributeError: 'ChatGLMTokenizer' object has no attribute 'tokenizer'",
        "old tokenizer, vocabulary",
    ),
    ("AttributeError: can't set attribute 'eos_token'", "old tokenizer, special tokens"),
    (
        "AttributeError: property 'eos_token' of 'ChatGLMTokenizer' object has no setter",
        "old tokenizer, special tokens",
    ),
    (
        "Setting eos_token is not supported, use the default one.",
        "old tokenizer, special tokens",
    ),
    ('    assert self.padding_side == "left"\nAssertionError', "old tokenizer, right padding"),
    (OLD_CACHE, "old model, cache format"),
    (
        "TypeError: _extract_past_from_model_output() got an unexpected keyword argument "
        "'standardize_cache_format'",
        "old model, cache format",
    ),
    (
        "AttributeError: 'GenerationConfig' object has no attribute '_eos_token_tensor'",
        "old model, generation settings",
    ),
    (
        "AttributeError: 'ChatGLMConfig' object has no attribute 'max_length'",
        "old model, config fields",
    ),
    (
        "AttributeError: 'ChatGLMConfig' object has no attribute 'use_cache'",
        "old model, config fields",
    ),
    (
        "AttributeError: 'ChatGLMConfig' object has no attribute 'num_hidden_layers'",
        "old model, config fields",
    ),
    (
        "AttributeError: 'ChatGLMForConditionalGeneration' object has no attribute 'generate'",
        "old model, no generate",
    ),
    (
        "TypeError: ChatGLMPreTrainedModel._set_gradient_checkpointing() got an unexpected "
        "keyword argument 'enable'",
        "old model, checkpointing",
    ),
    (
        "AttributeError: 'ChatGLMModel' object has no attribute 'prefix_encoder'",
        "old model, prefix_encoder",
    ),
    (RESIZED, "old model, vocabulary resized"),
    (
        "\tsize mismatch for transformer.output_layer.weight: copying a param with shape "
        "torch.Size([65024, 4096]) from checkpoint",
        "old model, vocabulary resized",
    ),
    (NO_LINE_BREAK, "answer without a line break"),
    (EVALUATED, "tool call evaluated"),
    ("ValueError: 151337 is not in list", "sample cut before its answer"),
    ("[gMASK] sop <|user|> \n 你好", "special tokens in the text"),
    ("回答：[gMASK]sop<|user|> \n 你好<|assistant|>", "special tokens in the text"),
    (
        "ValueError: Cannot use chat template functions because tokenizer.chat_template is not set",
        "no chat template",
    ),
    ("`torch_dtype` is deprecated! Use `dtype` instead!", "torch_dtype renamed"),
    (
        "ValueError: Loading ./chatglm3-6b requires you to execute the configuration file in that "
        "repo on your local machine.",
        "remote code",
    ),
    ("KeyError: 'chatglm'", "unknown chatglm"),
    (
        "ValueError: Unrecognized configuration class <class 'transformers_modules.chatglm3-6b."
        "configuration_chatglm.ChatGLMConfig'> for this kind of AutoModel: AutoModelForCausalLM.",
        "unknown chatglm",
    ),
    (
        "ModuleNotFoundError: No module named 'transformers_modules.chatglm2-6b_v1'",
        "remote module not found",
    ),
    (
        "ImportError: This modeling file requires the following packages that were not found in "
        "your environment: cpm_kernels. Run `pip install cpm_kernels`",
        "package of the remote code",
    ),
    ("_pickle.UnpicklingError: invalid load key, 'v'.", "git-lfs pointer"),
    (
        "RuntimeError: Internal: could not parse ModelProto from tokenizer.model",
        "git-lfs pointer",
    ),
    (
        "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
        "git-lfs pointer",
    ),
    (
        "SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
        "weights cut off",
    ),
    ("    return self.LoadFromFile(arg)\nTypeError: not a string", "tokenizer.model missing"),
    ("ValueError: Can't find 'adapter_config.json' at './out'", "adapter files missing"),
    (
        "RuntimeError: Error(s) in loading state_dict for PeftModelForCausalLM:\n\tsize mismatch "
        "for base_model.model.transformer.encoder.layers.0.self_attention.query_key_value.lora_A",
        "adapter of another base",
    ),
    (
        "Some weights of ChatGLMForConditionalGeneration were not initialized from the model "
        "checkpoint at ./m and are newly initialized: ['transformer.output_layer.weight']",
        "weights newly initialized",
    ),
    (
        "ValueError: Due to a serious vulnerability issue in `torch.load`, we now require users "
        "to upgrade torch to at least v2.6 in order to use the function.",
        "torch.load refused",
    ),
    (
        "TypeError: LoraConfig.__init__() got an unexpected keyword argument 'corda_config'",
        "PEFT too old for the adapter",
    ),
    (
        "ValueError: Target modules {'q_proj', 'v_proj'} not found in the base model. Please "
        "check the target modules and try again.",
        "target modules not found",
    ),
    ("KeyError: 'transformer.prefix_encoder.embedding.weight'", "vLLM and P-Tuning"),
    (
        "ValueError: Model architectures ['ChatGLM3Model'] are not supported for now.",
        "vLLM architecture",
    ),
    (
        "RuntimeError: Some tensors share memory, this will lead to duplicate memory on disk",
        "shared tensors",
    ),
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 508.00 MiB. GPU 0 has a "
        "total capacity of 23.69 GiB",
        "GPU out of memory",
    ),
    (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't "
        "allocate memory: you tried to allocate 224395264 bytes.",
        "host out of memory",
    ),
    ("train.sh: line 3:  4127 Killed                  python train.py", "killed"),
    ("Command failed with exit code 137", "killed"),
    ("OSError: [Errno 28] No space left on device", "disk full"),
    (
        "RuntimeError: DataLoader worker (pid 812) is killed by signal: Bus error.",
        "shared memory",
    ),
    ("OSError: [Errno 24] Too many open files: 'rows.json'", "too many files"),
    (
        "RuntimeError: element 0 of tensors does not require grad and does not have a grad_fn",
        "no gradient",
    ),
    ("ValueError: Attempting to unscale FP16 gradients.", "unscale FP16"),
    ("{'loss': 2.41, 'grad_norm': nan, 'learning_rate': 4e-05}", "loss not a number"),
    ("{'loss': 0.0, 'learning_rate': 4.9e-05, 'epoch': 0.03}", "loss zero"),
    (
        "RuntimeError: probability tensor contains either `inf`, `nan` or element < 0",
        "sampling not a number",
    ),
    (
        "RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16",
        "two dtypes",
    ),
    (
        "RuntimeError: \"addmm_impl_cpu_\" not implemented for 'Half'",
        "half precision on the CPU",
    ),
    (
        "RuntimeError: Expected all tensors to be on the same device, but found at least two "
        "devices, cuda:0 and cuda:1!",
        "two devices",
    ),
    ("RuntimeError: Caught RuntimeError in replica 0 on device 0.", "DataParallel"),
    ("RuntimeError: Trying to backward through the graph a second time", "backward twice"),
    ("RuntimeError: CUDA error: device-side assert triggered", "id outside the vocabulary"),
    (
        "ValueError: Unable to create tensor, you should probably activate truncation and/or "
        "padding with 'padding=True' 'truncation=True'",
        "rows of unequal length",
    ),
    ("AssertionError: Torch not compiled with CUDA enabled", "torch without CUDA"),
    (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
        "driver too old",
    ),
    (
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        "GPU not in the build",
    ),
    ("RuntimeError: FlashAttention only supports Ampere GPUs or newer.", "flash attention"),
    ("RuntimeError: CUDA Setup failed despite GPU being available.", "bitsandbytes"),
    (
        "OMP: Error #15: Initializing libiomp5md.dll, but found libiomp5md.dll already "
        "initialized.",
        "OpenMP twice",
    ),
    (
        "TypeError: TrainingArguments.__init__() got an unexpected keyword argument "
        "'evaluation_strategy'",
        "renamed argument",
    ),
    (
        "ImportError: cannot import name 'top_k_top_p_filtering' from 'transformers' (/x.py)",
        "name gone from transformers",
    ),
    (
        "pyarrow.lib.ArrowInvalid: JSON parse error: Column(/conversations/[]/value) changed from "
        "object to string in row 1",
        "column changes its type",
    ),
    (
        "TypeError: Couldn't cast array of type\nstruct<role: string, content: string, loss: bool>"
        "\nto\n{'role': Value('string'), 'content': Value('string')}",
        "messages with different keys",
    ),
    (
        "TypeError: Couldn't cast array of type list<item: struct<from: string, loss: bool>> to "
        "{'from': Value(dtype='string', id=None)}",
        "messages with different keys",
    ),
    ("TypeError: Couldn't cast array of type string to null", "column changes its type"),
    (
        "datasets.exceptions.DatasetGenerationCastError: An error occurred while generating the "
        "dataset\n\nAll the data files must have the same columns, but at some point there are 1 "
        "new columns ({'system'})",
        "rows with different columns",
    ),
    (
        "[WARNING|2025-01-07 10:00:00] llamafactory.data.aligner:143 >> Invalid role tag in "
        "[{'from': 'bot', 'value': 'a'}].",
        "roles not known",
    ),
    (
        "NotImplementedError: Input must be string or dict[str, str], got <class 'list'>",
        "field not a text",
    ),
    (
        "ValueError: Input must be string, set[str] or dict[str, str], got <class 'list'>",
        "field not a text",
    ),
    ('    raise RuntimeError("Empty dataset!")\nRuntimeError: Empty dataset!', "no usable row"),
    (
        "RuntimeError: Cannot find valid samples, check `data/README.md` for the data format.",
        "no usable row",
    ),
    (
        "ValueError: With n_samples=1, test_size=0.1 and train_size=None, the resulting train set "
        "will be empty. Adjust any of the aforementioned parameters.",
        "all rows held out",
    ),
    ("ValueError: Trainer: evaluation requires an eval_dataset.", "no rows to evaluate"),
    (
        "ValueError: You have set `args.eval_strategy` to IntervalStrategy.STEPS but you didn't "
        "pass an `eval_dataset` to `Trainer`.",
        "no rows to evaluate",
    ),
    (
        "TypeError: '<=' not supported between instances of 'float' and 'str'",
        "number read as text",
    ),
    (
        "UnicodeEncodeError: 'gbk' codec can't encode character '\\U0001f600' in position 3",
        "console without the character",
    ),
    (
        "UnicodeEncodeError: 'utf-8' codec can't encode characters in position 3-4: surrogates not "
        "allowed",
        "half a character",
    ),
    (
        "UnicodeDecodeError: 'gbk' codec can't decode byte 0xa1 in position 12",
        "text not UTF-8",
    ),
    (
        "json.decoder.JSONDecodeError: Extra data: line 2 column 1 (char 81)",
        "JSON lines",
    ),
    (
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files",
        "hub not reached",
    ),
    (
        "requests.exceptions.ConnectTimeout: HTTPSConnectionPool(host='huggingface.co', port=443)",
        "hub not reached",
    ),
    (
        "OSError: chatglm3-6b is not a local folder and is not a valid model identifier listed on "
        "'https://huggingface.co/models'",
        "hub refuses",
    ),
    (
        "torch.distributed.DistNetworkError: EADDRINUSE: address already in use, port: 29500",
        "port in use",
    ),
    (
        "[rank1]:[E] [PG 0 Rank 1] Watchdog caught collective operation timeout: WorkNCCL(...)",
        "ranks wait for each other",
    ),
    (ELASTIC, "another rank failed"),
]
