"""The ipvs proxier on a kernel that has IPVS: what was rendered and applied is read back, whatever happened before, and
nothing of anybody else's is touched."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyroute2 import IPVS, IPRoute, IPVSService

from bpfproxy.config import Settings
from bpfproxy.errors import UnsupportedError
from bpfproxy.lab.wait import PATIENCE
from bpfproxy.model.address import Address, parse_address
from bpfproxy.model.event import Object
from bpfproxy.model.service import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectName,
    Protocol,
    Service,
    ServicePort,
)
from bpfproxy.netfilter.ipset import IpSets
from bpfproxy.netfilter.sysctl import get
from bpfproxy.proxiers.ipvs import lifecycle
from bpfproxy.proxiers.ipvs.render import SCHEDULERS
from bpfproxy.proxiers.ipvs.rows import ServerKey
from tests.kernels.world import CIDRS, NODE_ADDRESSES, Agent
from tests.unit import strategies

NAME = ObjectName("default", "web")
VIP = parse_address("10.96.0.10")
PODS = [parse_address(f"10.1.0.{n}") for n in range(1, 4)]
WEB = Service(NAME, (ServicePort("", Protocol.TCP, 80, 30080),), "NodePort", (VIP,))


def slice_of(*pods: Address) -> EndpointSlice:
    port = EndpointPort("", Protocol.TCP, 8080)
    return EndpointSlice(NAME, NAME, 4, (port,), tuple(Endpoint(pod, node_name="n1") for pod in pods))


@pytest.fixture
def agent(node: str, state: Path) -> Iterator[Agent]:
    made = Agent(Settings(state_dir=state, node_name="n1", cluster_cidr=CIDRS))
    yield made
    made.end()
    assert leftovers() == []


def leftovers() -> list[str]:
    """What there is of ipsets, chains, virtual servers and devices."""
    found = []
    ipsets = IpSets()
    found += list(ipsets.all())
    ipsets.close()
    for tool in ("iptables-save", "ip6tables-save"):
        text = subprocess.run([tool], capture_output=True, text=True, check=True).stdout
        found += [line for line in text.splitlines() if "KUBE" in line]
    found += map(str, virtual_servers())
    with IPRoute() as netlink:
        found += [str(index) for index in netlink.link_lookup(ifname="kube-ipvs0")]
    return found


def virtual_servers() -> list[Any]:
    """All of the kernel, as it tells of them."""
    with IPVS() as ipvs:
        return [message.get_attr("IPVS_CMD_ATTR_SERVICE") for message in ipvs.service("dump")]


def test_everything_is_gone_after_cleanup(node: str, state: Path) -> None:
    before = get("net/ipv4/ip_forward"), get("net/ipv4/conf/all/arp_ignore")
    agent = Agent(Settings(state_dir=state, node_name="n1", ipvs_strict_arp=True))
    agent.serve(WEB, slice_of(*PODS))
    assert leftovers()
    assert (get("net/ipv4/ip_forward"), get("net/ipv4/conf/all/arp_ignore")) == ("1", "1")
    agent.proxier.close()
    removed = lifecycle.cleanup(state)
    assert "virtual servers 10.96.0.10:80/TCP" in removed
    assert "sets KUBE-CLUSTER-IP" in removed
    assert leftovers() == []
    assert (get("net/ipv4/ip_forward"), get("net/ipv4/conf/all/arp_ignore")) == before
    assert lifecycle.cleanup(state) == []


def test_a_restart_applies_the_difference_alone(agent: Agent) -> None:
    assert agent.serve(WEB, slice_of(*PODS[:2]))
    assert agent.serve(WEB, slice_of(*PODS[:2])) == 0
    agent.restart()
    # A real server more at the ClusterIP, and one at the NodePort.
    assert agent.serve(WEB, slice_of(*PODS[:3])) == 2
    agent.restart()
    assert agent.serve(WEB, slice_of(*PODS[:3])) == 0


def test_each_scheduler(agent: Agent) -> None:
    """One after another, while the real servers stay."""
    agent.serve(WEB, slice_of(*PODS))
    for scheduler in SCHEDULERS:
        agent.settings = replace(agent.settings, ipvs_scheduler=scheduler)
        wanted = agent.plan(WEB, slice_of(*PODS))
        assert {type(key) for key in wanted if wanted[key] != agent.applied.get(key)} <= {ServerKey}
        assert agent.change(wanted) == []
        agent.applied = wanted
        assert {one.get_attr("IPVS_SVC_ATTR_SCHED_NAME") for one in virtual_servers()} == {scheduler}
    assert agent.proxier.read() == agent.applied


def test_what_others_have_is_left_alone(agent: Agent) -> None:
    """Be it where no Service is, where one wants to be, or where a NodePort does; nor are sets, rules and addresses
    of others touched."""
    ipsets = IpSets()
    ipsets.create("THEIRS", "hash:ip", 4)
    rule = ("PREROUTING", "-d", "198.51.100.5", "-j", "ACCEPT")
    subprocess.run(["iptables", "-t", "nat", "-A", *rule], check=True)
    with IPVS() as ipvs:
        theirs = [("198.51.100.5", 80), ("10.96.0.10", 80), ("192.0.2.1", 30080)]
        for address, port in theirs:
            ipvs.service(
                "add", service=IPVSService(addr=address, port=port, protocol=int(Protocol.TCP), sched_name="wlc")
            )
        agent.applied = agent.proxier.read()
        failures = agent.change(agent.plan(WEB, slice_of(*PODS)))
        assert any("10.96.0.10:80/TCP that is not ours" in failure.reason for failure in failures)
        assert any("192.0.2.1:30080/TCP that is not ours" in failure.reason for failure in failures)
        agent.restart()
        agent.serve()
        agent.end()
        assert len(virtual_servers()) == len(theirs)
        assert list(ipsets.all()) == ["THEIRS"]
        subprocess.run(["iptables", "-t", "nat", "-D", *rule], check=True)  # fails if it is not there
        ipsets.destroy("THEIRS")
        ipsets.close()
        for address, port in theirs:
            ipvs.service("del", service=IPVSService(addr=address, port=port, protocol=int(Protocol.TCP)))
    agent.start()
    agent.serve(WEB, slice_of(*PODS))


def test_another_proxys_sets_are_refused(node: str, state: Path) -> None:
    ipsets = IpSets()
    ipsets.create("KUBE-CLUSTER-IP", "hash:ip,port", 4)
    with pytest.raises(UnsupportedError, match="KUBE-CLUSTER-IP belongs to another proxy"):
        lifecycle.open_proxier(Settings(state_dir=state))
    assert not lifecycle.present(state)
    ipsets.destroy("KUBE-CLUSTER-IP")
    ipsets.close()


def test_what_others_change_is_repaired(agent: Agent) -> None:
    agent.serve(WEB, slice_of(*PODS))
    with IPRoute() as netlink, IPVS() as ipvs:
        [index] = netlink.link_lookup(ifname="kube-ipvs0")
        netlink.addr("del", index=index, address="10.96.0.10", prefixlen=32)
        netlink.addr("add", index=index, address="10.96.0.99", prefixlen=32)
        ipvs.service("del", service=IPVSService(addr="192.0.2.1", port=30080, protocol=int(Protocol.TCP)))
    subprocess.run(["iptables", "-t", "nat", "-F", "KUBE-IPVS-SERVICES"], check=True)
    agent.applied = agent.proxier.read()
    assert agent.serve(WEB, slice_of(*PODS)) > 0
    with IPRoute() as netlink:
        addresses = [message.get_attr("IFA_ADDRESS") for message in netlink.get_addr(index=index)]
    assert addresses == ["10.96.0.10"]


def test_node_ports_follow_the_addresses(agent: Agent) -> None:
    def servers() -> set[str]:
        node_ports = (one for one in virtual_servers() if one.get_attr("IPVS_SVC_ATTR_PORT") == 30080)
        return {one.get_attr("IPVS_SVC_ATTR_ADDR") for one in node_ports}

    first, second = parse_address("192.0.2.1"), parse_address("192.0.2.2")
    agent.serve(WEB, slice_of(*PODS), addresses=(first,))
    assert servers() == {"192.0.2.1"}
    agent.serve(WEB, slice_of(*PODS), addresses=(first, second))
    assert servers() == {"192.0.2.1", "192.0.2.2"}
    agent.restart()
    agent.serve(WEB, slice_of(*PODS), addresses=(second,))
    assert servers() == {"192.0.2.2"}


def test_excluded_ranges_keep_their_virtual_servers(agent: Agent) -> None:
    agent.settings = Settings(state_dir=agent.settings.state_dir, node_name="n1", ipvs_exclude_cidrs=("10.96.0.0/24",))
    agent.restart()
    agent.serve(WEB, slice_of(*PODS))
    agent.serve()
    [left] = virtual_servers()
    assert left.get_attr("IPVS_SVC_ATTR_ADDR") == "10.96.0.10"
    with IPVS() as ipvs:
        ipvs.service("del", service=IPVSService(addr="10.96.0.10", port=80, protocol=int(Protocol.TCP)))


STEPS = st.lists(
    st.tuples(
        st.lists(strategies.services(), max_size=2),
        strategies.slice_lists(strategies.SERVICES[0]),
        st.sampled_from([NODE_ADDRESSES, NODE_ADDRESSES[:1]]),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)
EMULATED = PATIENCE > 1


@settings(
    max_examples=3 if EMULATED else 30,
    # Making a failure smaller would take an emulated processor hours.
    phases=[Phase.generate] if EMULATED else list(Phase),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(STEPS)
def test_any_history_ends_where_it_should(
    agent: Agent, steps: list[tuple[list[Service], list[EndpointSlice], tuple[Address, ...], bool]]
) -> None:
    for services, slices, addresses, restart in steps:
        if restart:
            agent.restart()
        objects: list[Object] = [*{service.name: service for service in services}.values(), *slices]
        agent.serve(*objects, addresses=addresses)
