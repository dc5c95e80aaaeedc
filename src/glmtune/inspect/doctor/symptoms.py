"""List known failures of training runs: a regular expression, a cause and a remedy for each.

They come from this project, from transformers, PEFT, vLLM and LLaMA-Factory, and from the code
that is shipped with the original ChatGLM checkpoints. `log.py` searches a log for them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Symptom:
    """A known failure and how it appears in a log.

    Attributes:
        name: short and unique.
        pattern: a regular expression that is searched for in the whole log.
        cause: one sentence; it may name groups of the pattern, as in {key}.
        remedy: one sentence.
        is_report: the line only reports that something else failed.
    """

    name: str
    pattern: str
    cause: str
    remedy: str
    is_report: bool = False


_ORIGINAL = "The code in the original checkpoint was written for transformers of 2023"
_LOAD_HERE = (
    "Load the same folder with glmtune (`import glmtune.auto` for a script of your own), which "
    "never runs that code; the old code itself needs transformers 4.41 or older."
)

SYMPTOMS: tuple[Symptom, ...] = (
    # ---- the original code on today's libraries ----
    Symptom(
        "old tokenizer, padding_side",
        r"_pad\(\) got an unexpected keyword argument 'padding_side'",
        f"{_ORIGINAL}, and its tokenizer lacks an argument that was added in 4.45.",
        _LOAD_HERE,
    ),
    Symptom(
        "old tokenizer, batch_encode_plus",
        r"ChatGLM\w*Tokenizer\S* (object )?has no attribute '?batch_encode_plus",
        f"{_ORIGINAL}, and its `build_chat_input` calls a method that was removed.",
        _LOAD_HERE,
    ),
    Symptom(
        "old tokenizer, vocabulary",
        r"ChatGLM\w*Tokenizer'? object has no attribute '(sp_)?tokenizer'",
        f"{_ORIGINAL}, and its tokenizer is asked for its vocabulary before it has loaded it.",
        "Load the same folder with glmtune (`import glmtune.auto` for a script of your own), which "
        "never runs that code; the old code itself needs transformers 4.33 or older.",
    ),
    Symptom(
        "old tokenizer, special tokens",
        r"can't set attribute '?(eos|pad|unk|bos)_token|property '(eos|pad|unk|bos)_token' of "
        r".{0,60}no setter|Setting (eos|pad|unk)_token is not supported",
        f"{_ORIGINAL}, and its special tokens cannot be set.",
        _LOAD_HERE,
    ),
    Symptom(
        "old tokenizer, right padding",
        r'assert self\.padding_side == "left"',
        "The tokenizer in the original checkpoint refuses to pad on the right.",
        "Set tokenizer.padding_side = 'left', or use glmtune's tokenizer, which pads either side.",
    ),
    Symptom(
        "old model, cache format",
        r"standardize_cache_format|has no attribute '_extract_past_from_model_output'|"
        r"modeling_chatglm\.py[\s\S]{0,1500}?(too many values to unpack \(expected 2\)|"
        r"'(NoneType|DynamicCache)' object (has no attribute 'shape'|is not subscriptable))",
        f"{_ORIGINAL}, and it expects a format of the key-value cache that was removed.",
        _LOAD_HERE,
    ),
    Symptom(
        "old model, generation settings",
        r"'GenerationConfig' object has no attribute '_eos_token_tensor'",
        f"{_ORIGINAL}, and its stream_chat passes generation settings that are not prepared.",
        _LOAD_HERE,
    ),
    Symptom(
        "old model, config fields",
        r"'?ChatGLMConfig'? object has no attribute '(max_length|use_cache|num_hidden_layers)'",
        f"{_ORIGINAL}, and its configuration lacks a field that the library or the code reads.",
        _LOAD_HERE,
    ),
    Symptom(
        "old model, no generate",
        r"ChatGLM\w+'? object has no attribute 'generate'",
        f"{_ORIGINAL}, when every model inherited generate; now a class must inherit it itself.",
        _LOAD_HERE,
    ),
    Symptom(
        "old model, checkpointing",
        r"_set_gradient_checkpointing\(\) got an unexpected keyword argument '?(enable|value)",
        f"{_ORIGINAL}, and it enables gradient checkpointing by a signature that was removed.",
        "Train with glmtune and training.gradient_checkpointing=true, which uses the library's.",
    ),
    Symptom(
        "old model, prefix_encoder",
        r"'ChatGLM\w*' object has no attribute 'prefix_encoder'",
        "A P-Tuning v2 checkpoint is loaded into a model that was built without pre_seq_len.",
        "Set pre_seq_len (and prefix_projection) of the training run in the configuration.",
    ),
    Symptom(
        "old model, vocabulary resized",
        r"resize_token_embeddings[\s\S]{0,3000}?NotImplementedError|"
        r"size mismatch for transformer\.(output_layer|embedding\.word_embeddings)\.weight",
        "The vocabulary was resized, and the original code does not resize its output layer or "
        "the configuration with it.",
        "Load the checkpoint with glmtune before resizing, or set padded_vocab_size in "
        "config.json to the number of rows that both matrices have.",
    ),
    Symptom(
        "answer without a line break",
        r"(metadata, content = |in process_response)[\s\S]{0,400}?"
        r"not enough values to unpack \(expected 2, got 1\)",
        "The original `process_response` cannot read an answer without a line break.",
        "Use glmtune's `chat`, which reads such an answer as plain content.",
    ),
    Symptom(
        "tool call evaluated",
        r"eval\(content\)[\s\S]{0,800}?\n[ \t]*\w+(Error|Exception)\b",
        "The original code evaluates a tool call as Python, and this one is not valid Python.",
        "Use glmtune's `chat`, which parses literals and evaluates nothing.",
    ),
    Symptom(
        "sample cut before its answer",
        r"1513\d\d is not in list|130004 is not in list",
        "A row was cut at the length limit, and the marker where its answer begins was lost.",
        "Raise data.max_length, or drop long rows with data.overlong=drop.",
    ),
    Symptom(
        "special tokens in the text",
        # Logs show prompts too, where they belong: after "asked '", "inputs:" or "[INPUT]".
        r"(?<!asked ['\"])(?<!inputs:[\n ])(?<!prompt:[\n ])(?<!\[INPUT\] )"
        r"\[gMASK\] ?sop ?<\|(user|system)\|>",
        "The special tokens are not registered in the original tokenizer, so "
        "skip_special_tokens leaves them in the text.",
        "Decode with glmtune's tokenizer, which knows them as special.",
    ),
    Symptom(
        "no chat template",
        r"tokenizer\.chat_template is not set|No chat template is (defined|set) for",
        "The tokenizer has no chat template, and for ChatGLM a text template makes other ids than "
        "those the model was trained on.",
        "Use `glmtune chat` or tokenizer.build_chat_input, which make the ids directly.",
    ),
    Symptom(
        "torch_dtype renamed",
        r"`?torch_dtype`? is deprecated",
        "transformers renamed torch_dtype to dtype; the run is not affected.",
        "Write dtype= in scripts; glmtune's recipes accept both names.",
    ),
    Symptom(
        "remote code",
        r"trust_remote_code=True|contains custom code which must be executed|"
        r"requires you to execute the .{0,20}file in that repo",
        "The checkpoint contains Python code, and the library asks for permission to run it.",
        "Use glmtune, which implements ChatGLM itself and never runs such code.",
    ),
    Symptom(
        "unknown chatglm",
        r"KeyError: ['\"]chatglm['\"]|model type [`'\"]?chatglm[`'\"]? but Transformers does not "
        r"recognize|Unrecognized configuration class .{0,120}ChatGLMConfig",
        "transformers does not include ChatGLM.",
        "Put `import glmtune.auto` before loading; it registers ChatGLM.",
    ),
    Symptom(
        "remote module not found",
        r"No module named 'transformers_modules",
        "The folder's name contains a dot or a dash, so its Python code cannot be imported.",
        "Load it with glmtune, which imports nothing from the folder, or rename the folder.",
    ),
    Symptom(
        "package of the remote code",
        r"packages that were not found in your environment: |No module named 'cpm_kernels'",
        "The code in the checkpoint imports a package that is not installed.",
        "Load the folder with glmtune, which does not need it, or install what the line names.",
    ),
    # ---- files ----
    Symptom(
        "git-lfs pointer",
        r"git-lfs\.github\.com/spec|invalid load key, 'v'|[Hh]eader ?[Tt]oo ?[Ll]arge|"
        r"could not parse ModelProto",
        "A file is not what its name says; usually it is a git-lfs pointer of 130 bytes.",
        "Run `git lfs pull` in the folder, or download the file again and check its size.",
    ),
    Symptom(
        "weights cut off",
        r"MetadataIncompleteBuffer|[Ii]ncomplete metadata|PytorchStreamReader failed|"
        r"invalid header or archive is corrupted|unexpected EOF, expected \d+ more bytes",
        "A weight file is truncated: the download or the save was interrupted.",
        "Download the file again, or use the previous checkpoint.",
    ),
    Symptom(
        "tokenizer.model missing",
        r"TypeError: not a string|tokenizer\.model\"?: No such file or directory|"
        r"Can't load tokenizer for",
        "tokenizer.model is not in the folder of the model or adapter.",
        "Copy tokenizer.model from the base model into it.",
    ),
    Symptom(
        "adapter files missing",
        r"Can't find 'adapter_config\.json' at|no file named adapter_model|"
        r"Unrecognized model in .{0,200}model_type",
        "The folder is not what was expected: an adapter instead of a model, or the reverse.",
        "Give the base model as the model and the folder with adapter_config.json as the adapter.",
    ),
    Symptom(
        "adapter of another base",
        r"size mismatch for base_model\.model",
        "The adapter was made for a model of another size, or with another rank.",
        "Use the base named in adapter_config.json.",
    ),
    Symptom(
        "weights newly initialized",
        r"were not initialized from the model checkpoint|newly initialized",
        "The checkpoint lacks tensors of the model, so those are random.",
        "Check that all shards are there and belong to this model; glmtune refuses such a folder.",
    ),
    Symptom(
        "torch.load refused",
        r"Weights only load failed|upgrade torch to at least v2\.6",
        "A .bin file holds more than tensors, or the installed torch is too old to read it safely.",
        "Convert the checkpoint to safetensors if you trust it, or update torch.",
    ),
    Symptom(
        "PEFT too old for the adapter",
        r"LoraConfig\.__init__\(\) got an unexpected keyword argument '(?P<key>\w+)'",
        "The adapter was saved by a newer PEFT, and the installed one does not know {key!r}.",
        "Update peft, or delete that key from adapter_config.json if it is null or false there.",
    ),
    Symptom(
        "target modules not found",
        r"Target modules .{0,400} not found in the base model|"
        r"specify `?target_modules`? in `?peft_config",
        "The adapter names layers that this model does not have; ChatGLM's are query_key_value, "
        "dense, dense_h_to_4h and dense_4h_to_h, not q_proj and v_proj.",
        "Set adapter.target_modules=[query_key_value], or leave it out to use peft's default.",
    ),
    Symptom(
        "vLLM and P-Tuning",
        r"KeyError: ['\"]?transformer\.prefix_encoder",
        "vLLM cannot load a checkpoint with a P-Tuning v2 prefix.",
        "Serve it with `glmtune serve`, write answers with `glmtune predict`, or train LoRA, which "
        "vLLM supports.",
    ),
    Symptom(
        "vLLM architecture",
        r"Model architectures? \[.{0,80}\] (are|is) not supported|No package metadata was found "
        r"for vllm",
        "This vLLM does not know the architecture in config.json, or it is the CPU build, which "
        "has another package name.",
        'Set architectures to ["ChatGLMForConditionalGeneration"], and start vLLM with '
        "`python -m vllm.entrypoints.openai.api_server`.",
    ),
    Symptom(
        "shared tensors",
        r"Some tensors share memory",
        "Two parameters of the model share one tensor, and safetensors stores each only once.",
        "Save with model.save_pretrained, which handles shared tensors, instead of save_file.",
    ),
    # ---- memory and disk ----
    Symptom(
        "GPU out of memory",
        r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        "The GPU has less memory than the run needs.",
        "A smaller training.per_device_train_batch_size, training.gradient_checkpointing=true or "
        "a smaller data.max_length make it fit; `glmtune plan` shows which, and by how much.",
    ),
    Symptom(
        "host out of memory",
        r"DefaultCPUAllocator: (can't allocate memory|not enough memory)|"
        r"^[ \t]*(numpy.*)?MemoryError\b|Cannot allocate memory|std::bad_alloc",
        "The machine has less memory than the run needs.",
        "A 16-bit dtype halves the weights; a smaller training.per_device_train_batch_size and "
        "training.gradient_checkpointing=true save most of the rest; see `glmtune plan`.",
    ),
    Symptom(
        "killed",
        r"^(.*\bline \d+: +\d+ )?Killed\b|exit(ed with)? (code|status):? ?(137|-9)\b|"
        r"exitcode *: -9|Signal 9 \(SIGKILL\)|oom-kill|OOMKilled",
        "The process was killed from outside, usually by the system because the machine ran out of "
        "memory.",
        "See `dmesg` for the reason; a smaller training.per_device_train_batch_size, "
        "training.gradient_checkpointing=true and a 16-bit dtype take less memory.",
    ),
    Symptom(
        "disk full",
        r"No space left on device|Disk quota exceeded",
        "The disk, or your share of it, is full.",
        "Free some space or set output.dir and HF_HOME to another disk, then use --resume.",
    ),
    Symptom(
        "shared memory",
        r"DataLoader worker .{0,60}killed by signal: Bus error|out of shared memory|"
        r"unable to (open|mmap|write to).{0,40}shm",
        "The container has too little shared memory for the DataLoader's processes.",
        "Start Docker with --ipc=host or --shm-size=8g.",
    ),
    Symptom(
        "too many files",
        r"Too many open files",
        "The process reached its limit of open files.",
        "Raise the limit with `ulimit -n 65536`.",
    ),
    # ---- gradients and numbers ----
    Symptom(
        "no gradient",
        r"element 0 of tensors does not require grad|None of the inputs have requires_grad=True",
        "The loss depends on nothing trainable: the adapter is missing or frozen, or reentrant "
        "checkpointing detached it because its input is frozen.",
        "Use checkpointing with use_reentrant=False (glmtune does) or "
        "model.enable_input_require_grads(), and load an adapter with is_trainable=True.",
    ),
    Symptom(
        "unscale FP16",
        r"Attempting to unscale FP16 gradients",
        "The trainable weights are float16, but mixed precision needs them in float32.",
        "Load the base in bfloat16, or convert the trainable weights to float32; glmtune's "
        "adapters always are float32.",
    ),
    Symptom(
        "loss not a number",
        r"\bloss['\"]? *[:=] *['\"]?nan\b|grad_norm['\"]? *[:=] *['\"]?(nan|inf)\b|"
        r"No inf checks were recorded|loss scale already at minimum",
        "The loss or its gradient is not a number: float16 overflowed, the learning rate is too "
        "high, or a row has no learned token.",
        "Use bfloat16 instead of float16, a lower learning rate, and `glmtune train`, which stops "
        "at that step and names the rows and the module.",
    ),
    Symptom(
        "loss zero",
        r"\bloss['\"]? *[:=] *['\"]?0\.0+\b",
        "A loss of exactly 0 means that no token is learned (all labels are -100, perhaps after "
        "truncation), or that a float16 loss underflowed.",
        "Look at rows with `glmtune inspect`, raise data.max_length, and use bfloat16.",
    ),
    Symptom(
        "sampling not a number",
        r"probability tensor contains either `?inf`?, `?nan`? or element < 0|"
        r"the scores of token \d+ are not finite",
        "The logits are not finite: float16 overflowed, or the weights are damaged.",
        "Load the model with dtype bfloat16 or float32; if that does not help, copy it again.",
    ),
    Symptom(
        "two dtypes",
        r"expected scalar type \w+ but found \w+|must have the same dtype, but got|"
        r"expected m1 and m2 to have the same dtype|"
        r"Input type \(.{0,60}\) and (weight|bias) type .{0,60}should be the same",
        "An operation got tensors of different dtypes, usually a float32 adapter on a 16-bit base.",
        "Run under torch.autocast, or convert both to the same dtype.",
    ),
    Symptom(
        "half precision on the CPU",
        r"not implemented for '(Half|BFloat16)'",
        "This torch does not implement that operation in half precision on the CPU.",
        "Use dtype float32, or glmtune, which keeps weights in half precision and computes in "
        "float32.",
    ),
    Symptom(
        "two devices",
        r"Expected all tensors to be on the same device",
        "Tensors of one operation are on different devices: the inputs were left on the CPU, or "
        "device_map split the model over several GPUs.",
        "Move the inputs to model.device, and train with CUDA_VISIBLE_DEVICES=0 or one process "
        "per GPU.",
    ),
    Symptom(
        "DataParallel",
        r"Caught \w+ in replica \d+ on device \d+",
        "The Trainer found several GPUs and used DataParallel, which this model does not support.",
        "Set CUDA_VISIBLE_DEVICES=0, or start one process per GPU with `accelerate launch`.",
    ),
    Symptom(
        "backward twice",
        r"Trying to backward through the graph a second time",
        "The backward pass ran twice through one graph, which the first had freed.",
        "Compute a new loss in each step, and keep loss.item() instead of the loss.",
    ),
    Symptom(
        "id outside the vocabulary",
        r"device-side assert triggered|index out of range in self|indexSelectLargeIndex|"
        r"Target \d+ is out of bounds",
        "A token id or label is not below the size of the vocabulary: the tokenizer belongs to "
        "another model.",
        "Use the base model's tokenizer; `glmtune info MODEL` shows both sizes.",
    ),
    Symptom(
        "rows of unequal length",
        r"Unable to create tensor, you should probably activate truncation|excessive nesting "
        r"\(inputs type|expected sequence of length \d+ at dim",
        "Rows of different lengths were put into one tensor without padding.",
        "Pad them in the collator (labels with -100); glmtune packs rows and needs no padding.",
    ),
    # ---- GPU and libraries ----
    Symptom(
        "torch without CUDA",
        r"Torch not compiled with CUDA enabled|No CUDA GPUs are available",
        "This torch is a CPU build, or no GPU is visible to it.",
        "Install a CUDA build of torch, and check `nvidia-smi` and CUDA_VISIBLE_DEVICES; or set "
        "training.use_cpu=true.",
    ),
    Symptom(
        "driver too old",
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient|"
        r"forward compatibility was attempted",
        "The NVIDIA driver is older than the CUDA that torch was built for.",
        "Update the driver, or install the torch build for the CUDA that `nvidia-smi` shows.",
    ),
    Symptom(
        "GPU not in the build",
        r"no kernel image is available for execution",
        "This torch (or extension) was not built for this generation of GPU.",
        "Install a torch build whose torch.cuda.get_arch_list() contains it.",
    ),
    Symptom(
        "flash attention",
        r"FlashAttention2? (only supports Ampere|has been toggled on)|flash_attn.{0,80}not "
        r"(be |seem)?.{0,12}installed|flash_attn_2_cuda.{0,200}undefined symbol|"
        r"undefined symbol.{0,200}flash_attn",
        "Flash attention is not installed, was built for another torch, or needs a newer GPU.",
        "Set model.attn_implementation=packed, which needs no extra package.",
    ),
    Symptom(
        "bitsandbytes",
        r"CUDA Setup failed despite|bitsandbytes.{0,80}(compiled without GPU|not available)|"
        r"libbitsandbytes_cpu\.so",
        "bitsandbytes found no CUDA library of the version it was built for.",
        "Install the bitsandbytes that fits torch's CUDA, or train without quantization.",
    ),
    Symptom(
        "OpenMP twice",
        r"OMP: Error #15|libiomp5md\.dll",
        "Two libraries each loaded their own OpenMP (on Windows usually conda's and torch's).",
        "Install torch and numpy from one source in a new environment; KMP_DUPLICATE_LIB_OK=TRUE "
        "lets it run, at your own risk.",
    ),
    Symptom(
        "renamed argument",
        r"(TrainingArguments|Trainer|Seq2SeqTrainer|SFTTrainer)\.__init__\(\) got an unexpected "
        r"keyword argument '(?P<key>\w+)'",
        "This version of transformers has no argument {key!r} (evaluation_strategy became "
        "eval_strategy, tokenizer became processing_class).",
        "Rename it in the script; glmtune's recipes accept evaluation_strategy too.",
    ),
    Symptom(
        "name gone from transformers",
        r"cannot import name '(?P<key>\w+)' from '(?P<module>(transformers|peft|torch)[\w.]*)'",
        "The installed {module} has no {key}: a script or package was written for another version.",
        "Update that package, or install the version it requires in a separate environment.",
    ),
    # ---- data ----
    Symptom(
        "column changes its type",
        r"Column\(.{0,80}\) changed from \w+ to \w+|"
        r"Couldn't cast array of type(?!\s{0,3}(list<(item|element): )?struct<)",
        "A column has text in one row and an object in another, which Arrow cannot store.",
        "Read the file with glmtune, which reads rows as they are, or give the column one type.",
    ),
    Symptom(
        "messages with different keys",
        r"Couldn't cast array of type\s{0,3}(list<(item|element): )?struct<(?P<keys>[^\n>]{1,200})",
        "Some messages or objects have other keys than those of the first rows (here {keys}), and "
        "the datasets library gives all of them the same keys.",
        'Write the key into every message ("loss": true where it is missing), or use `glmtune '
        "train`, which reads each message as it is.",
    ),
    Symptom(
        "rows with different columns",
        r"All the data files must have the same columns",
        "The rows or files have different columns, and the datasets library gives all of them the "
        "same columns.",
        "Write every column into every row, with an empty text where there is none, or use "
        "`glmtune train`, which reads each row as it is.",
    ),
    Symptom(
        "roles not known",
        r"Invalid (role tag|message count)\b",
        "LLaMA-Factory left out a dialogue: a role has another name than in the tags of "
        "dataset_info.json, or the user and the assistant do not take turns.",
        "Set role_tag, user_tag and assistant_tag in dataset_info.json, and begin each dialogue "
        "with the user; `glmtune lint FILE` names the lines, and data.roles maps their roles.",
    ),
    Symptom(
        "field not a text",
        r"Input must be string(, set\[str\])? or dict",
        "A field of a row is a list, a number or null, and LLaMA-Factory's template expects text.",
        "Write it as one text (of several answers, one row each); `glmtune lint FILE` names the "
        "line and the field.",
    ),
    Symptom(
        "no usable row",
        r"\bEmpty dataset!|Cannot find (valid|sufficient) samples",
        "LLaMA-Factory could use no row: their columns or roles are not those in "
        "dataset_info.json, or they are meant for another stage.",
        "Correct columns, tags and stage (pt for bare text, sft for answers) and set "
        "overwrite_cache: true; `glmtune lint FILE` names what is wrong with each row.",
    ),
    Symptom(
        "all rows held out",
        r"train set will be empty",
        "The share of rows that is held out for evaluation leaves none to train on, since very few "
        "rows were read.",
        "Count the rows that can be read with `glmtune lint FILE`, and hold out less: val_size in "
        "LLaMA-Factory, data.eval_fraction in glmtune.",
    ),
    Symptom(
        "no rows to evaluate",
        r"evaluation requires an eval_dataset|you didn't pass an `?eval_dataset",
        "The settings ask for evaluations during training, but give no rows for them.",
        "Give some (val_file in the official finetune_demo, val_size in LLaMA-Factory, "
        'data.eval_fraction=0.1 in glmtune), or set eval_strategy to "no".',
    ),
    Symptom(
        "number read as text",
        r"'[<>]=?' not supported between (instances of )?'?(float|int)'? and '?str|"
        r"'[<>]=?' not supported between (instances of )?'?str'? and '?(float|int)",
        "A number in a configuration was read as text, usually the learning rate: to YAML 5e-5 "
        "without a decimal point is text.",
        "Write 5.0e-5; recipes of glmtune accept 5e-5 too.",
    ),
    Symptom(
        "console without the character",
        r"'(?P<codec>gbk|gb2312|big5|ascii|charmap|latin-1|cp\d+|shift_jis)' codec can't encode",
        "A text has a character that the console's or file's encoding, {codec}, lacks.",
        "Set the environment variable PYTHONUTF8=1 before Python starts, and open files with "
        "encoding='utf-8'; glmtune prints such characters as escapes and writes files in UTF-8.",
    ),
    Symptom(
        "half a character",
        r"codec can't encode .{0,80}surrogates not allowed",
        "A text has half of a surrogate pair, which is no character, usually since it was cut.",
        "Write the text again as UTF-8; `glmtune lint FILE` names the line.",
    ),
    Symptom(
        "text not UTF-8",
        r"UnicodeDecodeError: '?(gbk|utf-8|ascii|cp\w+)'? codec can't decode",
        "A text file was read in another encoding than it was written in, on Windows usually UTF-8 "
        "as GBK.",
        "Save the file as UTF-8 and open it with encoding='utf-8'.",
    ),
    Symptom(
        "JSON lines",
        r"JSONDecodeError: Extra data",
        "A file with one JSON object per line was read as a single JSON value.",
        "Name it .jsonl, or let glmtune read it, which detects either form.",
    ),
    # ---- network and processes ----
    Symptom(
        "hub not reached",
        r"couldn't connect to 'https?://[^']*'|host='huggingface\.co'|huggingface\.co.{0,200}"
        r"(Max retries|timed out|Connection|unreachable)|LocalEntryNotFoundError|"
        r"outgoing traffic has been disabled|OfflineModeIsEnabled",
        "huggingface.co cannot be reached, and the files are not in the local cache.",
        "Set HF_ENDPOINT=https://hf-mirror.com, or copy the model to this machine and give its "
        "folder.",
    ),
    Symptom(
        "hub refuses",
        r"RepositoryNotFoundError|GatedRepoError|40[13] Client Error|is not a valid model "
        r"identifier",
        "The hub has no such repository, or the repository is private or gated.",
        "Check the id (zai-org/chatglm3-6b), and log in with `hf auth login`.",
    ),
    Symptom(
        "port in use",
        r"[Aa]ddress already in use|EADDRINUSE",
        "Another process, perhaps an earlier run, is using the port.",
        "Stop it, or choose another port: MASTER_PORT for torchrun, --port for vLLM.",
    ),
    Symptom(
        "ranks wait for each other",
        r"Watchdog caught collective operation timeout|NCCL (error|timeout)|"
        r"ncclUnhandledCudaError|ncclSystemError",
        "A collective operation timed out: a rank died, or the ranks run different operations.",
        "Read the log of the rank that stopped first; NCCL_DEBUG=INFO logs more.",
        is_report=True,
    ),
    Symptom(
        "another rank failed",
        r"ChildFailedError|torch\.distributed\.elastic.{0,40}failed|"
        r"CalledProcessError: Command .{0,400}returned non-zero exit status",
        "The launcher only reports that a process failed; the error itself is in that process's "
        "own output.",
        "Find the first traceback, above or in the log of the rank named as root cause.",
        is_report=True,
    ),
)
