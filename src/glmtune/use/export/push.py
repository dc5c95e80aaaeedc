"""Upload a folder to a model hub, without anything that belongs to this machine.

    folder                     hub
      adapter_config.json   -> the same, the base named by its hub id
      recipe.yaml           -> the same, paths shortened to their last part
      README.md             -> a card for the repository
      report.html, metrics.jsonl, checkpoint-N/, bad_rows.jsonl   stay: they may quote rows

Only files that a reader of the model needs are uploaded (`PUBLISHED`). Text files that name an
absolute path after that are refused. Tokens are those of the hubs' own tools.
"""

import fnmatch
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Literal

import yaml

from glmtune.errors import OutputError
from glmtune.files import read_json_object, sha256_of_text
from glmtune.model.card import CARD
from glmtune.recipe.yaml_text import read_yaml

Hub = Literal["hf", "modelscope"]
ShortenPaths = Callable[[Any], Any]
FindPaths = Callable[[str], list[str]]

CARD_FILE = "README.md"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "*.gguf")
PUBLISHED = (
    *WEIGHTS,
    "*.index.json",
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    CARD,
    "export.json",
    "Modelfile",
    "LICENSE*",
    "MODEL_LICENSE*",
    "loss.svg",
    "recipe.yaml",
    CARD_FILE,
)
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt")  # pieces may look like paths


@dataclass(frozen=True, slots=True)
class Upload:
    """A file to upload.

    Attributes:
        name: in the repository.
        path: on this machine.
        text: what is uploaded in place of the file's content; None for the content itself.
    """

    name: str
    path: Path
    text: str | None = None

    @property
    def num_bytes(self) -> int:
        """The size of what is uploaded."""
        return self.path.stat().st_size if self.text is None else len(self.text.encode())


@dataclass(frozen=True, slots=True)
class Package:
    """What is uploaded from a folder, and what is not.

    Attributes:
        uploads: by name.
        left_out: names in the folder that are not uploaded; folders end in `/`.
    """

    uploads: tuple[Upload, ...]
    left_out: tuple[str, ...]


def pack(
    folder: Path,
    card: str,
    base: str | None,
    *,
    shorten: ShortenPaths,
    find_paths: FindPaths,
) -> Package:
    """Collect the files of a folder that are published.

    Args:
        folder: of an adapter, a model or an export.
        card: the README.md to publish.
        base: the hub id that takes the place of the base's path; None if there is none.
        shorten: removes paths from a value of JSON or YAML.
        find_paths: lists the absolute paths in a text.

    Raises:
        OutputError: the folder has no weights, a text file cannot be read, or one names a path.
        RecipeError: the recipe cannot be read.
    """
    if not folder.is_dir():
        raise OutputError(f"{folder}: there is no such folder. Give the folder to publish.")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    published = [name for name in names if _is_published(name)]
    if not any(fnmatch.fnmatch(name, pattern) for name in names for pattern in WEIGHTS):
        held = ", ".join(names[:6]) or "nothing"
        raise OutputError(
            f"{folder}: has no weights to publish; it holds {held}. Give the output.dir of a "
            "finished run, or a folder that `glmtune merge` or `glmtune export` wrote."
        )
    uploads = [Upload(CARD_FILE, folder / CARD_FILE, card)]
    for name in published:
        if name != CARD_FILE:
            uploads.append(_upload(folder / name, base, shorten))
    _seal(uploads)
    _refuse_paths(uploads, find_paths)
    folders = (f"{path.name}/" for path in sorted(folder.iterdir()) if path.is_dir())
    left_out = [*(name for name in names if not _is_published(name)), *folders]
    return Package(tuple(uploads), tuple(left_out))


def _is_published(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in PUBLISHED)


def _upload(path: Path, base: str | None, shorten: ShortenPaths) -> Upload:
    """Read a file, and change its text if it names a path."""
    if path.suffix not in (".json", ".yaml") or path.name in _VOCABULARIES:
        return Upload(path.name, path)
    if path.suffix == ".yaml":
        tree = read_yaml(path, "there is no such recipe.").tree
    else:
        remedy = "It may be half written; write it again."
        tree = read_json_object(path, OutputError, remedy=remedy)
    changed = shorten(_with_base(path.name, tree, base))
    if changed == tree:
        return Upload(path.name, path)
    if path.suffix == ".yaml":
        return Upload(path.name, path, yaml.safe_dump(changed, allow_unicode=True, sort_keys=False))
    return Upload(path.name, path, json.dumps(changed, ensure_ascii=False, indent=2) + "\n")


def _with_base(name: str, tree: Any, base: str | None) -> Any:
    """Name the base by its hub id where a file names it."""
    if base is None or not isinstance(tree, Mapping):
        return tree
    if name == "adapter_config.json" and "base_model_name_or_path" in tree:
        return {**tree, "base_model_name_or_path": base}
    if name == "recipe.yaml" and isinstance(tree.get("model"), Mapping):
        return {**tree, "model": {**tree["model"], "name_or_path": base}}
    if name == CARD and isinstance(tree.get("base"), Mapping):
        return {**tree, "base": {**tree["base"], "name": base}}
    return tree


