"""Services as users write them, planned and rendered as the agent does it: what becomes of a client's first packet, and
of the answer to it, by every kind of frontend, policy, client and state of the endpoints.

What has to come out is written from the semantics, whose rules the numbers in comments are. The node's own clients are
not here: they are translated at their sockets, and no packet of theirs comes in.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import pytest

from bpfproxy.model.address import parse_address
from bpfproxy.model.device import Device, NetworkState, NodeNetwork
from bpfproxy.model.service import Endpoint, EndpointPort, EndpointSlice, ObjectName, Protocol, Service, ServicePort
from bpfproxy.plan import NodeConfig, plan_node, plan_service
from tests.packet import packets as pk
from tests.packet.datapath import CLIENT, CLUSTER, NODE, OTHER_POD, POD, REMOTE_POD, SNAT, VIP, Datapath, Layer
from tests.packet.packets import Ether, Raw, frame, network, same
from tests.packet.test_forward import families, hooks, protocols

Place = Literal["here", "there"]
"""Where an endpoint runs: on this node or on another."""
Via = Literal["ClusterIP", "NodePort", "ExternalIP", "LoadBalancer"]
Refusal = Literal["refused", "dropped"]
End = tuple[str, int]

PORT, NODE_PORT, TARGET = 80, 30080, 8080
ZONE, OTHER_ZONE = "a", "b"
ADDRESSES: Final[dict[Via, dict[int, str]]] = {
    "ClusterIP": VIP,
    "NodePort": NODE,
    "ExternalIP": {4: "203.0.113.10", 6: "2001:db8:e::10"},
    "LoadBalancer": {4: "203.0.113.20", 6: "2001:db8:e::20"},
}
PODS: Final[dict[Place, dict[int, str]]] = {"here": POD, "there": REMOTE_POD}


class Side(NamedTuple):
    """What is on the way to somebody: a device of the node, its link layer address, and that of the next hop."""

    device: str
    mac: str
    hop: str


UPLINK: Final = Side("up0", pk.UP_MAC, pk.ROUTER_MAC)
NEIGHBOUR: Final = Side("up0", pk.UP_MAC, pk.REMOTE_MAC)
VETH: Final = Side("pod0", pk.POD_GATEWAY_MAC, pk.POD_MAC)
TO: Final[dict[Place, Side]] = {"here": VETH, "there": NEIGHBOUR}


@dataclass(frozen=True)
class Client:
    name: str
    address: Mapping[int, str]
    side: Side
    pod: bool = True


CLIENTS: Final = (
    Client("somebody outside", CLIENT, UPLINK, pod=False),
    Client("a pod of this node", OTHER_POD, VETH),
    Client("a pod of another node", {4: "10.1.2.77", 6: "fd00:1:2::77"}, NEIGHBOUR),
    Client("the endpoint here itself", POD, VETH),
)


class State(NamedTuple):
    """Conditions and hints of an endpoint."""

    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zones: tuple[str, ...] = ()


READY, LEAVING, UNREADY, GONE = State(), State(False, True, True), State(False, False), State(False, False, True)
Endpoints = Mapping[Place, State]

ENDPOINTS: Final[dict[str, Endpoints]] = {
    "here": {"here": READY},
    "there": {"there": READY},
    "both": {"here": READY, "there": READY},
    "none": {},
    "none-usable": {"here": UNREADY, "there": GONE},
    "leaving-here": {"here": LEAVING},
    "leaving-both": {"here": LEAVING, "there": LEAVING},
    "leaving-here-ready-there": {"here": LEAVING, "there": READY},
    "hinted-away": {"here": State(zones=(OTHER_ZONE,)), "there": State(zones=(ZONE,))},
}


@dataclass(frozen=True)
class World:
    """A Service that has every kind of frontend, and the settings of the node."""

    endpoints: Endpoints
    internal_local: bool = False
    external_local: bool = False
    source_ranges: tuple[str, ...] = ()
    detector: bool = True
    masquerade_all: bool = False

    def service(self) -> Service:
        return Service(
            ObjectName("default", "web"),
            tuple(ServicePort(protocol.name, protocol, PORT, NODE_PORT) for protocol in Protocol),
            "LoadBalancer",
            cluster_ips=_packed(ADDRESSES["ClusterIP"].values()),
            external_ips=_packed(ADDRESSES["ExternalIP"].values()),
            load_balancer_ips=_packed(ADDRESSES["LoadBalancer"].values()),
            source_ranges=tuple(map(ipaddress.ip_network, self.source_ranges)),
            external_local=self.external_local,
            internal_local=self.internal_local,
        )

    def slices(self) -> list[EndpointSlice]:
        nodes = {"here": "this", "there": "other"}
        return [
            EndpointSlice(
                ObjectName("default", f"web-{family}"),
                ObjectName("default", "web"),
                family,
                tuple(EndpointPort(protocol.name, protocol, TARGET) for protocol in Protocol),
                tuple(
                    Endpoint(
                        parse_address(PODS[place][family]), *state[:3], node_name=nodes[place], zone_hints=state.zones
                    )
                    for place, state in self.endpoints.items()
                ),
            )
            for family in (4, 6)
        ]

    def node(self) -> NodeConfig:
        addresses = _packed(NODE.values())
        uplink = NodeNetwork((Device(2, "up0", "veth"),), frozenset({2}), {2: addresses})
        return NodeConfig(
            "this",
            ZONE,
            tuple(ipaddress.ip_network(f"{address}/{prefix}") for address, prefix in CLUSTER.values() if self.detector),
            self.masquerade_all,
            addresses=frozenset(addresses),
            primary=addresses,
            state=NetworkState(uplink, route_generation=1),
        )

    def put_into(self, dp: Datapath) -> None:
        plan = plan_service(self.service(), self.slices(), self.node())
        assert plan is not None
        dp.empty("networks")  # the detector is the plan's here
        dp.apply({**dp.proxier.render(plan), **dp.proxier.render_node(plan_node(self.node()))})


def _packed(addresses: Iterable[str]) -> tuple[Any, ...]:
    return tuple(map(parse_address, addresses))


# ---- what has to come out ------------------------------------------------------------------------------------------


def chosen(world: World, via: Via, client: Client, family: int) -> set[Place] | Refusal:
    """The endpoints that may get the packet, or how the client is turned away."""
    inside = client.pod and world.detector
    ranges = [one for one in map(ipaddress.ip_network, world.source_ranges) if one.version == family]
    source = ipaddress.ip_address(client.address[family])
    if via == "LoadBalancer" and ranges and not (inside or any(source in one for one in ranges)):
        return "dropped"  # 13; each family has its own ranges, as in kube-proxy
    everywhere, here = cluster_set(world.endpoints), local_set(world.endpoints)
    if via == "ClusterIP":
        targets = here if world.internal_local else everywhere  # 7, 10
    elif world.external_local and (here or not inside):
        targets = here  # 9
    else:
        targets = everywhere  # 8, and 9's short-cut for pods
    return targets or ("dropped" if everywhere else "refused")  # 10, 11


def cluster_set(endpoints: Endpoints) -> set[Place]:
    ready = {place for place, state in endpoints.items() if state.ready}
    near = {place for place in ready if ZONE in endpoints[place].zones}
    if near and all(endpoints[place].zones for place in ready):
        return near  # 3
    return ready or {place for place, state in endpoints.items() if state.serving and state.terminating}  # 1


def local_set(endpoints: Endpoints) -> set[Place]:
    return cluster_set({place: State(*state[:3]) for place, state in endpoints.items() if place == "here"})  # 2


def masqueraded(world: World, via: Via, client: Client, target: Place) -> bool:
    """Whether the endpoint sees the node. One on this node sees the client, by a known divergence of eBPF."""
    if client.address is PODS[target]:
        return True  # 12
    if via == "ClusterIP":
        return world.masquerade_all or (target == "there" and not (client.pod and world.detector))  # 7
    return target == "there" and not world.external_local  # 8, 9


# ---- both ways -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exchange:
    """One client's first packet, and the answer."""

    dp: Datapath
    layer: Layer
    complete: bool
    family: int
    protocol: Protocol

    def check(self, world: World, via: Via, client: Client, number: int) -> None:
        source = (client.address[self.family], 40000 + number)
        vip = (ADDRESSES[via][self.family], NODE_PORT if via == "NodePort" else PORT)
        request = self._frame(source, vip, (client.side.hop, client.side.mac))
        targets = chosen(world, via, client, self.family)
        if isinstance(targets, str):
            self._turned_away(request, client, targets)
            return
        found = self._arrive(request, client.side)
        [target] = [place for place in targets if Ether(found.packet).payload.dst == PODS[place][self.family]]
        if masqueraded(world, via, client, target):
            self._forwarded(found, source, vip, client, target)
        else:
            self._passed(found, source, vip, client, target)

    def _passed(self, found: Any, source: End, vip: End, client: Client, target: Place) -> None:
        """On by the stack; the answer is translated as it leaves."""
        pod = (PODS[target][self.family], TARGET)
        assert found.verdict == pk.PASS[self._hook(client.side)]
        same(found.packet, self._frame(source, pod, (client.side.hop, client.side.mac)))
        leaving = (client.side.mac, client.side.hop)
        if target == "there":
            answer = self._frame(pod, source, (TO[target].hop, TO[target].mac), flags="SA")
            arrived = self._arrive(answer, TO[target])
            assert arrived.verdict == pk.PASS[self._hook(TO[target])]
            same(arrived.packet, answer)
        out = self.dp.run("tc_out", self._frame(pod, source, leaving, flags="SA"), complete=self.complete)
        assert out.verdict == pk.TC_NEXT
        same(out.packet, self._frame(vip, source, leaving, flags="SA"))

    def _forwarded(self, found: Any, source: End, vip: End, client: Client, target: Place) -> None:
        """By the node itself, with its address and a port of its own; back the same way."""
        pod, side = (PODS[target][self.family], TARGET), TO[target]
        assert found.verdict == pk.SENT[self._hook(client.side, side)]
        node = (NODE[self.family], int.from_bytes(found.packet[34 if self.family == 4 else 54 :][:2]))
        assert SNAT[0] <= node[1] <= SNAT[1]
        same(found.packet, self._frame(node, pod, (side.mac, side.hop), hops=63))
        back = self._arrive(self._frame(pod, node, (side.hop, side.mac), flags="SA"), side)
        assert back.verdict == pk.SENT[self._hook(side, client.side)]
        same(back.packet, self._frame(vip, source, (client.side.mac, client.side.hop), hops=63, flags="SA"))

    def _turned_away(self, request: bytes, client: Client, how: Refusal) -> None:
        hook = self._hook(client.side)
        if how == "dropped":
            assert self._arrive(request, client.side).verdict == pk.DROP[hook]
            return
        # A packet that gets another size has no sum of the whole any more.
        out = dataclasses.replace(self, complete=False)._arrive(request, client.side)
        assert out.verdict == {"xdp": pk.XDP_TX, "tc": pk.TC_REDIRECT}[hook]
        same(out.packet, unreachable(request))

    def _arrive(self, raw: bytes, side: Side) -> Any:
        return self.dp.arrive(self._hook(side), raw, complete=self.complete)

    def _hook(self, *sides: Side) -> Layer:
        """XDP is for what comes in by an uplink and goes out by one."""
        return self.layer if all(side.device == "up0" for side in sides) else "tc"

    def _frame(self, source: End, to: End, macs: tuple[str, str], *, hops: int = 64, flags: str = "S") -> bytes:
        return frame(self.protocol, source, to, flags=flags, hops=hops, macs=macs)


