"""Kubernetes objects from their JSON form: `decode` is the one way in, for manifests and for an API server's answers.

What is valid is what an API server would accept, as far as a proxy is concerned: a value that it refuses would
never reach a node, and accepting it here would only hide a slip of the pen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple, get_args

import msgspec

from bpfproxy.config import ProxyMode
from bpfproxy.model.address import Address, Family
from bpfproxy.model.event import Kind, Object
from bpfproxy.model.service import (
    AFFINITY_TIMEOUT_DEFAULT,
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
from bpfproxy.sources import wire
from bpfproxy.sources.fields import (
    FieldError,
    address,
    choice,
    network,
    number,
    object_name,
    port_name,
    port_number,
    quoted,
    virtual_address,
)

SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
PROXY_NAME_LABEL: Final = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL: Final = "service.kubernetes.io/headless"
ZONE_LABEL: Final = "topology.kubernetes.io/zone"
LEAVING_TAINT: Final = "ToBeDeletedByClusterAutoscaler"
SCHEDULER_ANNOTATION: Final = "bpfproxy.io/scheduler"
PROXY_MODE_ANNOTATION: Final = "bpfproxy.io/proxy-mode"

_PROTOCOLS: Final = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
_TYPES: Final = {name: name for name in ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")}
_POLICIES: Final = {"Cluster": False, "Local": True}
_AFFINITIES: Final = {"None": False, "ClientIP": True}
_IP_MODES: Final = {"VIP": True, "Proxy": False}
_SCHEDULERS: Final[dict[str, Scheduler | None]] = {scheduler.label: scheduler for scheduler in Scheduler}
_PROXY_MODES: Final[dict[str, str | None]] = {mode: mode for mode in get_args(ProxyMode)}
_ADDRESS_TYPES: Final[dict[str, Family | None]] = {"IPv4": 4, "IPv6": 6, "FQDN": None}
_NODE_ADDRESS_TYPES: Final = ("InternalIP", "ExternalIP")


def decode(kind: Kind, body: msgspec.Raw | bytes) -> Object | None:
    """The object of `kind` in `body`, which is JSON text.

    None if it is nothing to a proxy: an EndpointSlice of names, or one that belongs to no Service. Raises FieldError.
    """
    form = KINDS[kind]
    return form.convert(shape(body, form.decoder))


def shape(body: msgspec.Raw | bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """`body` as the decoder's type; raises FieldError where it has another shape."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _field_error(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FieldError("", f"malformed JSON: {error}") from error
    except RecursionError:
        raise FieldError("", "nested too deeply") from None


def _field_error(text: str) -> FieldError:
    """msgspec's "Expected `int | null`, got `str` - at `$.spec.x`" in the form of the other messages."""
    message, _, place = text.partition(" - at ")
    path = " in ".join(part for part in place.replace("`", "").replace("$.", "").split(" in "))
    message = message.replace(" | null", "").replace("`", "")
    return FieldError(path.removeprefix("$"), message[:1].lower() + message[1:])


# ---- Service -----------------------------------------------------------------------------------------------------


def _service(raw: wire.Service) -> Service:
    meta = raw.metadata or wire.Meta()
    spec = raw.spec or wire.ServiceSpec()
    annotations = meta.annotations or {}
    kind = choice(spec.type, _TYPES, "ClusterIP", "spec.type")
    cluster_ips, headless = _cluster_ips(spec)
    external_local = choice(spec.external_traffic_policy, _POLICIES, False, "spec.externalTrafficPolicy")
    health_check = spec.health_check_node_port or 0
    if health_check:
        port_number(health_check, "spec.healthCheckNodePort")
    return Service(
        name=_name(meta),
        ports=_service_ports(spec.ports or [], kind),
        type=kind,
        cluster_ips=() if kind == "ExternalName" else cluster_ips,
        headless=headless,
        external_ips=_addresses(spec.external_ips, "spec.externalIPs"),
        load_balancer_ips=_ingress_ips(raw.status),
        source_ranges=tuple(
            sorted(
                {
                    network(text, f"spec.loadBalancerSourceRanges[{index}]")
                    for index, text in enumerate(spec.load_balancer_source_ranges or ())
                },
                key=lambda item: (item.version, int(item.network_address), item.prefixlen),
            )
        ),
        external_local=external_local,
        internal_local=choice(spec.internal_traffic_policy, _POLICIES, False, "spec.internalTrafficPolicy"),
        affinity_timeout=_affinity_timeout(spec),
        # Meaningless elsewhere, and kube-proxy serves none there.
        health_check_node_port=health_check if kind == "LoadBalancer" and external_local else 0,
        publish_not_ready=bool(spec.publish_not_ready_addresses),
        ignored=_ignored(meta),
        scheduler=_annotation(annotations, SCHEDULER_ANNOTATION, _SCHEDULERS),
        proxy_mode=_annotation(annotations, PROXY_MODE_ANNOTATION, _PROXY_MODES),
    )


