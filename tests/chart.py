"""The Helm chart's renderings, as they are checked in. ``python tests/chart.py`` renders them anew."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ingestor.local import helm

ROOT = Path(__file__).parents[1]
CHART = ROOT / "docker/helm"
GOLDEN = ROOT / "tests/golden/helm"
CASES = sorted(path.name.removesuffix(".values.yaml") for path in GOLDEN.glob("*.values.yaml"))
CONFIG = "/etc/podstream/config/podstream.yaml"

Object = dict[str, Any]


def schema() -> Object:
    return json.loads((CHART / "values.schema.json").read_text())


def run_helm(command: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the Helm that was built into the cache."""
    names = ["podstream"] if command == "template" else []
    return subprocess.run(
        [helm.find_program(), command, *names, CHART, "--namespace", "metrics", *args],
        capture_output=True,
        text=True,
        check=False,
    )


def rendered(case: str) -> str:
    """Render a case's values.

    Raises:
        RuntimeError: Helm refuses; the message has its words.
    """
    done = run_helm("template", "--values", GOLDEN / f"{case}.values.yaml")
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def golden(case: str) -> str:
    return (GOLDEN / f"{case}.yaml").read_text()


@functools.cache
def objects(case: str) -> list[Object]:
    """Return a case's Kubernetes objects."""
    return [found for found in yaml.load_all(golden(case), Loader=yaml.CSafeLoader) if found]


def of_kind(case: str, *kinds: str) -> list[Object]:
    return [found for found in objects(case) if found["kind"] in kinds]


def workloads(case: str) -> Iterator[tuple[str, Object, Object]]:
    """Yield component, workload and pod's spec of what runs."""
    for found in of_kind(case, "Deployment", "StatefulSet"):
        yield component(found), found, found["spec"]["template"]["spec"]


def component(found: Object) -> str:
    return found["metadata"]["labels"].get("app.kubernetes.io/component", "")


def named(case: str, kind: str, name: str) -> Object | None:
    return next((found for found in of_kind(case, kind) if found["metadata"]["name"] == name), None)


def files_of(case: str, pod: Object) -> dict[str, str]:
    """Return the files that a pod's configuration and secrets are, with their content; of Secrets elsewhere, none."""
    [container] = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    files: dict[str, str] = {}
    for mount in container["volumeMounts"]:
        volume = volumes[mount["name"]]
        if name := volume.get("configMap", {}).get("name"):
            found = named(case, "ConfigMap", name)
            assert found is not None
            files |= {f"{mount['mountPath']}/{file}": text for file, text in found["data"].items()}
        for source in volume.get("projected", {}).get("sources", []):
            secret = named(case, "Secret", source["secret"]["name"])
            for item in source["secret"]["items"]:
                text = secret["stringData"][item["key"]] if secret else "of a Secret elsewhere"
                files[f"{mount['mountPath']}/{item['path']}"] = text
    return files


if __name__ == "__main__":
    for one in CASES:
        (GOLDEN / f"{one}.yaml").write_text(rendered(one))
