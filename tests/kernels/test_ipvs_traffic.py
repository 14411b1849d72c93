"""Real traffic through IPVS: what clients see, and what the pods see of them (rules 7 to 16)."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace
from pyroute2 import IPRoute

from bpfproxy.config import Settings
from bpfproxy.lab import netns
from bpfproxy.lab.wait import wait_until
from bpfproxy.model.address import Family, format_address, parse_address
from bpfproxy.model.service import Endpoint, EndpointPort, EndpointSlice, ObjectName, Protocol, Service, ServicePort
from bpfproxy.proxiers.ipvs.rows import ServerKey
from bpfproxy.proxiers.ipvs.servers import NoServerError, Servers
from tests.kernels.world import ANSWER, CIDRS, CLIENT, GATEWAYS, NODE, PODS, PORT, SILENCE, Agent, World, talk

BOTH: Final = ("pod1", "pod2")
FAMILIES: Final[tuple[Family, ...]] = (4, 6)
LOCAL, ELSEWHERE = "n1", "n2"
TOLD: Final = (Protocol.TCP, Protocol.UDP)
"""Protocols whose sockets hear of a refusal by ICMP."""
FORGOTTEN: Final = 20.0
"""Seconds within which IPVS forgets a connection that was reset (it takes 10)."""
_numbers = itertools.count(10)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as made:
        yield made


@pytest.fixture(scope="module")
def agent(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    state: Path = tmp_path_factory.mktemp("state")
    with netns.inside(world.name("node")):
        made = Agent(Settings(state_dir=state, node_name="n1", cluster_cidr=CIDRS))
        yield made
        made.end()


class Web:
    """A Service with addresses of its own in both families, of every protocol; and its endpoints."""

    def __init__(self, agent: Agent, **fields: Any) -> None:
        number = next(_numbers)
        self.name = ObjectName("default", f"web{number}")
        self.node_port = 30000 + number
        self.cluster_ip: dict[Family, str] = {4: f"10.96.0.{number}", 6: f"fd00:96::{number}"}
        self.external_ip: dict[Family, str] = {4: f"203.0.113.{number}", 6: f"2001:db8:7::{number}"}
        self._agent = agent
        self.service = Service(
            self.name,
            tuple(ServicePort(one.name.lower(), one, 80, self.node_port) for one in Protocol),
            "LoadBalancer",
            cluster_ips=tuple(map(parse_address, self.cluster_ip.values())),
            load_balancer_ips=tuple(map(parse_address, self.external_ip.values())),
            **fields,
        )

    def outside(self, family: Family) -> tuple[tuple[str, int], ...]:
        """Where clients outside the cluster find it."""
        return (self.external_ip[family], 80), (NODE[family], self.node_port)

    def put(self, *others: Web, **nodes: str) -> None:
        """Serve it, and others, with these pods, each on a node."""
        webs = (self, *others)
        slices = (one._slice(family, nodes) for one in webs for family in FAMILIES)
        self._agent.serve(*(one.service for one in webs), *slices)

    def _slice(self, family: Family, nodes: dict[str, str]) -> EndpointSlice:
        return EndpointSlice(
            ObjectName("default", f"{self.name.name}-{family}"),
            self.name,
            family,
            tuple(EndpointPort(one.name.lower(), one, PORT) for one in Protocol),
            tuple(Endpoint(parse_address(PODS[pod][family]), node_name=node) for pod, node in nodes.items()),
        )


MakeWeb = Callable[..., Web]


@pytest.fixture
def web(agent: Agent) -> Iterator[MakeWeb]:
    yield lambda **fields: Web(agent, **fields)
    agent.serve()


def masqueraded(pod: str, family: Family) -> str:
    """What a pod answers to a client whose address it does not see."""
    return f"{pod} {GATEWAYS[pod][family]}"


def test_everybody_reaches_everything(world: World, web: MakeWeb) -> None:
    """By turns; clients outside, and the node, are masqueraded (rules 7 and 8)."""
    made = web()
    made.put(pod1=LOCAL, pod2=ELSEWHERE)
    for family, protocol in itertools.product(FAMILIES, Protocol):
        vip = (made.cluster_ip[family], 80)
        for place, to in itertools.product(("client", "node"), (vip, *made.outside(family))):
            answers = {world.ask(place, protocol, to) for _ in range(2)}
            assert answers == {masqueraded(pod, family) for pod in BOTH}, (place, protocol, to)
        answers = {world.ask("pod1", protocol, vip) for _ in range(2)}
        # Itself by a detour: its own address would make it answer to itself (rule 12).
        assert answers == {masqueraded("pod1", family), f"pod2 {PODS['pod1'][family]}"}, protocol


def test_local_policy_keeps_the_client(world: World, web: MakeWeb) -> None:
    made = web(external_local=True)
    made.put(pod1=LOCAL, pod2=ELSEWHERE)
    for family in FAMILIES:
        for protocol, to in itertools.product(Protocol, made.outside(family)):
            assert {world.ask("client", protocol, to) for _ in range(2)} == {f"pod1 {CLIENT[family]}"}
            assert world.ask("node", protocol, to) == masqueraded("pod1", family)


def test_local_policies_without_local_endpoints(world: World, web: MakeWeb) -> None:
    """From outside dropped, while the cluster's own clients go to endpoints elsewhere (rule 9); of the internal one,
    for everybody (rule 10)."""
    external, internal = web(external_local=True), web(internal_local=True)
    external.put(internal, pod2=ELSEWHERE)
    for family in FAMILIES:
        for protocol, to in itertools.product(TOLD, external.outside(family)):
            assert world.ask("client", protocol, to, SILENCE) == "silence"
            assert world.ask("node", protocol, to) == masqueraded("pod2", family)
        assert world.ask("pod1", Protocol.TCP, (external.external_ip[family], 80)) == f"pod2 {PODS['pod1'][family]}"
        for place in ("client", "node", "pod1"):
            assert world.ask(place, Protocol.TCP, (internal.cluster_ip[family], 80), SILENCE) == "silence"
        assert world.ask("client", Protocol.TCP, (internal.external_ip[family], 80)) == masqueraded("pod2", family)


def test_no_endpoints_are_refused(world: World, web: MakeWeb) -> None:
    made = web(external_local=True, internal_local=True)
    made.put()
    for family in FAMILIES:
        everywhere = ((made.cluster_ip[family], 80), *made.outside(family))
        for place, protocol, to in itertools.product(("client", "node", "pod1"), TOLD, everywhere):
            assert world.ask(place, protocol, to) == "refused", (place, protocol, to)
        # Nor does a VIP lead to the node's own ports.
        assert world.ask("client", Protocol.TCP, (made.cluster_ip[family], 22)) == "refused"


def test_affinity(world: World, web: MakeWeb) -> None:
    made = web(affinity_timeout=100)
    made.put(pod1=LOCAL, pod2=ELSEWHERE)
    for family, protocol in itertools.product(FAMILIES, Protocol):
        assert len({world.ask("client", protocol, (made.cluster_ip[family], 80)) for _ in range(4)}) == 1


def test_source_ranges(world: World, web: MakeWeb) -> None:
    """They bind the load balancer's address, and nothing else (rule 13)."""
    elsewhere = tuple(map(ipaddress.ip_network, ("198.51.100.0/24", "2001:db8:9::/48")))
    clients = tuple(map(ipaddress.ip_network, CLIENT.values()))
    nodes = tuple(map(ipaddress.ip_network, NODE.values()))
    made = web(source_ranges=elsewhere)
    for admitted in (elsewhere, clients, (*clients, *nodes)):
        made.service = replace(made.service, source_ranges=admitted)
        made.put(pod1=LOCAL)
        for family, (place, of) in itertools.product(FAMILIES, {"client": clients, "node": nodes}.items()):
            external, node_port = made.outside(family)
            wanted = masqueraded("pod1", family) if set(of) <= set(admitted) else "silence"
            assert world.ask(place, Protocol.TCP, external, SILENCE if wanted == "silence" else ANSWER) == wanted
            assert world.ask(place, Protocol.TCP, node_port) == masqueraded("pod1", family)