def unreachable(request: bytes) -> bytes:
    """ICMP port unreachable from whom `request` was sent to; quotes its headers and 8 bytes more."""
    packet = Ether(request)
    ip = packet.payload
    outer = network(ip.dst, ip.src)
    if ip.version == 4:
        outer.id = 0
        message: Any = pk.ICMP(type=3, code=3)
    else:
        message = pk.ICMPv6DestUnreach(code=4)
    quoted = Raw(bytes(ip)[: (20 if ip.version == 4 else 40) + 8])
    return bytes(Ether(src=packet.dst, dst=packet.src) / outer / message / quoted)


def check_all(exchange: Exchange, world: World, vias: Iterable[Via] = tuple(ADDRESSES)) -> None:
    """Every client by every kind of frontend."""
    world.put_into(exchange.dp)
    for number, (via, client) in enumerate((via, client) for via in vias for client in CLIENTS):
        try:
            exchange.check(world, via, client, number)
        except Exception as error:
            error.add_note(f"{client.name} by {via}")
            raise


# ---- tables --------------------------------------------------------------------------------------------------------

endpoints = pytest.mark.parametrize("places", ENDPOINTS.values(), ids=list(ENDPOINTS))
layers = pytest.mark.parametrize("layer", ["xdp", "tc"])
policies = pytest.mark.parametrize("external_local", [False, True], ids=["external-cluster", "external-local"])


