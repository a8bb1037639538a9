"""The Helm chart says what the programs understand, and no more is allowed than it needs. Without Helm: the checked-in
renderings are looked at (``tests/contract/test_chart_rendering.py`` holds them against the chart)."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import chart
import click
import kubernetes_validate
import pytest
import yaml
from chart import CASES, CHART, ROOT, of_kind, workloads
from click.core import ParameterSource
from jsonschema import Draft7Validator

from ingestor.cli import cli as ingestor
from ingestor.core.durations import ChunkSize
from ingestor.telemetry import Telemetry
from ingestor.web import pages
from stream_app.cli import cli as stream_app
from stream_app.methods import parse_method

PROGRAMS = {"poller": (ingestor, "run"), **{name: (stream_app, name) for name in ("worker", "files", "raw-files")}}
"""Component → whose command it runs."""
FOR_ALL = {"bootstrap-servers", "topic-prefix", "log-level", "log-format"} | {
    f"kafka-{flag}" for flag in ("tls", "ca-file", "cert-file", "key-file", "key-password-file", "sasl", "user")
} | {"kafka-password-file"}  # fmt: skip
BY_THE_CHART = {
    "poller": {"url", "on-conflict", "web-listen-address", "partitions"}
    | {"bearer-token-file", "basic-auth-file", "ca-file", "client-cert-file", "client-key-file"},
    "worker": {"slot", "web-listen-address", "partitions"},
    "files": {"storage"},
    "raw-files": {"storage"},
}
"""What the chart's other values are for."""
NOT_FOR_GOOD = {"json", "dry-run", "until-idle", "idle", "drop-empty-columns", "drop-zero-columns"}
"""What ends a command, or is for who looks at it."""
SECRET = {"bearer-token", "basic-auth"}
"""As flags in no file; Secrets have them."""

SERVED = set(pages("ingestor", Telemetry("live"), lambda: None))
"""Paths of the pages of poller and worker."""

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = chart.schema()
VALIDATOR = Draft7Validator(SCHEMA)


def flags(component: str) -> dict[str, click.Option]:
    group, command = PROGRAMS[component]
    options = [option for option in group.commands[command].params if isinstance(option, click.Option)]
    return {flag.removeprefix("--"): option for option in options for flag in option.opts if flag.startswith("--")}


def settings_schema(component: str) -> dict[str, Any]:
    key = {"raw-files": "rawFiles"}.get(component, component)
    return SCHEMA["properties"][key]["properties"]["settings"]


