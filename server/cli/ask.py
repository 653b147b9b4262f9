"""``fs-serve ask``: asks one question about one image, and shows the answer with its certificate."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fs_runtime.cli.options import JsonOption, ModelOption
from fs_runtime.rounding import at_least, percent


def ask(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Image to ask about.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    url: Annotated[
        str | None, typer.Option(envvar="FS_URL", help="URL of a running gateway; without it the model is loaded here.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="FS_API_KEY", help="Key for that gateway.")] = None,
    model: ModelOption = "reference",
    sigma: Annotated[float | None, typer.Option(min=0.0, help="Noise level; 0 switches smoothing off.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Noise samples.")] = None,
    radius: Annotated[float | None, typer.Option(min=0.0, help="l2 radius to certify at.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask one question about one image, and show the answer with its certificate."""
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
    """Asks a running gateway, or else one in this process."""
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

    from server.access.directory import AccessDirectory
    from server.app import create_app
    from server.models.configured import ConfiguredModels
    from server.observability.logs import configure_logging
    from server.settings.gateway import Settings

    settings = Settings(
        log_level="warning", model=model, language_model="embedded", api_keys=[], access_file=None, models_file=None
    )
    configure_logging(settings)
    application = create_app(settings, AccessDirectory(settings), ConfiguredModels(settings))
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
        if certificate.get("fidelity") is not None:  # servers of earlier versions have none
            served = certificate["fidelity"]["served"]
            console.print(f"[dim]Their similarity to the features of this image without noise is {served:.3f}.[/dim]")
