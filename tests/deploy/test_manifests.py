"""What is deployed: the chart against the schemas of Kubernetes, and the files that are made from others."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from catena.core.config import parse
from catena.govern.audit.log import Log
from catena.govern.config import AuditConfig
from catena.serve.gateway.app import Gateway
from catena.serve.gateway.config import DeployConfig
from tests.needs import cannot_be_had

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import manifests  # noqa: E402

VALUES = yaml.safe_load((manifests.CHART / "values.yaml").read_text())
KUBERNETES = "1.34"


def objects(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    return [one for text in manifests.chart(values).values() for one in yaml.safe_load_all(text) if one]


def of(kind: str, name: str) -> dict[str, Any]:
    return next(one for one in objects() if one["kind"] == kind and one["metadata"]["name"] == name)


def changed(path: str, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(VALUES)
    *parents, last = path.split(".")
    target = values
    for part in parents:
        target = target[part]
    target[last] = value
    return values


FLIPPED = {"model.gpu.enabled": True, "networkPolicy.enabled": False, "secret.create": False}
VARIANTS = {"": VALUES} | {path: changed(path, value) for path, value in FLIPPED.items()}
HELM = """
import json, sys
import helm_python
folder, release, values = sys.argv[1:]
with helm_python.Chart.load(folder) as chart:
    rendered = chart.render(json.loads(values), name=release, namespace="default")
