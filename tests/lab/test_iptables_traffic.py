"""Real traffic through the rules of the iptables proxier."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace
from pyroute2 import IPRoute

from bpfproxy.lab import cases, manifests, netns, observe
from bpfproxy.lab.cases import Case
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import CLUSTER_CIDRS, NODES, Family
from tests import netfilter_oracle

NOWHERE = ("172.18.0.254", "fd00:172:18::254")
"""Nodes of a lab know no way to the addresses of Services; a packet needs one before its address is translated."""
ALL = [case for case in cases.load() if case.detector]


def prepare_nodes(lab: Lab) -> None:
    for node in NODES:
        with netns.inside(lab.topology.netns(node)), IPRoute() as ip:
            for gateway in NOWHERE:
                ip.route("add", dst="::/0" if ":" in gateway else "0.0.0.0/0", gateway=gateway)
            # Refusals are ICMP errors, of which the kernel sends one client but a few in a second.
            netns.set_sysctl("ipv4.icmp_ratelimit", 0)
            netns.set_sysctl("ipv6.icmp.ratelimit", 0)


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab whose agents serve all cases by the variant that is the parameter."""
    with Lab(unhooked=True) as lab:
        prepare_nodes(lab)
        directory = lab.directory / "manifests"
        manifests.write(directory, "nodes", manifests.nodes())
        for case in ALL:
            manifests.write(directory, case.name, manifests.objects(case))
        for node in NODES:
            options = ("--proxy-mode", "iptables", "--iptables-variant", request.param)
            lab.agent(node, manifests=directory, cluster_cidrs=CLUSTER_CIDRS, options=options).start()
        yield lab


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
@pytest.mark.parametrize("served", ["nft", "legacy"], indirect=True)
def test_case(served: Lab, case: Case, family: Family) -> None:
    different = []
    for probe in (*cases.probes(case, family), *cases.outside_probes(case, family)):
        if (probe.via, family) == ("localhost", 6):
            continue  # rule 14: at socket level alone
        expected = netfilter_oracle.expect(probe)
        outcomes = observe.send(served.places, probe, expected)
        if netfilter_oracle.is_told_at_once(probe, expected):
            outcomes = [replace(one, error=expected.error) if one.error == "EPERM" else one for one in outcomes]
        different += [f"{probe}: {line}" for line in observe.differences(probe, expected, outcomes)]
    assert not different, "\n" + "\n".join(different)
