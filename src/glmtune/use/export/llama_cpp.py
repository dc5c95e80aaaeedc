"""What llama.cpp and Ollama run: a model or a LoRA as GGUF, written from a job and proven.

gguf         model.gguf               an adapter is merged
lora-gguf    lora.gguf                over a GGUF of its base
ollama       model.gguf, Modelfile    an adapter is merged

The proof reads the file back with the library `gguf` and compares every tensor with its source.
Where the package `xllamacpp` is installed, llama.cpp's own server then answers the probes.
"""

import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from glmtune.errors import RecipeError
from glmtune.files import write_atomically
from glmtune.machine import host_memory
from glmtune.methods.adapter_folder import by_peft_names, read_tensors
from glmtune.use.export.folder import check_space
from glmtune.use.export.gguf import write_gguf_of
from glmtune.use.export.gguf_axes import Axes
from glmtune.use.export.gguf_file import GgufType, check_type
from glmtune.use.export.gguf_names import gguf_name, module_name, shape_of
from glmtune.use.export.gguf_vocabulary import check_has_pieces
from glmtune.use.export.job import Job
from glmtune.use.export.k_quants import LARGEST_ERROR, check_installed, is_k_quant, quantize
from glmtune.use.export.lora_gguf import write_lora_gguf
from glmtune.use.export.lora_glm import required_lora
from glmtune.use.export.ollama import ADAPTER as LORA
from glmtune.use.export.ollama import MODEL, MODELFILE, modelfile, start_gguf, start_ollama
from glmtune.use.export.probes import Probe, Reference
from glmtune.use.export.proofs import GREEDY, HALF_TOLERANCE, Check, shared_probes
from glmtune.use.export.stock import as_dict
from glmtune.use.export.update import Merged, Survival, merged_weights

UNQUANTIZED = "unquantized.gguf"  # removed again
READER = Path(__file__).with_name("llama_reader.py")
TENSORS = "tensors are those of the source"
LAYERS = "layers are those of the adapter"
LLAMA_PROMPTS = "llama.cpp builds the same prompts"
SERVER_SHARE = 0.7  # of the memory that is available; a larger file is not served for the proof
# The largest error of one rounding, as a share of the number; of q8_0, whose scale is rounded to
# float16, of its block's largest.
ROUNDING: dict[GgufType, float] = {
    "f32": 0.0,
    "f16": 2**-11,
    "bf16": 2**-8,
    "q8_0": 0.5 / 127 + 2**-11,
}
SUBNORMAL = 2.0**-24  # the last bit of float16
BLOCK = 32  # numbers of q8_0 that share a scale


def type_of(job: Job) -> GgufType:
    """Return the type of the matrices as they are written: as asked for, or that of the base.

    K-quants are made of the base's type afterwards.

    Raises:
        RecipeError: the package gguf is missing, or does not write the type.
    """
    by_dtype = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
    if job.quantize:
        if job.dtype != "auto":
            raise RecipeError("--quantize and --dtype both name a type. Keep one of them.")
        if not is_k_quant(job.quantize):
            return check_type(job.quantize)
        check_installed(job.quantize)
    if job.dtype in by_dtype:
        return check_type(by_dtype[job.dtype])
    stored = str(merged_weights(job.base, None).survival.dtype).removeprefix("torch.")
    return check_type(by_dtype.get(stored, "f32"))


def _merged(job: Job, kind: GgufType) -> Merged:
    """Prepare the tensors in the dtype of the file, so that what rounding loses is counted."""
    import torch

    dtypes: dict[str, torch.dtype] = {"f16": torch.float16, "bf16": torch.bfloat16}
    return merged_weights(job.base, job.adapter, dtypes.get(kind, torch.float32))


def write_model(job: Job, folder: Path) -> Survival:
    """Write the model, with the adapter in its weights, as `model.gguf`.

    Returns:
        What of the update survives; the rounding of q8_0 is not counted.

    Raises:
        CheckpointError: llama.cpp has no such model, or the adapter cannot be merged.
        OutputError: the disk has too little space.
        RecipeError: the package gguf is missing, or does not write the type.
    """
    kind, is_small = type_of(job), is_k_quant(job.quantize)
    merged = _merged(job, kind)
    write_gguf_of(
        folder / (UNQUANTIZED if is_small else MODEL),
        config=job.config,
        tokenizer=job.tokenizer,
        shapes={name: tuple(merged.weights.stored[name].shape) for name in merged.names()},
        tensors=merged.tensors(),
        dtype=kind,
        layout=job.layout,
        name=Path(job.base_name).name,
    )
    if is_small:
        quantize(folder / UNQUANTIZED, folder / MODEL, job.quantize.lower())
        (folder / UNQUANTIZED).unlink()
    return merged.survival


