"""What dashboards and rules ask Prometheus."""

import json
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from prometheus_client import Counter, Gauge, Histogram, Info

from server.observability.metric_table import MetricTable

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
# Prometheus makes these itself.
BUILT_IN = {"up", "ALERTS"}
_ENDINGS = {Counter: ("_total",), Gauge: ("",), Histogram: ("_bucket", "_count", "_sum"), Info: ("_info",)}


def rules() -> list[dict[str, Any]]:
    """All rules, recording and alerting."""
    return [rule for file in RULES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def recorded() -> set[str]:
    """Names that recording rules make."""
    return {rule["record"] for rule in rules() if "record" in rule}


def exported() -> set[str]:
    """Names of all series that the gateway may export, beside those of its process."""
    return {row.name + ending for row in MetricTable.rows() for ending in _ENDINGS[row.kind]}


def dashboard_queries(file: Path) -> list[str]:
    """The queries of one dashboard, with Grafana's variables put in."""
    panels = json.loads(file.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    return [
        text.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$model", ".*")
        for text in expressions
    ]


def metric_names(expression: str) -> set[str]:
    """The names of the series that a PromQL expression reads."""
    names: set[str] = set()
    pending: list[Any] = [promql_parser.parse(expression)]
    while pending:
        node = pending.pop()
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, expression
            names.add(node.name)
        elif isinstance(node, promql_parser.BinaryExpr):
            pending += [node.lhs, node.rhs]
        elif isinstance(node, promql_parser.Call):
            pending += node.args
        elif not isinstance(node, promql_parser.NumberLiteral | promql_parser.StringLiteral):
            pending.append(node.vector_selector if isinstance(node, promql_parser.MatrixSelector) else node.expr)
    return names


def all_expressions() -> list[str]:
    """Everything that rules and dashboards ask."""
    return [rule["expr"] for rule in rules()] + [query for file in DASHBOARDS for query in dashboard_queries(file)]
