"""Real traffic through IPVS: what clients see, and what the pods see of them (rules 7 to 16)."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from bpfproxy.config import Settings
from bpfproxy.lab import netns
from bpfproxy.model.address import Family, format_address, parse_address
from bpfproxy.model.service import Endpoint, EndpointPort, EndpointSlice, ObjectName, Protocol, Service, ServicePort
from bpfproxy.proxiers.ipvs.rows import ServerKey
from bpfproxy.proxiers.ipvs.servers import Servers
from tests.kernels.world import CIDRS, CLIENT, GATEWAYS, NODE, PODS, PORT, SILENCE, Agent, World, talk

BOTH: Final = ("pod1", "pod2")
LOCAL, ELSEWHERE = "n1", "n2"
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
    """A Service with an address of its own in both families, on TCP and UDP; and its endpoints."""

    def __init__(self, agent: Agent, **fields: Any) -> None:
        number = next(_numbers)
        self.name = ObjectName("default", f"web{number}")
        self.node_port = 30000 + number
        self.cluster_ip: dict[Family, str] = {4: f"10.96.0.{number}", 6: f"fd00:96::{number}"}
        self.external_ip: dict[Family, str] = {4: f"203.0.113.{number}", 6: f"2001:db8:7::{number}"}
        self._agent = agent
        ports = (Protocol.TCP, Protocol.UDP)
        self.service = Service(
            self.name,
            tuple(ServicePort(one.name.lower(), one, 80, self.node_port) for one in ports),
            "LoadBalancer",
            cluster_ips=tuple(map(parse_address, self.cluster_ip.values())),
            load_balancer_ips=tuple(map(parse_address, self.external_ip.values())),
            **fields,
        )

    def put(self, **nodes: str) -> None:
        """Serve it with these pods, each on a node."""
        self._agent.serve(self.service, *(self._slice(family, nodes) for family in (4, 6)))

    def _slice(self, family: Family, nodes: dict[str, str]) -> EndpointSlice:
        return EndpointSlice(
            ObjectName("default", f"{self.name.name}-{family}"),
            self.name,
            family,
            tuple(EndpointPort(one.name.lower(), one, PORT) for one in (Protocol.TCP, Protocol.UDP)),
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


RESET_FORGOTTEN: Final = 60.0
"""Seconds within which IPVS forgets a connection that was reset (it takes 10)."""

families = pytest.mark.parametrize("family", [4, 6])
protocols = pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP], ids=lambda one: one.name)


@families
@protocols
def test_everybody_reaches_everything(world: World, web: MakeWeb, family: Family, protocol: Protocol) -> None:
    """By turns; clients outside, and the node, are masqueraded (rules 7 and 8)."""
    made = web()
    made.put(pod1=LOCAL, pod2=ELSEWHERE)
    vip, external = (made.cluster_ip[family], 80), (made.external_ip[family], 80)
    for place, to in itertools.product(("client", "node"), (vip, external, (NODE[family], made.node_port))):
        answers = {world.ask(place, protocol, to) for _ in range(2)}
        assert answers == {masqueraded(pod, family) for pod in BOTH}, (place, to)
    answers = {world.ask("pod1", protocol, vip) for _ in range(2)}
    # Itself by a detour: its own address would make it answer to itself (rule 12).
    assert answers == {masqueraded("pod1", family), f"pod2 {PODS['pod1'][family]}"}


@families
def test_local_policy_keeps_the_client(world: World, web: MakeWeb, family: Family) -> None:
    made = web(external_local=True)
    made.put(pod1=LOCAL, pod2=ELSEWHERE)
    for to in ((made.external_ip[family], 80), (NODE[family], made.node_port)):
        assert {world.ask("client", Protocol.TCP, to) for _ in range(2)} == {f"pod1 {CLIENT[family]}"}
        assert world.ask("node", Protocol.TCP, to) == masqueraded("pod1", family)


@families
@protocols
def test_local_policy_without_local_endpoints(world: World, web: MakeWeb, family: Family, protocol: Protocol) -> None:
    """Dropped from outside; the cluster's own clients go to endpoints elsewhere (rule 9)."""
    made = web(external_local=True)
    made.put(pod2=ELSEWHERE)
    for to in ((made.external_ip[family], 80), (NODE[family], made.node_port)):
        assert world.ask("client", protocol, to, SILENCE) == "silence"
        assert world.ask("node", protocol, to) == masqueraded("pod2", family)
    to = (made.external_ip[family], 80)
    assert world.ask("pod1", protocol, to) == f"pod2 {PODS['pod1'][family]}"


@families
def test_internal_policy_without_local_endpoints(world: World, web: MakeWeb, family: Family) -> None:
    made = web(internal_local=True)
    made.put(pod2=ELSEWHERE)
    for place in ("client", "node", "pod1"):
        assert world.ask(place, Protocol.TCP, (made.cluster_ip[family], 80), SILENCE) == "silence"
    assert world.ask("client", Protocol.TCP, (made.external_ip[family], 80)) == masqueraded("pod2", family)


@families
@protocols
def test_no_endpoints_are_refused(world: World, web: MakeWeb, family: Family, protocol: Protocol) -> None:
    made = web(external_local=True, internal_local=True)
    made.put()
    everywhere = ((made.cluster_ip[family], 80), (made.external_ip[family], 80), (NODE[family], made.node_port))
    for place, to in itertools.product(("client", "node", "pod1"), everywhere):
        assert world.ask(place, protocol, to) == "refused", (place, to)
    # Nor does a VIP lead to the node's own ports.
    assert world.ask("client", protocol, (made.cluster_ip[family], 22)) == "refused"