def _name(meta: wire.Meta) -> ObjectName:
    name = object_name(meta.name, "metadata.name")
    return ObjectName(sys.intern(object_name(meta.namespace or "default", "metadata.namespace")), name)


def _ignored(meta: wire.Meta) -> bool:
    return meta.labels is not None and (PROXY_NAME_LABEL in meta.labels or HEADLESS_LABEL in meta.labels)


def _annotation(annotations: dict[str, str], key: str, choices: dict[str, Any]) -> Any:
    return choice(annotations.get(key), choices, None, f'metadata.annotations["{key}"]')


def _cluster_ips(spec: wire.ServiceSpec) -> tuple[tuple[Address, ...], bool]:
    """(addresses, headless)."""
    texts = [text for text in spec.cluster_ips or () if text]
    if not texts:
        texts, path = ([spec.cluster_ip] if spec.cluster_ip else []), "spec.clusterIP"
    elif spec.cluster_ip and spec.cluster_ip != texts[0]:
        raise FieldError("spec.clusterIPs[0]", f"expected clusterIP, {quoted(spec.cluster_ip)}, not {quoted(texts[0])}")
    else:
        path = "spec.clusterIPs"
    if "None" in texts:
        if len(texts) > 1:
            raise FieldError(path, "expected None to stand alone")
        return (), True
    addresses = tuple(
        virtual_address(text, f"{path}[{index}]" if path[-1] == "s" else path) for index, text in enumerate(texts)
    )
    if len({len(packed) for packed in addresses}) < len(addresses):
        raise FieldError(path, "expected at most one address of each family")
    return addresses, False


def _addresses(texts: list[str] | None, path: str) -> tuple[Address, ...]:
    return tuple(sorted({virtual_address(text, f"{path}[{index}]") for index, text in enumerate(texts or ())}))


def _ingress_ips(status: wire.ServiceStatus | None) -> tuple[Address, ...]:
    balancer = status.load_balancer if status else None
    addresses = set()
    for index, ingress in enumerate((balancer.ingress if balancer else None) or ()):
        path = f"status.loadBalancer.ingress[{index}]"
        if choice(ingress.ip_mode, _IP_MODES, True, f"{path}.ipMode") and ingress.ip:
            addresses.add(virtual_address(ingress.ip, f"{path}.ip"))
    return tuple(sorted(addresses))


def _affinity_timeout(spec: wire.ServiceSpec) -> int:
    client_ip = spec.session_affinity_config.client_ip if spec.session_affinity_config else None
    timeout = AFFINITY_TIMEOUT_DEFAULT
    if client_ip is not None and client_ip.timeout_seconds is not None:
        timeout = number(client_ip.timeout_seconds, 1, 86400, "spec.sessionAffinityConfig.clientIP.timeoutSeconds")
    return timeout if choice(spec.session_affinity, _AFFINITIES, False, "spec.sessionAffinity") else 0


def _service_ports(ports: list[wire.ServicePort], kind: str) -> tuple[ServicePort, ...]:
    result: list[ServicePort] = []
    names: set[str] = set()
    numbers: set[tuple[int, Protocol]] = set()
    node_ports: set[tuple[int, Protocol]] = set()
    for index, raw in enumerate(ports):
        path = f"spec.ports[{index}]"
        port = ServicePort(
            name=port_name(raw.name, f"{path}.name"),
            protocol=choice(raw.protocol, _PROTOCOLS, Protocol.TCP, f"{path}.protocol"),
            port=port_number(raw.port, f"{path}.port"),
            node_port=port_number(raw.node_port, f"{path}.nodePort") if raw.node_port else 0,
        )
        if not port.name and len(ports) > 1:
            raise FieldError(f"{path}.name", "expected a name, as there are several ports")
        if port.name in names:
            raise FieldError(f"{path}.name", f"expected a name of its own, not {quoted(port.name)} again")
        if (port.port, port.protocol) in numbers:
            raise FieldError(f"{path}.port", f"expected each port once, not {port.port}/{port.protocol.name} again")
        if port.node_port:
            if kind not in ("NodePort", "LoadBalancer"):
                raise FieldError(f"{path}.nodePort", f"expected none in a Service of type {kind}")
            if (port.node_port, port.protocol) in node_ports:
                again = f"{port.node_port}/{port.protocol.name}"
                raise FieldError(f"{path}.nodePort", f"expected each nodePort once, not {again} again")
        names.add(port.name)
        numbers.add((port.port, port.protocol))
        node_ports.add((port.node_port, port.protocol))
        result.append(port)
    return tuple(result)