def test_tcp_connections_run_out(world: World, web: MakeWeb, agent: Agent) -> None:
    """Also over a restart of the agent; the real server goes when its last connection did (rule 26)."""
    made = web()
    made.put(pod1=LOCAL)
    vips = [(made.cluster_ip[family], 80) for family in FAMILIES]
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(world.connect("client", Protocol.TCP, vip)) for vip in vips]

        def hold() -> None:
            agent.proxier.tend()
            assert all(talk(one).startswith("pod1") for one in held)

        hold()
        made.put(pod2=LOCAL)
        for family, vip in zip(FAMILIES, vips, strict=True):
            assert {world.ask("client", Protocol.TCP, vip) for _ in range(3)} == {masqueraded("pod2", family)}
        hold()
        agent.restart()
        made.put(pod2=LOCAL)
        hold()
        assert not agent.proxier.drained(())
        made.put(pod1=LOCAL, pod2=LOCAL)
        made.put(pod2=LOCAL)
        hold()
        assert all(weights(vip) == {"pod1": 0, "pod2": 1} for vip in vips)
        reset(held)

    def gone() -> bool:
        agent.proxier.tend()
        return all(weights(vip) == {"pod2": 1} for vip in vips)

    wait_until(gone, FORGOTTEN, "the real servers go")


