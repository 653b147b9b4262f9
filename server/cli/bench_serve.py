"""``fs-serve bench serve``: latency and throughput over HTTP as a table, as JSON, and as a plot."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import httpx
import typer
from rich.console import Console
from rich.table import Table

from fs_runtime.cli.bench.output import OutputOption, present
from fs_runtime.cli.options import DeviceOption, DtypeOption, JsonOption, ModelOption, PsmOption

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fs_runtime.smoothing.smoother import Smoother
    from server.cli.http_load import Rate, ServeBenchmark
    from server.settings.gateway import Settings


def bench_serve(
    model: ModelOption = "reference",
    psm: PsmOption = "auto",
    url: Annotated[
        str | None,
        typer.Option(help="URL of a running gateway, instead of one that is started here for the benchmark."),
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="FS_API_KEY", help="Key for that gateway.")] = None,
    clients: Annotated[int, typer.Option(min=1, help="Concurrent requests of a crowd.")] = 32,
    samples: Annotated[int, typer.Option(min=1, help="Noise samples of each, and of a small request.")] = 32,
    large_samples: Annotated[int, typer.Option(min=1, help="Noise samples of the large request.")] = 4096,
    repeats: Annotated[int, typer.Option(min=2, help="Requests for each latency, except the crowd's.")] = 30,
    rounds: Annotated[int, typer.Option(min=1, help="Number of crowds.")] = 5,
    side: Annotated[int, typer.Option(min=7, help="Height and width of the images, in pixels.")] = 336,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Noise samples in one batch.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Latency over HTTP: concurrent requests (a crowd), small ones beside a large one, cached images, fresh draws."""
    from server.cli.http_load import benchmark_serve
    from server.settings.gateway import Settings

    async def measure(address: str, rate: Rate | None) -> ServeBenchmark:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=clients + 1)
        async with httpx.AsyncClient(base_url=address, headers=headers, timeout=600, limits=limits) as client:
            return await benchmark_serve(
                client,
                rate,
                clients=clients,
                samples=samples,
                large_samples=large_samples,
                repeats=repeats,
                rounds=rounds,
                side=side,
                progress=status.update,
            )

    with Console(stderr=True).status("starting") as status:
        try:
            if url is not None:
                found = asyncio.run(measure(url, None))
            else:
                settings = Settings(
                    model=model,
                    psm=psm,
                    device=device,
                    dtype=dtype,
                    batch_size=batch_size,
                    max_samples=max(4096, large_samples),
                    language_model="none",
                    api_keys=[],
                    log_level="warning",
                )
                with _gateway(settings) as (address, rate):
                    found = asyncio.run(measure(address, rate))
        except httpx.HTTPStatusError as error:
            typer.echo(f"the gateway answered {error.response.status_code}: {error.response.text[:300]}", err=True)
            raise typer.Exit(1) from None
        except httpx.HTTPError as error:
            typer.echo(f"no gateway answers: {error or type(error).__name__}", err=True)
            raise typer.Exit(1) from None
    title = f"{url or model}: through HTTP"
    present(
        found,
        lambda: [_table(found, title)],
        as_json=as_json,
        output=output,
        draw=lambda axes: _draw(found, title, axes),
    )


@contextmanager
def _gateway(settings: Settings) -> Iterator[tuple[str, Rate]]:
    """Runs a gateway on 127.0.0.1. Yields its address, and a function that measures the pass without HTTP."""
    import uvicorn

    from server.access.directory import AccessDirectory
    from server.app import create_app
    from server.models.configured import ConfiguredModels
    from server.models.loading import load_model
    from server.observability.logs import configure_logging

    configure_logging(settings)
    loaded = load_model(settings)
    engine = loaded.engine
    application = create_app(settings, AccessDirectory(settings), ConfiguredModels(settings), [loaded])
    config = uvicorn.Config(application, port=0, log_config=None, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", lambda samples: _rate(engine.smoother, engine.batch_size, samples)
    finally:
        server.should_exit = True
        thread.join(30)


def _rate(smoother: Smoother, batch_size: int, samples: int) -> float:
    """Measures the samples per second of a pass with the options of a default request."""
    import numpy as np

    image = smoother.encoder.prepare(np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8))
    state = smoother.start(image, smoother.sigma, 1, spectral=True)
    start = time.perf_counter()
    while state.count < samples:
        for products in smoother.step([(state, min(batch_size, samples - state.count))]):
            products.image.cpu()
    return state.count / (time.perf_counter() - start)


def _table(found: ServeBenchmark, title: str) -> Table:
    table = Table("", "requests", "p50", "p90", "p99", "largest", title=title)
    rows = {
        f"{found.clients} at once, {found.samples} samples each": found.crowd,
        f"{found.samples} samples, alone": found.alone,
        f"{found.samples} samples beside {found.large_samples}": found.beside_large,
        "fresh draws": found.uncached,
        "cached image": found.cached,
    }
    for name, latency in rows.items():
        values = latency.p50, latency.p90, latency.p99, latency.most
        table.add_row(name, str(latency.count), *(f"{1e3 * value:.1f} ms" for value in values))
    ideal = f", {found.over_ideal:.3f} of the ideal at {found.rate:.4g}/s" if found.over_ideal and found.rate else ""
    table.caption = f"a crowd takes {found.crowd_seconds:.3g} s: {found.crowd_rate:.4g} samples/s{ideal}"
    return table


def _draw(found: ServeBenchmark, title: str, axes: Axes) -> None:
    rows = {
        "cached image": found.cached,
        "fresh draws": found.uncached,
        f"beside {found.large_samples} samples": found.beside_large,
        "alone": found.alone,
        f"{found.clients} at once": found.crowd,
    }
    for place, latency in enumerate(rows.values()):
        axes.plot([latency.p50, latency.p99], [place, place], color="0.7", linewidth=2, zorder=1)
        for value, marker, colour in (
            (latency.p50, "o", "#0072b2"),
            (latency.p90, "s", "#009e73"),
            (latency.p99, "D", "#d55e00"),
        ):
            axes.plot([value], [place], marker, color=colour)
    for name, marker, colour in (("p50", "o", "#0072b2"), ("p90", "s", "#009e73"), ("p99", "D", "#d55e00")):
        axes.plot([], [], marker, color=colour, label=name)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="seconds until the answer", xscale="log", title=f"{title}, {found.samples} samples each")
    axes.legend(fontsize="small")
