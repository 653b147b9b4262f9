"""The Kubernetes manifests: valid by the API's own schema, and in agreement with compose file and code."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server.settings.gateway import Settings
from tests.dashboards import exported
from tests.integration.vllm_process import EMBEDDINGS_ONLY

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    item for name in KUSTOMIZATION["resources"] for item in yaml.safe_load_all((FOLDER / name).read_text())
]


def named(kind: str, name: str) -> Any:
    (found,) = (item for item in OBJECTS if (item["kind"], item["metadata"]["name"]) == (kind, name))
    return found


def container(deployment: str) -> Any:
    (only,) = named("Deployment", deployment)["spec"]["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("item", OBJECTS, ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_objects_follow_the_schema(item: dict[str, Any]) -> None:
    kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)
    assert item["kind"] == "Namespace" or item["metadata"]["namespace"] == KUSTOMIZATION["namespace"]


def test_a_wrong_field_would_be_found() -> None:
    broken = {**named("Service", "gateway"), "spek": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_settings_exist() -> None:
    names = {name for name in named("ConfigMap", "fs-serve")["data"] if name.startswith("FS_")}
    assert {name.removeprefix("FS_").lower() for name in names} <= Settings.model_fields.keys()
    assert named("ConfigMap", "fs-serve")["data"]["FS_VLLM_URL"] == "http://vllm:8000"
    assert named("Service", "vllm")["spec"]["ports"][0]["port"] == 8000


def test_probes_ask_what_the_gateway_has() -> None:
    gateway = container("gateway")
    paths = {kind: gateway[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/livez", "readiness": "/readyz", "liveness": "/livez"}
    # readyz waits up to 2 s for the language model.
    assert gateway["readinessProbe"]["timeoutSeconds"] > 2


def test_the_gateway_needs_no_privileges() -> None:
    pod = named("Deployment", "gateway")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert "USER 10001:10001" in (FOLDER.parents[1] / "Dockerfile").read_text()
    assert container("gateway")["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container("gateway")["volumeMounts"]} == {"/tmp", "/cache"}


def test_vllm_takes_embeddings_only_from_the_gateways_only() -> None:
    arguments = container("vllm")["args"]
    assert EMBEDDINGS_ONLY[0] in arguments
    assert f"--limit-mm-per-prompt={EMBEDDINGS_ONLY[2].replace(' ', '')}" in arguments
    policy = named("NetworkPolicy", "vllm")["spec"]
    assert policy["podSelector"]["matchLabels"] == named("Service", "vllm")["spec"]["selector"]
    gateways, prometheus = policy["ingress"][0]["from"]
    assert gateways == {"podSelector": {"matchLabels": named("Service", "gateway")["spec"]["selector"]}}
    assert "podSelector" in prometheus
    assert named("Service", "vllm")["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_scaling_reads_a_metric_that_there_is() -> None:
    scaler = named("HorizontalPodAutoscaler", "gateway")["spec"]
    metric = scaler["metrics"][0]["pods"]["metric"]["name"]
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["name"]["as"] == metric
    assert rule["seriesQuery"].startswith(f"{metric}{{")
    assert metric in exported()
    assert scaler["minReplicas"] > named("PodDisruptionBudget", "gateway")["spec"]["minAvailable"]
    assert int(scaler["metrics"][0]["pods"]["target"]["averageValue"]) < Settings().max_queued_samples


def test_gateway_and_vllm_load_the_same_weights_from_the_same_hub() -> None:
    model, revision, *_ = container("vllm")["args"]
    assert (model, revision) == ("$(FS_MODEL)", "--revision=$(FS_REVISION)")
    sources = {entry["name"]: entry["valueFrom"] for entry in container("vllm")["env"] if "valueFrom" in entry}
    assert sources.keys() == {"FS_MODEL", "FS_REVISION", "HF_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY", "NO_PROXY"}
    settings = named("ConfigMap", "fs-serve")
    for name, source in sources.items():
        ((kind, reference),) = source.items()
        assert kind == ("secretKeyRef" if name == "HF_TOKEN" else "configMapKeyRef")
        assert reference["key"] == name
        assert reference.get("optional") or name in settings["data"]
    config, secret = container("gateway")["envFrom"]
    assert (
        config["configMapRef"]["name"] == settings["metadata"]["name"] == sources["FS_MODEL"]["configMapKeyRef"]["name"]
    )
    assert secret["secretRef"]["name"] == sources["HF_TOKEN"]["secretKeyRef"]["name"]


def test_the_patch_for_a_psm_mounts_a_volume_into_the_gateway() -> None:
    patch = yaml.safe_load((FOLDER / "psm.yaml").read_text())
    assert patch["metadata"] == {"name": "gateway", "namespace": KUSTOMIZATION["namespace"]}
    pod = patch["spec"]["template"]["spec"]
    (patched,), (volume,) = pod["containers"], pod["volumes"]
    assert patched["name"] == container("gateway")["name"]
    assert patched["volumeMounts"] == [{"name": volume["name"], "mountPath": "/psm", "readOnly": True}]
    assert "path: psm.yaml" in (FOLDER / "kustomization.yaml").read_text()


def test_the_pod_has_the_time_to_stop_that_the_gateway_takes() -> None:
    settings = Settings()
    grace = named("Deployment", "gateway")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= settings.drain_lead + settings.drain_timeout + 10


@pytest.mark.parametrize("deployment", ["gateway", "vllm"])
def test_services_set_no_variables(deployment: str) -> None:
    """That of the Service vllm would be VLLM_PORT, an address where vLLM expects a number, and it would not start."""
    assert named("Deployment", deployment)["spec"]["template"]["spec"]["enableServiceLinks"] is False