@families
def test_affinity(world: World, web: MakeWeb, family: Family) -> None:
    made = web(affinity_timeout=100)
    made.put(pod1=LOCAL, pod2=ELSEWHERE)
    for protocol in (Protocol.TCP, Protocol.UDP):
        assert len({world.ask("client", protocol, (made.cluster_ip[family], 80)) for _ in range(4)}) == 1


@families
def test_source_ranges(world: World, web: MakeWeb, family: Family) -> None:
    """They bind the load balancer's address, and nothing else (rule 13)."""
    client = ipaddress.ip_network(CLIENT[family])
    made = web(source_ranges=(ipaddress.ip_network("198.51.100.0/24"), ipaddress.ip_network("2001:db8:9::/48")))
    made.put(pod1=LOCAL)
    external = (made.external_ip[family], 80)
    for place in ("client", "node"):
        assert world.ask(place, Protocol.TCP, external, SILENCE) == "silence"
        assert world.ask(place, Protocol.TCP, (NODE[family], made.node_port)) == masqueraded("pod1", family)
    made.service = replace(made.service, source_ranges=(client,))
    made.put(pod1=LOCAL)
    assert world.ask("client", Protocol.TCP, external) == masqueraded("pod1", family)
    assert world.ask("node", Protocol.TCP, external, SILENCE) == "silence"
    made.service = replace(made.service, source_ranges=(client, ipaddress.ip_network(NODE[family])))
    made.put(pod1=LOCAL)
    assert world.ask("node", Protocol.TCP, external) == masqueraded("pod1", family)


@families
def test_tcp_connections_run_out(world: World, web: MakeWeb, agent: Agent, family: Family) -> None:
    """Also over a restart of the agent; the real server goes when its last connection did (rule 26)."""
    made = web()
    made.put(pod1=LOCAL)
    with world.connect("client", Protocol.TCP, (made.cluster_ip[family], 80)) as held:
        assert talk(held).startswith("pod1")
        made.put(pod2=LOCAL)
        assert {world.ask("client", Protocol.TCP, (made.cluster_ip[family], 80)) for _ in range(3)} == {
            masqueraded("pod2", family)
        }
        agent.proxier.tend()
        assert talk(held).startswith("pod1")
        agent.restart()
        made.put(pod2=LOCAL)
        agent.proxier.tend()
        assert talk(held).startswith("pod1")
        assert not agent.proxier.drained(())
        made.put(pod1=LOCAL, pod2=LOCAL)
        made.put(pod2=LOCAL)
        assert talk(held).startswith("pod1")


@families
def test_connections_outlive_their_service(world: World, web: MakeWeb, agent: Agent, family: Family) -> None:
    """As they do with rules, where conntrack goes on; also over a restart, and if the Service comes back."""
    made = web()
    made.put(pod1=LOCAL)
    vip, node_port = (made.cluster_ip[family], 80), (NODE[family], made.node_port)
    with (
        world.connect("client", Protocol.TCP, vip) as held,
        world.connect("client", Protocol.TCP, node_port) as other,
        world.connect("client", Protocol.UDP, vip) as datagrams,
    ):
        assert {talk(one) for one in (held, other, datagrams)} == {masqueraded("pod1", family)}
        agent.serve()
        assert (talk(held), talk(other)) == (masqueraded("pod1", family),) * 2
        assert [world.ask("client", Protocol.TCP, to) for to in (vip, node_port)] == ["refused"] * 2
        assert not agent.proxier.drained(())
        agent.restart()
        agent.serve()
        agent.proxier.tend()
        assert (talk(held), talk(other)) == (masqueraded("pod1", family),) * 2
        made.put(pod2=LOCAL)
        assert world.ask("client", Protocol.TCP, vip) == masqueraded("pod2", family)
        assert talk(held) == masqueraded("pod1", family)
        agent.serve()
        for one in (held, other):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone = ServerKey(parse_address(NODE[family]), made.node_port, Protocol.TCP)
    deadline = time.monotonic() + RESET_FORGOTTEN
    with netns.inside(world.name("node")), contextlib.closing(Servers()) as servers:
        while gone in dict(servers.all()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
            agent.proxier.tend()


@families
def test_udp_goes_to_another_at_once(world: World, web: MakeWeb, family: Family) -> None:
    made = web()
    made.put(pod1=LOCAL)
    with world.connect("client", Protocol.UDP, (made.cluster_ip[family], 80)) as held:
        assert talk(held).startswith("pod1")
        made.put(pod2=LOCAL)
        assert talk(held).startswith("pod2")


def test_vips_are_on_a_device_of_their_own(world: World, web: MakeWeb, agent: Agent) -> None:
    """Unless another has them (rule 25)."""
    made = web(external_ips=(parse_address(NODE[4]),))
    made.put(pod1=LOCAL)
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        [index] = netlink.link_lookup(ifname="kube-ipvs0")
        found = {message.get_attr("IFA_ADDRESS") for message in netlink.get_addr(index=index)}
    assert found == {*made.cluster_ip.values(), *made.external_ip.values()}
    assert world.ask("client", Protocol.TCP, (NODE[4], 80)) == masqueraded("pod1", 4)
    assert format_address(parse_address(NODE[4])) == NODE[4]
