"""The ``fs-serve`` command: ``serve`` and ``ask`` here, the runtime's commands beside them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console

from fs_runtime import __version__
from fs_runtime.cli import JsonOption, ModelOption, add_commands, bench
from fs_runtime.statements import at_least, percent
from server.access.cli import api_key
from server.bench_serve_command import bench_serve
from server.log_output import open_missing_streams

app = typer.Typer(
    name="fs-serve",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Certified feature-space smoothing in front of a multimodal language model.",
)


@app.callback(invoke_without_command=True)
def version_option(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Certified feature-space smoothing in front of a multimodal language model."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


# Flags, their help and their order of precedence all come from Settings, so the command takes its arguments raw.
@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def serve(context: typer.Context) -> None:
    """Start the gateway. `fs-serve serve --help` lists every setting; `--config FILE` reads them from YAML."""
    _end_when_told()
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from server.environment import unknown_variables
    from server.run import run
    from server.settings import CONFIG_FILE_VARIABLE, Settings

    arguments = list(context.args)
    for index, argument in enumerate(arguments):
        if argument == "--config" and index + 1 < len(arguments):
            os.environ[CONFIG_FILE_VARIABLE] = arguments[index + 1]
            del arguments[index : index + 2]
            break
        if argument.startswith("--config="):
            os.environ[CONFIG_FILE_VARIABLE] = argument.partition("=")[2]
            del arguments[index]
            break
    try:
        settings = Settings(_cli_parse_args=arguments, _cli_prog_name="fs-serve serve")
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            where = ".".join(map(str, problem["loc"]))
            message = problem["msg"].removeprefix("Value error, ")
            typer.echo(f"setting {where}: {message}" if where else f"settings: {message}", err=True)
        raise typer.Exit(2) from None
    except (SettingsError, FileNotFoundError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if unknown := unknown_variables(os.environ):
        typer.echo("\n".join(unknown), err=True)
        raise typer.Exit(2)
    raise typer.Exit(run(settings))


def _end_when_told() -> None:
    """Has SIGTERM and SIGINT end the process at once, until the server listens and takes them.

    Without a handler the first process of a container would ignore SIGTERM for as long as its models load.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Picture to ask about.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    url: Annotated[
        str | None, typer.Option(envvar="FS_URL", help="A running gateway; without it the model is loaded here.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="FS_API_KEY", help="Key for that gateway.")] = None,
    model: ModelOption = "reference",
    sigma: Annotated[float | None, typer.Option(min=0.0, help="Noise level; 0 switches smoothing off.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Noise samples.")] = None,
    radius: Annotated[float | None, typer.Option(min=0.0, help="l2 radius to certify at.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask one question about one picture and show the answer with what is certified."""
    options = {"sigma": sigma, "samples": samples, "radius": radius}
    suffix = {".jpg": "jpeg", ".jpeg": "jpeg"}.get(image.suffix.lower(), image.suffix.lower().strip(".") or "png")
    picture = f"data:image/{suffix};base64,{base64.b64encode(image.read_bytes()).decode()}"
    body: dict[str, Any] = {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}],
            }
        ],
        "temperature": 0,
        "robustness": {name: value for name, value in options.items() if value is not None},
    }
    status, answer = asyncio.run(_ask(body, url, api_key, model))
    if as_json:
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    elif status == 200:
        _show(answer)
    else:
        typer.echo(f"error {status}: {answer['error']['message']}", err=True)
    raise typer.Exit(0 if status == 200 else 1)


async def _ask(body: dict[str, Any], url: str | None, api_key: str | None, model: str) -> tuple[int, dict[str, Any]]:
    """Asks a running gateway, or one made for this question alone."""
    import httpx

    async def post(client: httpx.AsyncClient) -> tuple[int, dict[str, Any]]:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        listed = await client.get("/v1/models", headers=headers)
        if listed.status_code == 200:
            body["model"] = listed.json()["data"][0]["id"]
            listed = await client.post("/v1/chat/completions", json=body, headers=headers)
        return listed.status_code, listed.json()

    if url:
        async with httpx.AsyncClient(base_url=url.rstrip("/").removesuffix("/v1"), timeout=300) as client:
            try:
                return await post(client)
            except httpx.HTTPError as error:
                typer.echo(f"no gateway answers at {url}: {error or type(error).__name__}", err=True)
                raise typer.Exit(1) from None

    from server.app import create_app
    from server.run import configure_logging
    from server.settings import Settings

    settings = Settings(
        log_level="warning", model=model, language_model="embedded", api_keys=[], access_file=None, models_file=None
    )
    configure_logging(settings)
    application = create_app(settings)
    async with application.router.lifespan_context(application):
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://fs-serve", timeout=300) as client:
            return await post(client)


def _show(answer: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(answer["choices"][0]["message"]["content"])
    for certificate in answer["robustness"]["images"]:
        radius = f"within an ℓ2 radius of {at_least(certificate['radius']['model'], 6)} (pixels in [0, 1])"
        if certificate["certified"]:
            confidence, similarity = percent(certificate["confidence"]), at_least(certificate["smoothed"]["best"])
            console.print(
                f"[dim]With {confidence} confidence the smoothed features of every image {radius} "
                f"have a cosine similarity of at least {similarity} to those of this one "
                f"(σ = {certificate['sigma']:g}, {certificate['samples']} samples).[/dim]"
            )
        else:
            console.print(f"[dim]No similarity is certified {radius}: take more samples or a smaller radius.[/dim]")


def main() -> None:
    """Entry point of the console script."""
    open_missing_streams()
    bench.command("serve")(bench_serve)
    add_commands(app)
    app.add_typer(api_key, name="api-key")
    try:
        app(prog_name="fs-serve")
    except ValueError as error:
        from fs_runtime.encoders import CheckpointError  # not above: it loads torch, and help should be quick

        if not isinstance(error, CheckpointError):
            raise
        typer.echo(f"cannot load the model: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
