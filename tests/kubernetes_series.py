"""Series as Prometheus holds them in clusters old and new, and what the preset makes of each.

The labels are those of cAdvisor in the kubelet (Docker before and after 1.16, containerd), kube-state-metrics
with and without honor_labels, kubelet, node-exporter and NVIDIA's DCGM exporter; the values are made up.
"""

from __future__ import annotations

from dataclasses import dataclass

from ingestor.selector import Selector

POD_CGROUP = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7c57de98_0c20_4854_bfd1_e242e1b0940b.slice"

# A series, and namespace/pod/container as they come out (- for none), or "left out".
TABLE = f"""
# cAdvisor on containerd: the container, the pod's cgroup and the pause container, which has no container label here.
container_cpu_usage_seconds_total{{container="app",cpu="total",id="{POD_CGROUP}/cri-containerd-145de.scope",image="shop/web:1",name="145de",namespace="shop",pod="web-0"}} -> shop/web-0/app
container_cpu_usage_seconds_total{{cpu="total",id="{POD_CGROUP}",namespace="shop",pod="web-0"}} -> left out
container_cpu_usage_seconds_total{{cpu="total",id="{POD_CGROUP}/cri-containerd-b1fb0.scope",image="registry.k8s.io/pause:3.9",name="b1fb0",namespace="shop",pod="web-0"}} -> left out
container_cpu_usage_seconds_total{{cpu="total",id="/"}} -> left out
container_cpu_usage_seconds_total{{cpu="total",id="/system.slice/kubelet.service"}} -> left out
container_memory_working_set_bytes{{container="app",id="{POD_CGROUP}/cri-containerd-145de.scope",image="shop/web:1",name="145de",namespace="shop",pod="web-0"}} -> shop/web-0/app
container_memory_working_set_bytes{{id="{POD_CGROUP}",namespace="shop",pod="web-0"}} -> left out
container_memory_failures_total{{failure_type="pgfault",id="{POD_CGROUP}",namespace="shop",pod="web-0",scope="hierarchy"}} -> left out
container_fs_writes_bytes_total{{container="app",device="/dev/sda",id="{POD_CGROUP}/cri-containerd-145de.scope",image="shop/web:1",name="145de",namespace="shop",pod="web-0"}} -> shop/web-0/app
container_fs_writes_bytes_total{{device="/dev/sda",id="{POD_CGROUP}",namespace="shop",pod="web-0"}} -> left out
container_spec_memory_limit_bytes{{container="app",id="{POD_CGROUP}/cri-containerd-145de.scope",image="shop/web:1",name="145de",namespace="shop",pod="web-0"}} -> shop/web-0/app
container_spec_memory_limit_bytes{{id="{POD_CGROUP}",namespace="shop",pod="web-0"}} -> left out
container_start_time_seconds{{container="app",id="{POD_CGROUP}/cri-containerd-145de.scope",image="shop/web:1",name="145de",namespace="shop",pod="web-0"}} -> shop/web-0/app
container_start_time_seconds{{id="{POD_CGROUP}",namespace="shop",pod="web-0"}} -> left out
container_last_seen{{id="{POD_CGROUP}",namespace="shop",pod="web-0"}} -> left out
container_pressure_cpu_waiting_seconds_total{{id="{POD_CGROUP}",namespace="shop",pod="web-0"}} -> left out
container_oom_events_total{{id="{POD_CGROUP}",namespace="shop",pod="web-0"}} -> left out
container_processes{{id="{POD_CGROUP}",namespace="shop",pod="web-0"}} -> left out
container_threads_max{{id="{POD_CGROUP}",namespace="shop",pod="web-0"}} -> left out

# Only the pause container has network: with its label on Docker, without one on containerd.
container_network_receive_bytes_total{{id="{POD_CGROUP}/cri-containerd-b1fb0.scope",image="registry.k8s.io/pause:3.9",interface="eth0",name="b1fb0",namespace="shop",pod="web-0"}} -> shop/web-0/-
container_network_receive_bytes_total{{container="POD",id="/kubepods/burstable/pod1d8d6010/ed7e2a",image="k8s.gcr.io/pause:3.1",interface="eth0",name="k8s_POD_api-0_shop_1d8d6010_5",namespace="shop",pod="api-0"}} -> shop/api-0/POD
container_network_receive_bytes_total{{id="/",interface="eth0"}} -> left out

# kube-prometheus keeps the pod's sum alone.
container_blkio_device_usage_total{{device="/dev/sda",id="{POD_CGROUP}",major="8",minor="0",namespace="shop",operation="Read",pod="web-0"}} -> shop/web-0/-

# Docker, Kubernetes 1.16 to 1.23: the pause container is called POD.
container_memory_rss{{container="app",id="/kubepods/burstable/pod1d8d6010/0f2a1",image="shop/api@sha256:89c7",name="k8s_app_api-0_shop_1d8d6010_5",namespace="shop",pod="api-0"}} -> shop/api-0/app
container_memory_rss{{container="POD",id="/kubepods/burstable/pod1d8d6010/ed7e2a",image="k8s.gcr.io/pause:3.1",name="k8s_POD_api-0_shop_1d8d6010_5",namespace="shop",pod="api-0"}} -> left out
container_memory_rss{{id="/kubepods/burstable/pod1d8d6010",namespace="shop",pod="api-0"}} -> left out

# Kubernetes 1.14 and 1.15 give both names.
container_memory_mapped_file{{container="dns",container_name="dns",id="/kubepods/besteffort/pod3067e0c2/a1",image="dns:1",name="k8s_dns_dns-0_ims_3067e0c2_4",namespace="ims",pod="dns-0",pod_name="dns-0"}} -> ims/dns-0/dns
container_memory_mapped_file{{container="POD",container_name="POD",id="/kubepods/besteffort/pod3067e0c2/77e9",image="k8s.gcr.io/pause:3.1",name="k8s_POD_dns-0_ims_3067e0c2_4",namespace="ims",pod="dns-0",pod_name="dns-0"}} -> left out
container_memory_mapped_file{{id="/kubepods/besteffort/pod3067e0c2",namespace="ims",pod="dns-0",pod_name="dns-0"}} -> left out

# Before that, pod_name and container_name alone.
container_cpu_usage_seconds_total{{container_name="calico-node",cpu="total",id="/kubepods/burstable/pod1c2a925f/9e12",image="calico/node:3",instance="node-1",job="kubernetes-nodes-cadvisor",name="k8s_calico-node_calico-node-x_kube-system_1c2a925f_0",namespace="kube-system",pod_name="calico-node-x"}} -> kube-system/calico-node-x/calico-node
container_cpu_usage_seconds_total{{container_name="POD",cpu="total",id="/kubepods/burstable/pod1c2a925f/9e11",image="k8s.gcr.io/pause-amd64:3.1",instance="node-1",job="kubernetes-nodes-cadvisor",name="k8s_POD_calico-node-x_kube-system_1c2a925f_0",namespace="kube-system",pod_name="calico-node-x"}} -> left out
container_cpu_usage_seconds_total{{cpu="total",id="/kubepods/burstable/pod1c2a925f",instance="node-1",job="kubernetes-nodes-cadvisor",namespace="kube-system",pod_name="calico-node-x"}} -> left out
container_network_transmit_bytes_total{{container_name="POD",id="/kubepods/burstable/pod1c2a925f/9e11",image="k8s.gcr.io/pause-amd64:3.1",interface="eth0",instance="node-1",name="k8s_POD_calico-node-x_kube-system_1c2a925f_0",namespace="kube-system",pod_name="calico-node-x"}} -> kube-system/calico-node-x/POD

# cAdvisor without honor_labels: the kubelet's service has a namespace, and no pod.
container_memory_cache{{container="app",endpoint="https-metrics",exported_namespace="shop",id="{POD_CGROUP}/cri-containerd-145de.scope",job="kubelet",metrics_path="/metrics/cadvisor",namespace="kube-system",node="node-1",pod="web-0",service="kubelet"}} -> shop/web-0/app

# kube-state-metrics with honor_labels and nothing of its own, as kube-prometheus has it.
kube_pod_info{{host_ip="10.0.0.1",instance="10.1.0.9:8443",job="kube-state-metrics",namespace="shop",node="node-1",pod="web-0",uid="7c57de98"}} -> shop/web-0/-
kube_pod_container_status_restarts_total{{container="app",instance="10.1.0.9:8443",job="kube-state-metrics",namespace="shop",pod="web-0",uid="7c57de98"}} -> shop/web-0/app

# Without honor_labels.
kube_pod_status_phase{{container="kube-state-metrics",exported_namespace="shop",exported_pod="web-0",job="kube-state-metrics",namespace="monitoring",phase="Running",pod="ksm-7d9f8b6c5-x2x4z",uid="7c57de98"}} -> shop/web-0/kube-state-metrics
kube_pod_container_resource_limits{{container="kube-state-metrics",exported_container="app",exported_namespace="shop",exported_pod="web-0",namespace="monitoring",node="node-1",pod="ksm-7d9f8b6c5-x2x4z",resource="cpu",unit="core"}} -> shop/web-0/app
# Where only the target's namespace was added.
kube_pod_owner{{exported_namespace="shop",namespace="monitoring",owner_kind="ReplicaSet",owner_name="web-6d4b75cb6d",pod="web-0",service="ksm"}} -> shop/web-0/-

# Objects that are no pods carry, if any, the pod label of kube-state-metrics: with honor_labels and without.
kube_deployment_status_replicas{{container="kube-state-metrics",deployment="web",endpoint="http",job="kube-state-metrics",namespace="shop",pod="ksm-7d9f8b6c5-x2x4z",service="ksm"}} -> left out
kube_deployment_status_replicas{{container="kube-state-metrics",deployment="api",exported_namespace="shop",namespace="monitoring",pod="ksm-7d9f8b6c5-x2x4z"}} -> left out
kube_node_info{{node="node-1",pod="ksm-7d9f8b6c5-x2x4z",namespace="monitoring"}} -> left out
kube_poddisruptionbudget_status_pod_disruptions_allowed{{namespace="shop",pod="ksm-7d9f8b6c5-x2x4z",poddisruptionbudget="web"}} -> left out
# Its own metrics are its own.
kube_state_metrics_list_total{{namespace="monitoring",pod="ksm-7d9f8b6c5-x2x4z",resource="*v1.Pod",result="success"}} -> monitoring/ksm-7d9f8b6c5-x2x4z/-

# Nothing to do with a pod.
machine_memory_bytes{{boot_id="b",machine_id="m",node="node-1"}} -> left out
kubelet_running_pods{{instance="node-1",job="kubelet",namespace="kube-system",service="kubelet"}} -> left out
kubelet_volume_stats_used_bytes{{namespace="shop",persistentvolumeclaim="data-web-0",service="kubelet"}} -> left out

# An exporter that is scraped as a pod and tells about its node: its pod, which is right.
node_load1{{container="node-exporter",endpoint="https",instance="node-1",job="node-exporter",namespace="monitoring",pod="node-exporter-8x2tz",service="node-exporter"}} -> monitoring/node-exporter-8x2tz/node-exporter
# One that tells about other pods.
DCGM_FI_DEV_GPU_UTIL{{container="nvidia-dcgm-exporter",exported_container="train",exported_namespace="ml",exported_pod="bert-0",gpu="0",namespace="gpu",pod="nvidia-dcgm-exporter-7mqjg"}} -> ml/bert-0/train
DCGM_FI_DEV_GPU_UTIL{{container="nvidia-dcgm-exporter",gpu="1",namespace="gpu",pod="nvidia-dcgm-exporter-7mqjg"}} -> gpu/nvidia-dcgm-exporter-7mqjg/nvidia-dcgm-exporter
# An operator that counts its work by namespace: the series is the operator's.
reconcile_total{{exported_namespace="shop",namespace="operators",pod="operator-0"}} -> operators/operator-0/-
# An application, and the kubelet's resource metrics.
http_requests_total{{code="200",container="app",namespace="shop",pod="web-0"}} -> shop/web-0/app
pod_memory_working_set_bytes{{namespace="shop",pod="web-0"}} -> shop/web-0/-
"""  # noqa: E501 - series are as long as they are


@dataclass(frozen=True, slots=True)
class Case:
    """One series, and namespace, pod and container as the preset leaves them; None: it is left out."""

    series: str
    labels: dict[str, str]
    place: tuple[str, str, str] | None


def cases() -> list[Case]:
    """Return the table."""
    found: list[Case] = []
    for line in TABLE.splitlines():
        if line and not line.startswith("#"):
            series, _, result = line.rpartition(" -> ")
            labels = {matcher.name: matcher.value for matcher in Selector.parse(series).matchers}
            found.append(Case(series, labels, None if result == "left out" else place(*result.split("/"))))
    return found


def place(namespace: str, pod: str, container: str) -> tuple[str, str, str]:
    """Return the three, with "" for none."""
    return namespace, pod, "" if container == "-" else container
