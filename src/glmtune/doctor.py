"""A log -> what went wrong and what to do; this machine -> what will not work on it.

The symptoms are data: a regular expression, a cause and a remedy. They come from this project,
from transformers, PEFT, vLLM and LLaMA-Factory, and from the code that lies beside the original
ChatGLM checkpoints.

    log        RuntimeError: element 0 of tensors does not require grad ...
               torch.distributed.elastic...ChildFailedError
    findings   no gradient (line 1), then another rank's failure (line 2)

Findings stand in the order of the log, since the first error mostly makes the later ones.
What only ever reports another failure goes last.
"""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from glmtune.errors import CheckpointError, DataError

# ---- a log -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Symptom:
    """What a log shows when something is wrong.

    Attributes:
        name: short and unique.
        pattern: a regular expression that is searched for in the whole log.
        cause: one sentence.
        remedy: one sentence.
        is_report: the line only says that something else failed.
    """

    name: str
    pattern: str
    cause: str
    remedy: str
    is_report: bool = False


_ORIGINAL = "The code beside the original checkpoint was written for transformers of 2023"
_LOAD_HERE = (
    "Load the same folder with glmtune (`import glmtune.auto` for a script of your own), which "
    "never runs that code; the old code itself needs transformers 4.41 or older."
)

SYMPTOMS: tuple[Symptom, ...] = (
    # -- the original code on today's libraries --
    Symptom(
        "old tokenizer, padding_side",
        r"_pad\(\) got an unexpected keyword argument 'padding_side'",
        f"{_ORIGINAL}, and its tokenizer does not know an argument that came with 4.45.",
        _LOAD_HERE,
    ),
    Symptom(
        "old tokenizer, batch_encode_plus",
        r"ChatGLM\w*Tokenizer\S* (object )?has no attribute '?batch_encode_plus",
        f"{_ORIGINAL}, and its `build_chat_input` calls a method that is gone.",
        _LOAD_HERE,
    ),
    Symptom(
        "old tokenizer, vocabulary",
        r"ChatGLM\w*Tokenizer'? object has no attribute '(sp_)?tokenizer'",
        f"{_ORIGINAL}, and its tokenizer is asked for its vocabulary before it has read it.",
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
        "The tokenizer beside the original checkpoint refuses to pad on the right.",
        "Set tokenizer.padding_side = 'left', or use glmtune's tokenizer, which pads either side.",
    ),
    Symptom(
        "old model, cache format",
        r"standardize_cache_format|has no attribute '_extract_past_from_model_output'|"
        r"modeling_chatglm\.py[\s\S]{0,1500}?(too many values to unpack \(expected 2\)|"
        r"'(NoneType|DynamicCache)' object (has no attribute 'shape'|is not subscriptable))",
        f"{_ORIGINAL}, and it reads the cache of keys and values in a form that is gone.",
        _LOAD_HERE,
    ),
    Symptom(
        "old model, generation settings",
        r"'GenerationConfig' object has no attribute '_eos_token_tensor'",
        f"{_ORIGINAL}, and its stream_chat hands generation settings to the library unprepared.",
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
        f"{_ORIGINAL}, when every model could generate; now a model has to ask for it.",
        _LOAD_HERE,
    ),
    Symptom(
        "old model, checkpointing",
        r"_set_gradient_checkpointing\(\) got an unexpected keyword argument '?(enable|value)",
        f"{_ORIGINAL}, and it switches gradient checkpointing on by a signature that is gone.",
        "Train with glmtune and training.gradient_checkpointing=true, which uses the library's.",
    ),
    Symptom(
        "old model, prefix_encoder",
        r"'ChatGLM\w*' object has no attribute 'prefix_encoder'",
        "A P-Tuning v2 checkpoint is loaded into a model that was built without pre_seq_len.",
        "Give pre_seq_len (and prefix_projection) of the training run to the configuration.",
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
        "The original `process_response` takes an answer without a line break for an error.",
        "Use glmtune's `chat`, which takes such an answer as plain content.",
    ),
    Symptom(
        "tool call evaluated",
        r"eval\(content\)[\s\S]{0,800}?\n\s*\w+(Error|Exception)\b",
        "The original code runs the model's tool call as Python, and this one is no valid Python.",
        "Use glmtune's `chat`, which reads literals only and runs nothing.",
    ),
    Symptom(
        "sample cut before its answer",
        r"1513\d\d is not in list|130004 is not in list",
        "A row was cut at the length limit, and the marker where its answer begins was lost.",
        "Raise data.max_length, or leave long rows out with data.overlong=drop.",
    ),
    Symptom(
        "special tokens in the text",
        r"\[gMASK\]\s*sop\s*<\|(user|system)\|>",
        "The special tokens are not registered in the original tokenizer, so "
        "skip_special_tokens leaves them in the text.",
        "Decode with glmtune's tokenizer, which knows them as special.",
    ),
    Symptom(
        "no chat template",
        r"tokenizer\.chat_template is not set|No chat template is (defined|set) for",
        "The tokenizer brings no chat template, and for ChatGLM a text template gives other ids "
        "than the model was trained on.",
        "Use `glmtune chat` or tokenizer.build_chat_input, which make the ids themselves.",
    ),
    Symptom(
        "torch_dtype renamed",
        r"`?torch_dtype`? is deprecated",
        "transformers renamed torch_dtype to dtype; the run is not harmed.",
        "Write dtype= in scripts; glmtune reads both names.",
    ),
    Symptom(
        "remote code",
        r"trust_remote_code=True|contains custom code which must be executed|"
        r"requires you to execute the .{0,20}file in that repo",
        "The checkpoint comes with Python code of its own, and the library asks to run it.",
        "Use glmtune, which has the ChatGLM network itself and never runs such code.",
    ),
    Symptom(
        "unknown chatglm",
        r"KeyError: ['\"]chatglm['\"]|model type [`'\"]?chatglm[`'\"]? but Transformers does not "
        r"recognize|Unrecognized configuration class .{0,120}ChatGLMConfig",
        "transformers does not know ChatGLM by itself.",
        "Put `import glmtune.auto` before loading, which registers it.",
    ),
    Symptom(
        "remote module not found",
        r"No module named 'transformers_modules",
        "The folder's name has a dot or a dash that its own Python code cannot be imported under.",
        "Load it with glmtune, which imports nothing from the folder, or rename the folder.",
    ),
    Symptom(
        "package of the remote code",
        r"packages that were not found in your environment: |No module named 'cpm_kernels'",
        "The code beside the checkpoint imports a package that is not installed.",
        "Load the folder with glmtune, which does not need it, or install what the line names.",
    ),
    # -- files --
    Symptom(
        "git-lfs pointer",
        r"git-lfs\.github\.com/spec|invalid load key, 'v'|[Hh]eader ?[Tt]oo ?[Ll]arge|"
        r"could not parse ModelProto",
        "A file is not what its name says; mostly it is a git-lfs pointer of 130 bytes.",
        "Run `git lfs pull` in the folder, or download the file again, and look at its size.",
    ),
    Symptom(
        "weights cut off",
        r"MetadataIncompleteBuffer|[Ii]ncomplete metadata|PytorchStreamReader failed|"
        r"invalid header or archive is corrupted|unexpected EOF, expected \d+ more bytes",
        "A file of weights ends too early: the download or the save was interrupted.",
        "Download the file again, or go back to the checkpoint before.",
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
        "The folder is not what was expected: an adapter in place of a model, or the reverse.",
        "Give the base model as the model and the folder with adapter_config.json as the adapter.",
    ),
    Symptom(
        "adapter of another base",
        r"size mismatch for base_model\.model",
        "The adapter was made for a model of another size, or with another rank.",
        "Use the base named in adapter_config.json.",
    ),
    Symptom(
        "weights newly initialised",
        r"were not initialized from the model checkpoint|newly initialized",
        "The checkpoint lacks tensors of the model, so parts of it are random numbers.",
        "Check that all shards are there and of this model; glmtune refuses such a folder.",
    ),
    Symptom(
        "torch.load refused",
        r"Weights only load failed|upgrade torch to at least v2\.6",
        "A .bin file holds more than tensors, or the torch here is too old to read it safely.",
        "Convert the checkpoint to safetensors where you trust it, or update torch.",
    ),
    Symptom(
        "PEFT too old for the adapter",
        r"LoraConfig\.__init__\(\) got an unexpected keyword argument '(?P<key>\w+)'",
        "The adapter was saved by a newer PEFT, and this one does not know {key!r}.",
        "Update peft, or delete that key from adapter_config.json if it is null or false there.",
    ),
    Symptom(
        "target modules not found",
        r"Target modules .{0,400} not found in the base model|"
        r"specify `?target_modules`? in `?peft_config",
        "The adapter names layers that this model does not have; ChatGLM's are query_key_value, "
        "dense, dense_h_to_4h and dense_4h_to_h, not q_proj and v_proj.",
        "Set adapter.target_modules=[query_key_value], or leave it out for peft's choice.",
    ),
    Symptom(
        "vLLM and P-Tuning",
        r"KeyError: ['\"]?transformer\.prefix_encoder",
        "vLLM cannot load a checkpoint with a P-Tuning v2 prefix.",
        "Serve it with glmtune, or train LoRA, which vLLM takes.",
    ),
    Symptom(
        "vLLM architecture",
        r"Model architectures? \[.{0,80}\] (are|is) not supported|No package metadata was found "
        r"for vllm",
        "This vLLM does not know the architecture that config.json names, or it is the CPU build, "
        "which bears another package name.",
        'Set architectures to ["ChatGLMForConditionalGeneration"], and start the server by '
        "`python -m vllm.entrypoints.openai.api_server`.",
    ),
    Symptom(
        "shared tensors",
        r"Some tensors share memory",
        "Two names of the model stand for one tensor, and safetensors stores each only once.",
        "Save with model.save_pretrained, which knows them, rather than with save_file.",
    ),
    # -- memory and disk --
    Symptom(
        "GPU out of memory",
        r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        "The GPU has less memory than the run needs.",
        "A smaller training.per_device_train_batch_size, training.gradient_checkpointing=true or "
        "a smaller data.max_length make it fit; `glmtune plan` says which, and by how much.",
    ),
    Symptom(
        "host out of memory",
        r"DefaultCPUAllocator: (can't allocate memory|not enough memory)|"
        r"^\s*(numpy.*)?MemoryError\b|Cannot allocate memory|std::bad_alloc",
        "The machine has less memory than the run needs.",
        "A 16-bit dtype halves the weights; a smaller training.per_device_train_batch_size and "
        "training.gradient_checkpointing=true save most of the rest; `glmtune plan` says how much.",
    ),
    Symptom(
        "killed",
        r"^(.*\bline \d+:\s+\d+ )?Killed\b|exit(ed with)? (code|status):? ?(137|-9)\b|"
        r"exitcode\s*: -9|Signal 9 \(SIGKILL\)|oom-kill|OOMKilled",
        "The process was killed from outside, mostly by the system because the machine's memory "
        "was full.",
        "See `dmesg` for who killed it; a smaller training.per_device_train_batch_size, "
        "training.gradient_checkpointing=true and a 16-bit dtype take less memory.",
    ),
    Symptom(
        "disk full",
        r"No space left on device|Disk quota exceeded",
        "The disk, or your share of it, is full.",
        "Free some room or set output.dir and HF_HOME to another disk, then go on with --resume.",
    ),
    Symptom(
        "shared memory",
        r"DataLoader worker .{0,60}killed by signal: Bus error|out of shared memory|"
        r"unable to (open|mmap|write to).{0,40}shm",
        "The container has too little shared memory for the loader's processes.",
        "Start docker with --ipc=host or --shm-size=8g.",
    ),
    Symptom(
        "too many files",
        r"Too many open files",
        "The process may not open as many files as it needs.",
        "Raise the limit with `ulimit -n 65536`.",
    ),
    # -- gradients and numbers --
    Symptom(
        "no gradient",
        r"element 0 of tensors does not require grad|None of the inputs have requires_grad=True",
        "Nothing that the loss depends on is trainable: the adapter is missing or frozen, or "
        "reentrant checkpointing cut it off from the frozen input.",
        "Use checkpointing with use_reentrant=False (glmtune does) or "
        "model.enable_input_require_grads(), and load an adapter with is_trainable=True.",
    ),
    Symptom(
        "unscale FP16",
        r"Attempting to unscale FP16 gradients",
        "The trainable weights are float16, and mixed precision needs them in float32.",
        "Load the base in bfloat16, or turn the trainable weights into float32; glmtune's "
        "adapters always are.",
    ),
    Symptom(
        "loss not a number",
        r"['\"]?\bloss['\"]?\s*[:=]\s*['\"]?nan\b|grad_norm['\"]?\s*[:=]\s*['\"]?(nan|inf)\b|"
        r"No inf checks were recorded|loss scale already at minimum",
        "The loss or its gradient is not a number: float16 overflowed, the learning rate is too "
        "high, or a row has nothing to learn.",
        "Use bfloat16 in place of float16, a lower learning rate, and `glmtune train`, which "
        "stops there and names the row and the module.",
    ),
    Symptom(
        "loss zero",
        r"['\"]?\bloss['\"]?\s*[:=]\s*['\"]?0\.0+\b",
        "A loss of exactly 0 means that no token is learned (all labels are -100, after "
        "truncation too), or that a float16 loss broke down.",
        "Look at rows with `glmtune inspect`, raise data.max_length, and use bfloat16.",
    ),
    Symptom(
        "sampling not a number",
        r"probability tensor contains either `?inf`?, `?nan`? or element < 0|"
        r"the scores of token \d+ are not finite",
        "The model's scores are not numbers: float16 overflowed, or the weights are damaged.",
        "Load the model with dtype bfloat16 or float32; if it happens there too, copy it again.",
    ),
    Symptom(
        "two dtypes",
        r"expected scalar type \w+ but found \w+|must have the same dtype, but got|"
        r"expected m1 and m2 to have the same dtype|"
        r"Input type \(.{0,60}\) and (weight|bias) type .{0,60}should be the same",
        "Two tensors that meet have different dtypes, mostly a float32 adapter on a 16-bit base.",
        "Run under torch.autocast, or convert both to one dtype.",
    ),
    Symptom(
        "half precision on the CPU",
        r"not implemented for '(Half|BFloat16)'",
        "This CPU build of torch cannot compute that in half precision.",
        "Use dtype float32, or glmtune, which keeps half-precision weights and computes in "
        "float32.",
    ),
    Symptom(
        "two devices",
        r"Expected all tensors to be on the same device",
        "Parts of the computation are on different devices: inputs left on the CPU, or a model "
        "that device_map spread over several GPUs.",
        "Move the inputs to model.device, and train with CUDA_VISIBLE_DEVICES=0 or one process "
        "per GPU.",
    ),
    Symptom(
        "DataParallel",
        r"Caught \w+ in replica \d+ on device \d+",
        "The Trainer found several GPUs and spread one process over them, which this model "
        "cannot do.",
        "Set CUDA_VISIBLE_DEVICES=0, or start one process per GPU with `accelerate launch`.",
    ),
    Symptom(
        "backward twice",
        r"Trying to backward through the graph a second time",
        "A loss is used for a second backward pass after its graph was freed.",
        "Compute the loss anew in each step, and keep loss.item() rather than the loss.",
    ),
    Symptom(
        "id outside the vocabulary",
        r"device-side assert triggered|index out of range in self|indexSelectLargeIndex|"
        r"Target \d+ is out of bounds",
        "A token id or label is not below the size of the vocabulary: the tokenizer belongs to "
        "another model.",
        "Use the tokenizer of the base; `glmtune info MODEL` shows both sizes.",
    ),
    Symptom(
        "rows of unequal length",
        r"Unable to create tensor, you should probably activate truncation|excessive nesting "
        r"\(inputs type|expected sequence of length \d+ at dim",
        "Rows of different lengths are put into one tensor without padding.",
        "Pad them in the collator (labels with -100); glmtune packs rows and needs none.",
    ),
    # -- GPU and libraries --
    Symptom(
        "torch without CUDA",
        r"Torch not compiled with CUDA enabled|No CUDA GPUs are available",
        "This torch is a CPU build, or no GPU is visible to it.",
        "Install a CUDA build of torch and see that `nvidia-smi` works and CUDA_VISIBLE_DEVICES "
        "is right; or set training.use_cpu=true.",
    ),
    Symptom(
        "driver too old",
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient|"
        r"forward compatibility was attempted",
        "The NVIDIA driver is older than the CUDA that torch was built for.",
        "Update the driver, or install the torch build for the CUDA that `nvidia-smi` names.",
    ),
    Symptom(
        "GPU not in the build",
        r"no kernel image is available for execution",
        "This torch (or extension) was not built for this generation of GPU.",
        "Install a torch build that lists it (torch.cuda.get_arch_list()).",
    ),
    Symptom(
        "flash attention",
        r"FlashAttention2? (only supports Ampere|has been toggled on)|flash_attn.{0,80}not "
        r"(be |seem)?.{0,12}installed|flash_attn_2_cuda.{0,200}undefined symbol|"
        r"undefined symbol.{0,200}flash_attn",
        "Flash attention is not installed, was built for another torch, or needs a newer GPU.",
        "Set model.attn_implementation=packed, which needs nothing more.",
    ),
    Symptom(
        "bitsandbytes",
        r"CUDA Setup failed despite|bitsandbytes.{0,80}(compiled without GPU|not available)|"
        r"libbitsandbytes_cpu\.so",
        "bitsandbytes found no CUDA library that it was built for.",
        "Install the bitsandbytes that fits torch's CUDA, or train without quantisation.",
    ),
    Symptom(
        "OpenMP twice",
        r"OMP: Error #15|libiomp5md\.dll",
        "Two libraries each brought their own OpenMP (on Windows mostly conda's and torch's).",
        "Install torch and numpy from one source in a fresh environment; "
        "KMP_DUPLICATE_LIB_OK=TRUE lets it run, at your own risk.",
    ),
    Symptom(
        "renamed argument",
        r"(TrainingArguments|Trainer|Seq2SeqTrainer|SFTTrainer)\.__init__\(\) got an unexpected "
        r"keyword argument '(?P<key>\w+)'",
        "This transformers has no argument {key!r} any more (evaluation_strategy became "
        "eval_strategy, tokenizer became processing_class).",
        "Rename it in the script; glmtune's recipes take the old names.",
    ),
    Symptom(
        "name gone from transformers",
        r"cannot import name '(?P<key>\w+)' from '(?P<module>(transformers|peft|torch)[\w.]*)'",
        "The installed {module} has no {key}: a script or package was written for another version.",
        "Update that package, or install the version it asks for into an environment of its own.",
    ),
    # -- data --
    Symptom(
        "column changes its type",
        r"Column\(.{0,80}\) changed from \w+ to \w+|Couldn't cast array of type",
        "A column holds text in one row and an object in another, which Arrow does not store.",
        "Read the file with glmtune, which takes rows as they are, or make the column one type.",
    ),
    Symptom(
        "text not UTF-8",
        r"UnicodeDecodeError: '?(gbk|utf-8|ascii|cp\w+)'? codec can't decode",
        "A text file is read in another encoding than it was written in, on Windows mostly UTF-8 "
        "as GBK.",
        "Save the file as UTF-8 and open it with encoding='utf-8'.",
    ),
    Symptom(
        "JSON lines",
        r"JSONDecodeError: Extra data",
        "A file with one JSON object per line is read as one JSON value.",
        "Name it .jsonl, or let glmtune read it, which tells the two apart.",
    ),
    # -- network and processes --
    Symptom(
        "hub not reached",
        r"couldn't connect to 'https?://[^']*'|host='huggingface\.co'|huggingface\.co.{0,200}"
        r"(Max retries|timed out|Connection|unreachable)|LocalEntryNotFoundError|"
        r"outgoing traffic has been disabled|OfflineModeIsEnabled",
        "huggingface.co cannot be reached, and the files are not in the local cache.",
        "Set HF_ENDPOINT=https://hf-mirror.com, or copy the model here and give its folder.",
    ),
    Symptom(
        "hub refuses",
        r"RepositoryNotFoundError|GatedRepoError|40[13] Client Error|is not a valid model "
        r"identifier",
        "The hub has no such repository, or it is private or gated.",
        "Check the spelling of the id (zai-org/chatglm3-6b), and log in with `hf auth login`.",
    ),
    Symptom(
        "port in use",
        r"[Aa]ddress already in use|EADDRINUSE",
        "Another process, perhaps an earlier run, listens on the same port.",
        "End it, or choose another port (MASTER_PORT for training, --port for a server).",
    ),
    Symptom(
        "ranks wait for each other",
        r"Watchdog caught collective operation timeout|NCCL (error|timeout)|"
        r"ncclUnhandledCudaError|ncclSystemError",
        "One process waited in vain for the others: one has died, or they do different work.",
        "Read the log of the rank that stopped first; NCCL_DEBUG=INFO says more.",
        is_report=True,
    ),
    Symptom(
        "another rank failed",
        r"ChildFailedError|torch\.distributed\.elastic.{0,40}failed|"
        r"CalledProcessError: Command .{0,400}returned non-zero exit status",
        "The launcher only reports that a process failed; the error itself is in that process's "
        "own output.",
        "Look above, or in the log of the rank named as root cause, for the first traceback.",
        is_report=True,
    ),
)

