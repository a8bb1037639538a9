"""The same rules, the same labels: a real Prometheus scrapes a target with each, as ``metric_relabel_configs``."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
import yaml
from commands import PATIENCE_S

from ingestor.local.prometheus import LocalPrometheus
from ingestor.relabel import Rules

EXPOSITION = r"""
http_requests_total{pod="web-0",namespace="shop",code="200",method="GET",path="/a/b"} 1
http_requests_total{pod="web-0",namespace="shop",code="500",method="GET",path="/a"} 1
http_requests_total{pod="api-7d9f8b6c5-x2x4z",namespace="shop",code="200",method="POST",path=""} 1
http_requests_total{pod="api-7d9f8b6c5-x2x4z",namespace="ops",code="404",method="post",path="a.b"} 1
memory_bytes{pod="web-0",namespace="shop",container="app",quoted="say \"a\\b\""} 1
memory_bytes{pod="web-0",namespace="shop",container="POD"} 1
memory_bytes{pod="Web-1",namespace="shop",container="äöü"} 1
kube_pod_info{exported_pod="db-0",exported_namespace="data",pod="ksm-0",namespace="monitoring"} 1
go_goroutines{pod="web-0",__tmp_x="kept",label_app="shop",label_tier="front"} 1
go_threads 1
bare{a="1"} 1
bare{a="x\ny"} 1
"""

# Prometheus 2 and 3 agree in all of these; where they do not, ingestor.relabel does as 3 does.
RULE_SETS = [
    "[]",
    "[{action: keep, source_labels: [namespace], regex: shop}]",
    "[{action: keep, source_labels: [namespace], regex: 'sho'}]",
    "[{action: keep, source_labels: [pod], regex: '.+'}]",
    "[{action: keep, source_labels: [nothing], regex: ''}]",
    "[{action: drop, source_labels: [__name__], regex: 'go_.*|bare'}]",
    "[{action: drop, source_labels: [namespace, code], regex: 'shop;[45]..'}]",
    "[{action: drop, source_labels: [namespace, code], separator: '/', regex: 'shop/|/'}]",
    "[{action: drop, source_labels: [pod], regex: '(?i)WEB-\\d'}]",
    "[{action: drop, source_labels: [container], regex: '\\w+'}]",
    "[{action: drop, source_labels: [container], regex: '[[:upper:]]+|\\x{e4}.*'}]",
    "[{action: Keep, source_labels: [method], regex: 'a(?i)b|post'}]",
    "[{source_labels: [pod], target_label: instance_of}]",
    "[{target_label: cluster, replacement: eu}]",
    "[{target_label: code, replacement: ''}]",
    "[{source_labels: [exported_pod], regex: '(.+)', target_label: pod}, {action: labeldrop, regex: 'exported_.*'}]",
    (
        "[{source_labels: [pod], regex: '(.*)-[0-9a-z]{9}-[a-z0-9]{5}|(.*)-(?P<n>\\d+)', target_label: service,"
        " replacement: '${1}$2'}, {source_labels: [pod], regex: '.*-(?P<n>\\d+)', target_label: ordinal,"
        " replacement: '#${n}'}]"
    ),
    "[{source_labels: [path], regex: '/?([^/.]*)[/.]?(.*)', target_label: parts, replacement: '$2|$1|$1x|$3|$$|${1'}]",
    "[{source_labels: [method, code], separator: '', target_label: joined}]",
    "[{source_labels: [method, code], separator: ' - ', target_label: joined, regex: '(.+) - (.+)'}]",
    "[{source_labels: [namespace, pod], regex: '([a-z]+);(.*)', target_label: 'of_${1}', replacement: '$2'}]",
    "[{source_labels: [__name__], regex: 'http_(.*)_total', target_label: __name__, replacement: 'web_$1'}]",
    "[{source_labels: [__name__], target_label: __tmp}, {source_labels: [__tmp], target_label: metric}]",
    "[{source_labels: [quoted], target_label: copied}]",
    "[{action: labeldrop, regex: 'code|me.*'}]",
    "[{action: labeldrop, regex: 'od'}]",
    "[{action: labelkeep, regex: '__name__|job|instance|pod|code|method|a|quoted|label_.*'}]",
    "[{action: labelmap, regex: 'label_(.+)'}, {action: labeldrop, regex: 'label_.+'}]",
    "[{action: labelmap, regex: 'label_(a)pp|label_(t)ier|(p)od', replacement: 'new_$1'}]",
    (
        "[{source_labels: [code], regex: '(.).*', target_label: code, replacement: '${1}xx'},"
        " {action: drop, source_labels: [code], regex: 4xx},"
        " {action: keep, source_labels: [code, namespace], regex: '[25]xx;.*|;(shop|)'}]"
    ),
]

# Here Prometheus 2 does something else: dots and line feeds, deleting an expanded target, names beyond ASCII words.
AS_IN_3 = [
    "[{action: drop, source_labels: [a], regex: 'x.y'}]",
    "[{source_labels: [method], regex: '(m)?(.*)', target_label: 'me${1}thod', replacement: '$1'}]",
    "[{source_labels: [code], regex: '(\\d).*', target_label: '${1}', replacement: digit}]",
]

Series = frozenset[frozenset[tuple[str, str]]]


class Exporter(BaseHTTPRequestHandler):
    """A target."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(EXPOSITION.lstrip().encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def exporter() -> Iterator[str]:
    """The target's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Exporter)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def prometheus(exporter: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrometheus]:
    """One that has scraped the target in each job: "raw", then one a set of rules."""
    jobs = {"raw": "[]", **{f"rules-{number:02d}": rules for number, rules in enumerate(RULE_SETS + AS_IN_3)}}
    config = {
        "scrape_configs": [
            {
                "job_name": job,
                "scrape_interval": "1s",
                "static_configs": [{"targets": [exporter]}],
                "metric_relabel_configs": yaml.safe_load(rules),
            }
            for job, rules in jobs.items()
        ]
    }
    with LocalPrometheus(tmp_path_factory.mktemp("relabeling"), config=config) as server:
        deadline = time.monotonic() + PATIENCE_S
        while len(ask(server, "scrape_samples_scraped > 0")) < len(jobs) and time.monotonic() < deadline:
            time.sleep(0.2)
        yield server


@pytest.fixture(scope="module")
def stored(prometheus: LocalPrometheus) -> dict[str, Series]:
    """What it has stored, by job."""
    found: dict[str, list[dict[str, str]]] = {}
    for labels in ask(prometheus, '{job!=""}'):
        found.setdefault(labels["job"], []).append(labels)
    return {job: own_series(label_sets) for job, label_sets in found.items()}


def ask(prometheus: LocalPrometheus, query: str) -> list[dict[str, str]]:
    """Return the label sets that a query finds now."""
    return [series["metric"] for series in answer(prometheus, "query", query=query)["result"]]


def answer(prometheus: LocalPrometheus, path: str, **params: str) -> Any:
    """Return what the API answers."""
    with requests.Session() as session:
        session.trust_env = False
        return session.get(f"{prometheus.url}/api/v1/{path}", params=params, timeout=10).json()["data"]


def own_series(label_sets: list[dict[str, str]]) -> Series:
    """Return the target's series, without those that Prometheus adds to each scrape."""
    return frozenset(
        frozenset(labels.items())
        for labels in label_sets
        if labels["__name__"] != "up" and not labels["__name__"].startswith("scrape_")
    )


