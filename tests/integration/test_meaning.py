"""What is made of a cluster's series: services, columns, rules, expressions, and series without a pod."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import chunks
import pandas as pd
import pytest
from commands import PATIENCE_S, ingestor, run
from confluent_kafka import Producer

from ingestor.core.time_range import iso
from ingestor.core.topics import Topics, message_key, partition_of
from ingestor.kafka import client_config, connect, ensure_topics, latest_by_key, read_to_end
from ingestor.local.kafka import LocalKafka
from ingestor.local.prometheus import LocalPrometheus, create_blocks

START_MS = 1_700_006_400_000
TIMES_S = range(START_MS // 1000, START_MS // 1000 + 600, 15)
END = iso(START_MS + 600_000)

CHECKOUT, WORDY, LONE, RUN = "checkout-7d9f8b6c5-x2x4z", "rollout-bcd-fghjk", "db-0", "report-28391040-k8v2d"
SERIES = [
    f'container_memory_rss{{namespace="shop",pod="{pod}",container="app",app="{app}"}}'
    for pod, app in [(CHECKOUT, "checkout-label"), (WORDY, "wordy-label"), (LONE, ""), (RUN, "")]
] + [
    f'http_requests_total{{namespace="shop",pod="{CHECKOUT}",code="200",method="GET"}}',
    f'http_requests_total{{namespace="shop",pod="{CHECKOUT}",code="500",method="GET"}}',
    # kube-state-metrics, scraped without honor_labels.
    *(
        f'kube_pod_owner{{namespace="monitoring",pod="ksm-0",exported_namespace="shop",exported_pod="{pod}",'
        f'owner_kind="{kind}",owner_name="{name}",owner_is_controller="true"}}'
        for pod, kind, name in [
            (CHECKOUT, "ReplicaSet", "checkout-7d9f8b6c5"),
            (WORDY, "StatefulSet", "rollout-bcd-fgh"),
            (RUN, "Job", "report-28391040"),
        ]
    ),
    (
        'kube_replicaset_owner{namespace="monitoring",pod="ksm-0",exported_namespace="shop",'
        'replicaset="checkout-7d9f8b6c5",owner_kind="Deployment",owner_name="checkout-api"}'
    ),
    (
        'kube_job_owner{namespace="monitoring",pod="ksm-0",exported_namespace="shop",'
        'job_name="report-28391040",owner_kind="CronJob",owner_name="nightly-report"}'
    ),
    'node_load1{job="node-exporter",instance="10.0.0.1:9100"}',
    'node_load1{job="node-exporter",instance="10.0.0.2:9100"}',
    'up{job="apiserver",instance="10.0.0.3:6443"}',
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrometheus]:
    """A Prometheus that holds ten minutes of these series."""
    folder = tmp_path_factory.mktemp("cluster")
    with (folder / "history.om").open("w") as file:
        for metric in sorted({series.partition("{")[0] for series in SERIES}):
            file.write(
                f"# TYPE {metric.removesuffix('_total')} {'counter' if metric.endswith('_total') else 'gauge'}\n"
            )
            for number, series in enumerate(SERIES):
                if series.startswith(metric + "{"):
                    file.writelines(f"{series} {number + t % 7} {t}.000\n" for t in TIMES_S)
        file.write("# EOF\n")
    server = LocalPrometheus(folder)
    create_blocks(folder / "history.om", server.data_dir)
    with server:
        yield server


def backfill(cluster: LocalPrometheus, kafka: LocalKafka, prefix: str, *flags: str) -> pd.DataFrame:
    return backfill_and_log(cluster, kafka, prefix, *flags)[0]


def backfill_and_log(cluster: LocalPrometheus, kafka: LocalKafka, prefix: str, *flags: str) -> tuple[pd.DataFrame, str]:
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", prefix, "--partitions", "4"]
    done = run(ingestor("backfill", "--url", cluster.url, "--start", iso(START_MS), "--end", END, *where, *flags))
    return chunks.published(kafka.cluster, prefix), done.stderr


def services(found: pd.DataFrame) -> dict[str, str]:
    pairs = found[["pod", "service"]].drop_duplicates()
    assert pairs["pod"].is_unique, "a pod has one service"
    return dict(pairs.itertuples(index=False))


def test_services_come_from_owners_and_are_kept(cluster: LocalPrometheus, kafka: LocalKafka) -> None:
    """Owner metrics know better than names; the first answer stays, whatever a later job would say."""
    found = services(backfill(cluster, kafka, "owners"))
    assert found == {CHECKOUT: "checkout-api", WORDY: "rollout-bcd-fgh", LONE: "db", RUN: "nightly-report"}
    kept = latest_by_key(kafka.cluster, "owners.workloads")
    assert kept == {f"shop/{pod}".encode(): service.encode() for pod, service in found.items()}
    again = backfill(cluster, kafka, "owners", "--again", "--service-label", "app")
    assert services(again) == found
    assert set(again["revision"]) == {0, 1}


def test_what_is_no_service_stops_nobody(cluster: LocalPrometheus, kafka: LocalKafka) -> None:
    """Whatever somebody writes to the topic of services, the poller says so once and goes on; a pod that was forgotten
    is placed anew.
    """
    topics = Topics("strange-services")
    ensure_topics(connect(kafka.cluster), topics, 4)
    producer = Producer(client_config(kafka.cluster))
    checkout, wordy = (f"shop/{pod}".encode() for pod in (CHECKOUT, WORDY))
    strange = [(key, value) for key in (checkout, b"\xff/x", b"nothing", b"") for value in (b"\xff", b"")]
    for key, value in [*strange, (wordy, b"elsewhere"), (wordy, None)]:
        producer.produce(topics.workloads, value, key)
    assert producer.flush(PATIENCE_S) == 0
    assert len(list(read_to_end(kafka.cluster, topics.workloads))) == len(strange) + 2
    found, told = backfill_and_log(cluster, kafka, topics.prefix)
    assert services(found) == {CHECKOUT: "checkout-api", WORDY: "rollout-bcd-fgh", LONE: "db", RUN: "nightly-report"}
    assert told.count("what is no pod's service is left out") == 1


def test_a_service_label_comes_first(cluster: LocalPrometheus, kafka: LocalKafka) -> None:
    """Who names a label means it; pods without it go by their owners, then by their names."""
    found = services(backfill(cluster, kafka, "labelled", "--service-label", "app"))
    assert found == {CHECKOUT: "checkout-label", WORDY: "wordy-label", LONE: "db", RUN: "nightly-report"}


def test_rules_and_columns(cluster: LocalPrometheus, kafka: LocalKafka, tmp_path: Path) -> None:
    """Rules in Prometheus' syntax drop, rename and cut labels; split metrics have a column for each value."""
    rules = tmp_path / "rules.yml"
    rules.write_text(
        "- {action: drop, source_labels: [pod], regex: report-.*}\n"
        "- {action: replace, source_labels: [container], target_label: role, replacement: the-$1}\n"
        "- {action: labeldrop, regex: app|container}\n"
    )
    flags = ["--relabel", str(rules), "--split-by", "http_requests_total=code"]
    samples = backfill(cluster, kafka, "ruled", *flags)
    assert RUN not in set(samples["pod"])
    assert {'http_requests_total{code="200"}', 'http_requests_total{code="500"}'} <= set(samples["metric"])
    assert "http_requests_total" not in set(samples["metric"])
    split = samples[samples["metric"].str.startswith("http_requests_total{")]
    assert set(split["type"]) == {"counter"}
    memory = samples[samples["metric"] == "container_memory_rss"]["labels"]
    assert all(labels.get("role") == "the-app" and not {"app", "container"} & labels.keys() for labels in memory)