def with_values(**changed: Any) -> dict[str, Any]:
    """Return the chart's values with some changed, by their paths with two underscores for dots."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for path, value in changed.items():
        *parents, last = path.split("__")
        at = values
        for parent in parents:
            at = at[parent]
        at[last.replace("_", "-") if parents and parents[-1] == "settings" else last] = value
    return values


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    return SCHEMA["definitions"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node


@pytest.mark.parametrize("component", PROGRAMS)
def test_settings_are_the_programs_flags(component):
    """What a program can be told, the chart can tell it: in its settings, or by a value of its own."""
    others = FOR_ALL | BY_THE_CHART[component] | NOT_FOR_GOOD | SECRET
    assert set(settings_schema(component)["properties"]) == set(flags(component)) - others
    assert FOR_ALL | BY_THE_CHART[component] <= set(flags(component))


def test_the_values_are_those_of_the_schema():
    """values.yaml shows all that can be set but the flags, and is valid."""
    assert not list(VALIDATOR.iter_errors(VALUES))

    def compare(values: dict[str, Any], node: dict[str, Any], where: str) -> None:
        if "properties" not in node or where.endswith(".settings"):
            return
        assert node["additionalProperties"] is False, where
        assert set(values) == set(node["properties"]) - {"global"}, where
        for key, value in values.items():
            if isinstance(value, dict):
                compare(value, resolved(node["properties"][key]), f"{where}.{key}")

    compare(VALUES, SCHEMA, "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"kafak": {}},
        {"kafka__bootstrapServer": "kafka:9092"},
        {"kafka__bootstrapServers": "kafka"},
        {"kafka__partitions": 0},
        {"kafka__sasl__mechanism": "GSSAPI"},
        {"kafka__sasl__mechanism": "PLAIN"},
        {"kafka__sasl__password": {"secret": "a", "key": "b", "value": "c"}},
        {"kafka__tls__ca": {"secretName": "a"}},
        {"prometheus__url": "prometheus:9090"},
        {"prometheus__url": "http://reader:secret@prometheus:9090"},
        {"poller__replicas": 0},
        {"poller__settings": {"poll_interval": "15s"}},
        {"poller__settings__settle": "30"},
        {"poller__settings__url": "http://elsewhere"},
        {"poller__settings__bearer_token": "secret"},
        {"poller__settings__source": "remote"},
        {"worker__settings__chunk_size": "1M"},
        {"worker__settings__chunk_size": 60},
        {"worker__settings__method": "average"},
        {"worker__settings__metric_method": {".*_total": "total"}},
        {"worker__settings__group_by": "node"},
        {"worker__settings__slot": 0},
        {"worker__resources": {"limit": {"memory": "1Gi"}}},
        {"worker__resources": {"limits": {"memory": "1 GB"}}},
        {"files__replicas": 2},
        {"files__volume__size": "20 GB"},
        {"files__settings__until_idle": True},
        {"rawFiles__settings__metrics": "cpu"},
        {"log__level": "trace"},
        {"pod__securitycontext": {}},
        {"pod__terminationGracePeriodSeconds": 1},
        {"networkPolicy__kafka__ports": ["9092"]},
    ],
    ids=str,
)
def test_what_is_wrong_is_refused(wrong):
    """A name that does not exist, or a value that the program would refuse, is told before anything is installed."""
    assert list(VALIDATOR.iter_errors(with_values(**wrong)))


SIZES = """1m 1t 15min 30s 1h 007d 1w 1mo 1y 1d@Europe/Berlin 1d@Etc/GMT+3
    0m 00h m 1M 1 60 1ms 1.5h -1m 1m1s 1d@ 1d@@ 1mo2 1month"""
METHODS = """sum mean median min max count stddev last p0 p50 p99.9 p100 p99.123456
    p100.0 p101 p99. p.5 p1.1234567 p-1 P50 avg Mean average q50 mean-of-last"""


@pytest.mark.parametrize(
    ("definition", "parse", "texts"),
    [("chunkSize", ChunkSize.parse, SIZES), ("method", parse_method, METHODS)],
    ids=["sizes", "methods"],
)
def test_words_are_the_programs(definition, parse, texts):
    """The schema takes a chunk size or a method where the programs do."""
    validator = Draft7Validator(SCHEMA["definitions"][definition])
    for text in texts.split():
        try:
            parse(text)
        except ValueError:
            assert not validator.is_valid(text), text
        else:
            assert validator.is_valid(text), text


CONFIGS = [(case, component) for case in CASES for component, *_ in workloads(case)]


@pytest.mark.parametrize(("case", "component"), CONFIGS)
def test_programs_take_what_the_chart_gives_them(case, component, tmp_path: Path):
    """The command line of each container is understood with its files: no fault, and all that the file sets is set."""
    group, command = PROGRAMS[component]
    pod = next(pod for name, _, pod in workloads(case) if name == component)
    for path, text in chart.files_of(case, pod).items():
        here = tmp_path / path.lstrip("/")
        here.parent.mkdir(parents=True, exist_ok=True)
        here.write_text(text.replace("/etc/podstream", f"{tmp_path}/etc/podstream"))
    [container] = pod["containers"]
    assert container["args"] == ["--config", chart.CONFIG, command]
    above = group.make_context("program", ["--config", f"{tmp_path}{chart.CONFIG}", command])
    context = group.commands[command].make_context(command, [], parent=above)
    config = yaml.safe_load((tmp_path / chart.CONFIG.lstrip("/")).read_text())
    assert set(config) == {"defaults", command}
    for flag in config["defaults"] | config[command]:
        option = flags(component)[flag]
        if not option.is_eager:
            assert context.get_parameter_source(str(option.name)) is ParameterSource.DEFAULT_MAP, flag
    secrets = {f"{tmp_path}{path}" for path in chart.files_of(case, pod) if path != chart.CONFIG}
    assert {path for flag, path in (config["defaults"] | config[command]).items() if flag.endswith("-file")} == secrets


def test_everything_is_everything():
    """One of the cases sets each setting that there is, so that what is rendered of it is looked at too."""
    values = yaml.safe_load((chart.GOLDEN / "everything.values.yaml").read_text())
    for component in PROGRAMS:
        key = {"raw-files": "rawFiles"}.get(component, component)
        assert set(values[key]["settings"]) == set(settings_schema(component)["properties"])


@pytest.mark.parametrize("version", ["1.28", "1.33", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("case", CASES)
def test_objects_are_kubernetes_objects(case, version):
    """Each has the fields that its kind has, from the oldest Kubernetes that the chart is for to the newest known."""
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"] == ">=1.28.0-0"
    for found in chart.objects(case):
        # Of the operator's kinds there is no schema here.
        if found["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_names_are_unique(case):
    """No object stands in another one's place."""
    names = [(found["kind"], found["metadata"]["name"]) for found in chart.objects(case)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES)
