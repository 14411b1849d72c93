"""Manifests to model objects."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from bpfproxy.model.service import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    ObjectName,
    Protocol,
    Scheduler,
    Service,
    ServicePort,
)
from tests.unit.manifests import FORMATS, NAME, A, decode_one, ip, node, service, slice_

SERVICES: dict[str, tuple[dict[str, Any], Service]] = {
    "bare": (service(), Service(NAME)),
    "nulls are absent": (
        service({"ports": None, "clusterIP": None, "sessionAffinityConfig": None}, status=None),
        Service(NAME),
    ),
    "namespace default": (
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}},
        Service(ObjectName("default", "web")),
    ),
    "ports": (
        service(
            {
                "type": "NodePort",
                "ports": [
                    {"name": "a", "port": 80, "targetPort": "x", "nodePort": 30080, "unknown": [1]},
                    {"name": "b", "port": 80, "protocol": "UDP", "nodePort": 30080},
                    {"name": "c", "port": 65535, "protocol": "SCTP"},
                ],
            }
        ),
        Service(
            NAME,
            type="NodePort",
            ports=(
                ServicePort("a", Protocol.TCP, 80, 30080),
                ServicePort("b", Protocol.UDP, 80, 30080),
                ServicePort("c", Protocol.SCTP, 65535),
            ),
        ),
    ),
    "clusterIP alone": (service({"clusterIP": "10.96.0.1"}), Service(NAME, cluster_ips=(ip("10.96.0.1"),))),
    "clusterIPs": (
        service({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"]}),
        Service(NAME, cluster_ips=(ip("10.96.0.1"), ip("fd00::1"))),
    ),
    "no clusterIP yet": (service({"clusterIP": "", "clusterIPs": [""]}), Service(NAME)),
    "headless": (service({"clusterIP": "None"}), Service(NAME, headless=True)),
    "headless by list": (service({"clusterIP": "None", "clusterIPs": ["None"]}), Service(NAME, headless=True)),
    "ExternalName": (
        service({"type": "ExternalName", "externalName": "example.org"}),
        Service(NAME, type="ExternalName"),
    ),
    "external IPs in any order, once": (
        service({"externalIPs": ["192.0.2.9", "192.0.2.1", "192.0.2.9"]}),
        Service(NAME, external_ips=(ip("192.0.2.1"), ip("192.0.2.9"))),
    ),
    "ingress": (
        service(
            {"type": "LoadBalancer"},
            status={
                "loadBalancer": {
                    "ingress": [
                        {"ip": "198.51.100.1"},
                        {"ip": "198.51.100.2", "ipMode": "VIP"},
                        {"ip": "198.51.100.3", "ipMode": "Proxy"},
                        {"hostname": "lb.example.org"},
                    ]
                }
            },
        ),
        Service(NAME, type="LoadBalancer", load_balancer_ips=(ip("198.51.100.1"), ip("198.51.100.2"))),
    ),
    "source ranges": (
        service({"loadBalancerSourceRanges": [" 10.1.2.3/8 ", "fd00::/8", "10.0.0.0/8"]}),
        Service(NAME, source_ranges=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))),
    ),
    "policies": (
        service({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}),
        Service(NAME, external_local=True, internal_local=True),
    ),
    "affinity by default for three hours": (
        service({"sessionAffinity": "ClientIP"}),
        Service(NAME, affinity_timeout=10800),
    ),
    "affinity": (
        service({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}}),
        Service(NAME, affinity_timeout=86400),
    ),
    "no affinity": (
        service({"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}),
        Service(NAME),
    ),
    "health check": (
        service({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}),
        Service(NAME, type="LoadBalancer", external_local=True, health_check_node_port=31000),
    ),
    "health check where there is none": (
        service({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "healthCheckNodePort": 31000}),
        Service(NAME, type="LoadBalancer"),
    ),
    "publishNotReadyAddresses": (service({"publishNotReadyAddresses": True}), Service(NAME, publish_not_ready=True)),
    "another proxy's": (
        service(metadata={"labels": {"service.kubernetes.io/service-proxy-name": "x"}}),
        Service(NAME, ignored=True),
    ),
    "headless label": (
        service(metadata={"labels": {"service.kubernetes.io/headless": ""}}),
        Service(NAME, ignored=True),
    ),
    "annotations": (
        service(metadata={"annotations": {"bpfproxy.io/scheduler": "round-robin", "bpfproxy.io/proxy-mode": "ebpf"}}),
        Service(NAME, scheduler=Scheduler.ROUND_ROBIN, proxy_mode="ebpf"),
    ),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", SERVICES)
def test_service(case: str, form: str) -> None:
    tree, expected = SERVICES[case]
    assert decode_one(tree, form) == expected


SLICE = EndpointSlice(ObjectName("shop", "web-1"), NAME, 4)


def endpoints(*members: dict[str, Any]) -> dict[str, Any]:
    return slice_(endpoints=list(members))


SLICES: dict[str, tuple[dict[str, Any], tuple[Endpoint, ...]]] = {
    "nil conditions": (endpoints({"addresses": [A]}), (Endpoint(ip(A), True, True, False),)),
    "null conditions": (
        endpoints({"addresses": [A], "conditions": {"ready": None, "serving": None, "terminating": None}}),
        (Endpoint(ip(A), True, True, False),),
    ),
    "terminating": (
        endpoints({"addresses": [A], "conditions": {"ready": False, "serving": True, "terminating": True}}),
        (Endpoint(ip(A), False, True, True),),
    ),
    "not serving": (
        endpoints({"addresses": [A], "conditions": {"ready": False, "serving": False}}),
        (Endpoint(ip(A), False, False, False),),
    ),
    "first address alone": (endpoints({"addresses": [A, "not an address"]}), (Endpoint(ip(A)),)),
    "no address": (endpoints({"addresses": []}, {"addresses": None}, {"addresses": [A]}), (Endpoint(ip(A)),)),
    "wrong family": (endpoints({"addresses": ["fd00::1"]}, {"addresses": [A]}), (Endpoint(ip(A)),)),
    "node and hints": (
        endpoints(
            {
                "addresses": [A],
                "nodeName": "n1",
                "zone": "a",
                "hints": {"forZones": [{"name": "b"}, {"name": "a"}], "forNodes": [{"name": "n1"}]},
            }
        ),
        (Endpoint(ip(A), node_name="n1", zone_hints=("a", "b"), node_hints=("n1",)),),
    ),
    "empty hints": (endpoints({"addresses": [A], "hints": {"forZones": None}}), (Endpoint(ip(A)),)),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", SLICES)
def test_endpoints(case: str, form: str) -> None:
    tree, expected = SLICES[case]
    assert decode_one(tree, form) == EndpointSlice(SLICE.name, NAME, 4, endpoints=expected)


def test_endpoint_ports() -> None:
    tree = slice_(ports=[{"port": 80}, {"name": "u", "protocol": "UDP", "port": 53}, {"name": "nil", "port": None}])
    expected = (EndpointPort("", Protocol.TCP, 80), EndpointPort("u", Protocol.UDP, 53))
    assert decode_one(tree) == EndpointSlice(SLICE.name, NAME, 4, ports=expected)


def test_slice_of_family_6() -> None:
    tree = slice_(addressType="IPv6", endpoints=[{"addresses": ["fd00::1"]}, {"addresses": [A]}])
    assert decode_one(tree) == EndpointSlice(SLICE.name, NAME, 6, endpoints=(Endpoint(ip("fd00::1")),))


@pytest.mark.parametrize(
    "tree",
    [
        slice_(addressType="FQDN", endpoints=[{"addresses": ["example.org"]}]),
        slice_({"labels": {}}),
        slice_({"labels": None}),
        {"apiVersion": "apps/v1", "kind": "Deployment", "spec": 5},
        {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "spec": {"ports": "other"}},
        {"apiVersion": "v1", "kind": "PodList", "items": [{"kind": "Service"}]},
        None,
    ],
)
def test_nothing_for_a_proxy(tree: object) -> None:
    assert decode_one(tree) is None


def test_slice_of_another_proxy() -> None:
    labels = {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}
    found = decode_one(slice_({"labels": labels}))
    assert isinstance(found, EndpointSlice)
    assert found.ignored


NODES: dict[str, tuple[dict[str, Any], Node]] = {
    "bare": (node(), Node("n1")),
    "zone": (
        node(metadata={"name": "n1", "namespace": None, "labels": {"topology.kubernetes.io/zone": "z"}}),
        Node("n1", zone="z"),
    ),
    "internal addresses first": (
        node(
            status={
                "addresses": [
                    {"type": "Hostname", "address": "n1"},
                    {"type": "ExternalIP", "address": "192.0.2.1"},
                    {"type": "InternalIP", "address": "10.0.0.9"},
                    {"type": "InternalIP", "address": "fd00::9"},
                    {"type": "InternalDNS", "address": "n1.local"},
                ]
            }
        ),
        Node("n1", addresses=(ip("10.0.0.9"), ip("fd00::9"), ip("192.0.2.1"))),
    ),
    "tainted": (
        node(spec={"taints": [{"key": "other"}, {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}),
        Node("n1", leaving=True),
    ),
    "tainted otherwise": (node(spec={"taints": [{"key": "other"}]}), Node("n1")),
    "being deleted": (
        node(metadata={"name": "n1", "deletionTimestamp": "2024-01-01T00:00:00Z"}),
        Node("n1", leaving=True),
    ),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", NODES)
def test_node(case: str, form: str) -> None:
    tree, expected = NODES[case]
    assert decode_one(tree, form) == expected