print(json.dumps({"templates": list(rendered.values()), "lint": helm_python.lint(folder)["errors"]}))
"""


def by_helm(values: dict[str, Any], release: str = manifests.RELEASE) -> list[dict[str, Any]]:
    """What Helm's own library makes of the chart; in a process of its own, since it brings the runtime of Go along."""
    if importlib.util.find_spec("helm_python") is None:
        cannot_be_had("Helm's library is not installed (helm-python-sdk)")
    command = [sys.executable, "-c", HELM, str(manifests.CHART), release, json.dumps(values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["lint"] == []
    return [one for text in told["templates"] for one in yaml.safe_load_all(text) if one]


def comparable(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorted, and with the deploy file read: its text has its keys in another order, and other quotes."""
    read = copy.deepcopy(found)
    for one in read:
        if one["kind"] == "ConfigMap":
            one["data"] = {name: yaml.safe_load(text) for name, text in one["data"].items()}
    return sorted(read, key=lambda one: (one["kind"], one["metadata"]["name"]))


@pytest.mark.parametrize("path", VARIANTS)
def test_every_object_is_one_that_kubernetes_takes(path: str) -> None:
    found = objects(VARIANTS[path])
    for one in found:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    assert len(found) >= 8


@pytest.mark.parametrize("path", VARIANTS)
def test_helm_gives_the_same_and_kubernetes_takes_it(path: str) -> None:
    given = by_helm(VARIANTS[path])
    assert comparable(given) == comparable(objects(VARIANTS[path]))
    for one in given:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_a_release_of_helm_may_have_another_name() -> None:
    given = by_helm(VALUES, "other")
    for one in given:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    names = {(one["kind"], one["metadata"]["name"]) for one in given}
    assert {kind for kind, name in names if not name.startswith("other-")} == {"Secret", "Service"}
    (text,) = (one["data"]["deploy.yaml"] for one in given if one["kind"] == "ConfigMap")
    hosts = {urlsplit(model["dns"]).hostname for model in yaml.safe_load(text)["models"].values()}
    assert hosts <= {name for kind, name in names if kind == "Service"}, "the gateway finds its replicas"


def test_a_wrong_object_would_be_noticed() -> None:
    bad = of("HorizontalPodAutoscaler", "catena-model")
    bad["spec"]["maxReplicas"] = "many"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(bad, KUBERNETES, strict=True)


def test_what_is_written_is_what_the_chart_gives() -> None:
    for name, text in manifests.chart().items():
        written = (manifests.OUTPUT / name).read_text()
        assert written.partition("\n")[2] == text, "python scripts/manifests.py"
    kustomization = yaml.safe_load((manifests.OUTPUT / "kustomization.yaml").read_text())
    assert set(kustomization["resources"]) == set(manifests.chart())


def test_kubectl_builds_it() -> None:
    if shutil.which("kubectl") is None:
        cannot_be_had("kubectl is not installed: sh scripts/system-packages")
    done = subprocess.run(["kubectl", "kustomize", str(manifests.OUTPUT)], capture_output=True, text=True, check=True)
    assert comparable([one for one in yaml.safe_load_all(done.stdout) if one]) == comparable(objects())


def test_templates_outside_the_small_language_are_refused() -> None:
    for template in ("a: {{ .Values.x | upper }}", "{{- range .Values.x }}", "{{- if .Values.x }}\na: 1"):
        with pytest.raises((ValueError, KeyError)):
            manifests.render(template, {"x": "y"})


def test_the_deploy_file_in_the_chart_is_one(tmp_path: Path) -> None:
    text = of("ConfigMap", "catena-deploy")["data"]["deploy.yaml"]
    config = parse(DeployConfig, yaml.safe_load(text))
    services = {one["metadata"]["name"] for one in objects() if one["kind"] == "Service"}
    for model in config.models.values():
        assert model.dns.removeprefix("http://").partition(":")[0] in services


def test_probes_budgets_and_limits_are_there() -> None:
    for name, probes in (("gateway", {"liveness", "readiness"}), ("model", {"startup", "liveness", "readiness"})):
        spec = of("Deployment", f"catena-{name}")["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert {key.removesuffix("Probe") for key in container if key.endswith("Probe")} == probes
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert of("PodDisruptionBudget", f"catena-{name}")
        metrics = of("HorizontalPodAutoscaler", f"catena-{name}")["spec"]["metrics"]
        assert metrics[0]["resource"]["target"]["averageUtilization"] == 70
    (from_gateway, _) = of("NetworkPolicy", "catena-model")["spec"]["ingress"][0]["from"]
    assert from_gateway["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"


def test_the_image_is_not_root_and_has_a_health_check() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    assert re.search(r"^USER 10001", text, re.MULTILINE)
    assert "HEALTHCHECK" in text
    extras = re.search(r"EXTRAS=(\S+)\n", text)
    assert extras is not None
    import tomllib

    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras[1].split(",")) <= set(known)


def test_what_the_image_copies_is_enough_to_install(tmp_path: Path) -> None:
    """The image's own step without Docker: a wheel from the files that it copies, and the program out of that."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    (source, wheels, installed) = (tmp_path / name for name in ("source", "wheels", "installed"))
    source.mkdir()
    for copied, target in re.findall(r"^COPY (?!--from)(.+) (\S+)$", text, re.MULTILINE):
        for name in copied.split():
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name, source / target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
                )
            else:
                shutil.copy(ROOT / name, source / target)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels), "."]
    subprocess.run(build, cwd=source, check=True, capture_output=True, timeout=300)
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(installed)
    ours = {path.relative_to(ROOT / "src") for path in (ROOT / "src" / "catena").rglob("*") if path.is_file()}
    ours = {path for path in ours if "__pycache__" not in path.parts}
    assert {path for path in ours if not (installed / path).exists()} == set()
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = [sys.executable, "-c", "import catena; print(catena.__file__)"]
    assert str(installed) in subprocess.check_output(where, cwd=tmp_path, env=environment, text=True)
    for words in (["--help"], ["up", "--help"], ["serve", "--help"]):
        told = subprocess.run(
            [sys.executable, "-m", "catena", *words], cwd=tmp_path, env=environment, capture_output=True, check=False
        )
        assert told.returncode == 0, told.stderr


def test_the_dashboard_asks_only_for_what_there_is(tmp_path: Path) -> None:
    from catena.serve.gateway.gpus import NAMES
    from catena.serve.gateway.meters import gauges

    gateway = Gateway(parse(DeployConfig, {"models": {"m": {"urls": ["http://x"]}}}), state=tmp_path, commands=_none)
    told = {family.name for family in [*gateway.meters.families(), *gauges(gateway.pools)]}
    told |= {name for name, _, _ in NAMES.values()}
    with Log(tmp_path / "w", AuditConfig()) as log:
        told |= {f"catena_audit_{name}" for name in log.status()}
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "gateway.json").read_text())
    asked = set(re.findall(r"catena_\w+", " ".join(t["expr"] for p in dashboard["panels"] for t in p["targets"])))
    assert {re.sub(r"_bucket$", "", name) for name in asked} <= told
    assert len(dashboard["panels"]) == 13


def _none(name: str, model: Any) -> tuple[str, ...]:
    return ()