def test_pods_have_no_rights(case):
    """An ordinary user, no capability, nothing to write on but volumes, nothing to say to the cluster."""
    for _, _, pod in workloads(case):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & set(pod)
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    assert not of_kind(case, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    for account in of_kind(case, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("case", CASES)
def test_secrets_are_in_secrets_only(case):
    """What is secret stands in no ConfigMap, no argument and no variable."""
    for found in chart.objects(case):
        if found["kind"] != "Secret":
            assert "not-so-secret" not in yaml.safe_dump(found)
    if case in ("secured", "second-view"):
        assert "not-so-secret" in yaml.safe_dump(of_kind(case, "Secret"))


@pytest.mark.parametrize("case", CASES)
def test_probes_ask_for_pages_that_are_served(case):
    """Paths, ports and addresses fit; who has no pages has no probe."""
    for component, _, pod in workloads(case):
        [container] = pod["containers"]
        config = yaml.safe_load(chart.files_of(case, pod)[chart.CONFIG])[PROGRAMS[component][1]]
        probes = {name: probe for name, probe in container.items() if name.endswith("Probe")}
        if "web-listen-address" not in flags(component):
            assert not probes
            assert not container.get("ports")
            continue
        assert set(probes) == {"startupProbe", "livenessProbe", "readinessProbe"}
        assert {probe["httpGet"]["path"] for probe in probes.values()} <= SERVED
        assert {probe["httpGet"]["port"] for probe in probes.values()} == {"web"}
        assert container["ports"] == [{"name": "web", "containerPort": int(config["web-listen-address"][1:])}]
        # A poller that stands by is not ready, and a rollout must not wait for it to be.
        assert probes["readinessProbe"]["httpGet"]["path"] == ("/-/ready", "/-/healthy")[component == "poller"]


def labels_of(workload: dict[str, Any]) -> set[tuple[str, str]]:
    return set(workload["spec"]["template"]["metadata"]["labels"].items())


@pytest.mark.parametrize("case", CASES)
def test_each_selects_its_own_pods(case):
    """Workloads, Services, budgets, policies and spreads mean the pods of one component, by ports that these have."""
    pods = {component: workload for component, workload, _ in workloads(case)}

    def selected(labels: dict[str, str]) -> list[str]:
        return [component for component, workload in pods.items() if set(labels.items()) <= labels_of(workload)]

    for component, workload, pod in workloads(case):
        assert selected(workload["spec"]["selector"]["matchLabels"]) == [component]
        for spread in pod.get("topologySpreadConstraints", []):
            assert selected(spread["labelSelector"]["matchLabels"]) == [component]
    for service in of_kind(case, "Service"):
        [component] = selected(service["spec"]["selector"])
        assert component == {"dashboard": "worker"}.get(chart.component(service), chart.component(service))
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ["web"]
    for budget in of_kind(case, "PodDisruptionBudget"):
        assert selected(budget["spec"]["selector"]["matchLabels"]) == [chart.component(budget)]
        assert pods[chart.component(budget)]["spec"]["replicas"] > budget["spec"]["maxUnavailable"]
    policies = of_kind(case, "NetworkPolicy")
    for policy in policies:
        [component] = selected(policy["spec"]["podSelector"]["matchLabels"])
        [container] = pods[component]["spec"]["template"]["spec"]["containers"]
        opened = [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
        assert opened == [port["containerPort"] for port in container.get("ports", [])]
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert [chart.component(policy) for policy in policies] == sorted(pods)
    for monitor in of_kind(case, "ServiceMonitor"):
        labels = set(monitor["spec"]["selector"]["matchLabels"].items())
        [expression] = monitor["spec"]["selector"]["matchExpressions"]
        services = [found for found in of_kind(case, "Service") if labels <= set(found["metadata"]["labels"].items())]
        found = [service for service in services if chart.component(service) in expression["values"]]
        assert {chart.component(service) for service in found} == {"poller", "worker"}
        [endpoint] = monitor["spec"]["endpoints"]
        assert {port["name"] for service in found for port in service["spec"]["ports"]} == {endpoint["port"]}
        assert endpoint["path"] in SERVED
        assert monitor["spec"]["namespaceSelector"]["matchNames"] == ["metrics"]


def ways(case: str, component: str) -> list[set[int]]:
    [policy] = [found for found in of_kind(case, "NetworkPolicy") if chart.component(found) == component]
    return [{port["port"] for port in rule["ports"]} for rule in policy["spec"]["egress"]]


def test_pods_go_to_kafka_prometheus_and_the_dns_only():
    """Ports are read from the addresses, unless they are given; only the poller goes to Prometheus."""
    assert ways("minimal", "poller") == [{53}, {9092}, {9090}]
    assert ways("secured", "poller") == [{53}, {9093}, {443}]
    assert ways("everything", "poller") == [{53, 5353}, {9092, 9094}, {8080}, {3128}]
    for case, kafka in (("minimal", {9092}), ("secured", {9093})):
        assert ways(case, "worker") == [{53}, kafka]
    assert ways("minimal", "files") == [{53}, {9092}]
    assert ways("everything", "raw-files") == [{53, 5353}, {9092, 9094}, {3128}]


@pytest.mark.parametrize("case", CASES)
def test_who_writes_files_is_alone(case):
    """One pod, of a kind that is never there twice, on a volume that outlives the release unless it is yours."""
    for component, workload, pod in workloads(case):
        claims = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        ]
        if component not in ("files", "raw-files"):
            assert not claims
            continue
        assert (workload["kind"], workload["spec"]["replicas"]) == ("StatefulSet", 1)
        [claim] = claims
        made = chart.named(case, "PersistentVolumeClaim", claim)
        assert made is not None or claim == "dataset"
        if made:
            assert made["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        [mount] = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "data"]
        config = yaml.safe_load(chart.files_of(case, pod)[chart.CONFIG])[component]
        assert mount["mountPath"] == config["storage"]


@pytest.mark.parametrize("case", CASES)
def test_a_workers_slot_is_its_ordinal(case):
    """Each has its own among those of its view, and the same one when it is started again."""
    for component, workload, pod in workloads(case):
        if component == "worker":
            assert workload["kind"] == "StatefulSet"
            slot = pod["containers"][0]["env"][0]
            assert slot["name"] in str(flags("worker")["slot"].envvar)
            assert slot["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}


@pytest.mark.parametrize("case", CASES)
def test_pods_are_made_for_the_images(case):
    """Entry points, user, the kernels' folder and the tag are those of the Dockerfiles; what is mounted is there."""
    for component, _, pod in workloads(case):
        program = {"poller": "ingestor"}.get(component, "stream_app")
        dockerfile = (ROOT / f"docker/{program}.Dockerfile").read_text()
        assert f'ENTRYPOINT ["{program.replace("_", "-")}"]' in dockerfile
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["image"].split(":")[-2].endswith(f"podstream/{program.replace('_', '-')}")
            assert {mount["name"] for mount in container["volumeMounts"]} <= {
                volume["name"] for volume in pod["volumes"]
            }
        if user := pod["securityContext"].get("runAsUser"):
            assert f"useradd --uid {user} " in dockerfile
        folders = re.findall(r"NUMBA_CACHE_DIR=(\S+)", dockerfile)
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        if component in ("poller", "worker"):
            [kernels] = pod["initContainers"]
            assert set(folders) == {mounts["kernels"]}
            assert kernels["command"] == ["cp", "-r", f"{mounts['kernels']}/.", kernels["volumeMounts"][0]["mountPath"]]


def test_the_version_is_the_programs():
    """Chart, images and program are of one version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version
    images = set(re.findall(r"image: (podstream/(?:ingestor|stream-app):\S+)", chart.golden("minimal")))
    assert images == {f"podstream/ingestor:{version}", f"podstream/stream-app:{version}"}
    assert images <= set(re.findall(r"image: (\S+)", (ROOT / "docker-compose.yml").read_text()))


def test_the_page_on_scale_does_the_sums():
    """Its table is what its program prints."""
    done = subprocess.run([sys.executable, ROOT / "docker/scale.py"], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 8
    assert done.stdout in (ROOT / "docker/scale.md").read_text()
