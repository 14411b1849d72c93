"""What is refused, and the one line that each fault gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.unit.manifests import FORMATS, A, faults, node, ports, service, slice_


def annotated(key: str, value: object) -> dict[str, Any]:
    return service(metadata={"annotations": {key: value}})


def affinity(seconds: int) -> dict[str, Any]:
    return service({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}})


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # (object, field, what the message says)
    (service(metadata={"name": None}), "metadata.name", "expected a name"),
    (service(metadata={"name": "Upper"}), "metadata.name", "not 'Upper'"),
    (service(metadata={"name": "a\x1b[31m"}), "metadata.name", r"not 'a\\x1b"),
    (service(metadata={"name": 5}), "metadata.name", "expected str, got int"),
    (service(metadata={"namespace": "a b"}), "metadata.namespace", "not 'a b'"),
    (service(metadata={"labels": {"a": 1}}), "metadata.labels[...]", "expected str, got int"),
    (ports({"port": 0}), "spec.ports[0].port", "1..65535, not 0"),
    (ports({"port": 65536}), "spec.ports[0].port", "1..65535, not 65536"),
    (ports({"port": -1}), "spec.ports[0].port", "1..65535, not -1"),
    (ports({}), "spec.ports[0].port", "1..65535, not nothing"),
    (ports({"port": "80"}), "spec.ports[0].port", "expected int, got str"),
    (ports({"port": 80.5}), "spec.ports[0].port", "expected int, got float"),
    (ports({"port": True}), "spec.ports[0].port", "expected int, got bool"),
    (ports({"port": 10**30}), "spec.ports[0].port", "1..65535"),
    (ports({"port": 80, "protocol": "tcp"}), "spec.ports[0].protocol", "expected TCP, UDP or SCTP, not 'tcp'"),
    (ports({"port": 80, "name": "a"}, {"port": 81}), "spec.ports[1].name", "several ports"),
    (ports({"port": 80}, {"port": 81, "name": "a"}), "spec.ports[0].name", "several ports"),
    (ports({"port": 80, "name": "a"}, {"port": 81, "name": "a"}), "spec.ports[1].name", "'a' again"),
    (ports({"port": 80, "name": "a_b"}), "spec.ports[0].name", "not 'a_b'"),
    (ports({"port": 80, "name": "a"}, {"port": 80, "name": "b"}), "spec.ports[1].port", "80/TCP again"),
    (ports({"port": 80, "nodePort": 70000}, type="NodePort"), "spec.ports[0].nodePort", "1..65535, not 70000"),
    (ports({"port": 80, "nodePort": 30080}), "spec.ports[0].nodePort", "none in a Service of type ClusterIP"),
    (
        ports(
            {"port": 80, "name": "a", "nodePort": 30080}, {"port": 81, "name": "b", "nodePort": 30080}, type="NodePort"
        ),
        "spec.ports[1].nodePort",
        "30080/TCP again",
    ),
    (service({"type": "Nodeport"}), "spec.type", "not 'Nodeport'"),
    (service({"clusterIP": "10.0.0"}), "spec.clusterIP", "expected an IP address, not '10.0.0'"),
    (service({"clusterIP": "10.0.0.01"}), "spec.clusterIP", "expected an IP address"),
    (service({"clusterIP": "0.0.0.0"}), "spec.clusterIP", "unicast"),
    (service({"clusterIP": "127.0.0.1"}), "spec.clusterIP", "no loopback"),
    (service({"clusterIP": "::ffff:10.0.0.1"}), "spec.clusterIP", "unicast"),
    (service({"clusterIPs": ["10.0.0.1", "x"]}), "spec.clusterIPs[1]", "expected an IP address"),
    (service({"clusterIPs": ["10.0.0.1", "10.0.0.2"]}), "spec.clusterIPs", "one address of each family"),
    (service({"clusterIPs": ["None", "10.0.0.2"]}), "spec.clusterIPs", "None to stand alone"),
    (service({"clusterIP": "10.0.0.3", "clusterIPs": ["10.0.0.2"]}), "spec.clusterIPs[0]", "expected clusterIP"),
    (service({"externalIPs": ["224.0.0.1"]}), "spec.externalIPs[0]", "unicast"),
    (service({"externalIPs": ["192.0.2.1", "fe80::1%eth0"]}), "spec.externalIPs[1]", "expected an IP address"),
    (service({"externalIPs": "192.0.2.1"}), "spec.externalIPs", "expected array, got str"),
    (service({"loadBalancerSourceRanges": ["10.0.0.1"]}), "spec.loadBalancerSourceRanges[0]", "range"),
    (service({"loadBalancerSourceRanges": ["10.0.0.0/33"]}), "spec.loadBalancerSourceRanges[0]", "range"),
    (service({"loadBalancerSourceRanges": ["10.0.0.0/255.0.0.0"]}), "spec.loadBalancerSourceRanges[0]", "range"),
    (service({"externalTrafficPolicy": "local"}), "spec.externalTrafficPolicy", "expected Cluster or Local"),
    (service({"internalTrafficPolicy": "Node"}), "spec.internalTrafficPolicy", "expected Cluster or Local"),
    (service({"sessionAffinity": "Cookie"}), "spec.sessionAffinity", "expected None or ClientIP"),
    (affinity(0), "spec.sessionAffinityConfig.clientIP.timeoutSeconds", "1..86400, not 0"),
    (affinity(86401), "spec.sessionAffinityConfig.clientIP.timeoutSeconds", "1..86400, not 86401"),
    (service({"healthCheckNodePort": 70000}), "spec.healthCheckNodePort", "1..65535"),
    (
        service(status={"loadBalancer": {"ingress": [{"ip": "x"}]}}),
        "status.loadBalancer.ingress[0].ip",
        "expected an IP address",
    ),
    (
        service(status={"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "Vip"}]}}),
        "status.loadBalancer.ingress[0].ipMode",
        "expected VIP or Proxy",
    ),
    (
        annotated("bpfproxy.io/scheduler", "best"),
        'metadata.annotations["bpfproxy.io/scheduler"]',
        "expected random, round-robin or maglev, not 'best'",
    ),
    (annotated("bpfproxy.io/proxy-mode", "magic"), 'metadata.annotations["bpfproxy.io/proxy-mode"]', "not 'magic'"),
    (slice_(addressType=None), "addressType", "expected IPv4, IPv6 or FQDN"),
    (slice_(addressType="ipv4"), "addressType", "not 'ipv4'"),
    (slice_(endpoints=[{"addresses": ["10.0.0"]}]), "endpoints[0].addresses[0]", "expected an IP address"),
    (slice_(endpoints=[{"addresses": ["0.0.0.0"]}]), "endpoints[0].addresses[0]", "unicast"),
    (slice_(endpoints=[{"addresses": [A], "conditions": {"ready": "no"}}]), "endpoints[0].conditions.ready", "bool"),
    (slice_(ports=[{"port": 0}]), "ports[0].port", "1..65535, not 0"),
    (slice_(ports=[{"port": 80}, {"port": 81}]), "ports[1].name", "'' again"),
    (slice_(ports=[{"port": 80, "protocol": "ICMP"}]), "ports[0].protocol", "not 'ICMP'"),
    (slice_({"labels": {"kubernetes.io/service-name": "A"}}), "kubernetes.io/service-name", "not 'A'"),
    (node(status={"addresses": [{"type": "InternalIP", "address": "x"}]}), "status.addresses[0].address", "not 'x'"),
    (node(spec={"taints": {}}), "spec.taints", "expected array, got object"),
]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("tree", "field", "text"), REFUSED)
def test_refused(tree: dict[str, Any], field: str, text: str, form: str) -> None:
    dumped = json.dumps(tree) if form == "json" else yaml.safe_dump(tree)
    (line,) = faults(dumped, f"dir/m.{form}")
    place, title, rest = line.removeprefix(f"dir/m.{form}: ").split(": ", 2)
    assert place == "document 1"
    assert tree["kind"] in title
    assert field in rest.split(": ")[0]
    assert text.replace(r"\\", "\\") in rest
    assert line.isprintable()


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ([1], "document 1: expected object, got array"),
        (5, "document 1: expected object, got int"),
        ({"a": 1}, "kind: expected the kind of a Kubernetes object, found nothing"),
        ({"kind": 5}, "document 1: kind: expected str, got int"),
        ({"kind": "Service", "metadata": {"name": "x"}}, "Service default/x: apiVersion: expected v1, not nothing"),
        (slice_(apiVersion="discovery.k8s.io/v1beta1"), "apiVersion: expected discovery.k8s.io/v1, not"),
        ({"kind": "List", "items": 5}, "document 1: List: items: expected array, got int"),
        ({"kind": "List", "items": [{"kind": "List"}]}, "items[0]: List: expected no List within a List"),
        ({"kind": "List", "items": [None]}, "document 1, items[0]: expected object, got null"),
        ({"kind": "Service", "apiVersion": "v1", "metadata": 5}, "document 1: metadata: expected object, got int"),
    ],
)
@pytest.mark.parametrize("form", FORMATS)
def test_refused_envelope(tree: object, text: str, form: str) -> None:
    (line,) = faults(json.dumps(tree) if form == "json" else yaml.safe_dump(tree), f"m.{form}")
    assert text in line