def write_lora(job: Job, folder: Path) -> None:
    """Write the LoRA as `lora.gguf`.

    Raises:
        CheckpointError: a model was given, or llama.cpp has no such adapter.
    """
    check_type("f32")
    check_has_pieces(job.tokenizer)
    write_lora_gguf(required_lora(job, "lora-gguf"), job.base, folder / LORA)


def write_for_ollama(job: Job, folder: Path) -> Survival:
    """Write the model, with the adapter in its weights, and a Modelfile.

    Raises:
        RecipeError: Ollama's templates cannot build the prompts of the layout.
    """
    text = modelfile(job.layout, with_adapter=False)
    survival = write_model(job, folder)
    write_atomically(folder / MODELFILE, text)
    return survival


def start_model(job: Job, target: Path) -> str:
    """Return the command that serves the model with llama.cpp."""
    return start_gguf(target / MODEL)


def start_lora(job: Job, target: Path) -> str:
    """Return the command that serves the base with the adapter; the base is written before."""
    base = Path(f"{target.name}-base")
    written = f"glmtune export {shlex.quote(job.base_name)} --to gguf -o {shlex.quote(str(base))}"
    return f"{written} && {start_gguf(base / MODEL, target / LORA)}"


def start_in_ollama(job: Job, target: Path) -> str:
    """Return the command that makes the model known to Ollama and talks to it."""
    return start_ollama(target, target.name)


# --- Proof ----------------------------------------------------------------------------------


def check_model(job: Job, folder: Path, reference: Reference) -> list[Check]:
    """Read `model.gguf` again: its tensors, and llama.cpp's prompts and answers."""
    kind = type_of(job)
    expected = _fitted(job, _merged(job, kind).tensors())
    checks = [_compare_tensors(folder / MODEL, expected)]
    return [*checks, *_served(job, folder / MODEL, None, reference, kind)]


def check_lora(job: Job, folder: Path, reference: Reference) -> list[Check]:
    """Read `lora.gguf` again, and ask llama.cpp with a GGUF of the base, which is removed."""
    adapter = required_lora(job, "lora-gguf")
    stored = by_peft_names(read_tensors(adapter)[1])
    layers = {name.rpartition(".lora_")[0].removeprefix("base_model.model.") for name in stored}
    written = {name.rpartition(".weight.")[0] for name, _ in _read_back(folder / LORA)}
    is_whole = {module_name(layer) for layer in layers} == written
    layer_check = Check(
        LAYERS,
        "passed" if is_whole else "failed",
        f"{len(written)} layers, {2 * len(layers)} matrices",
    )
    base = Job(job.base, job.base_name, None, job.template, dtype="float32")
    if why := _why_not_served():
        return [layer_check, Check(LLAMA_PROMPTS, "not run", why), Check(GREEDY, "not run", why)]
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        check_space(Path(name), base.merged().num_bytes())
        write_model(base, Path(name))
        served = _served(job, Path(name) / MODEL, folder / LORA, reference, "f32")
    return [layer_check, *served]


