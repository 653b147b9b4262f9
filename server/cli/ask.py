"""``fs-serve ask``: asks one question about one image, and shows the answer with its certificate."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from fs_runtime.cli.options import JsonOption, ModelOption
from fs_runtime.rounding import at_least, percent
from fs_runtime.system.progress_bar import ProgressBar
from server.cli.answer_stream import read_answer
from server.cli.certified_answer import print_certified_answer


def ask(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Image to ask about.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    url: Annotated[
        str | None, typer.Option(envvar="FS_URL", help="URL of a running gateway; without it the model is loaded here.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="FS_API_KEY", help="Key for that gateway.")] = None,
    model: ModelOption = "reference",
    sigma: Annotated[float | None, typer.Option(min=0.0, help="Noise level; 0 switches smoothing off.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Noise samples; with --certify, noisy copies that are asked about.")
    ] = None,
    radius: Annotated[float | None, typer.Option(min=0.0, help="l2 radius to certify at.")] = None,
    certify: Annotated[
        bool,
        typer.Option(
            "--certify",
            help="Certify the answer itself, by a vote over noisy copies; exit status 1 if it is not at the radius.",
        ),
    ] = False,
    choices: Annotated[
        list[str] | None, typer.Option(help="With --certify: what the answer may be; give it for each of them.")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="With --certify: regular expression (RE2) whose first group, or match, is what counts."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask one question about one image, and show the answer with its certificate."""
    for name, value in (("choices", choices), ("pattern", pattern)):
        if value and not certify:
            raise typer.BadParameter("only a certified answer is voted on; add --certify", param_hint=f"--{name}")
    asked = {"sigma": sigma}
    of_vote = {"samples": samples, "radius": radius}
    if certify:
        vote = {**of_vote, "choices": choices or None, "pattern": pattern}
        options: dict[str, Any] = {**_given(asked), "answer": {"certify": True, **_given(vote)}}
    else:
        options = _given({**asked, **of_vote})
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
        "robustness": options,
    }
    if certify:  # the stream tells how many votes there are so far
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    with _progress(shown=certify) as progress:
        status, answer = asyncio.run(_ask(body, url, api_key, model, progress))
    voted = answer["robustness"]["answer"] if status == 200 else None
    if as_json:
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    elif status != 200:
        typer.echo(f"error {status}: {answer['error']['message']}", err=True)
    elif certify:
        print_certified_answer(answer, _pixels_of(image), Console(highlight=False))
    else:
        _show(answer)
    raise typer.Exit(0 if status == 200 and (voted is None or voted["satisfied"]) else 1)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Shows how many votes there are, on standard error; yields what takes their number, and the most."""
    columns = (TextColumn("votes"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProgressBar(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task("votes", total=None)
        yield lambda votes, most: bar.update(task, completed=votes, total=most)


def _pixels_of(image: Path) -> int:
    with Image.open(image) as picture:  # the gateway has read it, so it can be
        return picture.width * picture.height


async def _ask(
    body: dict[str, Any], url: str | None, api_key: str | None, model: str, progress: Callable[[int, int], None]
) -> tuple[int, dict[str, Any]]:
    """Asks a running gateway, or else one in this process."""
    import httpx

    async def post(client: httpx.AsyncClient) -> tuple[int, dict[str, Any]]:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        listed = await client.get("/v1/models", headers=headers)
        if listed.status_code != 200:
            return listed.status_code, listed.json()
        body["model"] = listed.json()["data"][0]["id"]
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as reply:
            if reply.headers.get("content-type", "").startswith("text/event-stream"):
                return await read_answer(reply.aiter_lines(), progress)
            await reply.aread()
            return reply.status_code, reply.json()

    if url:
        async with httpx.AsyncClient(base_url=url.rstrip("/").removesuffix("/v1"), timeout=300) as client:
            try:
                return await post(client)
            except httpx.HTTPError as error:
                typer.echo(f"no gateway answers at {url}: {error or type(error).__name__}", err=True)
                raise typer.Exit(1) from None

    from server.access.directory import AccessDirectory
    from server.app import create_app
    from server.cli.asgi_transport import StreamingTransport
    from server.models.configured import ConfiguredModels
    from server.observability.logs import configure_logging
    from server.settings.gateway import Settings

    settings = Settings(
        log_level="warning", model=model, language_model="embedded", api_keys=[], access_file=None, models_file=None
    )
    configure_logging(settings)
    application = create_app(settings, AccessDirectory(settings), ConfiguredModels(settings))
    async with application.router.lifespan_context(application):
        transport = StreamingTransport(application)
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
        if certificate.get("fidelity") is not None:  # servers of earlier versions have none
            served = certificate["fidelity"]["served"]
            console.print(f"[dim]Their similarity to the features of this image without noise is {served:.3f}.[/dim]")