_ERROR_LINE = re.compile(r"^(\S*?(Error|Exception|Interrupt|Exit)\b|error:|fatal:)", re.IGNORECASE)
_DECORATION = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|^\[?(rank|default)\d+\]?:\s?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Finding:
    """A symptom that a log shows.

    Attributes:
        name: of the symptom.
        line_number: of its first appearance, from 1.
        line: that line.
        cause, remedy: a sentence each.
    """

    name: str
    line_number: int
    line: str
    cause: str
    remedy: str


def diagnose(log: str) -> list[Finding]:
    """Name what a log shows, the first in the log first and mere reports of it last.

    Args:
        log: text of any length; colours and `[rank0]:` are looked through.
    """
    log = _DECORATION.sub("", log.replace("\r\n", "\n"))
    found = []
    for symptom in SYMPTOMS:
        match = re.search(symptom.pattern, log, re.MULTILINE)
        if match:
            found.append((symptom.is_report, match.end(), symptom, match))
    return [_finding(log, symptom, match) for _, _, symptom, match in sorted(found, key=_place)]


def _place(found: tuple[bool, int, Symptom, re.Match[str]]) -> tuple[bool, int]:
    return found[:2]


def _finding(log: str, symptom: Symptom, match: re.Match[str]) -> Finding:
    number = log.count("\n", 0, match.end())
    groups = {name: value for name, value in match.groupdict().items() if value}
    return Finding(
        name=symptom.name,
        line_number=number + 1,
        line=log.split("\n")[number].strip(),
        cause=symptom.cause.format(**groups) if groups else symptom.cause,
        remedy=symptom.remedy,
    )


