from typing import Any

from server.language_models.places import Places
from server.language_models.pool import Pool, Server
from server.language_models.retries import Outcome, RetryBudget
from server.metrics import Metrics


def labels(metrics: Metrics) -> set[tuple[str, ...]]:
    """All label sets of all series."""
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items())))
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def watch(metrics: Metrics, model: str, *servers: str) -> Pool:
    pool = Pool(Server(f"http://{name}", 1) for name in servers)
    upstreams = metrics.models.of_model(model).upstreams
    upstreams.watch(pool, Places(pool, 1, 1.0), RetryBudget(reserve=1))
    for server in pool.servers:
        upstreams.observe(server, Outcome.ANSWERED, 0.1)
    upstreams.count_shed("no_place")
    upstreams.count_retry(Outcome.BUSY)
    return pool


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
    old = watch(metrics, "m", "a:1", "b:2")
    watch(metrics, "m", "b:2", "c:3")
    upstreams = metrics.models.of_model("m").upstreams
    upstreams.observe(old.servers[0], Outcome.ANSWERED, 1.0)  # its last request ends after the change

    def servers(name: str) -> set[Any]:
        found = (family.samples for family in metrics.registry.collect())
        return {sample.labels["server"] for samples in found for sample in samples if sample.name == name}

    assert servers("fs_upstream_healthy") == {"b:2", "c:3"}
    upstreams.retire(old)
    assert servers("fs_upstream_requests_total") == servers("fs_upstream_duration_seconds_count") == {"b:2", "c:3"}