def ours(stored: dict[str, Series], rules: str, job: str) -> Series:
    """Return what our rules make of the raw series."""
    parsed = Rules.parse(yaml.safe_load(rules))
    relabeled = [parsed.apply({**dict(labels), "job": job}) for labels in stored["raw"]]
    return frozenset(frozenset(labels.items()) for labels in relabeled if labels is not None)


@pytest.mark.parametrize("number", range(len(RULE_SETS)), ids=lambda number: RULE_SETS[number])
def test_prometheus_stores_what_our_rules_say(stored: dict[str, Series], number: int) -> None:
    """Label for label, series for series."""
    assert len(stored["raw"]) == EXPOSITION.count("\n") - 1
    job = f"rules-{number:02d}"
    assert ours(stored, RULE_SETS[number], job) == stored[job]


@pytest.mark.parametrize("number", range(len(AS_IN_3)), ids=lambda number: AS_IN_3[number])
def test_where_versions_differ_we_do_as_the_newer(
    prometheus: LocalPrometheus, stored: dict[str, Series], number: int
) -> None:
    """An older server is seen to do something else, so that the difference is a known one."""
    major = int(answer(prometheus, "status/buildinfo")["version"].split(".")[0])
    job = f"rules-{len(RULE_SETS) + number:02d}"
    assert (ours(stored, AS_IN_3[number], job) == stored[job]) == (major >= 3)


def test_the_rules_do_something(stored: dict[str, Series]) -> None:
    """Each set but the empty ones, and those that must not match, leaves other series than there were."""
    same = {
        number
        for number in range(len(RULE_SETS))
        if {series - {("job", f"rules-{number:02d}")} for series in stored[f"rules-{number:02d}"]}
        == {series - {("job", "raw")} for series in stored["raw"]}
    }
    assert [RULE_SETS[number] for number in sorted(same)] == [
        "[]",
        "[{action: keep, source_labels: [nothing], regex: ''}]",
        "[{action: labeldrop, regex: 'od'}]",
    ]
