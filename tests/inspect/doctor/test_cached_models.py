"""The hub cache is searched for ChatGLM checkpoints and incomplete downloads."""

import json
from pathlib import Path

from glmtune.inspect.doctor.cached_models import cached_models


def test_an_unfinished_download_in_the_cache_is_noticed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--zai-org--chatglm3-6b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "chatglm"}))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-00001-of-00002.safetensors").write_bytes(b"")
    other = tmp_path / "models--gpt2" / "snapshots" / "abc"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "gpt2"}')

    [model] = cached_models(tmp_path)

    assert model.name == "zai-org/chatglm3-6b"
    assert model.problem == "model-00002-of-00002, tokenizer.model missing"
