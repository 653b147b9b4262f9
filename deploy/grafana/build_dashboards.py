"""Writes dashboards/*.json. Run it after a change here: python deploy/grafana/build_dashboards.py."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from server.observability.metric_table import MetricTable

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
COLUMNS = 24  # of Grafana's grid
API = 'route=~"/v1/.*"'
G = '{instance=~"$instance"}'
C = '{model=~"$model"}'  # for certificate metrics, which are aggregated over all instances
M = '{instance=~"$instance", model=~"$model"}'
BY_MODEL = {row.name for row in MetricTable.rows() if "model" in row.labels}


@dataclass(frozen=True)
class Panel:
    """One panel: its queries by legend, and its display options."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    description: str = ""
    most: float | None = None
    stacked: bool = False


def rate(metric: str, labels: str = "") -> str:
    """Makes a query for the events per second of a counter, at the selected instances and models."""
    by_model = metric.removesuffix("_total").removesuffix("_bucket") in BY_MODEL
    chosen = [*(['model=~"$model"'] if by_model else []), *([labels] if labels else [])]
    inside = ", ".join(['instance=~"$instance"', *chosen])
    return f"rate({metric}{{{inside}}}[$__rate_interval])"


def quantile(q: float, metric: str, labels: str = "", by: str = "") -> str:
    """A quantile of a histogram."""
    group = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({group}) ({rate(metric + '_bucket', labels)}))"


def heatmap(title: str, metric: str, description: str) -> Panel:
    """Makes a heatmap panel of a histogram over time."""
    query = {"{{le}}": f"sum by (le) (increase({metric}_bucket{M}[$__rate_interval]))"}
    return Panel(title, query, kind="heatmap", width=12, description=description)


SERVICE = [
    Panel("Gateways up", {"up": 'sum(up{job="fs-serve"})'}, kind="stat", width=3, height=4),
    Panel("vLLM up", {"up": 'sum(up{job="vllm"}) or vector(0)'}, kind="stat", width=3, height=4),
    Panel(
        "Alerts firing", {"alerts": 'count(ALERTS{alertstate="firing"}) or vector(0)'}, kind="stat", width=3, height=4
    ),
    Panel("Failing", {"failing": "max(job:fs_request_errors:ratio_rate5m) or vector(0)"}, "percentunit", "stat", 3, 4),
    Panel("Turned away", {"shed": "max(job:fs_requests_shed:ratio_rate5m) or vector(0)"}, "percentunit", "stat", 3, 4),
    Panel("In flight", {"requests": f"sum(fs_requests_in_flight{G})"}, kind="stat", width=3, height=4),
    Panel("Version", {"{{version}}": f"fs_build_info{G}"}, kind="stat", width=3, height=4),
    Panel("Memory", {"{{instance}}": f"process_resident_memory_bytes{G}"}, "bytes", "stat", 3, 4),
    Panel(
        "Requests",
        {"{{route}} {{status}}": f"sum by (route, status) ({rate('fs_requests_total', API)})"},
        "reqps",
        stacked=True,
    ),
    Panel("Errors", {"{{code}}": f"sum by (code) ({rate('fs_request_errors_total')})"}, "reqps"),
    Panel("Turned away, by reason", {"{{reason}}": f"sum by (reason) ({rate('fs_requests_shed_total')})"}, "reqps"),
    Panel(
        "Time of a request",
        {
            "p50": quantile(0.5, "fs_request_duration_seconds", API),
            "p95": quantile(0.95, "fs_request_duration_seconds", API),
            "p99": quantile(0.99, "fs_request_duration_seconds", API),
        },
        "s",
    ),
    Panel("Time by stage, p95", {"{{stage}}": quantile(0.95, "fs_stage_duration_seconds", by="stage")}, "s"),
    Panel(
        "Queue",
        {
            "{{model}} waiting": f"sum by (model) (fs_queued_samples{M})",
            "{{model}} limit": f"sum by (model) (fs_queue_limit_samples{M})",
        },
        description="Noise samples; above the limit requests are answered 429.",
    ),
    Panel(
        "Batch fill", {"{{model}} {{instance}}": "instance_model:fs_batch_fill:ratio_rate5m" + M}, "percentunit", most=1
    ),
    Panel("Samples", {"{{model}}": f"sum by (model) ({rate('fs_samples_total')})"}, "ops"),
    Panel("Tokens", {"{{direction}}": f"sum by (direction) ({rate('fs_language_model_tokens_total')})"}, "ops"),
    Panel("Language model errors", {"{{code}}": f"sum by (code) ({rate('fs_language_model_errors_total')})"}, "reqps"),
    Panel("Requests by model", {"{{model}}": f"sum by (model) ({rate('fs_model_requests_total')})"}, "reqps"),
    Panel(
        "Models",
        {"{{model}} {{state}}": f"sum by (model, state) (fs_model_state{M})"},
        description="Gateways at which each is ready, loading, failed (see their logs) or leaving.",
    ),
    Panel("vLLM requests", {"running": "sum(vllm:num_requests_running)", "waiting": "sum(vllm:num_requests_waiting)"}),
    Panel("vLLM cache in use", {"{{instance}}": "vllm:kv_cache_usage_perc"}, "percentunit", most=1),
]

