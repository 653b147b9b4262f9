"""Rules and dashboards by themselves: promtool's checks and tests, runbooks, structure."""

import fnmatch
import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import yaml

from server.observability.metric_table import MetricTable
from tests.dashboards import (
    BUILT_IN,
    DASHBOARDS,
    DEPLOY,
    RULES,
    all_expressions,
    dashboard_queries,
    exported,
    metric_names,
    recorded,
    rules,
)
from tests.system_packages import need

RULE_TESTS = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
ALERTS = [rule for rule in rules() if "alert" in rule]


def promtool(*arguments: str | Path) -> str:
    need("promtool")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_finds_no_fault() -> None:
    for name in ("prometheus.yml", "prometheus.cpu.yml"):
        assert "SUCCESS" in promtool("check", "config", DEPLOY / "prometheus" / name)
    assert "SUCCESS" in promtool("check", "rules", *RULES)


@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should(file: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", file)


def test_every_alert_is_tested_both_ways() -> None:
    fires: dict[str, set[bool]] = {}
    for file in RULE_TESTS:
        for case in yaml.safe_load(file.read_text())["tests"]:
            for test in case["alert_rule_test"]:
                fires.setdefault(test["alertname"], set()).add(bool(test["exp_alerts"]))
    assert fires == {rule["alert"]: {True, False} for rule in ALERTS}


def test_every_alert_has_a_severity_and_a_runbook_that_exists() -> None:
    text = (DEPLOY.parent / "docs" / "operations.md").read_text()
    anchors = {title.lower() for title in re.findall(r"^#+ (\w+)$", text, re.MULTILINE)}
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("page", "ticket")
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert path == "docs/operations.md"
        assert anchor == rule["alert"].lower()
        assert anchor in anchors


def test_the_configuration_without_vllm_is_else_the_same() -> None:
    full, cpu = (
        yaml.safe_load((DEPLOY / "prometheus" / name).read_text()) for name in ("prometheus.yml", "prometheus.cpu.yml")
    )
    full["scrape_configs"] = [job for job in full["scrape_configs"] if job["job_name"] != "vllm"]
    assert cpu == full


def test_rules_and_dashboards_name_metrics_that_there_are() -> None:
    named = {name for expression in all_expressions() for name in metric_names(expression)}
    elsewhere = {name for name in named if name.startswith(("process_", "vllm:"))}
    assert named - elsewhere <= exported() | recorded() | BUILT_IN


def test_the_manual_names_metrics_that_there_are() -> None:
    named = re.findall(r"`(fs_[a-z_*]+)(?:\{[^`]*\})?`", (DEPLOY.parent / "docs" / "operations.md").read_text())
    there = exported() | {row.name for row in MetricTable.rows()}  # a histogram by the name that its series share
    assert len(named) > 50
    assert [name for name in named if not fnmatch.filter(there, name)] == []


# --- dashboards -------------------------------------------------------------------------------------------------------


def test_dashboards_are_what_the_builder_writes() -> None:
    builder = runpy.run_path(str(DEPLOY / "grafana" / "build_dashboards.py"))
    assert {file.stem for file in DASHBOARDS} == builder["DASHBOARDS"].keys()
    for file in DASHBOARDS:
        assert file.read_text() == builder["text"](file.stem), "run deploy/grafana/build_dashboards.py"


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_dashboards_are_such_as_grafana_reads(file: Path) -> None:
    dashboard = json.loads(file.read_text())
    assert re.fullmatch(r"[a-z0-9-]{1,40}", dashboard["uid"])
    assert dashboard["schemaVersion"] >= 39
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    covered: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["type"] in ("timeseries", "stat", "heatmap")
        assert panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & covered, panel["title"]
        covered |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for target in panel["targets"]:
            assert target["datasource"] == {"type": source["type"], "uid": source["uid"]}
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {"__rate_interval"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for query in dashboard_queries(file):
        assert metric_names(query)


def test_uids_differ_and_are_provisioned() -> None:
    uids = [json.loads(file.read_text())["uid"] for file in DASHBOARDS]
    assert len(set(uids)) == len(uids) == 3
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/fs-serve.yml").read_text())["providers"][0]
    compose = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())
    mounts = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