def test_the_same_from_a_file(cluster: LocalPrometheus, kafka: LocalKafka, tmp_path: Path) -> None:
    """A configuration file has the rules themselves, and mappings where flags are repeated."""
    config = tmp_path / "config.yml"
    config.write_text(
        f"backfill:\n  url: {cluster.url}\n  start: {iso(START_MS)}\n  end: {END}\n"
        f"  bootstrap-servers: {kafka.bootstrap_servers}\n  topic-prefix: filed\n  include: [http_requests_total]\n"
        "  relabel:\n    - {action: drop, source_labels: [code], regex: '200'}\n"
        "  split-by: {http_requests_total: 'code,method'}\n"
        "  expression:\n    requests: sum by (namespace, pod) (http_requests_total)\n  step: 30s\n"
    )
    run(ingestor("--config", str(config), "backfill"))
    samples = chunks.published(kafka.cluster, "filed")
    assert set(samples["metric"]) == {'http_requests_total{code="500",method="GET"}', "requests"}


def test_expressions_are_metrics_like_others(cluster: LocalPrometheus, kafka: LocalKafka) -> None:
    """Computed by the backend at whole steps, routed with their pod, with the value that the samples have."""
    flags = ["--expression", "both=sum by (namespace, pod) (http_requests_total)", "--step", "30s"]
    samples = backfill(cluster, kafka, "computed", *flags)
    both = samples[samples["metric"] == "both"].sort_values("timestamp")
    assert both["timestamp"].tolist() == list(range(START_MS, START_MS + 600_000, 30_000))
    raw = samples[samples["metric"] == "http_requests_total"].groupby("timestamp")["value"].sum()
    assert both["value"].tolist() == [raw[t] for t in both["timestamp"]]
    assert set(both["partition"]) == set(samples[samples["pod"] == CHECKOUT]["partition"])
    assert set(both["type"]) == {"gauge"}


