"""Kubernetes manifests of cases and of the lab's nodes, as an agent reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from bpfproxy.lab.cases import Case, Endpoint, Port
from bpfproxy.lab.layout import NODES, SPOTS, Family

Object = dict[str, Any]


def write(directory: Path, name: str, objects: Iterable[Object]) -> Path:
    """Write objects as one multi-document file `name`.yaml, in one step for whoever watches the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.yaml"
    # The agent reads *.yaml; the rename makes the file appear whole.
    draft = directory / f".{name}.draft"
    draft.write_text(yaml.safe_dump_all(objects, sort_keys=False))
    return draft.replace(path)


def nodes() -> list[Object]:
    """The lab's Nodes."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": {"topology.kubernetes.io/zone": node.zone}},
            "spec": {"podCIDRs": [node.pods4, node.pods6]},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": SPOTS[node.name].v4},
                    {"type": "InternalIP", "address": SPOTS[node.name].v6},
                    {"type": "Hostname", "address": node.name},
                ]
            },
        }
        for node in NODES.values()
    ]


def objects(case: Case) -> list[Object]:
    """The Service of a case and its EndpointSlices."""
    return [service(case), *slices(case, case.service.endpoints)]


def _name(case: Case) -> Object:
    return {"namespace": f"case-{case.name}", "name": "web"}


def service(case: Case) -> Object:
    """The Service of a case."""
    about = case.service
    spec: Object = {"type": about.type, "ports": [_service_port(case, port) for port in about.ports]}
    if about.type == "ExternalName":
        spec["externalName"] = "elsewhere.example"
    else:
        addresses = ["None"] if about.headless else [case.vip("ClusterIP", family) for family in about.families]
        spec |= {
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilies": [f"IPv{family}" for family in about.families],
            "internalTrafficPolicy": about.internal_policy,
        }
    if about.external_ips or about.external_ips_of:
        spec["externalIPs"] = [case.vip("ExternalIP", family) for family in about.families]
    if about.type in ("NodePort", "LoadBalancer") or "externalIPs" in spec:
        spec["externalTrafficPolicy"] = about.external_policy
    if about.source_ranges:
        spec["loadBalancerSourceRanges"] = list(about.source_ranges)
    if about.traffic_distribution:
        spec["trafficDistribution"] = about.traffic_distribution
    if about.publish_not_ready:
        spec["publishNotReadyAddresses"] = True
    if about.affinity:
        spec["sessionAffinity"] = "ClientIP"
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": about.affinity}}
    metadata = _name(case)
    if about.labels:
        metadata["labels"] = dict(about.labels)
    annotations = {"bpfproxy.io/scheduler": about.scheduler, "bpfproxy.io/proxy-mode": about.proxy_mode}
    if chosen := {name: value for name, value in annotations.items() if value}:
        metadata["annotations"] = chosen
    made: Object = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    if about.type == "LoadBalancer":
        addresses = [case.vip("LoadBalancer", family) for family in about.families]
        ingress = [{"ip": address, "ipMode": about.ip_mode} for address in addresses]
        made["status"] = {"loadBalancer": {"ingress": ingress}}
    return made


def _service_port(case: Case, port: Port) -> Object:
    made: Object = {"protocol": port.protocol, "port": port.port, "targetPort": port.target}
    if port.name:
        made["name"] = port.name
    if case.service.type in ("NodePort", "LoadBalancer"):
        made["nodePort"] = case.node_port(port)
    return made


def slices(case: Case, endpoints: tuple[Endpoint, ...]) -> list[Object]:
    """EndpointSlices of a case with the given endpoints: as many per family as the case says."""
    made = []
    for family in case.service.families:
        for part in range(case.service.slices):
            metadata = {
                "namespace": _name(case)["namespace"],
                "name": f"web-ipv{family}-{part}",
                "labels": {"kubernetes.io/service-name": "web", **case.service.slice_labels},
            }
            made.append(
                {
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": metadata,
                    "addressType": f"IPv{family}",
                    "ports": [
                        {"name": port.name, "protocol": port.protocol, "port": port.target}
                        for port in case.service.ports
                    ],
                    "endpoints": [_endpoint(one, family) for one in endpoints[part :: case.service.slices]],
                }
            )
    return made


def _endpoint(endpoint: Endpoint, family: Family) -> Object:
    spot = SPOTS[endpoint.at]
    made: Object = {
        "addresses": [spot.address(family)],
        "nodeName": spot.node,
        "zone": NODES[spot.node].zone,
        "targetRef": {"kind": "Pod", "name": endpoint.at},
    }
    conditions = {
        name: value for name in ("ready", "serving", "terminating") if (value := getattr(endpoint, name)) is not None
    }
    if conditions:
        made["conditions"] = conditions
    hints = {}
    if endpoint.zones:
        hints["forZones"] = [{"name": zone} for zone in endpoint.zones]
    if endpoint.nodes:
        hints["forNodes"] = [{"name": node} for node in endpoint.nodes]
    if hints:
        made["hints"] = hints
    return made