# ---- EndpointSlice -----------------------------------------------------------------------------------------------


def _endpoint_slice(raw: wire.EndpointSlice) -> EndpointSlice | None:
    meta = raw.metadata or wire.Meta()
    name = _name(meta)
    if not raw.address_type:
        raise FieldError("addressType", "expected IPv4, IPv6 or FQDN, not nothing")
    family = choice(raw.address_type, _ADDRESS_TYPES, None, "addressType")
    service = (meta.labels or {}).get(SERVICE_NAME_LABEL)
    if family is None or not service:
        return None
    return EndpointSlice(
        name=name,
        service=ObjectName(name.namespace, object_name(service, f'metadata.labels["{SERVICE_NAME_LABEL}"]')),
        family=family,
        ports=_endpoint_ports(raw.ports or []),
        endpoints=_endpoints(raw.endpoints or [], 4 if family == 4 else 16),
        ignored=_ignored(meta),
    )


def _endpoint_ports(ports: list[wire.EndpointPort]) -> tuple[EndpointPort, ...]:
    result: dict[str, EndpointPort] = {}
    for index, raw in enumerate(ports):
        path = f"ports[{index}]"
        name = sys.intern(port_name(raw.name, f"{path}.name"))
        protocol = choice(raw.protocol, _PROTOCOLS, Protocol.TCP, f"{path}.protocol")
        if raw.port is None:
            continue
        if name in result:
            raise FieldError(f"{path}.name", f"expected a name of its own, not {quoted(name)} again")
        result[name] = EndpointPort(name, protocol, port_number(raw.port, f"{path}.port"))
    return tuple(result.values())


_NO_CONDITIONS: Final = wire.Conditions()


def _endpoints(endpoints: list[wire.Endpoint], size: int) -> tuple[Endpoint, ...]:
    """Those whose first address has `size` bytes."""
    result = []
    for index, raw in enumerate(endpoints):
        if not raw.addresses:
            continue
        packed = address(raw.addresses[0], f"endpoints[{index}].addresses[0]")
        if len(packed) != size:
            continue
        conditions = raw.conditions or _NO_CONDITIONS
        result.append(
            Endpoint(
                packed,
                conditions.ready is not False,
                conditions.serving is not False,
                conditions.terminating is True,
                sys.intern(raw.node_name) if raw.node_name else "",
                _hints(raw.hints.for_zones) if raw.hints else (),
                _hints(raw.hints.for_nodes) if raw.hints else (),
            )
        )
    return tuple(result)


def _hints(hints: list[wire.Hint] | None) -> tuple[str, ...]:
    return tuple(sorted(sys.intern(hint.name) for hint in hints or () if hint.name))


# ---- Node --------------------------------------------------------------------------------------------------------


def _node(raw: wire.Node) -> Node:
    meta = raw.metadata or wire.Meta()
    taints = (raw.spec.taints if raw.spec else None) or ()
    found: dict[str, list[Address]] = {kind: [] for kind in _NODE_ADDRESS_TYPES}
    for index, entry in enumerate((raw.status.addresses if raw.status else None) or ()):
        if entry.type in found:
            found[entry.type].append(address(entry.address or "", f"status.addresses[{index}].address"))
    return Node(
        name=object_name(meta.name, "metadata.name"),
        zone=(meta.labels or {}).get(ZONE_LABEL, ""),
        addresses=tuple(dict.fromkeys(packed for kind in _NODE_ADDRESS_TYPES for packed in found[kind])),
        leaving=meta.deletion_timestamp is not None or any(taint.key == LEAVING_TAINT for taint in taints),
    )


class Form(NamedTuple):
    """How objects of one kind are read."""

    api_version: str
    decoder: msgspec.json.Decoder[Any]
    convert: Callable[[Any], Object | None]


KINDS: Final[dict[Kind, Form]] = {
    "Service": Form("v1", msgspec.json.Decoder(wire.Service), _service),
    "EndpointSlice": Form("discovery.k8s.io/v1", msgspec.json.Decoder(wire.EndpointSlice), _endpoint_slice),
    "Node": Form("v1", msgspec.json.Decoder(wire.Node), _node),
}
