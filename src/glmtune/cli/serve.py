"""`glmtune serve`: an OpenAI-compatible server, with a page to chat in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import AnyTemplate, DtypeOption, ModelArgument, PromptLayout
from glmtune.cli.printing import echo
from glmtune.errors import CheckpointError
from glmtune.gc_pause import loading


def serve(
    model: ModelArgument,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter", metavar="[NAME=]DIR", help="Folder of an adapter; may be repeated."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="GLMTUNE_API_KEY",
            show_envvar=True,
            help="Key that requests must give; needed if other machines can reach the address.",
        ),
    ] = None,
    no_key: Annotated[
        bool, typer.Option("--no-key", help="Let everybody in who can reach the address.")
    ] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Let pages of this origin use the API; may be repeated."),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Maximum of answers at once.")] = 32,
    max_queue: Annotated[int, typer.Option(min=1, help="Maximum of requests that wait.")] = 128,
    max_length: Annotated[
        int, typer.Option(min=16, help="Maximum length of a prompt with its answer, in tokens.")
    ] = 8192,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum length of an answer, in tokens.")
    ] = 2048,
    max_body_bytes: Annotated[int, typer.Option(min=1024, help="Maximum size of a request.")] = 4
    * 2**20,
    timeout: Annotated[
        float, typer.Option(min=1, help="Maximum time from a request to its answer, in seconds.")
    ] = 600.0,
    layout: PromptLayout = None,
    dtype: DtypeOption = "auto",
    int8: Annotated[
        bool, typer.Option("--int8", help="Compute in int8, with half the memory.")
    ] = False,
    any_template: AnyTemplate = False,
) -> None:
    """Serve a model and adapters over it with OpenAI's API, and a page to chat with them.

    Example: glmtune serve ./chatglm3-6b --adapter mine=out/chatglm3-lora
    """
    adapters = read_adapters(adapter or [])
    with loading():
        from glmtune.use.serve.access import Access, Address, check_access, require_packages

        require_packages()
        from glmtune.use.serve.engine import Limits
        from glmtune.use.serve.hosted import open_hosted
        from glmtune.use.serve.run import serve as run

        address = Address(host, port, no_key)
        access = Access(api_key, tuple(allow_origin or ()), max_body_bytes=max_body_bytes)
        check_access(address, access)
        hosted = open_hosted(
            model,
            adapters,
            layout=layout,
            dtype=dtype,
            compute="int8" if int8 else None,
            any_template=any_template,
        )
    limits = Limits(
        max_batch=max_batch,
        max_queue=max_queue,
        max_length=max_length,
        max_new_tokens=max_new_tokens,
        timeout_seconds=timeout,
    )
    run(hosted, address=address, access=access, limits=limits, announce=echo)


def read_adapters(values: list[str]) -> dict[str, Path]:
    """Read `NAME=DIR`, or `DIR`, whose name is that of the folder.

    Raises:
        CheckpointError: a name is given twice.
    """
    adapters: dict[str, Path] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or "/" in name:
            name, folder = Path(value).resolve().name, value
        if name in adapters:
            raise CheckpointError(
                f"two adapters are named {name!r}. Give them different names: --adapter NAME=DIR."
            )
        adapters[name] = Path(folder)
    return adapters
