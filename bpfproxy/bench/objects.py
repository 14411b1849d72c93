"""Services to measure with: decoded objects, and the same as manifests.

Service `i` has the ClusterIPs VIP4 + i and VIP6 + i; its endpoints are `ENDPOINTS` addresses each, one behind the other
from POD4 and POD6 on. In a bench's network namespace all these are local addresses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from bpfproxy.model.address import Address, Family, format_address
from bpfproxy.model.event import Object
from bpfproxy.model.service import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectName,
    Protocol,
    Scheduler,
    Service,
    ServicePort,
)

VIP4, POD4 = 0x0A600001, 0x0A800001  # 10.96.0.1, 10.128.0.1
VIP6, POD6 = (0xFD00_0096 << 96) + 1, (0xFD00_0128 << 96) + 1  # fd00:96::1, fd00:128::1
POD_RANGES = ("10.128.0.0/9", "fd00:128::/32")
ENDPOINTS = 10
NODE = "bench"

_WEB = (ServicePort("web", Protocol.TCP, 80),)
_TARGETS = {"web": (Protocol.TCP, 8080), "request": (Protocol.TCP, 8090), "datagram": (Protocol.UDP, 8080)}


def address(family: Family, base: int, offset: int = 0) -> Address:
    """The packed address `offset` behind `base`."""
    return Address((base + offset).to_bytes(4 if family == 4 else 16, "big"))


def name_of(index: int) -> ObjectName:
    """Of service `index`."""
    return ObjectName("bench", f"service-{index}")


def service(index: int) -> Service:
    """Service `index`: one TCP port, IPv4."""
    return Service(name_of(index), _WEB, cluster_ips=(address(4, VIP4, index),))


def endpoints(
    index: int, *, turn: int = 0, family: Family = 4, ports: Iterable[ServicePort] = _WEB, of: int | None = None
) -> EndpointSlice:
    """The endpoints of service `index` (their addresses: those of service `of`). In another `turn` the last one has
    another address, as after a rollout."""
    base, at = (POD4 if family == 4 else POD6), ENDPOINTS * (index if of is None else of)
    last = (1 << 20) + ENDPOINTS * turn if turn else 0
    return EndpointSlice(
        ObjectName("bench", f"service-{index}-ipv{family}"),
        name_of(index),
        family,
        tuple(EndpointPort(port.name, *_TARGETS[port.name]) for port in ports),
        tuple(
            Endpoint(address(family, base, at + n + (last if n == ENDPOINTS - 1 else 0)), node_name=f"node-{n % 5}")
            for n in range(ENDPOINTS)
        ),
    )


def cluster(count: int) -> tuple[Object, ...]:
    """`count` services with their endpoints."""
    return tuple(item for index in range(count) for item in (service(index), endpoints(index)))


def target(index: int, *, affinity: bool = False, scheduler: Scheduler | None = None) -> tuple[Object, ...]:
    """Service `index` as a target of traffic: TCP and UDP, dual stack. Its endpoints are those of service 0."""
    ports = (
        *_WEB,
        ServicePort("request", Protocol.TCP, 81),
        ServicePort("datagram", Protocol.UDP, 53),
    )
    families: tuple[Family, ...] = (4, 6)
    item = Service(
        name_of(index),
        ports,
        cluster_ips=(address(4, VIP4, index), address(6, VIP6, index)),
        affinity_timeout=10800 if affinity else 0,
        scheduler=scheduler,
    )
    return (item, *(endpoints(index, family=family, ports=ports, of=0) for family in families))


# ---- manifests ---------------------------------------------------------------------------------------------------


def manifest(item: Service | EndpointSlice) -> dict[str, Any]:
    """As the API server would show it, in short."""
    name = {"namespace": item.name.namespace, "name": item.name.name}
    if isinstance(item, Service):
        texts = [format_address(packed) for packed in item.cluster_ips]
        ports = [{"name": p.name, "protocol": p.protocol.name, "port": p.port} for p in item.ports]
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": name,
            "spec": {"type": item.type, "clusterIP": texts[0], "clusterIPs": texts, "ports": ports},
        }
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**name, "labels": {"kubernetes.io/service-name": item.service.name}},
        "addressType": f"IPv{item.family}",
        "ports": [{"name": p.name, "protocol": p.protocol.name, "port": p.port} for p in item.ports],
        "endpoints": [
            {
                "addresses": [format_address(endpoint.address)],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": endpoint.node_name,
            }
            for endpoint in item.endpoints
        ],
    }


def _service_manifests(index: int, turn: int) -> Iterator[dict[str, Any]]:
    yield manifest(service(index))
    yield manifest(endpoints(index, turn=turn))


def service_file(index: int, turn: int = 0) -> str:
    """A YAML file with service `index` and its endpoints."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump_all(_service_manifests(index, turn), Dumper=dumper, sort_keys=False)


def list_file(count: int, changed: int = 0, turn: int = 0) -> str:
    """A JSON List of `count` services, as `kubectl get -o json` prints it; service `changed` is in `turn`."""
    items = [item for index in range(count) for item in _service_manifests(index, turn if index == changed else 0)]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=4)