@endpoints
@policies
@protocols
@families
@hooks
def test_policies(
    dp: Datapath,
    layer: Layer,
    complete: bool,
    family: int,
    protocol: Protocol,
    external_local: bool,
    places: Endpoints,
) -> None:
    """The internal policy is the other one each time, and must not matter to what is external, nor the reverse."""
    world = World(places, internal_local=not external_local, external_local=external_local)
    check_all(Exchange(dp, layer, complete, family, protocol), world)


@endpoints
@policies
@families
@layers
def test_pods_cannot_be_told_without_a_detector(
    dp: Datapath, layer: Layer, family: int, external_local: bool, places: Endpoints
) -> None:
    world = World(places, external_local=external_local, detector=False)
    check_all(Exchange(dp, layer, False, family, Protocol.TCP), world)


@endpoints
@families
@layers
def test_masquerade_all(dp: Datapath, layer: Layer, family: int, places: Endpoints) -> None:
    """It is for cluster IPs."""
    check_all(Exchange(dp, layer, False, family, Protocol.UDP), World(places, masquerade_all=True))


@pytest.mark.parametrize(
    "ranges",
    [("198.51.100.0/24", "2001:db8:51::/64"), ("192.0.2.0/24", "2001:db8:99::/64"), ("198.51.100.7/32",)],
    ids=["admitted", "others", "IPv4-alone"],
)
@pytest.mark.parametrize("detector", [True, False], ids=["detector", "no-detector"])
@pytest.mark.parametrize("places", [ENDPOINTS["both"], ENDPOINTS["none"]], ids=["both", "none"])
@policies
@families
@layers
def test_source_ranges(
    dp: Datapath,
    layer: Layer,
    family: int,
    external_local: bool,
    places: Endpoints,
    detector: bool,
    ranges: tuple[str, ...],
) -> None:
    world = World(places, external_local=external_local, source_ranges=ranges, detector=detector)
    check_all(Exchange(dp, layer, False, family, Protocol.TCP), world)
