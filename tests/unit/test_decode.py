"""Manifests to model objects, and the one line that each fault gets."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bpfproxy.errors import InputError
from bpfproxy.model.address import parse_address
from bpfproxy.model.event import Object, ObjectKey
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
from bpfproxy.sources import yamltree
from bpfproxy.sources.manifest import Manifest, decode_manifest

FORMATS = ("json", "yaml")


def ip(text: str) -> Any:
    return parse_address(text)


def decode(text: str | bytes, path: str = "m.yaml") -> Manifest:
    return decode_manifest(text.encode() if isinstance(text, str) else text, path)


def decode_one(tree: object, form: str = "yaml") -> Object | None:
    """The one object of a document, through JSON or YAML."""
    text = json.dumps(tree) if form == "json" else yaml.safe_dump(tree)
    objects = decode(text, f"m.{form}").objects
    assert len(objects) <= 1
    return next(iter(objects.values()), None)


def faults(text: str | bytes, path: str = "m.yaml") -> list[str]:
    with pytest.raises(InputError) as caught:
        decode(text, path)
    return str(caught.value).splitlines()


def service(spec: dict[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
    metadata = {"name": "web", "namespace": "shop", **rest.pop("metadata", {})}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec or {}, **rest}


def slice_(metadata: dict[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "web"},
            **(metadata or {}),
        },
        **rest,
    }


def node(**rest: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, **rest}


NAME = ObjectName("shop", "web")
PORT = {"port": 80}


# ---- what is accepted --------------------------------------------------------------------------------------------


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
A = "10.0.0.1"


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


# ---- what is refused ---------------------------------------------------------------------------------------------


def ports(*entries: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return service({"ports": list(entries), **spec})


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


# ---- documents ---------------------------------------------------------------------------------------------------


def keys(manifest: Manifest) -> list[str]:
    return sorted(str(key) for key in manifest.objects)


def test_multi_document_yaml_counts_every_document() -> None:
    text = "---\n# a comment\n---\n" + yaml.safe_dump(service()) + "---\n---\n" + yaml.safe_dump(slice_()) + "...\n"
    manifest = decode(text)
    assert keys(manifest) == ["EndpointSlice shop/web-1", "Service shop/web"]
    assert manifest.places[ObjectKey("Service", NAME)] == "document 2"


@pytest.mark.parametrize("form", FORMATS)
def test_lists(form: str) -> None:
    bare_service = {key: value for key, value in service().items() if key not in ("kind", "apiVersion")}
    bare_slice = {key: value for key, value in slice_().items() if key not in ("kind", "apiVersion")}
    trees = [
        {"apiVersion": "v1", "kind": "List", "items": [node(), {"kind": "Pod", "apiVersion": "v1"}]},
        {"apiVersion": "v1", "kind": "ServiceList", "items": [bare_service]},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": [bare_slice]},
        {"apiVersion": "v1", "kind": "NodeList", "items": None},
    ]
    text = "".join(map(json.dumps, trees)) if form == "json" else yaml.safe_dump_all(trees)
    assert keys(decode(text, f"m.{form}")) == ["EndpointSlice shop/web-1", "Node n1", "Service shop/web"]


@pytest.mark.parametrize("separator", ["", "\n", " \r\n\t"])
def test_json_documents_one_after_another(separator: str) -> None:
    text = separator.join([json.dumps(service()), json.dumps(slice_(), indent=1), json.dumps(node())])
    assert len(decode(text, "m.json").objects) == 3


@pytest.mark.parametrize(
    "text", [json.dumps(service()), "\ufeff" + json.dumps(service()), json.dumps(service()) + "\n---\n"]
)
def test_json_in_a_yaml_file(text: str) -> None:
    assert keys(decode(text)) == ["Service shop/web"]


@pytest.mark.parametrize("path", ["m.yaml", "m.json"])
@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_empty_file(data: bytes, path: str) -> None:
    assert decode(data, path).objects == {}


def test_each_fault_of_a_file_is_one_line() -> None:
    items = [service({"type": "x"}), service(), slice_(addressType="x"), service()]
    text = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}) + "---\na: [\n"
    found = faults(text, "dir/m.yaml")
    assert [line.split(": ")[1] for line in found] == [
        "document 1, items[0]",
        "document 1, items[2]",
        "document 1, items[3]",
        "document 2",
    ]
    assert "Service shop/web: metadata.name: expected each object once" in found[2]
    assert "document 1, items[1]" in found[2]
    assert "line " in found[3]


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (
            ports({"port": 80, "nodePort": 30080}, type="NodePort"),
            ports({"port": 81, "nodePort": 30080}, type="LoadBalancer"),
            "spec.ports[0].nodePort: expected one of its own, 30080/TCP is already that of Service shop/web",
        ),
        (
            ports({"port": 80, "nodePort": 31000}, type="NodePort"),
            service({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}),
            "spec.healthCheckNodePort: expected one of its own, 31000/TCP is already that of Service shop/web",
        ),
        (
            service({"clusterIP": "10.96.0.1"}),
            service({"clusterIP": "10.96.0.1"}),
            "spec.clusterIPs: expected one of its own, 10.96.0.1 is already that of Service shop/web",
        ),
    ],
)
def test_claimed_twice(first: dict[str, Any], second: dict[str, Any], text: str) -> None:
    second["metadata"]["name"] = "other"
    (line,) = faults(yaml.safe_dump_all([first, second]))
    assert line.startswith("m.yaml: document 2: Service shop/other: ")
    assert text in line
    assert line.endswith("document 1")


# ---- YAML --------------------------------------------------------------------------------------------------------


def tree_of(text: str) -> object:
    (tree,) = yamltree.documents(text.encode())
    return tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("80", 80),
        ("-1", -1),
        ("1_000", 1000),
        ("010", 8),
        ("0o10", 8),
        ("0x1F", 31),
        ("0b11", 3),
        ("0", 0),
        ("08", 8.0),
        ("1e3", 1000.0),
        ("1.5", 1.5),
        (".inf", float("inf")),
        ("1:30", "1:30"),
        ("10.0.0.1", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        ("0x", "0x"),
        ("0x_", "0x_"),
        ("0o_", "0o_"),
        ("", None),
        ("-x", "-x"),
        ("0_", 0),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("yes", True),
        ("No", False),
        ("on", True),
        ("y", "y"),
        ("~", None),
        ("'no'", "no"),
        ('"80"', "80"),
        ("!!str 80", "80"),
        ("!!int '80'", 80),
        ("! 80", "80"),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_scalars_are_read_as_kubernetes_reads_them(text: str, value: object) -> None:
    found = tree_of(f"a: {text}")
    assert found == {"a": value}
    assert type(found) is dict
    assert type(found["a"]) is type(value)


def test_keys_are_text() -> None:
    assert tree_of("on: 1\n5: 2\n~: 3\n? a\n: 4") == {"on": 1, "5": 2, "~": 3, "a": 4}


def test_aliases_and_merges() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{y: 4}, *a]}\nd: [*a, &s v, *s]\n&k e: *k\n"
    assert tree_of(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 4},
        "d": [{"x": 1, "y": 2}, "v", "v"],
        "e": "e",
    }


LAUGHS = "a0: &a0 [l, l, l, l, l, l, l, l, l, l]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: key 'a' stands twice"),
        ("a: {b: 1, b: 2}", "key 'b' stands twice"),
        ("{a: 1, 'a': 2}", "key 'a' stands twice"),
        ("[a]: 1", "expected a scalar as key"),
        ("? {a: b}\n: 1", "expected a scalar as key"),
        ("a: &a [*a]", "alias *a without a finished anchor"),
        ("a: *b", "alias *b without a finished anchor"),
        ("a: !!python/object:os.system x", "unknown tag tag:yaml.org,2002:python/object:os.system"),
        ("a: !mine [x]", "unknown tag !mine"),
        ("a: !!int x", "expected int, not 'x'"),
        ("<<: 5", "expected a mapping, or a list of them, to merge"),
        ("a: " + "9" * 5000, "too many digits"),
        ("[" * 100_000, "nested deeper than 200"),
        ("- " * 100_000, "nested deeper than 200"),
        ("{a: " * 1000, "nested deeper than 200"),
        (LAUGHS, "aliases stand for more than"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed"),
        ("\ta: b", "cannot start any token"),
        ("a: \x00", "control characters are not allowed"),
        ("%YAML 9.9\n---\na", "found incompatible YAML document"),
    ],
)
def test_hostile_yaml(text: str, message: str) -> None:
    (line,) = faults(text)
    assert line.startswith("m.yaml: document 1: ")
    assert message in line


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"kind": "List", "items": [' + b"[" * 100_000, "document 1: nested too deeply"),
        (b"[" * 100_000, "document 1: expected object, got array"),
        (b'{"a": ' * 100_000, "document 1: nested too deeply"),
        (b'{"kind": ' + b"9" * 10_000 + b"}", "document 1: "),
        (b'{"kind": "\xff"}', "document 1: expected UTF-8 text, found byte 0xff at 10"),
        (b'{"kind": "Pod",}', "document 1: line 1, column 16"),
        (b'{"kind": "Pod"}\n{"kind"', "document 2: line 2, column 8: malformed JSON"),
        (b"\x00\x01\x02", "document 1: line 1, column 1: malformed JSON"),
        (b"kind: Service", "document 1: line 1, column 1: malformed JSON"),
        (b'{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "\\ud800"}}', "document 1: "),
    ],
)
def test_hostile_json(data: bytes, message: str) -> None:
    (line,) = faults(data, "m.json")
    assert message in line
    assert line.isprintable()


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\x00", b"\x80abc", b"a: \xc3\x28", bytes(range(256)), b"\x7fELF\x02\x01\x01\x00"]
)
def test_binary(data: bytes) -> None:
    (line,) = faults(data)
    assert line.isprintable()


# ---- anything at all ---------------------------------------------------------------------------------------------

_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["10.0.0.1", "fd00::1", "None", "TCP", "ClientIP", "Local", "a", "IPv4", "10.0.0.0/8"])
)
_names = st.sampled_from(
    re.findall(
        r"\w+",
        "metadata name namespace labels annotations deletionTimestamp spec ports protocol port nodePort type clusterIP "
        "clusterIPs externalIPs loadBalancerSourceRanges externalTrafficPolicy sessionAffinity sessionAffinityConfig "
        "clientIP timeoutSeconds healthCheckNodePort status loadBalancer ingress ip ipMode addressType endpoints "
        "addresses conditions ready nodeName hints forZones taints key address items kind apiVersion",
    )
)
_trees = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names, inner, max_size=6), max_leaves=25
)
_objects = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["Service", "EndpointSlice", "Node", "List", "ServiceList", "Pod"]),
        "apiVersion": st.sampled_from(["v1", "discovery.k8s.io/v1"]),
    },
    optional={"metadata": _trees, "spec": _trees, "status": _trees, "endpoints": _trees, "items": st.lists(_trees)},
)


def attempt(data: bytes, path: str) -> None:
    try:
        decode_manifest(data, path)
    except InputError as error:
        for line in str(error).splitlines():
            assert line.startswith(f"{path}: document ")
            assert line.isprintable()


@given(_trees | _objects)
@settings(max_examples=400, deadline=None)
def test_any_tree(tree: object) -> None:
    attempt(json.dumps(tree).encode(), "m.json")
    attempt(yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass"), "m.yaml")


@given(st.binary(max_size=200) | st.text(alphabet="abk:-[]{}&*!|>'\"%@\n\t #,?<~01", max_size=80).map(str.encode))
@example(b"&a a: &b\n- *a\n- *b")
@example(b"{? , : }")
@settings(max_examples=1500, deadline=None)
def test_any_bytes(data: bytes) -> None:
    attempt(data, "m.json")
    attempt(data, "m.yaml")
