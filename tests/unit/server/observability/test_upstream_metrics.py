from typing import Any

from server.language_models.vllm.retries import Outcome
from server.observability.metrics import Metrics
from server.observability.upstream_metrics import PoolReading, ServerReading


def labels(metrics: Metrics) -> set[tuple[str, ...]]:
    """All label sets of all series."""
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items())))
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def watch(metrics: Metrics, model: str, *servers: str) -> None:
    upstreams = metrics.models.of_model(model).upstreams
    reading = PoolReading(tuple(ServerReading(name, 0, True, "closed") for name in servers), 0, 1.0)
    upstreams.watch(lambda: reading)
    for server in servers:
        upstreams.observe(server, Outcome.ANSWERED, 0.1)
    upstreams.count_shed("no_place")
    upstreams.count_retry(Outcome.BUSY)


def test_a_forgotten_model_leaves_no_series_and_takes_none_of_others() -> None:
    metrics = Metrics()
    before = labels(metrics)
    watch(metrics, "one", "a:1")
    with_one = labels(metrics)
    assert len(with_one) > len(before) + 20
    watch(metrics, "two", "a:1", "b:2")
    metrics.models.of_model("two").count_tokens("input", 3)
    metrics.models.forget("two")
    assert labels(metrics) == with_one
    metrics.models.forget("one")
    assert labels(metrics) == before


def test_a_new_pool_takes_the_place_of_the_old_one() -> None:
    metrics = Metrics()
    watch(metrics, "m", "a:1", "b:2")
    watch(metrics, "m", "b:2", "c:3")
    upstreams = metrics.models.of_model("m").upstreams
    upstreams.observe("a:1", Outcome.ANSWERED, 1.0)  # its last request ends after the change

    def servers(name: str) -> set[Any]:
        found = (family.samples for family in metrics.registry.collect())
        return {sample.labels["server"] for samples in found for sample in samples if sample.name == name}

    assert servers("fs_upstream_healthy") == {"b:2", "c:3"}
    upstreams.retire(["a:1", "b:2"])
    assert servers("fs_upstream_requests_total") == servers("fs_upstream_duration_seconds_count") == {"b:2", "c:3"}