def last_error_line(log: str) -> str:
    """Give the last line that looks like an error, or else the last that is not empty."""
    lines = [line.strip() for line in _DECORATION.sub("", log).splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return (errors or lines or [""])[-1]


# ---- this machine ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Version:
    """A package that matters.

    Attributes:
        name: of the package.
        found: its version, None when it is not there.
        wanted: the range of the package's metadata, "" for any.
        fits: whether the version is in it.
    """

    name: str
    found: str | None
    wanted: str
    fits: bool


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that torch can use; memory in bytes."""

    name: str
    memory_bytes: int
    free_bytes: int
    has_bfloat16: bool


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A ChatGLM in the hub cache; `problem` says why it cannot be loaded, "" if it can."""

    name: str
    size_bytes: int
    problem: str


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that will not work (`stops`) or that is good to know, and what to do."""

    problem: str
    remedy: str
    stops: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """What is here.

    Attributes:
        system, cpu: what they call themselves.
        num_cores: that this process may use.
        memory_bytes, available_bytes: of the host, or of the container's limit.
        disk_free_bytes: by place.
        native_dtypes: what the CPU multiplies at full speed.
        gpus: what torch can use.
        versions: of Python and the packages.
        models: ChatGLM in the hub cache.
        environment: the variables that matter and are set; secrets are not shown.
        torch_problem: why torch cannot be imported, "" if it can.
    """

    system: str
    cpu: str
    num_cores: int
    memory_bytes: int
    available_bytes: int
    disk_free_bytes: Mapping[str, int]
    native_dtypes: tuple[str, ...]
    gpus: tuple[Gpu, ...]
    versions: tuple[Version, ...]
    models: tuple[CachedModel, ...]
    environment: Mapping[str, str]
    torch_problem: str


PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "sentencepiece")
VARIABLES = (
    *("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
    *("HF_TOKEN", "TRANSFORMERS_OFFLINE", "MODELSCOPE_CACHE", "GLMTUNE_CACHE", "XDG_CACHE_HOME"),
    *("CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "KMP_DUPLICATE_LIB_OK"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NPROC_PER_NODE"),
    *("WANDB_API_KEY", "WANDB_MODE", "SWANLAB_API_KEY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
)
GIB = 2**30
WEIGHTS_OF_6B = 2 * 6_243_584_000  # bytes in 16 bit


def describe_machine() -> Machine:
    """Look at the machine, the packages, the cache and the environment."""
    problem = ""
    native: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    try:
        native, gpus = _native_dtypes(), _gpus()
    except (ImportError, OSError) as error:  # told as a problem, with its remedy
        problem = " ".join(str(error).split()) or type(error).__name__
    total, available = memory()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu_name(),
        num_cores=_num_cores(),
        memory_bytes=total,
        available_bytes=available,
        disk_free_bytes={
            "working directory": shutil.disk_usage(Path.cwd()).free,
            "hub cache": shutil.disk_usage(_existing(_hub_cache())).free,
        },
        native_dtypes=native,
        gpus=gpus,
        versions=tuple(_versions()),
        models=() if problem else tuple(_cached_models(_hub_cache())),
        environment=_environment(os.environ),
        torch_problem=problem,
    )


def memory() -> tuple[int, int]:
    """Give the memory of the machine and what is free of it, in bytes; a container's limit counts.

    Where the system does not say what is free, all of it is taken to be.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total
    if (meminfo := Path("/proc/meminfo")).is_file():
        match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"))
        available = int(match[1]) * 1024 if match else total
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and used.is_file():
        text = limit.read_text(encoding="ascii").strip()
        if text.isdecimal() and int(text) < total:
            total = int(text)
            available = min(available, total - int(used.read_text(encoding="ascii")))
    return total, available


def _cpu_name() -> str:
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        match = re.search(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8"))
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _native_dtypes() -> tuple[str, ...]:
    from glmtune.load import fast_cpu_dtypes

    return tuple(sorted(str(dtype).removeprefix("torch.") for dtype in fast_cpu_dtypes()))


def _gpus() -> tuple[Gpu, ...]:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major = torch.cuda.get_device_capability(index)[0]
        gpus.append(Gpu(torch.cuda.get_device_name(index), total, free, major >= 8))
    return tuple(gpus)


def _versions() -> Iterator[Version]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    about = metadata.metadata("glmtune")
    python = platform.python_version()
    wanted = about["Requires-Python"]
    yield Version("python", python, wanted, SpecifierSet(wanted).contains(python))
    yield Version("glmtune", about["Version"], "", True)
    ranges = {r.name: r.specifier for r in map(Requirement, metadata.requires("glmtune") or ())}
    for name in PACKAGES:
        specifier = ranges.get(name, SpecifierSet())
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Version(name, None, str(specifier), fits=False)
            continue
        yield Version(name, found, str(specifier), specifier.contains(found, prereleases=True))


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _cached_models(cache: Path) -> Iterator[CachedModel]:
    for repository in sorted(cache.glob("models--*")):
        snapshots = sorted(repository.glob("snapshots/*/config.json"), key=os.path.getmtime)
        if not snapshots:
            continue
        config = snapshots[-1].read_text(encoding="utf-8", errors="replace")
        if not re.search(r'"model_type":\s*"chatglm"', config):
            continue
        folder = snapshots[-1].parent
        yield CachedModel(
            name=repository.name.removeprefix("models--").replace("--", "/"),
            size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            problem=_why_incomplete(folder),
        )


def _why_incomplete(folder: Path) -> str:
    from glmtune.load import weight_files

    try:
        files = weight_files(folder)
    except CheckpointError as error:
        return str(error)
    if not files:
        return "it has no weights"
    missing = [file.name for file in files if not file.is_file()]
    if not (folder / "tokenizer.model").is_file():
        missing.append("tokenizer.model")
    return f"{', '.join(missing)} missing" if missing else ""


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Give the variables that matter; keys, tokens and passwords are not shown."""
    shown = {}
    for name in VARIABLES:
        if value := variables.get(name):
            is_secret = name.endswith(("TOKEN", "KEY"))
            shown[name] = "set, not shown" if is_secret else re.sub(r"//[^/@]*@", "//***@", value)
    return shown


def advise(machine: Machine) -> list[Advice]:
    """Say what will not work on a machine, then what is good to know, each with its remedy."""
    advice = [*_about_packages(machine), *_about_room(machine), *_about_speed(machine)]
    return sorted(advice, key=lambda one: not one.stops)


def _about_packages(machine: Machine) -> Iterator[Advice]:
    for version in machine.versions:
        if not version.fits:
            found = version.found or "not installed"
            what = f"{version.name} is {found}, expected {version.wanted or 'any version'}"
            remedy = "Install glmtune into a fresh environment: pip install glmtune."
            if version.name == "python":
                remedy = "Make an environment with a newer Python."
            yield Advice(what + ".", remedy, stops=True)
    if machine.torch_problem:
        yield Advice(
            f"torch cannot be imported: {machine.torch_problem}.",
            "Install it again, in a fresh environment.",
            stops=True,
        )


def _about_room(machine: Machine) -> Iterator[Advice]:
    room = machine.disk_free_bytes
    if room["working directory"] < GIB:
        yield Advice(
            "less than 1 GiB is free on the disk of the working directory, so a run may fail to "
            "save.",
            "Free some room, or set output.dir to another disk.",
            stops=True,
        )
    if not machine.models and room["hub cache"] < WEIGHTS_OF_6B:
        yield Advice(
            f"the hub cache has {room['hub cache'] / GIB:.1f} GiB of room, and ChatGLM3-6B takes "
            f"{WEIGHTS_OF_6B / GIB:.1f}.",
            "Set HF_HOME to a larger disk.",
            stops=True,
        )
    largest = max((gpu.free_bytes for gpu in machine.gpus), default=machine.available_bytes)
    if largest < WEIGHTS_OF_6B:
        yield Advice(
            f"ChatGLM3-6B does not fit: its weights take {WEIGHTS_OF_6B / GIB:.1f} GiB in 16 bit, "
            f"and {largest / GIB:.1f} are free.",
            "Use a machine with more memory, a smaller model, or adapter.method=qlora.",
            stops=True,
        )
    for model in machine.models:
        if model.problem:
            yield Advice(
                f"{model.name} in the hub cache cannot be loaded: {model.problem}.",
                f"Download it again: hf download {model.name}.",
                stops=True,
            )
    offline = [n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if n in machine.environment]
    if offline and not machine.models:
        yield Advice(
            f"{offline[0]} is set and no ChatGLM is in the hub cache, so hub ids will not load.",
            f"Give the folder of a model, or unset {offline[0]}.",
            stops=False,
        )


def _about_speed(machine: Machine) -> Iterator[Advice]:
    if not machine.gpus and not machine.torch_problem:
        if shutil.which("nvidia-smi"):
            yield Advice(
                "there is an NVIDIA driver, but torch sees no GPU.",
                "Install a CUDA build of torch, and check CUDA_VISIBLE_DEVICES.",
                stops=False,
            )
        else:
            yield Advice(
                "there is no GPU: ChatGLM3-6B trains very much slower than on one.",
                "`glmtune train` says before the first step how long all of them will take.",
                stops=False,
            )
        if "bfloat16" not in machine.native_dtypes:
            yield Advice(
                "this CPU does not multiply bfloat16, so 16-bit weights are computed with in "
                "float32.",
                "Nothing needs to be done; for a small model, model.dtype=float32 is faster.",
                stops=False,
            )
    for gpu in machine.gpus:
        if not gpu.has_bfloat16:
            yield Advice(
                f"{gpu.name} has no bfloat16.",
                "Set model.dtype=float16; to train the weights themselves, training.fp16=true.",
                stops=False,
            )
    threads = machine.environment.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) != machine.num_cores and not machine.gpus:
        yield Advice(
            f"OMP_NUM_THREADS={threads}, and {machine.num_cores} cores may be used.",
            "Unset it, unless several runs share this machine.",
            stops=False,
        )


def read_log(name: str) -> str:
    """Read a log from a file, or from standard input for `-`; bytes that are no text stay apart.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    if name == "-":
        return sys.stdin.buffer.read().decode("utf-8", errors="replace")
    try:
        return Path(name).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(
            f"{name}: cannot be read: {error.strerror}. Give a text file, or - for standard input."
        ) from None
