"""What is pushed to a hub: the files of a model, as one commit, without this machine's paths."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from glmtune.errors import OutputError, RecipeError
from glmtune.model.card import read_card, verify, write_card
from glmtune.model.fingerprint import Fingerprint
from glmtune.prove.card import find_paths, without_paths
from glmtune.recipe.reading import build_recipe
from glmtune.use.export.push import Package, check_repo, pack

BASE = "zai-org/chatglm3-6b"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """The folder of a finished run, with what must not leave the machine."""
    folder = tmp_path / "out"
    (folder / "checkpoint-2").mkdir(parents=True)
    save_file({"a": np.zeros(2, np.float32)}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": "/home/me/models/chatglm3-6b", "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    recipe = build_recipe(
        {
            "model": {"name_or_path": "/home/me/models/chatglm3-6b"},
            "data": {"train": ["/home/me/secret/rows.json"]},
            "output": {"dir": str(folder)},
        }
    )
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    (folder / "bad_rows.jsonl").write_text('{"excerpt": "a private row"}\n')
    (folder / "tokenizer.model").write_bytes(b"\x0a\x01/home/me/x")
    return folder


def packed(folder: Path, base: str | None = BASE) -> Package:
    return pack(folder, "# card\n", base, shorten=without_paths, find_paths=find_paths)


def texts(package: Package) -> dict[str, str]:
    return {each.name: each.text for each in package.uploads if each.text is not None}


def test_weights_configuration_tokenizer_recipe_and_card_are_published(run_folder: Path) -> None:
    names = [each.name for each in packed(run_folder).uploads]

    assert names == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "recipe.yaml",
        "tokenizer.model",
    ]


def test_rows_metrics_and_checkpoints_stay_at_home_and_are_named(run_folder: Path) -> None:
    left_out = packed(run_folder).left_out

    assert left_out == ("bad_rows.jsonl", "metrics.jsonl", "checkpoint-2/")


def test_the_base_is_named_by_its_hub_id_and_the_file_at_home_stays(run_folder: Path) -> None:
    before = (run_folder / "adapter_config.json").read_text()

    changed = texts(packed(run_folder))

    assert json.loads(changed["adapter_config.json"])["base_model_name_or_path"] == BASE
    assert f"name_or_path: {BASE}" in changed["recipe.yaml"]
    assert (run_folder / "adapter_config.json").read_text() == before


def test_a_published_folder_agrees_with_the_checksums_in_its_card(
    run_folder: Path, tmp_path: Path
) -> None:
    write_card(
        run_folder, {"family": "chatglm3"}, "0" * 64, ("/home/me/m", Fingerprint({}, "", {}))
    )
    published = tmp_path / "published"
    published.mkdir()

    for each in packed(run_folder).uploads:
        content = each.path.read_bytes() if each.text is None else each.text.encode()
        (published / each.name).write_bytes(content)

    assert verify(published, whole=True) == 3
    card = read_card(published)
    assert card is not None
    assert card.base is not None
    assert card.base.name == BASE


def test_no_published_text_names_a_path_of_this_machine(run_folder: Path) -> None:
    for text in texts(packed(run_folder)).values():
        assert "/home/me" not in text
        assert str(run_folder) not in text


def test_text_that_still_names_a_path_is_refused_with_its_line(run_folder: Path) -> None:
    (run_folder / "chat_template.jinja").write_text("{# a #}\n{# from /home/me/t.jinja #}\n")

    with pytest.raises(OutputError, match=r"chat_template\.jinja:2: .*'/home/me/t\.jinja'"):
        packed(run_folder)


def test_a_half_written_configuration_is_refused(run_folder: Path) -> None:
    (run_folder / "adapter_config.json").write_text('{"r": 8,')

    with pytest.raises(OutputError, match="half written"):
        packed(run_folder)


@pytest.mark.parametrize("value", ["\ud800", ["/home/me/x", "\udfff"], {"\ud800": 1}])
@pytest.mark.parametrize("name", ["adapter_config.json", "glmtune.json", "export.json"])
def test_text_that_is_not_unicode_is_refused_by_its_file(
    run_folder: Path, name: str, value: Any
) -> None:
    (run_folder / name).write_text(json.dumps({"base_model_name_or_path": BASE, "x": value}))

    with pytest.raises(OutputError, match=rf"{name}: .*half a surrogate pair"):
        packed(run_folder)


def test_a_recipe_with_a_bomb_is_refused_before_it_is_expanded(run_folder: Path) -> None:
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    (run_folder / "recipe.yaml").write_text(f"a0: &a0 [x]\n{levels}")

    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+: .*values, which no recipe has"):
        packed(run_folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("a: 1\n")

    with pytest.raises(OutputError, match=r"no weights to publish; it holds recipe\.yaml"):
        packed(tmp_path)
    with pytest.raises(OutputError, match="there is no such folder"):
        packed(tmp_path / "missing")


@pytest.mark.parametrize("repo", ["name", "a/b/c", "a/..", "我/模型", "", "a/b c", "/home/me/x"])
def test_a_name_that_no_hub_accepts_is_refused(repo: str) -> None:
    with pytest.raises(OutputError):
        check_repo(repo)


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as one upload needs; it keeps what it was sent."""

    commits: list[dict[str, Any]]
    created: list[dict[str, Any]]
    refuses: bool

    def do_GET(self) -> None:
        self.answer({"name": "me", "siblings": [], "id": "me/support", "private": False})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = f"http://{self.headers['Host']}/me/support"
        if self.refuses:
            self.answer({"error": "You have no right to write here"}, 403)
        elif self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self.answer({"url": address, "name": "me/support", "id": "me/support"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            known = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            self.answer({"files": known})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.commits.append({f["path"]: base64.b64decode(f["content"]) for f in files})
            self.answer({"commitUrl": f"{address}/commit/1", "commitOid": "1", "success": True})
        else:
            self.answer({})

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("OneHub", (Hub,), {"commits": [], "created": [], "refuses": False})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def glmtune(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    return subprocess.run(
        [sys.executable, "-m", "glmtune", "push", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=inherited | variables,
        check=False,
    )


def test_push_makes_one_commit_of_what_the_dry_run_shows(
    run_folder: Path, hub: tuple[str, type[Hub]], tmp_path: Path
) -> None:
    address, kept = hub
    arguments = (run_folder, "me/support", "--base-model", BASE, "--private")
    variables = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_x", "HF_HOME": str(tmp_path / "hf")}

    shown = glmtune(*arguments, "--dry-run", **variables)
    assert shown.returncode == 0, shown.stderr
    assert not kept.created
    assert not kept.commits

    done = glmtune(*arguments, **variables)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{address}/me/support"
    assert kept.created[0]["name"] == "support"
    assert kept.created[0]["visibility"] == "private"
    (files,) = kept.commits
    assert sorted(files) == sorted(each.name for each in packed(run_folder).uploads)
    card = files["README.md"].decode()
    assert card.strip() in shown.stdout
    assert f"base_model: {BASE}" in card
    assert files["tokenizer.model"] == (run_folder / "tokenizer.model").read_bytes()
    assert b"/home/me" not in b"".join(v for k, v in files.items() if k != "tokenizer.model")


def test_what_a_person_wrote_into_the_card_is_published(run_folder: Path) -> None:
    text = "---\nbase_model: /home/me/models/chatglm3-6b\nlicense: mit\n---\n# 客服\n\n我写的。\n"
    (run_folder / "README.md").write_text(text, encoding="utf-8")

    done = glmtune(run_folder, "me/support", "--base-model", BASE, "--dry-run")

    assert done.returncode == 0, done.stderr
    assert "# 客服\n\n我写的。" in done.stdout
    assert f"base_model: {BASE}" in done.stdout
    assert "license: mit" in done.stdout
    assert "/home/me" not in done.stdout
    assert (run_folder / "README.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ((), {}, "Pass --base-model"),
        (("--base-model", "someone/else"), {}, "Pass --license"),
        (("--base-model", "/home/me/x"), {}, "expected a hub id"),
        (("--base-model", BASE), {}, "hf auth login"),
        (("--base-model", BASE, "--to", "modelscope"), {}, "ModelScope"),
    ],
)
def test_what_is_missing_is_said_with_the_way_to_give_it(
    run_folder: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    variables: dict[str, str],
    expected: str,
) -> None:
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}

    done = glmtune(run_folder, "me/support", *arguments, **home, **variables)

    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_refuses_ends_in_one_sentence(
    run_folder: Path, hub: tuple[str, type[Hub]], tmp_path: Path
) -> None:
    address, kept = hub
    kept.refuses = True
    variables = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_x", "HF_HOME": str(tmp_path / "hf")}

    done = glmtune(run_folder, "me/support", "--base-model", BASE, **variables)

    assert done.returncode == 1
    assert "no right to write" in done.stderr
    assert "then push again" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_with_a_failed_proof_is_published_only_on_request(run_folder: Path) -> None:
    from glmtune.prove.proof import SAVED, Proof
    from glmtune.prove.report.facts import ReportFacts, write_facts

    facts = ReportFacts(
        proofs=(Proof(SAVED, "failed", "3 scores differ"),), versions={}, machine={}
    )
    write_facts(run_folder, facts, (run_folder / "recipe.yaml").read_text(encoding="utf-8"))
    arguments = (run_folder, "me/support", "--base-model", BASE, "--dry-run")

    refused = glmtune(*arguments)
    done = glmtune(*arguments, "--with-failed-proofs")

    assert refused.returncode == 1
    assert f"failed proofs: {SAVED}" in refused.stderr
    assert done.returncode == 0, done.stderr
    assert f"| {SAVED} | failed: 3 scores differ |" in done.stdout