def _seal(uploads: list[Upload]) -> None:
    """Put the checksums of changed texts into the card that records them."""
    texts = {each.name: each.text for each in uploads if each.text is not None}
    for index, upload in enumerate(uploads):
        if upload.name != CARD:
            continue
        content = json.loads(_read(upload.path) if upload.text is None else upload.text)
        recorded = content.get("files") if isinstance(content, dict) else None
        if not isinstance(recorded, dict):
            continue
        changed = [name for name in recorded if name in texts]
        if changed:
            files = {**recorded, **{name: sha256_of_text(texts[name]) for name in changed}}
            text = json.dumps({**content, "files": files}, ensure_ascii=False, indent=2) + "\n"
            uploads[index] = Upload(upload.name, upload.path, text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: cannot be read as UTF-8 text: {error}.") from None


def _refuse_paths(uploads: Sequence[Upload], find_paths: FindPaths) -> None:
    """Refuse text that names an absolute path of this machine."""
    for upload in uploads:
        is_text = upload.path.suffix in (".json", ".yaml", ".md", ".jinja", ".svg")
        is_text = is_text or upload.name == "Modelfile"
        if not is_text or upload.name in _VOCABULARIES:
            continue
        text = _read(upload.path) if upload.text is None else upload.text
        if paths := find_paths(text):
            line = next(i for i, each in enumerate(text.splitlines(), 1) if find_paths(each))
            raise OutputError(
                f"{upload.path}:{line}: names a path of this machine, {paths[0]!r}, which is not "
                "published. Take it out of the file, then push again."
            )


def check_repo(repo: str) -> None:
    """Refuse a name that no hub accepts.

    Raises:
        OutputError: it is not owner/name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise OutputError(f"{repo!r} is not the name of a repository: {error}") from None
    if repo.count("/") != 1:
        raise OutputError(f"{repo!r}: expected OWNER/NAME, such as my-name/chatglm3-6b-support.")


def push(package: Package, repo: str, hub: Hub = "hf", *, private: bool = False) -> str:
    """Upload files as one commit; the repository is made if it does not exist.

    Args:
        package: from `pack`.
        repo: owner/name.
        hub: Hugging Face or ModelScope.
        private: for a new repository.

    Returns:
        The address of the repository.

    Raises:
        OutputError: there is no token, or the hub refuses.
    """
    with ExitStack() as stack:
        try:
            staged = Path(
                stack.enter_context(
                    TemporaryDirectory(prefix="glmtune-push-", ignore_cleanup_errors=True)
                )
            )
            for upload in package.uploads:
                _stage(upload, staged / upload.name)
        except OSError as error:
            raise OutputError(
                f"{gettempdir()}: the files to upload could not be collected there: "
                f"{error.strerror or error}. Nothing was uploaded. Make room, or set TMPDIR to a "
                "folder that can be written and has room."
            ) from error
        send = _push_to_modelscope if hub == "modelscope" else _push_to_hf
        return send(staged, repo, private)


def _stage(upload: Upload, target: Path) -> None:
    if upload.text is not None:
        target.write_text(upload.text, encoding="utf-8")
        return
    try:
        os.symlink(upload.path.resolve(), target)
    except OSError:  # Windows allows it to some users only
        shutil.copyfile(upload.path, target)


def _push_to_hf(folder: Path, repo: str, private: bool) -> str:
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise OutputError(
            "there is no token for the Hugging Face Hub. Run `hf auth login`, or set HF_TOKEN."
        )
    api = huggingface_hub.HfApi()
    try:
        created = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with glmtune")
    except Exception as error:  # of the hub, of its HTTP client, of the system
        raise _refused(repo, "the Hugging Face Hub", error) from error
    return str(created)


def _push_to_modelscope(folder: Path, repo: str, private: bool) -> str:
    try:
        from modelscope_hub import HubApi
    except ImportError as error:
        raise OutputError(
            "ModelScope's library is not installed. Run `pip install 'glmtune[modelscope]'`."
        ) from error
    api = HubApi()
    try:
        api.whoami()
    except Exception as error:
        raise OutputError(
            f"ModelScope was not reached, or does not accept the token: {error} Check the network; "
            "for a token run `modelscope login`, or set MODELSCOPE_API_TOKEN."
        ) from error
    try:
        if not api.repo_exists(repo, "model"):
            api.create_repo(repo, "model", visibility="private" if private else "public")
        api.upload_folder(repo, "model", folder, commit_message="Upload with glmtune")
    except Exception as error:  # of the hub, of its HTTP client, of the system
        raise _refused(repo, "ModelScope", error) from error
    return f"https://modelscope.cn/models/{repo}"


def _refused(repo: str, hub: str, error: Exception) -> OutputError:
    return OutputError(
        f"{repo}: {hub} did not take the files: {type(error).__name__}: "
        f"{' '.join(str(error).split())} What had been there is unchanged or is in its history. "
        "Check the name, the rights of the token and the network, then push again."
    )
