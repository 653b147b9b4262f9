from collections.abc import Sequence
from typing import get_args

import pytest

from fs_runtime.engine.request import CacheOutcome, Ending
from server.observability.metric_rows import Counted
from server.observability.metric_table import MetricTable
from server.observability.metrics import Metrics
from server.rate_limits.limiter import Limit
from server.robustness.answer_entry import Outcome, Shortfall
from server.robustness.policy import Decision


def test_each_metric_has_one_row_and_says_what_it_is() -> None:
    rows = MetricTable.rows()
    assert len({row.name for row in rows}) == len(rows) > 50
    assert [row.name for row in rows if not row.name.startswith("fs_") or not row.help.endswith(".")] == []


@pytest.mark.parametrize(
    ("row", "label", "values"),
    [
        (MetricTable.rate_limited, "limit", get_args(Limit)),
        (MetricTable.policy_decisions, "decision", get_args(Decision)),
        (MetricTable.cache_requests, "outcome", (*get_args(CacheOutcome), "off")),
        (MetricTable.endings, "ended", get_args(Ending)),
        (MetricTable.answers, "outcome", get_args(Outcome)),
        (MetricTable.answer_abstentions, "reason", get_args(Shortfall)),
    ],
    ids=lambda argument: argument.name if isinstance(argument, Counted) else "",
)
def test_values_that_are_known_beforehand_are_those_of_the_code(
    row: Counted, label: str, values: Sequence[str]
) -> None:
    assert sorted(row.labels[label]) == sorted(values)


def test_series_that_are_sure_to_come_start_at_zero() -> None:
    metrics = Metrics(("/v1/certify",))
    value = metrics.registry.get_sample_value
    images = {"certified": "off", "parameters": "own", "model": "one"}
    assert value("fs_rate_limited_total", {"limit": "images"}) == 0
    assert value("fs_request_errors_total", {"code": "internal_error", "fault": "server"}) == 0
    assert value("fs_stage_duration_seconds_count", {"stage": "fetch", "model": ""}) == 0
    assert value("fs_images_total", images) is None
    metrics.models.of_model("one")
    assert value("fs_images_total", images) == 0
    assert value("fs_samples_per_image_count", {"model": "one"}) == 0
    assert value("fs_model_requests_total", {"route": "/v1/certify", "model": "one"}) == 0


def test_series_of_which_something_is_not_known_do_not() -> None:
    metrics = Metrics(("/v1/certify",))
    metrics.models.of_model("one")
    started = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    assert not started & {
        "fs_requests_total",
        "fs_request_duration_seconds_count",
        "fs_refused_images_total",
        "fs_rate_limits_shared",
        "fs_upstream_requests_total",
        "fs_upstream_sheds_total",
    }