def test_series_without_a_pod(cluster: LocalPrometheus, kafka: LocalKafka) -> None:
    """`--all` reads them too, routed by job and instance; without it they are not there."""
    assert "node_load1" not in set(backfill(cluster, kafka, "pods-only")["metric"])
    samples = backfill(cluster, kafka, "everything", "--all", "--preset", "none")
    assert len(samples) == len(SERIES) * len(TIMES_S), "every series of this Prometheus"
    nodes = samples[samples["metric"].isin(["node_load1", "up"])]
    assert set(nodes["pod"]) == {""}
    for row in nodes.itertuples():
        assert row.partition == partition_of(message_key(row.labels["job"], row.labels["instance"]), 4)
        assert row.service == row.labels["job"]


def test_faults_are_told_together(cluster: LocalPrometheus, tmp_path: Path) -> None:
    """Wrong rules, columns, expressions and steps are all named in one message, and nothing is asked for."""
    rules = tmp_path / "rules.yml"
    rules.write_text("- {action: hashmod}\n- {action: keep, regex: '('}\n")
    flags = ["--relabel", str(rules), "--split-by", "nothing", "--expression", "bad name=1", "--step", "soon"]
    told = run(ingestor("backfill", "--url", cluster.url, "--start", iso(START_MS), *flags), code=2).stderr
    for wanted in ("4 settings are wrong", "hashmod", "rule 2", "--split-by", "bad name", "--step"):
        assert wanted in told, told


def test_a_wrong_expression_is_told_at_the_start(cluster: LocalPrometheus, kafka: LocalKafka) -> None:
    """The backend's own words, before any topic is made."""
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic-prefix", "wrong-expression"]
    flags = ["--expression", "broken=sum(", "--expression", "number=1"]
    told = run(ingestor("backfill", "--url", cluster.url, "--start", iso(START_MS), *where, *flags), code=2).stderr
    assert re.search(r"broken.*parse error", told)
    assert "number" in told
