from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fs_runtime.system.gpu import GpuState
from server.models import metrics as module
from server.models.metrics import register_models
from server.observability.metric_rows import Scraped
from server.observability.metric_table import MetricTable
from server.observability.metrics import Metrics
from server.observability.upstream_metrics import PoolReading, ServerReading


def model(name: str, device: str, shared_cache: Any = None) -> Any:
    engine = SimpleNamespace(
        encoder=SimpleNamespace(family="clip", fingerprint="ab12", device=device),
        alive=True,
        seconds_since_heartbeat=0.5,
        queued_samples=3,
        queue_limit=9,
        batch_size=4,
        queued_images=2,
        estimated_wait=None,
        cache_bytes=10,
        cached_images=1,
        batches=7,
        batch_fill=6.5,
        samples_drawn=30,
        out_of_memory_events=1,
        scheduler_faults=2,
        shared_cache=shared_cache,
    )
    return SimpleNamespace(name=name, engine=engine)


def register(registry: CollectorRegistry, *models: Any) -> None:
    directory: Any = SimpleNamespace(running=models, states={each.name: "ready" for each in models})
    register_models(registry, directory)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    state = GpuState("cuda:0", "H200", total_bytes=9, used_bytes=5, reserved_bytes=4, limit_bytes=8, utilization=None)
    monkeypatch.setattr(module, "gpu_state", lambda device: state if device == "cuda:0" else None)


def test_every_metric_that_the_table_has_scraped_is_there() -> None:
    metrics = Metrics()
    reading = PoolReading((ServerReading("a:1", 2, True, "half_open"),), 3, 1.5)
    metrics.models.of_model("one").upstreams.watch(lambda: reading)
    register(metrics.registry, model("one", "cuda:0", SimpleNamespace(up=True, lookups=Counter(), writes=Counter())))
    found = {family.name: family for family in metrics.registry.collect()}
    scraped = [row for row in MetricTable.rows() if isinstance(row, Scraped)]
    assert [row.name for row in scraped if row.name not in found] == []
    assert [row.name for row in scraped if not found[row.name].samples] == ["fs_gpu_utilization_ratio"]


def test_figures_are_those_of_each_model_and_of_each_device_once() -> None:
    registry = CollectorRegistry()
    register(registry, model("one", "cpu"), model("two", "cuda:0"), model("three", "cuda:0"))
    value = registry.get_sample_value
    assert value("fs_samples_total", {"model": "one"}) == 30
    assert value("fs_engine_faults_total", {"model": "two", "kind": "scheduler"}) == 2
    assert value("fs_model_info", {"model": "one", "family": "clip", "fingerprint": "ab12", "device": "cpu"}) == 1
    memory = [family for family in registry.collect() if family.name == "fs_gpu_memory_limit_bytes"]
    assert [(sample.labels["device"], sample.value) for sample in memory[0].samples] == [("cuda:0", 8)]
    assert [family.name for family in registry.collect() if "shared_cache" in family.name] == []
