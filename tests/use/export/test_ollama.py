"""A folder for Ollama has a GGUF that llama.cpp runs, and a Modelfile with our prompts."""

import shlex
import shutil
from pathlib import Path

import pytest
from tests.use.export.llama_server import assert_same_answers, make, prompt_of, save_lora, start

from glmtune.errors import CheckpointError, OutputError, RecipeError
from glmtune.model.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.use.export.ollama import modelfile, start_gguf, start_ollama, write_ollama

# A turn ends where the next begins; the role of the assistant is last, unless it spoke last.
MODELFILE = (
    "FROM ./model.gguf\n"
    "ADAPTER ./lora.gguf\n"
    'TEMPLATE """[gMASK]<sop>{{- range $index, $message := .Messages }}'
    '<|{{ if eq .Role "tool" }}observation{{ else }}{{ .Role }}{{ end }}|>\n'
    "{{ if .Content }} {{ .Content }}{{ end }}"
    '{{- if and (ne .Role "assistant") (eq (len (slice $.Messages $index)) 1) }}<|assistant|>'
    '{{ end }}{{- end }}"""\n'
    'PARAMETER stop "<|user|>"\n'
    'PARAMETER stop "<|observation|>"\n'
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: ChatGLMTokenizer) -> Path:
    return make(tmp_path_factory.mktemp("base"), tiny_tokenizer, rope_ratio=7.5)


def test_a_folder_has_an_adapter_that_llama_cpp_runs_and_our_prompts(
    base: Path, tiny_tokenizer: ChatGLMTokenizer, tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    model = save_lora(base, tmp_path / "adapter", target_modules=["query_key_value"])
    folder = tmp_path / "ollama"

    written = write_ollama(base, folder, "f32", adapter_folder=tmp_path / "adapter")

    assert written.read_text(encoding="utf-8") == MODELFILE
    assert sorted(path.name for path in folder.iterdir()) == [
        "Modelfile",
        "lora.gguf",
        "model.gguf",
    ]
    server = start(folder / "model.gguf", folder / "lora.gguf")
    assert_same_answers(server, model, prompt_of(tiny_tokenizer))
    with pytest.raises(OutputError, match="already exists"):
        write_ollama(base, folder, "f32", adapter_folder=tmp_path / "adapter")


def test_a_model_that_cannot_be_written_leaves_no_adapter_behind(
    base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    save_lora(base, tmp_path / "adapter", target_modules=["query_key_value"])
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    (broken / "tokenizer.model").write_bytes(b"pieces")

    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        write_ollama(broken, tmp_path / "ollama", adapter_folder=tmp_path / "adapter")

    assert list((tmp_path / "ollama").iterdir()) == []


def test_a_model_alone_has_no_adapter_line() -> None:
    assert modelfile("official", with_adapter=False) == MODELFILE.replace(
        "ADAPTER ./lora.gguf\n", ""
    )
    assert modelfile("tutorial", with_adapter=True) == MODELFILE


def test_a_base_model_continues_its_prompt() -> None:
    assert modelfile("plain", with_adapter=False) == (
        'FROM ./model.gguf\nTEMPLATE """[gMASK]<sop>{{ .Prompt }}{{ .Response }}"""\n'
    )


def test_prompts_that_ollama_cannot_build_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"number their rounds.*run it with llama-server"):
        modelfile("chatglm2", with_adapter=False)


def test_the_lines_that_start_a_result_are_ready_for_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "my out"

    made = shlex.split(start_ollama(folder, "My 模型 1"))
    served = shlex.split(start_gguf(folder / "model.gguf", folder / "lora.gguf"))

    file = str(folder / "Modelfile")
    assert made == ["ollama", "create", "my----1", "-f", file, "&&", "ollama", "run", "my----1"]
    model, lora = str(folder / "model.gguf"), str(folder / "lora.gguf")
    assert served == ["llama-server", "-m", model, "--lora", lora, "--port", "8080"]
