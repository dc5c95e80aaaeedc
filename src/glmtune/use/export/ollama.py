"""Write a folder that Ollama makes a model of: a Modelfile beside the GGUF.

    model.gguf    the model, or the base of an adapter
    lora.gguf     the adapter, if it stays one
    Modelfile     FROM, ADAPTER, TEMPLATE, PARAMETER stop

Ollama does not read the Jinja template of a GGUF: its templates are Go's. They cannot break the
spelling of a special token in a message, and cannot write ChatGLM3's tool calls, so the template is
for chats between people and a model. What is checked of these folders is the GGUF, by llama.cpp, on
which Ollama is built.

Source: https://github.com/ollama/ollama, docs/modelfile.md, docs/template.md.
"""

import shlex
from pathlib import Path

from glmtune.errors import OutputError, RecipeError
from glmtune.files import write_atomically
from glmtune.recipe.choices import Layout
from glmtune.use.export.gguf import write_gguf
from glmtune.use.export.gguf_file import check_type
from glmtune.use.export.gguf_vocabulary import START
from glmtune.use.export.lora_gguf import write_lora_gguf

MODEL, ADAPTER, MODELFILE = "model.gguf", "lora.gguf", "Modelfile"
# Unless the client has begun the answer itself, the role of the assistant comes last.
_TURNS = """\
{{- range $index, $message := .Messages }}<|{{ if eq .Role "tool" }}observation\
{{ else }}{{ .Role }}{{ end }}|>
{{ if .Content }} {{ .Content }}{{ end }}\
{{- if and (ne .Role "assistant") (eq (len (slice $.Messages $index)) 1) }}<|assistant|>{{ end }}\
{{- end }}"""
_STOPS = ("<|user|>", "<|observation|>")


def write_ollama(
    model_folder: Path,
    folder: Path,
    dtype: str = "f16",
    *,
    adapter_folder: Path | None = None,
    layout: Layout = "official",
) -> Path:
    """Write a model, and a LoRA adapter over it, for Ollama.

    Args:
        model_folder: a complete model; with an adapter, its base.
        folder: to write into; made if it does not exist.
        dtype: of the matrices of the model.
        adapter_folder: stays an adapter.
        layout: of the prompts.

    Returns:
        The Modelfile.

    Raises:
        CheckpointError: a folder is damaged, or llama.cpp has no such model or adapter.
        OutputError: a file exists, or cannot be written.
        RecipeError: the package gguf is missing, or Ollama cannot build the prompts.
    """
    check_type(dtype)
    text = modelfile(layout, with_adapter=adapter_folder is not None)
    made = [folder / name for name in (ADAPTER, MODEL, MODELFILE)]
    if there := [path for path in made if path.exists()]:
        raise OutputError(
            f"{there[0]}: already exists, and is never written over. Give a new folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if adapter_folder is not None:
            write_lora_gguf(adapter_folder, model_folder, folder / ADAPTER)
        write_gguf(model_folder, folder / MODEL, dtype, layout=layout)
        write_atomically(folder / MODELFILE, text)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    return folder / MODELFILE


def modelfile(layout: Layout, *, with_adapter: bool) -> str:
    """Return the text of a Modelfile.

    Raises:
        RecipeError: Ollama's templates cannot build the prompts of the layout.
    """
    if layout == "chatglm2":
        raise RecipeError(
            "the prompts of ChatGLM2 number their rounds, which a template of Ollama cannot. "
            "Export to gguf, and run it with llama-server."
        )
    has_roles = layout != "plain"
    turns = _TURNS if has_roles else "{{ .Prompt }}{{ .Response }}"
    lines = [f"FROM ./{MODEL}"]
    lines += [f"ADAPTER ./{ADAPTER}"] if with_adapter else []
    lines += [f'TEMPLATE """{START}{turns}"""']
    lines += [f'PARAMETER stop "{stop}"' for stop in _STOPS] if has_roles else []
    return "\n".join(lines) + "\n"


def start_ollama(folder: Path, name: str) -> str:
    """Return the command line that makes a model of a folder and talks to it.

    Args:
        folder: with a Modelfile.
        name: that Ollama gives to the model.
    """
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name.lower())
    file = shlex.quote(str(folder / MODELFILE))
    return f"ollama create {name} -f {file} && ollama run {name}"


def start_gguf(model: Path, lora: Path | None = None) -> str:
    """Return the command line that serves a GGUF, and a LoRA over it, with llama.cpp."""
    adapter = f" --lora {shlex.quote(str(lora))}" if lora is not None else ""
    return f"llama-server -m {shlex.quote(str(model))}{adapter} --port 8080"