ROBUSTNESS = [
    Panel(
        "Mean certified similarity",
        {"{{model}} {{parameters}}": "job_model_parameters:fs_certified_similarity:mean15m" + C},
        kind="stat",
        width=6,
        height=4,
        description="default: requests that left sigma, samples and radius to the operator; own: the others.",
    ),
    Panel(
        "Abstentions",
        {"{{model}} {{parameters}}": "job_model_parameters:fs_abstentions:ratio15m" + C},
        "percentunit",
        "stat",
        6,
        4,
    ),
    Panel("Images", {"images": f"sum(increase(fs_images_total{M}[1h]))"}, kind="stat", width=6, height=4),
    Panel(
        "Rejected for want of similarity",
        {"requests": 'sum(increase(fs_request_errors_total{code="certificate_below_minimum"}[1h]))'},
        kind="stat",
        width=6,
        height=4,
        description="In the last hour.",
    ),
    Panel(
        "Certified similarity: last 15 minutes and last day",
        {
            "15 min, {{model}} {{parameters}}": "job_model_parameters:fs_certified_similarity:mean15m" + C,
            "1 day, {{model}} {{parameters}}": "job_model_parameters:fs_certified_similarity:mean1d" + C,
        },
        width=12,
        description="A fall below the day's mean may be an attack, or other pictures than before.",
    ),
    Panel(
        "Images by outcome",
        {"{{certified}} {{parameters}}": f"sum by (certified, parameters) ({rate('fs_images_total')})"},
        "ops",
        width=12,
        stacked=True,
    ),
    heatmap("Certified similarity", "fs_certified_similarity", "At the asked radius; 0 where nothing is certified."),
    heatmap("Fidelity", "fs_fidelity", "What smoothing leaves of the picture as sent: 1 is all of it."),
    Panel(
        "Mean fidelity",
        {"15 min, {{model}} {{parameters}}": "job_model_parameters:fs_fidelity:mean15m" + C},
        description="Low where noise drowns pictures: choose a smaller sigma, or tune a purifier.",
    ),
    heatmap("Lower bound of ρ", "fs_norm_lower", "The norm of the smoothed feature, from 0 to 1."),
    Panel(
        "Samples for one image",
        {"p50": quantile(0.5, "fs_samples_per_image"), "p95": quantile(0.95, "fs_samples_per_image")},
    ),
    Panel("Why sampling ended", {"{{ended}}": f"sum by (ended) ({rate('fs_sampling_endings_total')})"}, "ops"),
    Panel(
        "Time of smoothing, p95", {"smoothing": quantile(0.95, "fs_stage_duration_seconds", 'stage="smoothing"')}, "s"
    ),
    Panel(
        "Abstentions of answers",
        {"{{model}} {{parameters}}": "job_model_parameters:fs_answer_abstentions:ratio15m" + C},
        "percentunit",
        "stat",
        6,
        4,
        description="Of the answers that were voted on, those that are not certified at the asked radius.",
    ),
    Panel(
        "Mean certified radius of answers",
        {"{{model}} {{parameters}}": "job_model_parameters:fs_answer_radius:mean15m" + C},
        kind="stat",
        width=6,
        height=4,
        description="ℓ2, on the encoder's images, in pixels of [0, 1]; 0 where none is certified.",
    ),
    Panel("Answers voted on", {"answers": f"sum(increase(fs_answers_total{M}[1h]))"}, kind="stat", width=6, height=4),
    Panel("Votes", {"votes": f"sum(increase(fs_votes_total{M}[1h]))"}, kind="stat", width=6, height=4),
    heatmap("Certified radius of answers", "fs_answer_radius", "ℓ2, on the encoder's images; 0 where none is."),
    heatmap("Agreement of votes", "fs_answer_agreement", "Share of the votes for the winner."),
    Panel(
        "Answers by outcome",
        {"{{outcome}} {{parameters}}": f"sum by (outcome, parameters) ({rate('fs_answers_total')})"},
        "ops",
        stacked=True,
    ),
    Panel(
        "Why answers are not certified",
        {"{{reason}}": f"sum by (reason) ({rate('fs_answer_abstentions_total')})"},
        "ops",
        stacked=True,
        description="split: the first copies chose none. samples: more copies would do. agreement: they would not.",
    ),
    Panel("Votes by outcome", {"{{outcome}}": f"sum by (outcome) ({rate('fs_votes_total')})"}, "ops", stacked=True),
    Panel(
        "Copies for one answer",
        {"p50": quantile(0.5, "fs_copies_per_answer"), "p95": quantile(0.95, "fs_copies_per_answer")},
    ),
    Panel("Time of votes, p95", {"votes": quantile(0.95, "fs_stage_duration_seconds", 'stage="votes"')}, "s"),
]