def reset(held: Iterable[socket.socket]) -> None:
    """Let connections end with a reset when they are closed: IPVS forgets those within 10 s."""
    for one in held:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def weights(vip: tuple[str, int]) -> dict[str, int]:
    """Those of the real servers behind a virtual one over TCP."""
    pods = {address: pod for pod, addresses in PODS.items() for address in addresses.values()}
    with contextlib.closing(Servers()) as servers, contextlib.suppress(NoServerError):
        found = servers.reals(ServerKey(parse_address(vip[0]), vip[1], Protocol.TCP))
        return {pods[format_address(one.address)]: one.weight for one in found}
    return {}


def test_connections_outlive_their_service(world: World, web: MakeWeb, agent: Agent) -> None:
    """As they do with rules, where conntrack goes on; also over a restart, and if the Service comes back."""
    made = web()
    made.put(pod1=LOCAL)
    ways = [(family, (made.cluster_ip[family], 80)) for family in FAMILIES]
    ways += [(family, (NODE[family], made.node_port)) for family in FAMILIES]
    with contextlib.ExitStack() as stack:
        held = [(stack.enter_context(world.connect("client", Protocol.TCP, to)), family) for family, to in ways]

        def hold() -> None:
            assert all(talk(one) == masqueraded("pod1", family) for one, family in held)

        hold()
        agent.serve()
        hold()
        assert {world.ask("client", Protocol.TCP, to) for _, to in ways} == {"refused"}
        assert not agent.proxier.drained(())
        agent.restart()
        agent.serve()
        agent.proxier.tend()
        hold()
        made.put(pod2=LOCAL)
        for family, to in ways:
            assert world.ask("client", Protocol.TCP, to) == masqueraded("pod2", family)
        hold()
        agent.serve()
        reset(one for one, _ in held)

    def gone() -> bool:
        agent.proxier.tend()
        return not any("pod1" in weights(to) for _, to in ways)

    wait_until(gone, FORGOTTEN, "the real servers go")


def test_udp_goes_to_another_at_once(world: World, web: MakeWeb) -> None:
    made = web()
    made.put(pod1=LOCAL)
    vips = [(made.cluster_ip[family], 80) for family in FAMILIES]
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(world.connect("client", Protocol.UDP, vip)) for vip in vips]
        assert all(talk(one).startswith("pod1") for one in held)
        made.put(pod2=LOCAL)
        assert all(talk(one).startswith("pod2") for one in held)


def test_vips_are_on_a_device_of_their_own(world: World, web: MakeWeb) -> None:
    """Unless another has them (rule 25)."""
    made = web(external_ips=(parse_address(NODE[4]),))
    made.put(pod1=LOCAL)
    with IPRoute() as netlink:
        [index] = netlink.link_lookup(ifname="kube-ipvs0")
        found = {message.get_attr("IFA_ADDRESS") for message in netlink.get_addr(index=index)}
    assert found >= {*made.cluster_ip.values(), *made.external_ip.values()}
    assert NODE[4] not in found
    assert world.ask("client", Protocol.TCP, (NODE[4], 80)) == masqueraded("pod1", 4)