def _fitted(job: Job, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    axes = Axes(shape_of(job.config))
    for name, tensor in tensors:
        if (new := gguf_name(name)) is not None:
            yield new, axes.apply(new, tensor)


def _read_back(path: Path) -> Iterator[tuple[str, tuple[str, Any]]]:
    from gguf import GGUFReader

    for tensor in GGUFReader(path).tensors:
        yield tensor.name, (tensor.tensor_type.name.lower(), tensor.data)


def _compare_tensors(path: Path, expected: Iterator[tuple[str, Tensor]]) -> Check:
    """Compare each tensor of a file with its source, within one rounding of its type."""
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    stored = dict(_read_back(path))
    wrong, count = [], 0
    for name, tensor in expected:
        count += 1
        kind, data = stored.pop(name, ("", None))
        if kind not in ROUNDING and kind not in LARGEST_ERROR:
            wrong.append(name)
            continue
        raw = dequantize(data, GGMLQuantizationType[kind.upper()])
        found = torch.from_numpy(raw.copy()).view(tensor.shape)
        exact = tensor.float()
        if kind in LARGEST_ERROR:
            if not (found - exact).norm() <= LARGEST_ERROR[kind] * exact.norm():
                wrong.append(name)
            continue
        allowed = exact.abs() * ROUNDING[kind]  # type: ignore[index]
        if kind == "q8_0":
            blocks = exact.abs().view(-1, BLOCK).amax(-1, keepdim=True)
            allowed = (blocks * ROUNDING["q8_0"]).expand(-1, BLOCK).reshape(exact.shape)
        if kind in ("f16", "q8_0"):
            allowed = allowed + SUBNORMAL
        if not bool(((found - exact).abs() <= allowed).all()):  # NaN fails
            wrong.append(name)
    wrong += stored  # what the source does not have
    detail = f"{count} tensors, read back within the rounding of their types"
    return Check(
        TENSORS,
        "failed" if wrong else "passed",
        f"wrong: {', '.join(wrong[:3])}" if wrong else detail,
    )


def _served(
    job: Job, model: Path, lora: Path | None, reference: Reference, kind: GgufType
) -> list[Check]:
    """Let llama.cpp's own server answer the probes."""
    why = _why_not_served()
    if not why and model.stat().st_size > SERVER_SHARE * host_memory().available_bytes:
        why = "the model does not fit into memory beside this process"
    if why:
        return [Check(LLAMA_PROMPTS, "not run", why), Check(GREEDY, "not run", why)]
    plain = [probe for probe in shared_probes(job, reference) if not _spells(job, probe)]
    request = {
        "model": str(model),
        "lora": None if lora is None else str(lora),
        "chats": [[as_dict(each) for each in probe.messages] for probe in plain],
        "prompts": [[probe.prompt, len(probe.answer)] for probe in reference.probes],
    }
    with TemporaryDirectory(prefix="glmtune-") as name:
        file = Path(name) / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        ran = subprocess.run(
            [sys.executable, "-P", str(READER), str(file)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        result = file.with_name("result.json")
        if ran.returncode or not result.is_file():
            last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
            return [Check(GREEDY, "failed", f"llama.cpp cannot read {model.name}: {last}")]
        answer = json.loads(result.read_text(encoding="utf-8"))
    return [
        _same_prompts(plain, answer["chats"]),
        _same_answers(job, reference, answer["answers"], is_rounded=kind != "f32"),
    ]


def _why_not_served() -> str:
    if importlib.util.find_spec("xllamacpp") is None:
        return "llama.cpp's server is not installed (pip install xllamacpp)"
    return ""


def _spells(job: Job, probe: Probe) -> bool:
    """Whether a message spells a special token: llama.cpp has no guard, and puts a space in."""
    tokens = job.tokenizer.all_special_tokens
    text = "".join(message.text for message in probe.messages)
    return any(token in text for token in {*tokens, "sop", "eop", "<|user|>", "</s>"})


def _same_prompts(probes: Sequence[Probe], found: Sequence[list[int]]) -> Check:
    num_same = sum(ids == probe.prompt for ids, probe in zip(found, probes, strict=True))
    return Check(
        LLAMA_PROMPTS,
        "passed" if num_same == len(probes) else "failed",
        f"{num_same} of {len(probes)} that spell no special token",
    )


def _same_answers(
    job: Job, reference: Reference, found: Sequence[list[int]], *, is_rounded: bool
) -> Check:
    """Compare greedy ids; an answer goes its own way after a tie, so it is followed until then."""
    num_tokens = num_ties = num_others = 0
    for probe, ids in zip(reference.probes, found, strict=True):
        start = len(probe.prompt) - 1
        spread = probe.tuned.std(-1).max().item()
        tolerance = spread * (2 * HALF_TOLERANCE if is_rounded else 1e-3)
        for index, (ours, theirs) in enumerate(zip(probe.answer, ids, strict=False)):
            num_tokens += 1
            if ours == theirs:
                continue
            scores = probe.tuned[start + index]
            is_tie = (scores[ours] - scores[theirs]).item() <= tolerance
            num_ties, num_others = num_ties + is_tie, num_others + (not is_tie)
            break
    detail = f"{num_tokens - num_ties - num_others} of {num_tokens} tokens by llama.cpp"
    if num_ties:
        detail += f", and {num_ties} that rounding decides"
    if is_k_quant(job.quantize):
        return Check(GREEDY, "not run", f"so few bits change answers: {detail}")
    return Check(GREEDY, "failed" if num_others else "passed", detail)