GPU = [
    Panel("Model", {"{{model}} on {{device}}": f"fs_model_info{M}"}, kind="stat", width=12, height=4),
    Panel("Batch size", {"{{model}} {{instance}}": f"fs_batch_size_samples{M}"}, kind="stat", width=6, height=4),
    Panel("Engine alive", {"{{model}} {{instance}}": f"fs_engine_alive{M}"}, kind="stat", width=6, height=4),
    Panel(
        "GPU memory",
        {
            "{{device}} used by all": f"fs_gpu_memory_used_bytes{G}",
            "{{device}} used by the gateway": f"fs_gpu_memory_reserved_bytes{G}",
            "{{device}} total": f"fs_gpu_memory_total_bytes{G}",
        },
        "bytes",
        width=12,
        description="Empty where the gateway runs without a GPU.",
    ),
    Panel("GPU busy", {"{{device}}": f"fs_gpu_utilization_ratio{G}"}, "percentunit", width=12, most=1),
    Panel("Batches", {"{{model}} {{instance}}": rate("fs_batches_total")}, "ops"),
    Panel(
        "Batch fill", {"{{model}} {{instance}}": "instance_model:fs_batch_fill:ratio_rate5m" + M}, "percentunit", most=1
    ),
    Panel("Processor time of the gateway", {"{{instance}}": rate("process_cpu_seconds_total")}, "s"),
]

DASHBOARDS = {
    "service": ("FS-Serve: service", SERVICE),
    "robustness": ("FS-Serve: robustness", ROBUSTNESS),
    "gpu": ("FS-Serve: GPU", GPU),
}


def dashboard(name: str) -> dict[str, Any]:
    """Makes the JSON model of a dashboard."""
    title, panels = DASHBOARDS[name]
    x = y = row = 0
    placed = []
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > COLUMNS:
            x, y, row = 0, y + row, 0
        placed.append(_panel(panel, number, x, y))
        x, row = x + panel.width, max(row, panel.height)
    return {
        "uid": f"fs-serve-{name}",
        "title": title,
        "tags": ["fs-serve"],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {
            "list": [_variable("instance", "Gateway", "fs_build_info"), _variable("model", "Model", "fs_model_info")]
        },
        "links": [{"type": "dashboards", "title": "FS-Serve", "tags": ["fs-serve"], "asDropdown": False}],
        "panels": placed,
    }


def _variable(name: str, label: str, metric: str) -> dict[str, Any]:
    """Makes a template variable with the values of a label."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": f"label_values({metric}, {name})", "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    options: dict[str, Any] = {}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        defaults["custom"] = {"fillOpacity": 20 if panel.stacked else 5}
        if panel.stacked:
            defaults["custom"]["stacking"] = {"mode": "normal"}
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    elif panel.kind == "stat":
        named = any("{{" in legend for legend in panel.queries)
        options = {"textMode": "value_and_name" if named else "value", "reduceOptions": {"calcs": ["lastNotNull"]}}
    elif panel.kind == "heatmap":
        options = {"calculate": False, "yAxis": {"unit": panel.unit}}
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": SOURCE,
            "expr": expression,
            "legendFormat": legend,
            "format": "heatmap" if panel.kind == "heatmap" else "time_series",
            "instant": panel.kind == "stat",
            "range": panel.kind != "stat",
        }
        for index, (legend, expression) in enumerate(panel.queries.items())
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def text(name: str) -> str:
    """The file's contents."""
    return json.dumps(dashboard(name), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in DASHBOARDS:
        (FOLDER / f"{each}.json").write_text(text(each), encoding="utf-8")
