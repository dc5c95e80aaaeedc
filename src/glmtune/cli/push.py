"""`glmtune push`: publish an adapter, a model or an export on a hub."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmtune.cli.printing import echo
from glmtune.errors import OutputError
from glmtune.messages import translate
from glmtune.units import readable

if TYPE_CHECKING:
    from glmtune.prove.card import RunFacts
    from glmtune.use.export.push import Package


class HubName(StrEnum):
    """The hubs."""

    hf = "hf"
    modelscope = "modelscope"


def push(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of an adapter, a model or an export.", show_default=False),
    ],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.", show_default=False)],
    to: Annotated[HubName, typer.Option("--to", help="The hub.")] = HubName.hf,
    base_model: Annotated[
        str | None,
        typer.Option(help="Hub id of the base model; default: found in the folder's files."),
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option("--license", help="License of the weights; default: that of the base."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="For a new repository.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the files and the card; upload nothing.")
    ] = False,
    with_failed_proofs: Annotated[
        bool,
        typer.Option("--with-failed-proofs", help="Publish although a proof of the run failed."),
    ] = False,
) -> None:
    """Upload a folder with its model card to Hugging Face or ModelScope.

    Only what a reader needs is uploaded: weights, configuration, tokenizer, recipe and card.
    Paths of this machine are shortened or refused.

    Example: glmtune push out my-name/chatglm3-support --dry-run
    """
    from glmtune.prove.card import find_paths, without_paths
    from glmtune.prove.folder_card import card_for, facts_of
    from glmtune.use.export import push as hub

    hub.check_repo(repo)
    if not folder.is_dir():
        raise OutputError(f"{folder}: there is no such folder. Give the output.dir of a run.")
    facts = facts_of(folder, base=base_model, license_id=license_id)
    _refuse_unknown(folder, facts)
    failed = [proof.name for proof in facts.proofs if proof.verdict == "failed"]
    if failed and not with_failed_proofs:
        raise OutputError(
            f"{folder}: failed proofs: {'; '.join(failed)}. report.html says what to do. "
            "To publish it anyway, pass --with-failed-proofs; the card lists them."
        )
    card = card_for(folder, facts, repo)
    package = hub.pack(folder, card, facts.base, shorten=without_paths, find_paths=find_paths)
    if dry_run:
        _print_package(package, card)
        return
    _print_files(package)
    address = hub.push(package, repo, to.value, private=private)
    typer.echo(address)


def _refuse_unknown(folder: Path, facts: "RunFacts") -> None:
    """Refuse a card without a base or a license."""
    if facts.base is None:
        raise OutputError(
            f"{folder}: the hub id of its base model is not known ({facts.base_name} is a path). "
            "Pass --base-model, such as --base-model zai-org/chatglm3-6b."
        )
    if facts.license is None:
        raise OutputError(
            f"{folder}: the license of {facts.base} is not known here. Pass --license with the "
            "identifier of the hub, such as --license apache-2.0."
        )


def _print_files(package: "Package") -> None:
    for upload in package.uploads:
        changed = "  without paths of this machine" if upload.text is not None else ""
        note = "  new" if upload.name == "README.md" else changed
        size = readable(upload.num_bytes)
        typer.echo(f"{size:>10}  {upload.name}{translate(note)}", err=True)
    if package.left_out:
        echo(f"not uploaded: {', '.join(package.left_out)}", err=True)


def _print_package(package: "Package", card: str) -> None:
    _print_files(package)
    typer.echo(f"\n{card}")
    echo("Nothing was uploaded (--dry-run).", err=True)
